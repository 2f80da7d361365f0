"""One blob: from the cache or from the registry, and only once its bytes have the digest that was asked for.

    kept whole?  ─ hashed ─▶ it has its digest ─────────────────────────────────▶ an open file
                     └ no ─▶ thrown away, and asked for anew
    otherwise    what came of it earlier is hashed ─▶ the rest is asked for from there, hashed and written as it comes
                     ─▶ size and digest are right ─▶ one rename ─────────────────▶ an open file
                     └ other bytes ─▶ thrown away; if some had come earlier, once more from the start; else BadLayer
                     └ the line breaks, or somebody calls it off ─▶ kept for the next try
                     └ no room on the disk ─▶ thrown away

The hash is that of the open file which is then read: nobody can put another file in between. Nothing is synced to disk:
what a power cut spoils is noticed by its hash. A `Look` sees every byte once, in order, in the same pass; whoever wants
one gives a function that begins a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeAlias

from msfl.registry.cache import PART, ImageCache
from msfl.registry.interface import Descriptor, Registry
from msfl.registry.layer import BadLayer

Look: TypeAlias = Callable[[bytes], object]
BeginLook: TypeAlias = Callable[[], Look]
# Told how many bytes have come; what it raises calls the pull off.
Watch: TypeAlias = Callable[[int], None]

_CHUNK = 1 << 20
_LOOK_AGAIN_S = 0.2


def open_blob(
    registry: Registry, wanted: Descriptor, cache: ImageCache, watch: Watch, look: BeginLook | None = None
) -> IO[bytes]:
    """The blob's verified bytes, as a file at its first byte. Raises BadLayer, NotInRegistry, RegistryFails, OSError,
    and what `watch` and a `Look` raise."""
    kept = cache.blob(wanted.digest)
    file = _kept(kept, wanted, watch, look) or _fetched(registry, wanted, kept, watch, look)
    file.seek(0)
    return file


def _kept(path: Path, wanted: Descriptor, watch: Watch, look: BeginLook | None) -> IO[bytes] | None:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        with _Reading(wanted, look) as reading:
            while chunk := file.read(_CHUNK):
                reading.take(chunk)
        if reading.right():
            watch(wanted.size)
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    path.unlink(missing_ok=True)
    return None


def _fetched(registry: Registry, wanted: Descriptor, kept: Path, watch: Watch, look: BeginLook | None) -> IO[bytes]:
    part = kept.with_name(f"{kept.name}{PART}")
    file = _locked(part, watch)
    try:
        if (whole := _kept(kept, wanted, watch, look)) is not None:
            part.unlink()  # Another thread was faster.
            file.close()
            return whole
        resumed = os.fstat(file.fileno()).st_size > 0
        right = _complete(registry, wanted, file, watch, look)
        if not right and resumed:
            file.seek(0)
            file.truncate()
            right = _complete(registry, wanted, file, watch, look)
        if not right:
            raise BadLayer(f"the registry serves other bytes for {wanted.digest}")
        file.flush()
        os.replace(part, kept)
    except BaseException as error:
        if isinstance(error, BadLayer | OSError):
            part.unlink(missing_ok=True)
        file.close()
        raise
    return file


def _complete(registry: Registry, wanted: Descriptor, file: IO[bytes], watch: Watch, look: BeginLook | None) -> bool:
    with _Reading(wanted, look) as reading, _Aside(file.write) as writing:
        while chunk := file.read(_CHUNK):
            reading.take(chunk)
            watch(len(chunk))
        if reading.left > 0:
            with registry.get_blob(wanted.digest, wanted.size - reading.left) as stream:
                while reading.left >= 0 and (chunk := stream.read1(min(_CHUNK, reading.left + 1))):
                    reading.take(chunk)
                    writing.take(chunk)
                    watch(len(chunk))
    return reading.right()


class _Reading:
    """Hashes chunks, and has them looked at, in threads of their own: neither holds Python's lock for long."""

    def __init__(self, wanted: Descriptor, look: BeginLook | None) -> None:
        self.left = wanted.size
        self._digest = wanted.digest
        self._hash = hashlib.sha256()
        self._look = look() if look is not None else None
        self._objection: BadLayer | None = None
        self._asides = (_Aside(self._hash.update), _Aside(self._look_at))

    def __enter__(self) -> _Reading:
        return self

    def __exit__(self, *raised: object) -> None:
        with self._asides[0], self._asides[1]:
            pass

    def take(self, chunk: bytes) -> None:
        self.left -= len(chunk)
        for aside in self._asides:
            aside.take(chunk)

    def right(self) -> bool:
        """Whether these were the bytes. If they were, raises what was found wrong with them."""
        if self.left or f"sha256:{self._hash.hexdigest()}" != self._digest:
            return False
        if self._objection is not None:
            raise self._objection
        return True

    def _look_at(self, chunk: bytes) -> None:
        if self._look is not None and self._objection is None:
            try:
                self._look(chunk)
            except BadLayer as objection:
                self._objection = objection


class _Aside:
    """Takes chunks in order in a thread of its own, one ahead; what that raises comes out here."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self._take = take
        self._thread = ThreadPoolExecutor(1)
        self._latest: Future[object] | None = None

    def __enter__(self) -> _Aside:
        return self

    def __exit__(self, kind: object, *raised: object) -> None:
        self._thread.shutdown(wait=True)
        if self._latest is not None and kind is None:
            self._latest.result()

    def take(self, chunk: bytes) -> None:
        if self._latest is not None:
            self._latest.result()
        self._latest = self._thread.submit(self._take, chunk)


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
