"""What is inside every sealed stream: one JSON document, and after it, if there are any, tensors as safetensors.

8-byte big-endian length | JSON, UTF-8 | safetensors bytes (may be none)

Where tensors follow, the JSON is padded with spaces so that they begin at a multiple of 4 KiB. The updates of a round
then have their values at the same places, and can be read in step.

The JSON is strict: numbers are finite, a key comes once, so that two readers cannot see two documents, and nothing is
nested deeper than `nesting` says.
Nothing here knows what a document means; whoever unpacks checks that.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol, TypeAlias

from msfl.protos.nesting import too_deep

JsonObject: TypeAlias = dict[str, Any]
MAX_DOCUMENT_BYTES = 16 << 20
ALIGNMENT = 4096
BLOCK = 1 << 20
_LENGTH = struct.Struct(">Q")


class Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


class BadParcel(ValueError):
    """The bytes are authentic, and still not a parcel."""


def pack(document: JsonObject, tensors: Readable | None) -> Iterator[bytes]:
    """The parcel in pieces of at most 1 MiB after the document. Raises BadParcel, ValueError for NaN or infinity."""
    yield beginning(document, tensors=tensors is not None)
    if tensors is not None:
        while block := tensors.read(BLOCK):
            yield block


def beginning(document: JsonObject, *, tensors: bool) -> bytes:
    """A parcel up to where its tensors begin. Raises BadParcel, ValueError for NaN or infinity."""
    body = json.dumps(document, allow_nan=False, sort_keys=True).encode()
    if tensors:
        body += b" " * (-(_LENGTH.size + len(body)) % ALIGNMENT)
    if len(body) > MAX_DOCUMENT_BYTES:
        raise BadParcel(f"a document of {len(body)} bytes is over the limit of {MAX_DOCUMENT_BYTES}")
    return _LENGTH.pack(len(body)) + body


class Unpacking:
    """A parcel that arrives in pieces: the document is read as soon as it is there, and the tensors are handed on.

    `take` gets the bytes behind the document, as they come, as views that are valid during the call only.
    """

    def __init__(self, take: Callable[[memoryview], object]) -> None:
        self._take = take
        self._head = bytearray()
        self._document: JsonObject | None = None
        self.tensor_bytes = 0

    def feed(self, piece: memoryview) -> None:
        """Raises BadParcel, and what `take` raises."""
        if self._document is None:
            self._head += piece
            if len(self._head) < _LENGTH.size:
                return
            (length,) = _LENGTH.unpack_from(self._head)
            if length > MAX_DOCUMENT_BYTES:
                raise BadParcel(f"a document of {length} bytes is over the limit of {MAX_DOCUMENT_BYTES}")
            ends = _LENGTH.size + length
            if len(self._head) < ends:
                return
            self._document = _strict(bytes(self._head[_LENGTH.size : ends]))
            piece = piece[len(piece) - (len(self._head) - ends) :]
            self._head = bytearray()
        if piece:
            self._take(piece)
            self.tensor_bytes += len(piece)

    def close(self) -> JsonObject:
        """The document. Raises BadParcel."""
        if self._document is None:
            raise BadParcel("the parcel ends inside its document")
        return self._document


def unpack(source: BinaryIO, tensors_out: BinaryIO | None) -> tuple[JsonObject, int]:
    """The document, and how many bytes of tensors went to `tensors_out`. Raises BadParcel."""
    unpacking = Unpacking(_unexpected if tensors_out is None else tensors_out.write)
    while block := source.read(BLOCK):
        unpacking.feed(memoryview(block))
    return unpacking.close(), unpacking.tensor_bytes


def _unexpected(piece: memoryview) -> None:
    raise BadParcel("tensors where none are expected")


def _strict(body: bytes) -> JsonObject:
    try:
        document = json.loads(body.decode(), parse_constant=_no_constant, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise BadParcel("the document is not strict JSON") from error
    if not isinstance(document, dict) or too_deep(document):
        raise BadParcel("the document is not an object, or one nested too deep")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found
