"""The log of a contained process: private, appended to, and with an end, however much the process has to say.

Of what comes after the end, the last is kept in memory and written when the process has ended: there it says of what it
died. A log of an earlier start moves aside when it is half full.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 1 << 16
_TAIL_BYTES = 64 << 10


@contextlib.contextmanager
def log_file(path: Path, most: int) -> Iterator[int]:
    """The log file, opened for appending with mode 0600. One of an earlier start moves aside when it is half full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > most // 2:
        path.replace(path.with_name(path.name + ".1"))
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        yield descriptor
    finally:
        os.close(descriptor)


class BoundedLog:
    """What the process prints, appended to `file` up to `most` bytes in all; of what comes after, the end is kept in
    memory and written last, for that is where it says of what it died."""

    def __init__(self, file: int, most: int) -> None:
        self._file = file
        self._left = max(most - os.fstat(file).st_size, 0)
        self._tail = bytearray()
        self._dropped = 0
        self.open = True
        self.reader, self.source = os.pipe()
        os.set_blocking(self.reader, False)

    def close_source(self) -> None:
        """Our own end of it: only the process holds one from now on."""
        os.close(self.source)

    def take(self) -> bool:
        """Some of what there is; False when there is nothing."""
        try:
            said = os.read(self.reader, _BLOCK)
        except BlockingIOError:
            return False
        self.open = bool(said)
        kept, rest = said[: self._left], said[self._left :]
        self._left -= len(kept)
        self._write(kept)
        if rest:
            self._tail += rest
            self._dropped += max(len(self._tail) - _TAIL_BYTES, 0)
            del self._tail[:-_TAIL_BYTES]
        return self.open

    def take_rest(self) -> None:
        while self.take():
            continue
        if self._tail:
            self.note(f"msfl: the log is full; {self._dropped} bytes are left out here")
            self._write(bytes(self._tail))
            self._tail.clear()

    def note(self, words: str) -> None:
        self._write(f"{words}\n".encode())

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # A full disk must not end what still computes.
            os.write(self._file, data)

    def close(self) -> None:
        os.close(self.reader)
