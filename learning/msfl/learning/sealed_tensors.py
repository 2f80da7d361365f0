"""Sealed tensors read block by block, and many of them in step: nothing of a model lies in memory or on disk in clear.

    SealedTensors(key, header, file)     .document, .header_bytes, then .blocks(): float32 pieces of ≤ 1 MiB
    one update each, and the model       the same header bytes mean the same names and shapes at the same places
    they started from                    block i of every stream therefore holds the same values of the same tensors

A block is authentic when it is handed out; that the stream is whole is known only at its end. Whoever computes from
blocks throws the result away when a stream turns out to be broken later.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from msfl.learning.contract import JsonObject, Weights
from msfl.learning.weights import named
from msfl.protos.parcel import Unpacking, beginning
from msfl.protos.sealing import Sealing, StreamHeader, opened_chunks
from msfl.protos.tensors import MAX_HEADER_BYTES, BadTensors, TensorTable, read_table
from msfl.protos.writeback import start_writing

Block: TypeAlias = NDArray[np.float32]
_LENGTH = struct.Struct("<Q")
_AHEAD = 4  # blocks that may wait to be written


class SealedTensors:
    """One sealed parcel. Reading begins on construction: document and table are known, no value has been looked at.

    Raises SealBroken, BadParcel, BadTensors (`without_tensors` when the parcel holds only a document).
    """

    document: JsonObject
    head: bytes  # of the safetensors file, up to its data: names, types, shapes and places

    def __init__(self, key: bytes, header: StreamHeader, file: BinaryIO) -> None:
        self._chunks = opened_chunks(key, header, file)
        self._taken: list[memoryview] = []
        self._unpacking = Unpacking(self._taken.append)
        self._first = self._read_head()
        self.document = self._unpacking.close()

    def table(self) -> TensorTable:
        """Raises BadTensors."""
        return read_table(io.BytesIO(self.head))

    def blocks(self) -> Iterator[Block]:
        """Each is valid until the next but one is asked for. Raises SealBroken, BadTensors("layout": half a value)."""
        return map(_floats, self.pieces())

    def pieces(self) -> Iterator[memoryview]:
        """The data as bytes, for tensors of another type. As `blocks`."""
        if len(self._first):
            yield self._first
        while (piece := self._next()) is not None:
            yield piece

    def _read_head(self) -> memoryview:
        seen = bytearray()
        while len(seen) < _LENGTH.size or len(seen) < (begins := _data_start(seen)):
            piece = self._next()
            if piece is None:
                code = "header_unreadable" if seen else "without_tensors"
                raise BadTensors(code, "the stream ends before its tensors begin")
            seen += piece
        self.head = bytes(seen[:begins])
        return memoryview(seen)[begins:]

    def _next(self) -> memoryview | None:
        """More of the tensors file; None at its end."""
        for chunk in self._chunks:
            self._unpacking.feed(chunk)
            if self._taken:
                return self._taken.pop()
        return None


def _data_start(seen: bytearray) -> int:
    (length,) = _LENGTH.unpack_from(seen)
    if length > MAX_HEADER_BYTES:
        raise BadTensors("header_unreadable", f"the header announces {length} bytes")
    return _LENGTH.size + int(length)


def _floats(piece: memoryview) -> Block:
    if len(piece) % 4:
        raise BadTensors("layout", "the tensors end inside a value")
    return np.frombuffer(piece, dtype="<f4")


def read_weights(source: SealedTensors) -> Weights:
    """Everything in memory, in the file's order. Raises what `blocks` raises, BadTensors."""
    table = source.table()
    flat = np.empty((table.total_bytes - table.data_start) // 4, dtype=np.float32)
    at = 0
    for block in source.blocks():
        if at + block.size > flat.size:
            raise BadTensors("layout", "more bytes than the tensors have")
        flat[at : at + block.size] = block
        at += block.size
    if at != flat.size:
        raise BadTensors("layout", "fewer bytes than the tensors have")
    return named(table, flat)


class SealedWriter:
    """A sealed parcel of tensors without a document, in the making; `head` is the tensors file up to its data.

    A thread of its own hashes, seals and writes, while the next block is made; what it raises, a later call raises.
    """

    def __init__(self, key: bytes, header: StreamHeader, head: bytes, path: Path, *, salt: bytes) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.part")
        self._file = self._partial.open("wb", buffering=0)
        self._sealing = Sealing(key, header, self._file, salt=salt)
        self._blake3 = blake3()
        self._writing = ThreadPoolExecutor(1, "seal")
        self._ahead: list[Future[None]] = []
        self._sealing.write(beginning({}, tensors=True))
        self.write(head)

    @property
    def name(self) -> str:
        return self._path.name

    def write(self, block: bytes | memoryview) -> None:
        """`block` must not change afterwards. Raises OSError, perhaps of an earlier block."""
        self._ahead.append(self._writing.submit(self._write, block))
        if len(self._ahead) > _AHEAD:
            self._ahead.pop(0).result()

    def _write(self, block: bytes | memoryview) -> None:
        self._blake3.update(block)
        before = self._file.tell()
        self._sealing.write(block)
        start_writing(self._file.fileno(), before, self._file.tell())

    def close(self) -> str:
        """The BLAKE3 hash of the tensors file inside; the sealed file is there under its name. Raises OSError."""
        self._writing.shutdown(wait=True)
        for future in self._ahead:
            future.result()
        self._sealing.close()
        self._file.close()
        self._partial.rename(self._path)
        return f"blake3:{self._blake3.hexdigest()}"

    def discard(self) -> None:
        """Throw away what was not closed; after `close` nothing happens."""
        self._writing.shutdown(wait=True, cancel_futures=True)
        self._file.close()
        self._partial.unlink(missing_ok=True)
