"""What is inside every sealed stream: one JSON document, and after it, if there are any, tensors as safetensors.

8-byte big-endian length | JSON, UTF-8 | safetensors bytes (may be none)

The JSON is strict: numbers are finite and a key comes once, so that two readers cannot see two documents.
Nothing here knows what a document means; whoever unpacks checks that.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
MAX_DOCUMENT_BYTES = 16 << 20
BLOCK = 1 << 20
_LENGTH = struct.Struct(">Q")


class Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


class BadParcel(ValueError):
    """The bytes are authentic, and still not a parcel."""


def pack(document: JsonObject, tensors: Readable | None) -> Iterator[bytes]:
    """The parcel in pieces of at most 1 MiB after the document. Raises BadParcel, ValueError for NaN or infinity."""
    body = json.dumps(document, allow_nan=False, sort_keys=True).encode()
    if len(body) > MAX_DOCUMENT_BYTES:
        raise BadParcel(f"a document of {len(body)} bytes is over the limit of {MAX_DOCUMENT_BYTES}")
    yield _LENGTH.pack(len(body)) + body
    if tensors is not None:
        while block := tensors.read(BLOCK):
            yield block


def unpack(source: BinaryIO, tensors_out: BinaryIO | None) -> tuple[JsonObject, int]:
    """The document, and how many bytes of tensors went to `tensors_out`. Raises BadParcel."""
    head = source.read(_LENGTH.size)
    if len(head) != _LENGTH.size:
        raise BadParcel("shorter than its length")
    (length,) = _LENGTH.unpack(head)
    if length > MAX_DOCUMENT_BYTES:
        raise BadParcel(f"a document of {length} bytes is over the limit of {MAX_DOCUMENT_BYTES}")
    body = source.read(length)
    if len(body) != length:
        raise BadParcel("the document is cut off")
    try:
        document = json.loads(body.decode(), parse_constant=_no_constant, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise BadParcel("the document is not strict JSON") from error
    if not isinstance(document, dict):
        raise BadParcel("the document is not an object")
    size = 0
    while block := source.read(BLOCK):
        if tensors_out is None:
            raise BadParcel("tensors where none are expected")
        size += tensors_out.write(block)
    return document, size


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found
