"""Sixteen bits on the wire: rounding is what it says, nothing is lost for good, and both ends hold the same bits."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msfl.learning import weights as weight_files
from msfl.protos.tensors import BadTensors, read_table
from msfl.protos.wire_formats import decode, encode, encode_difference, head_as

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.0, 0xC000),
        (0.0, 0x0000),
        # 1 + 2^-8 lies in the middle of 1 and 1 + 2^-7: to even, which is 1. 1 + 3·2^-8 goes up to 1 + 2^-6.
        (1 + 2**-8, 0x3F80),
        (1 + 3 * 2**-8, 0x3F82),
        (1 + 2**-8 + 2**-20, 0x3F81),
    ],
)
def test_bf16_rounds_to_nearest_ties_to_even(value: float, bits: int) -> None:
    assert encode(floats(value), "bf16").tolist() == [bits]


@given(st.lists(FINITE, min_size=1, max_size=50))
@settings(deadline=None)
def test_what_is_decoded_is_the_nearest_and_decodes_to_itself(values: list[float]) -> None:
    given_ = floats(*values)
    for wire, precision in (("bf16", 2.0**-8), ("fp16", 2.0**-11)):
        back = decode(encode(given_, wire), wire)
        assert np.array_equal(decode(encode(back, wire), wire), back)
        inside = np.abs(given_) <= (3e38 if wire == "bf16" else 65504)
        error = np.abs(back.astype(np.float64) - given_)[inside]
        assert (error <= precision * np.abs(given_.astype(np.float64))[inside] + 2.0**-24).all()


@pytest.mark.parametrize("wire", ["bf16", "fp16"])
def test_what_rounding_loses_comes_with_the_next_ones(wire: str) -> None:
    """A value that moves by a little each time, far below what 16 bits resolve of it, arrives all the same."""
    random = np.random.default_rng(3)
    held = base = random.standard_normal(1000).astype(np.float32)
    target, left = base.copy(), np.zeros(1000, dtype=np.float32)
    for _ in range(50):
        target = target + np.float32(1e-4) * random.standard_normal(1000).astype(np.float32)
        words, now, left = encode_difference(target, held, left, wire)
        # The other end computes the same.
        assert (held + decode(words, wire)).tobytes() == now.tobytes()
        held = now
    assert np.abs(held - target).max() < 1e-5
    assert np.abs(base - target).max() > 1e-4


def test_a_difference_beyond_fp16_is_cut_off_and_follows() -> None:
    _, held, left = encode_difference(floats(1e5), floats(0), floats(0), "fp16")
    assert (held.tolist(), left.tolist()) == ([65504.0], [34496.0])
    _, held, left = encode_difference(floats(1e5), held, left, "fp16")
    assert np.isfinite(held).all()


def test_a_head_of_another_type_names_the_same_tensors() -> None:
    model = {"kernel": np.zeros((2, 3), dtype=np.float32), "scalar": np.array(1, dtype=np.float32)}
    head = bytes(next(weight_files.encoded(model)))
    assert head_as(head, "float32") == head
    half = head_as(head, "bf16")
    assert len(half) % 64 == 0
    assert b'"dtype":"BF16"' in half
    assert half == head_as(head, "bf16")
    with pytest.raises(BadTensors, match="only F32"):
        read_table(io.BytesIO(half))
    with pytest.raises(BadTensors):
        head_as(struct.pack("<Q", 2) + b"[]", "fp16")
