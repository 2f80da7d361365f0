"""Reading and writing one image layer: a gzip-compressed tar of plain files, and nothing else.

    write   sorted names, mode 0644, owner 0, time 0, gzip time 0      same files, same bytes
    read    header by header from a bounded stream                      hostile bytes end in BadLayer

A layer may hold regular files whose names are made of plain, relative components. Links, devices, FIFOs, sparse files,
whiteouts, hidden names, extension headers (pax, GNU long names) and duplicates are refused: a release needs none of
them, and each has been a way out of an unpacking folder. `tarfile`'s own reader is not used: it follows extension
headers recursively and reads their announced size into memory; only its parser of a single 512-byte header is.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Protocol

_BLOCK = 512
_CHUNK = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_MAX_NAME = 255


class BadLayer(ValueError):
    """The bytes are not a layer that this reader takes. The message says which entry, and why."""


@dataclass(frozen=True)
class LayerLimits:
    """Bounds on what one image may unpack to; a compressed megabyte can claim to be a terabyte."""

    files: int = 5_000
    file_bytes: int = 128 << 20
    total_bytes: int = 512 << 20


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


def is_plain_name(name: str) -> bool:
    return len(name) <= _MAX_NAME and _NAME.fullmatch(name) is not None


def write_layer(files: Mapping[str, bytes]) -> tuple[bytes, str]:
    """The compressed layer and its `diff_id`, the digest of the tar inside. Raises BadLayer for an impossible name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in sorted(files.items()):
            if not is_plain_name(name):
                raise BadLayer(f"{name!r} cannot be the name of a file in an image")
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(data))
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=packed, mtime=0) as file:
        file.write(buffer.getvalue())
    return packed.getvalue(), "sha256:" + hashlib.sha256(buffer.getvalue()).hexdigest()


def read_layer(packed: IO[bytes], diff_id: str, limits: LayerLimits) -> Iterator[tuple[str, bytes]]:
    """Each file's name and bytes, in order. Raises BadLayer, the latest at the end when the tar is not `diff_id`.

    So nothing that came out of it may be used before the iterator has ended.
    """
    tar = _Inflated(packed, limits.total_bytes)
    while (entry := _header(tar.exactly(_BLOCK))) is not None:
        if not 0 <= entry.size <= limits.file_bytes:
            raise BadLayer(f"{entry.name} has {entry.size} bytes; at most {limits.file_bytes} are allowed")
        data = tar.exactly(entry.size)
        tar.exactly(-entry.size % _BLOCK)
        yield entry.name, data
    tar.rest()
    if tar.digest() != diff_id:
        raise BadLayer(f"the layer unpacks to {tar.digest()}, not to {diff_id}")


def _header(block: bytes) -> tarfile.TarInfo | None:
    try:
        entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # public in the source, absent from typeshed
        return None
    except tarfile.HeaderError as error:
        raise BadLayer(f"a broken tar header: {error}") from error
    if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise BadLayer(f"{entry.name[:80]!r} is of type {entry.type!r}; only plain files are allowed")
    if not is_plain_name(entry.name):
        raise BadLayer(f"{entry.name[:80]!r} is not a plain relative name")
    return entry


class _Inflated:
    """A bounded view of the tar inside one gzip member."""

    def __init__(self, packed: _Source, limit: int) -> None:
        self._packed = packed
        self._inflate = zlib.decompressobj(wbits=31)
        self._ready = bytearray()
        self._left = limit
        self._hash = hashlib.sha256()

    def exactly(self, size: int) -> bytes:
        while len(self._ready) < size:
            if not self._more():
                raise BadLayer("the layer ends inside an entry")
        data = bytes(self._ready[:size])
        del self._ready[:size]
        return data

    def rest(self) -> None:
        """What follows the end of the archive may only be padding; nothing may follow the gzip member."""
        while self._ready or self._more():
            if self._ready.strip(b"\0"):
                raise BadLayer("bytes after the end of the archive")
            self._ready.clear()
        if self._inflate.unused_data or self._packed.read(1):
            raise BadLayer("bytes after the end of the compressed stream")

    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()

    def _more(self) -> bool:
        while not self._inflate.eof:
            feed = self._inflate.unconsumed_tail or self._packed.read(_CHUNK)
            try:
                data = self._inflate.decompress(feed, _CHUNK)
            except zlib.error as error:
                raise BadLayer(f"not a gzip stream: {error}") from error
            self._left -= len(data)
            if self._left < 0:
                raise BadLayer("the layer unpacks to more than is allowed")
            self._hash.update(data)
            self._ready += data
            if data:
                return True
            if not feed and not self._inflate.eof:
                raise BadLayer("the compressed stream is cut off")
        return False


def merge(layers: Iterable[Iterator[tuple[str, bytes]]], limits: LayerLimits) -> Iterator[tuple[str, bytes]]:
    """The files of all layers, each name once, no name inside another file. Raises BadLayer."""
    files: set[str] = set()
    folders: set[str] = set()
    total = 0
    for layer in layers:
        for name, data in layer:
            parts = name.split("/")
            above = {"/".join(parts[:n]) for n in range(1, len(parts))}
            if name in files or name in folders or above & files:
                raise BadLayer(f"{name} is there twice, or both a file and a folder")
            files.add(name)
            folders |= above
            total += len(data)
            if len(files) > limits.files or total > limits.total_bytes:
                raise BadLayer(f"the image holds more than {limits.files} files or {limits.total_bytes} bytes")
            yield name, data
