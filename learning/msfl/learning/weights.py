"""Weights on disk: safetensors files of float32, checked when they are written and when they are read.

save, write   {name: array} → one file, tensors in the order of the mapping, no metadata; always spelled the same way,
              so that files of the same names and shapes have the same first bytes, up to the data
load          the header is checked (`msfl.protos.tensors`): float32 only, no duplicate name, no free text, no byte that
              belongs to no tensor; every value is finite
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msfl.learning.contract import Weights
from msfl.learning.files import sha256_of_file, write_whole
from msfl.protos.tensors import BadTensors, TensorTable, all_finite, read_table
from msfl.protos.wire_formats import spelled


def save(path: Path, weights: Weights) -> str:
    """Write weights whole or not at all; returns `sha256:<hex>` of the file. Raises as `write`."""
    write(path, weights)
    return sha256_of_file(path)


def write(path: Path, weights: Weights) -> None:
    """Write weights whole or not at all. Raises BadTensors("dtype" or "not_finite")."""
    pieces = encoded(weights)
    head = next(pieces)  # All checks come before the first piece, and so before there is a file.
    write_whole(path, itertools.chain([head], pieces))


def write_over(path: Path, weights: Weights) -> None:
    """As `write`, over the file that may be there: its pages are used again, and it is whole only on return."""
    pieces = encoded(weights)
    head = next(pieces)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb", buffering=0) as file:
        for piece in itertools.chain([head], pieces):
            file.write(piece)
        file.truncate()


def encoded(weights: Weights) -> Iterator[bytes | memoryview]:
    """A safetensors file in pieces, the first of which ends where the data begin; that is a multiple of 64 bytes.

    Raises BadTensors("dtype" or "not_finite").
    """
    for name, values in weights.items():
        if values.dtype != np.float32:
            raise BadTensors("dtype", f"{name} is {values.dtype}, not float32")
        if not all_finite(values):
            raise BadTensors("not_finite", f"{name} holds NaN or infinity")
    header: dict[str, Any] = {}
    end = 0
    for name, values in weights.items():
        begin, end = end, end + values.nbytes
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [begin, end]}
    yield spelled(header)
    for values in weights.values():
        yield as_bytes(np.ascontiguousarray(values, dtype="<f4"))


def as_bytes(values: NDArray[np.float32]) -> memoryview:
    """A contiguous array's bytes, not copied."""
    return values.reshape(-1).view(np.uint8).data


def load(path: Path) -> Weights:
    """All tensors of a file, in the file's order. Raises BadTensors, OSError."""
    return Memory().load(path)


class Memory:
    """Loads one model after the other into the same memory: each is valid until the next is loaded.

    Who loads a model each round spares the kernel from clearing so much memory anew each time.
    """

    def __init__(self) -> None:
        self._flat = np.empty(0, dtype="<f4")

    def load(self, path: Path) -> Weights:
        """As `load`."""
        with path.open("rb", buffering=0) as file:
            table = read_table(file)
            if table.total_bytes != os.fstat(file.fileno()).st_size:
                raise BadTensors("layout", "the file holds more or fewer bytes than its tensors")
            n = (table.total_bytes - table.data_start) // 4
            if self._flat.size != n:
                self._flat = np.empty(n, dtype="<f4")
            file.seek(table.data_start)
            if n and file.readinto(as_bytes(self._flat)) != 4 * n:
                raise BadTensors("layout", "the file ended while it was read")
        if not all_finite(self._flat):
            raise BadTensors("not_finite", "a tensor holds NaN or infinity")
        return named(table, self._flat)


def named(table: TensorTable, flat: NDArray[np.float32]) -> Weights:
    """Views of one flat array of all values, by name, in the file's order."""
    weights: Weights = {}
    at = 0
    for name, shape in table.shapes.items():
        n = math.prod(shape)
        weights[name] = flat[at : at + n].reshape(shape)
        at += n
    return weights


def shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in weights.items()}
