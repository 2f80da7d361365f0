import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from msfl.learning import weights as weight_files
from msfl.learning.contract import Weights
from msfl.protos.tensors import BadTensors

MODEL: Weights = {
    "z.first": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.scalar": np.array(2.5, dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "big": np.linspace(-1, 1, 5000, dtype=np.float32),
}


def assert_same(one: Weights, other: Weights) -> None:
    assert list(one) == list(other)
    for name, values in one.items():
        assert values.dtype == np.float32
        assert np.array_equal(values, other[name])
        assert values.shape == other[name].shape


def test_round_trip_keeps_names_order_shapes_and_bits(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    digest = weight_files.save(path, MODEL)
    assert digest == weight_files.save(tmp_path / "again.safetensors", MODEL)
    assert_same(weight_files.load(path), {k: MODEL[k] for k in weight_files.load(path)})
    assert set(weight_files.load(path)) == set(MODEL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "w.safetensors"]


def test_the_public_library_reads_what_we_write_and_we_what_it_writes(tmp_path: Path) -> None:
    weight_files.save(tmp_path / "ours", MODEL)
    theirs = safetensors.numpy.load_file(tmp_path / "ours")
    assert {k: v.tolist() for k, v in theirs.items()} == {k: v.tolist() for k, v in MODEL.items()}
    safetensors.numpy.save_file(MODEL, tmp_path / "theirs")
    ours = weight_files.load(tmp_path / "theirs")
    assert {k: v.tolist() for k, v in ours.items()} == {k: v.tolist() for k, v in MODEL.items()}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_that_is_not_finite_is_written_or_read(tmp_path: Path, bad: float) -> None:
    spoiled = {"drift": np.array([0, bad, 1], dtype=np.float32)}
    with pytest.raises(BadTensors, match="not_finite"):
        weight_files.save(tmp_path / "w", spoiled)
    assert not list(tmp_path.iterdir())
    safetensors.numpy.save_file(spoiled, tmp_path / "w")
    with pytest.raises(BadTensors, match="not_finite"):
        weight_files.load(tmp_path / "w")


def test_only_float32_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadTensors, match="dtype"):
        weight_files.save(tmp_path / "w", {"drift": np.zeros(3)})  # type: ignore[dict-item]  # float64 on purpose


def test_a_file_with_a_tail_or_without_its_end_is_refused(tmp_path: Path) -> None:
    weight_files.save(tmp_path / "w", MODEL)
    whole = (tmp_path / "w").read_bytes()
    for bytes_ in (whole + b"x", whole[:-1], whole[:20], whole[:3], b""):
        (tmp_path / "broken").write_bytes(bytes_)
        with pytest.raises(BadTensors):
            weight_files.load(tmp_path / "broken")


def raw(header: str, data: bytes) -> bytes:
    text = header.encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ('{"__metadata__": {"note": "case 17"}, "a": ' + ENTRY + "}", "metadata"),
        ('{"a": ' + ENTRY + ', "a": ' + ENTRY + "}", "duplicate_name"),
        ('{"a": ' + ENTRY.replace("F32", "F64") + "}", "dtype"),
        ('{"a": ' + ENTRY.replace("[1]", "[2]") + "}", "layout"),
        ('{"a": ' + ENTRY.replace("[1]", "[-1]") + "}", "layout"),
        ("[]", "header_unreadable"),
        ("{", "header_unreadable"),
    ],
)
def test_a_header_that_is_not_plain_is_refused(tmp_path: Path, header: str, code: str) -> None:
    (tmp_path / "w").write_bytes(raw(header, b"\0\0\0\0"))
    with pytest.raises(BadTensors) as refused:
        weight_files.load(tmp_path / "w")
    assert refused.value.code == code


def test_files_of_the_same_names_and_shapes_begin_with_the_same_bytes(tmp_path: Path) -> None:
    """The gate and the centre compare these bytes, and the values lie at the same places."""
    other = {name: values + np.float32(1) for name, values in MODEL.items()}
    one, two = (next(weight_files.encoded(weights)) for weights in (MODEL, other))
    assert bytes(one) == bytes(two)
    assert len(one) % 64 == 0
