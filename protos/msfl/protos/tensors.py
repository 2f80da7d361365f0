"""Reading a safetensors file that a stranger wrote, without trusting a byte of it.

The format (github.com/huggingface/safetensors): an 8-byte little-endian header length, a JSON header
`{name: {"dtype", "shape", "data_offsets": [begin, end]}}`, then the data. The public readers accept three things we
do not: duplicate names, a free-text `__metadata__` member (a covert channel), and they leave finiteness to the caller.
`read_table` accepts only float32 tensors that lie gapless and in order behind a header of bounded size.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 20_000
_LENGTH = struct.Struct("<Q")


class BadTensors(ValueError):
    """`code` may leave a site: header_unreadable, duplicate_name, metadata, dtype, layout, too_many, template."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True)
class TensorTable:
    """Names and shapes of a file's float32 tensors; `data_start` is where the first one begins, in bytes."""

    shapes: Mapping[str, tuple[int, ...]]
    data_start: int

    @property
    def total_bytes(self) -> int:
        return self.data_start + sum(4 * math.prod(shape) for shape in self.shapes.values())


def all_finite(values: NDArray[np.float32]) -> bool:
    """Whether there is no NaN and no infinity. One pass without a mask: the sum of squares is finite nearly always."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(np.dot(flat, flat)) or bool(np.isfinite(flat).all())


def read_table(source: BinaryIO) -> TensorTable:
    """Raises BadTensors. Leaves `source` at the first byte of data."""
    head = source.read(_LENGTH.size)
    if len(head) != _LENGTH.size:
        raise BadTensors("header_unreadable", "the file is shorter than a header")
    (length,) = _LENGTH.unpack(head)
    if length > MAX_HEADER_BYTES:
        raise BadTensors("header_unreadable", f"the header announces {length} bytes")
    text = source.read(length)
    if len(text) != length:
        raise BadTensors("header_unreadable", "the file ends inside its header")
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BadTensors("header_unreadable", "the header is not JSON") from error
    if not isinstance(header, dict):
        raise BadTensors("header_unreadable", "the header is not an object")
    if len(header) > MAX_TENSORS:
        raise BadTensors("too_many", f"{len(header)} tensors")
    if "__metadata__" in header:
        raise BadTensors("metadata", "free text beside the tensors is not accepted")
    shapes: dict[str, tuple[int, ...]] = {}
    expected = 0
    for name, entry in sorted(header.items(), key=lambda item: _begin(item[1])):
        shape = _shape(name, entry)
        size = 4 * math.prod(shape)
        if entry["data_offsets"] != [expected, expected + size]:
            raise BadTensors("layout", f"{name} overlaps, leaves a hole or has the wrong size")
        expected += size
        shapes[name] = shape
    return TensorTable(shapes=shapes, data_start=_LENGTH.size + length)


def must_match(table: TensorTable, template: TensorTable) -> None:
    """Raises BadTensors("template") unless names and shapes are exactly the template's."""
    if table.shapes.keys() != template.shapes.keys():
        missing = sorted(template.shapes.keys() - table.shapes.keys())[:3]
        extra = sorted(table.shapes.keys() - template.shapes.keys())[:3]
        raise BadTensors("template", f"tensors differ from the model's: missing {missing}, extra {extra}")
    for name, shape in table.shapes.items():
        if shape != template.shapes[name]:
            raise BadTensors("template", f"{name} has shape {list(shape)}, not {list(template.shapes[name])}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise BadTensors("duplicate_name", "a name stands twice in the header")
    return keys


def _begin(entry: object) -> int:
    if isinstance(entry, dict):
        offsets = entry.get("data_offsets")
        if isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int for o in offsets):
            return int(offsets[0])
    raise BadTensors("layout", "an entry without data offsets")


def _shape(name: str, entry: dict[str, Any]) -> tuple[int, ...]:
    if set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadTensors("layout", f"{name} has other members than dtype, shape and data_offsets")
    if entry["dtype"] != "F32":
        raise BadTensors("dtype", f"{name} is {entry['dtype']!r}; only F32 travels")
    shape = entry["shape"]
    if not isinstance(shape, list) or not all(type(d) is int and 0 <= d < 1 << 40 for d in shape):
        raise BadTensors("layout", f"{name} has no valid shape")
    return tuple(shape)
