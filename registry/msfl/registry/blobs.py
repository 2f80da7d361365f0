"""One blob: from the cache or from the registry, and only once its bytes have the digest that was asked for.

    kept whole?  ─ hashed ─▶ it has its digest ─────────────────────────────────▶ an open file
                     └ no ─▶ thrown away, and asked for anew
    otherwise    what came of it earlier is hashed ─▶ the rest is asked for from there, hashed and written as it comes
                     ─▶ size and digest are right ─▶ one rename ─────────────────▶ an open file
                     └ other bytes ─▶ thrown away; BadLayer      └ the line breaks ─▶ kept for the next try

The hash is that of the open file which is then read: nobody can put another file in between. `also` sees every byte of
the blob once, in order, in the same pass.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO, TypeAlias

from msfl.registry.cache import ImageCache
from msfl.registry.interface import Descriptor, Registry
from msfl.registry.layer import BadLayer

Look: TypeAlias = Callable[[bytes], None]
# Told how many bytes have come; what it raises calls the pull off, and what has come is kept.
Watch: TypeAlias = Callable[[int], None]

_CHUNK = 1 << 20
_LOOK_AGAIN_S = 0.2


def open_blob(
    registry: Registry, wanted: Descriptor, cache: ImageCache, watch: Watch, also: Look | None = None
) -> IO[bytes]:
    """The blob's verified bytes, as a file at its first byte. Raises BadLayer, NotInRegistry, RegistryFails, OSError,
    and what `watch` and `also` raise."""
    kept = cache.blob(wanted.digest)
    file = _kept(kept, also) or _fetched(registry, wanted, kept, watch, also)
    file.seek(0)
    return file


def _kept(path: Path, also: Look | None) -> IO[bytes] | None:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        # Other bytes are thrown away here: `also` must not see two beginnings.
        if hashlib.file_digest(file, "sha256").hexdigest() != path.name:
            file.close()
            path.unlink(missing_ok=True)
            return None
        if also is not None:
            file.seek(0)
            while chunk := file.read(_CHUNK):
                also(chunk)
    except BaseException:
        file.close()
        raise
    return file


def _fetched(registry: Registry, wanted: Descriptor, kept: Path, watch: Watch, also: Look | None) -> IO[bytes]:
    part = kept.with_name(f"{kept.name}.part")
    file = _locked(part, watch)
    try:
        if kept.exists() and (whole := _kept(kept, also)) is not None:
            part.unlink(missing_ok=True)  # Another thread was faster.
            file.close()
            return whole
        _complete(registry, wanted, file, watch, also)
        file.flush()
        os.replace(part, kept)
    except (BadLayer, OSError):
        # Other bytes than were asked for, or no room for them: nothing of it is kept.
        part.unlink(missing_ok=True)
        file.close()
        raise
    except BaseException:
        file.close()
        raise
    return file


def _complete(registry: Registry, wanted: Descriptor, file: IO[bytes], watch: Watch, also: Look | None) -> None:
    digest, left = hashlib.sha256(), wanted.size

    def take(chunk: bytes) -> None:
        nonlocal left
        left -= len(chunk)
        if left < 0:
            raise BadLayer(f"the registry serves more bytes for {wanted.digest} than the manifest says")
        digest.update(chunk)
        if also is not None:
            also(chunk)
        watch(len(chunk))

    while chunk := file.read(_CHUNK):
        take(chunk)
    with registry.get_blob(wanted.digest, wanted.size - left) as stream:
        while chunk := _read(stream, left):
            take(chunk)
            file.write(chunk)
    if left or f"sha256:{digest.hexdigest()}" != wanted.digest:
        raise BadLayer(f"the registry serves other bytes for {wanted.digest}")


def _read(stream: BinaryIO, left: int) -> bytes:
    return stream.read(min(_CHUNK, left + 1))


def _locked(part: Path, watch: Watch) -> IO[bytes]:
    """The file of what has come so far, ours alone: who pulls the same blob meanwhile waits for us."""
    while True:
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat()):
                return file
        except BlockingIOError:
            watch(0)
            time.sleep(_LOOK_AGAIN_S)
        file.close()
