"""Weights on disk: safetensors files of float32, checked on opening and read block by block.

save      {name: array} → one file, tensors in the order of the mapping, no metadata
TensorFile(path)        the header is checked (`msfl.protos.tensors`): float32 only, no duplicate name, no free
                        text, no byte that belongs to no tensor; nothing of the data is in memory
  .expect(template)     exactly the names and shapes of the model
  .check_finite()       a pass over all values, of its own: do it before the first value is used
  .blocks(name)         flat pieces of bounded size: memory does not grow with the model
load                    all of the above, everything in memory
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msfl.learning.contract import Weights
from msfl.learning.files import write_whole
from msfl.protos.tensors import BadTensors, TensorTable, must_match, read_table

BLOCK = 1 << 20  # values: 4 MiB of float32, 8 MiB of float64


def save(path: Path, weights: Weights, *, durable: bool = False) -> str:
    """Write weights whole or not at all; returns `sha256:<hex>` of the file.

    Raises BadTensors("dtype" or "not_finite").
    """
    for name, values in weights.items():
        if values.dtype != np.float32:
            raise BadTensors("dtype", f"{name} is {values.dtype}, not float32")
        if not np.isfinite(values).all():
            raise BadTensors("not_finite", f"{name} holds NaN or infinity")
    return write_whole(path, _encoded(weights), durable=durable)


def _encoded(weights: Weights) -> Iterator[bytes]:
    header: dict[str, Any] = {}
    end = 0
    for name, values in weights.items():
        begin, end = end, end + values.nbytes
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for values in weights.values():
        yield values.astype("<f4", copy=False).tobytes()


def load(path: Path) -> Weights:
    """All tensors of a file, in the file's order. Raises BadTensors, OSError."""
    tensors = TensorFile(path)
    tensors.check_finite()
    return {name: tensors.read(name) for name in tensors.table.shapes}


def shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in weights.items()}


class TensorFile:
    """One safetensors file. It must not change while this object is in use."""

    def __init__(self, path: Path) -> None:
        """Raises BadTensors, OSError."""
        self._path = path
        with path.open("rb") as file:
            self.table: TensorTable = read_table(file)
        if self.table.total_bytes != path.stat().st_size:
            raise BadTensors("layout", "the file holds more or fewer bytes than its tensors")
        self._begins: dict[str, int] = {}
        begin = self.table.data_start
        for name, shape in self.table.shapes.items():
            self._begins[name] = begin
            begin += 4 * math.prod(shape)

    @property
    def n_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.table.shapes.values())

    def expect(self, template: TensorTable) -> None:
        """Exactly these names with exactly these shapes. Raises BadTensors."""
        must_match(self.table, template)

    def check_finite(self) -> None:
        """Raises BadTensors when any value is NaN or infinite."""
        for name in self.table.shapes:
            for _, values in self.blocks(name):
                if not np.isfinite(values).all():
                    raise BadTensors("not_finite", f"{name} holds NaN or infinity")

    def blocks(self, name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """`(position, values)`: flat pieces of at most `BLOCK` values; `position` counts values from the start."""
        size = math.prod(self.table.shapes[name])
        for position in range(0, size, BLOCK):
            yield position, self._values(name, position, min(BLOCK, size - position))

    def read(self, name: str) -> NDArray[np.float32]:
        shape = self.table.shapes[name]
        return self._values(name, 0, math.prod(shape)).reshape(shape)

    def _values(self, name: str, position: int, n: int) -> NDArray[np.float32]:
        offset = self._begins[name] + 4 * position
        return np.fromfile(self._path, dtype="<f4", count=n, offset=offset).astype(np.float32, copy=False)
