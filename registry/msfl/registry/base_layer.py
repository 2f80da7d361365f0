"""A layer that we do not unpack ourselves: the operating system and Python below a release, which Docker will unpack.

    bytes as they come ─▶ inflated, where compressed, under a bound ─▶ header by header ─▶ hostile ones end in BadLayer
                                                                   └▶ sha256 of the tar: its diff_id

It is looked at while it streams by, so that what reaches Docker holds no surprise for the host and none for the release
that lies on top of it. Allowed are files, folders, symbolic and hard links; long names come in GNU or pax headers.

    refused                                                    because
    absolute names, `..`, entries through a link of this layer they end up elsewhere than they say
    links that lead above the image's root                     the same
    devices, FIFOs, sparse files                               no image needs them; pack it without /dev
    any extended attribute but file capabilities               overlayfs reads some of them as orders
    a name twice; AUFS' own whiteouts; pax keys not known here two readers read them differently
    anything of the release: msfl, msfl-environment.json       what is reviewed is in the release's own layers
    a mount point that is no folder: dev, proc, sys, tmp, …    the runtime mounts over it
    more entries or bytes than allowed, or a hundredfold       a compressed megabyte can claim to be a terabyte

Set-user-id bits and file capabilities are let through: every system has them, and no process of a run can use them
(no-new-privileges, no capabilities, an own user).
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from isal import isal_zlib

from msfl.registry.environment import FILE_NAME
from msfl.registry.layer import BadLayer

Packing: TypeAlias = Literal["tar", "tar+gzip"]

_BLOCK = 512
_CHUNK = 1 << 20
_MAX_EXTENSION = 64 << 10
_MAX_RATIO = 100
_BAD_GZIP: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub makes an instance of the class
_OCTAL = re.compile(rb"[0-7]*")
_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ([^=]+)=")
_FILE, _OLD_FILE, _HARD_LINK, _LINK, _FOLDER = b"0", b"\0", b"1", b"2", b"5"
_PAX, _LONG_NAME, _LONG_TARGET = b"x", b"L", b"K"
_TIMES_AND_OWNERS = {b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname"}
_CAPABILITIES = b"SCHILY.xattr.security.capability"
# Of these checks: raised with every stricter one, so that a layer that an earlier version let pass is looked at again.
RULES = 1
_RELEASE = "msfl"
_MOUNT_POINTS = {"dev", "proc", "sys", "tmp", "run", "run/msfl", "in", _RELEASE}
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


@dataclass(frozen=True)
class BaseLimits:
    """Bounds on one image's base layers: how many, their bytes as they come, all together; and what one unpacks to."""

    layers: int = 64
    packed_bytes: int = 16 << 30
    unpacked_bytes: int = 32 << 30
    entries: int = 1_000_000


class _Inflate(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


class BaseLayer:
    """Feed it every byte, then ask for `diff_id`. Both raise BadLayer; until the latter is done nothing counts."""

    def __init__(self, packing: Packing, limits: BaseLimits) -> None:
        self._inflate: _Inflate | None = isal_zlib.decompressobj(wbits=31) if packing == "tar+gzip" else None
        self._limits = limits
        self._entries = _Entries(limits.entries)
        self._hash = hashlib.sha256()
        self._packed = self._unpacked = 0

    def feed(self, data: bytes) -> None:
        self._packed += len(data)
        if self._inflate is None:
            self._entries.feed(data)
        else:
            self._unpack(data)

    def diff_id(self, digest: str) -> str:
        """`digest` is that of the bytes as they came, which somebody has hashed already."""
        if self._inflate is not None and not self._inflate.eof:
            raise BadLayer("the compressed stream is cut off")
        self._entries.end()
        return digest if self._inflate is None else "sha256:" + self._hash.hexdigest()

    def _unpack(self, data: bytes) -> None:
        while data:
            if self._inflate is None or self._inflate.eof:
                self._inflate = isal_zlib.decompressobj(wbits=31)  # One gzip member may follow another.
            try:
                tar = self._inflate.decompress(data, _CHUNK)
            except _BAD_GZIP as error:
                raise BadLayer(f"not a gzip stream: {error}") from error
            data = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            self._unpacked += len(tar)
            if self._unpacked > self._limits.unpacked_bytes:
                raise BadLayer("the layer unpacks to more than is allowed")
            if self._unpacked > _MAX_RATIO * (self._packed + _CHUNK):
                raise BadLayer(f"the layer unpacks to more than {_MAX_RATIO} times its size")
            self._hash.update(tar)
            self._entries.feed(tar)


class _Entries:
    """The headers of a tar, met while its bytes go by; what a file holds is passed over."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._pass_over = 0
        self._wanted = _BLOCK
        self._got = bytearray()
        self._extension = b""  # the type of the extension header whose text comes next
        self._ended = False
        self._name: bytes | None = None  # as the extension headers say, for the next entry
        self._target: bytes | None = None
        self._size: int | None = None
        self._padding = 0
        self._names: set[str] = set()
        self._links: set[str] = set()

    def feed(self, data: bytes) -> None:
        view, at = memoryview(data), 0
        while at < len(view):
            if self._pass_over:
                step = min(self._pass_over, len(view) - at)
                self._pass_over -= step
            else:
                step = min(self._wanted - len(self._got), len(view) - at)
                self._got += view[at : at + step]
                if len(self._got) == self._wanted:
                    text, self._got = bytes(self._got), bytearray()
                    self._meet(text)
            at += step

    def end(self) -> None:
        if not self._ended or self._got:
            raise BadLayer("the layer ends inside an entry")

    def _meet(self, text: bytes) -> None:
        if self._extension:
            self._wanted = _BLOCK
            self._extend(self._extension, text[: len(text) - self._padding])
            self._extension = b""
        elif not text.strip(b"\0"):
            if self._name is not None or self._target is not None or self._size is not None:
                raise BadLayer("an extension header without its entry")
            self._ended = True
        elif self._ended:
            raise BadLayer("bytes after the end of the archive")
        else:
            self._header(text)

    def _header(self, block: bytes) -> None:
        if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            raise BadLayer("a broken tar header: its checksum is wrong")
        size, kind = _number(block[124:136]), block[156:157]
        if kind in (_PAX, _LONG_NAME, _LONG_TARGET):
            if not 0 < size <= _MAX_EXTENSION:
                raise BadLayer(f"an extension header of {size} bytes; at most {_MAX_EXTENSION} are allowed")
            self._extension, self._padding = kind, -size % _BLOCK
            self._wanted = size + self._padding
            return
        name, target = self._name or _name_in(block), self._target or _text(block[157:257])
        size = size if self._size is None else self._size
        self._name = self._target = self._size = None
        self._left -= 1
        if self._left < 0:
            raise BadLayer("the layer holds more entries than are allowed")
        self._entry(_place(name), kind, target)
        if kind in (_FILE, _OLD_FILE):
            self._pass_over = size + -size % _BLOCK
        elif size:
            raise BadLayer(f"{_shown(name)} is no file and yet has {size} bytes")

    def _extend(self, kind: bytes, text: bytes) -> None:
        if kind == _PAX:
            for key, value in _records(text):
                if key == b"path":
                    self._name = value
                elif key == b"linkpath":
                    self._target = value
                elif key == b"size" and value.isdigit():
                    self._size = int(value)
                elif key not in _TIMES_AND_OWNERS and key != _CAPABILITIES:
                    raise BadLayer(f"an extension header says {_shown(key)}, which is not allowed in an image")
        elif kind == _LONG_NAME:
            self._name = _text(text)
        else:
            self._target = _text(text)

    def _entry(self, name: str, kind: bytes, target: bytes) -> None:
        if kind not in (_FILE, _OLD_FILE, _HARD_LINK, _LINK, _FOLDER):
            raise BadLayer(f"{name} is of type {kind!r}: an image holds files, folders and links; pack it without /dev")
        folders = _above(name)
        if through := self._links.intersection(folders):
            raise BadLayer(f"{name} leads through the link {min(through)}")
        if name == FILE_NAME or (_RELEASE in folders):
            raise BadLayer(f"{name} belongs to the release's own layers, not to what lies below them")
        if kind == _FOLDER:
            if name in self._names:
                raise BadLayer(f"{name} is there twice, once as a folder and once as something else")
            return
        if name in _MOUNT_POINTS:
            raise BadLayer(f"{name} must be a folder: the runtime mounts something there")
        if name in self._names or name == "":
            raise BadLayer(f"{name or '/'} is there twice, or no folder")
        self._names.add(name)
        _check_whiteout(name)
        if kind == _LINK:
            _check_link(name, _decoded(target))
            self._links.add(name)
        elif kind == _HARD_LINK and self._links.intersection(_above(_place(target))):
            raise BadLayer(f"{name} is a hard link through a link")


def _check_link(name: str, target: str) -> None:
    """Where a relative link leads from its folder; an absolute one begins at the image's own root."""
    if posixpath.normpath(posixpath.join(posixpath.dirname(name), target)).split("/")[0] == "..":
        raise BadLayer(f"{name} is a link that leads out of the image, to {target[:80]!r}")


def _check_whiteout(name: str) -> None:
    last = posixpath.basename(name)
    if last.startswith(_WHITEOUT) and last != _OPAQUE:
        hidden = last.removeprefix(_WHITEOUT)
        if hidden in ("", ".", "..") or hidden.startswith(_WHITEOUT):
            raise BadLayer(f"{name} is a whiteout that hides more than a name")


def _above(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _place(name: bytes) -> str:
    """The entry's place below the root, "" for the root itself."""
    text = _decoded(name)
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or ".." in parts:
        raise BadLayer(f"{_shown(name)} leads out of the image")
    return "/".join(parts)


def _decoded(text: bytes) -> str:
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        decoded = ""
    if not decoded.isprintable() or not decoded:
        raise BadLayer(f"{_shown(text)} is no name of printable characters")
    return decoded


def _shown(text: bytes) -> str:
    return repr(text[:80])[1:]


def _name_in(block: bytes) -> bytes:
    """POSIX puts the front part of a long name elsewhere; in GNU's and in the old form other things are there."""
    name, prefix = _text(block[:100]), _text(block[345:500])
    if block[257:263] != b"ustar\0" or not prefix:
        return name
    if block[508:512] == b"tar\0":
        raise BadLayer("a tar of the kind that star writes")
    return prefix + b"/" + name


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise BadLayer("a broken tar header: a number below zero")
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not _OCTAL.fullmatch(digits):
        raise BadLayer("a broken tar header: a number that is none")
    return int(digits or b"0", 8)


def _records(text: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 0
    while at < len(text):
        head = _RECORD.match(text, at)
        end = at + int(head[1]) if head else 0
        if head is None or end > len(text) or end <= head.end() or text[end - 1 : end] != b"\n":
            raise BadLayer("a broken extension header")
        value = text[head.end() : end - 1]
        if b"\0" in value and head[2] != _CAPABILITIES:
            raise BadLayer("a broken extension header")
        found.append((head[2], value))
        at = end
    return found
