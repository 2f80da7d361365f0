"""What a model's values look like on the wire: as they are, or as 16-bit differences to a model both ends hold.

    float32      the values
    bf16, fp16   value − base, rounded to 16 bits, to nearest, ties to even; half the bytes

What rounding loses is not thrown away: whoever encodes keeps it and adds it to what it encodes next (error feedback;
Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019). bf16 keeps float32's range and 8 bits of the value, fp16
keeps 11 bits and a smaller range: larger differences are cut off at ±65504 and come with the next ones.

    difference = value + left_over − base;  sent = encode(difference);  left_over' = value + left_over − (base + sent)

Every step is one float32 operation, so both ends compute the same `base + sent` to the bit.
"""

from __future__ import annotations

import io
import json
import struct
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from msfl.protos.tensors import read_table

Values: TypeAlias = NDArray[np.float32]
FLOAT32 = "float32"
DTYPES = {FLOAT32: "F32", "bf16": "BF16", "fp16": "F16"}
"""The wire formats, and how safetensors calls their values."""
_LARGEST_FP16 = np.float32(65504)
_LENGTH = struct.Struct("<Q")


def encode(values: Values, wire: str) -> NDArray[Any]:
    """16-bit words, little-endian."""
    if wire == "fp16":
        return np.clip(values, -_LARGEST_FP16, _LARGEST_FP16).astype("<f2")
    bits = values.view(np.uint32)
    # Round half to even: add half of the last kept place, and one more where that place is odd.
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def decode(words: NDArray[Any], wire: str) -> Values:
    if wire == "fp16":
        return words.view("<f2").astype(np.float32)
    return (words.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def encode_difference(
    values: Values, base: Values, left_over: Values, wire: str
) -> tuple[NDArray[Any], Values, Values]:
    """The words to send, what the other end will hold, and what is left over for the next time."""
    wanted = values + left_over
    words = encode(wanted - base, wire)
    held = base + decode(words, wire)
    return words, held, wanted - held


def head_as(head: bytes, wire: str) -> bytes:
    """The first bytes, up to the data, of a safetensors file with the same tensors as `head`'s in a wire format.

    Spelled in one way only, so that heads can be compared byte by byte. Raises BadTensors.
    """
    if wire == FLOAT32:
        return head
    header: dict[str, Any] = {}
    end = 0
    for name, shape in read_table(io.BytesIO(head)).shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": DTYPES[wire], "shape": list(shape), "data_offsets": [begin, end]}
    return spelled(header)


def spelled(header: dict[str, Any]) -> bytes:
    """A safetensors header with its length in front, as we write it: a multiple of 64 bytes."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % 64)
    return _LENGTH.pack(len(text)) + text
