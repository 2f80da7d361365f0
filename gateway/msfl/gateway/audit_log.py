"""The site's audit log on disk: one hash-chained JSON line per entry, on disk before its effect.

`write` returns only when the line is durable; whoever is about to start, send or stop something calls it first.
On opening, the whole chain is verified: a gateway does not go on writing behind a broken chain.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from msfl.policies.audit import Entry, append, from_line, verify
from msfl.policies.refusals import CannotProceed


class AuditBroken(CannotProceed):
    """The log was changed behind our back. The gateway stops; staff compare it with their copies."""


def entries(file: Path) -> Iterator[Entry]:
    """Of a log whose chain was verified before."""
    for line in file.read_bytes().splitlines(keepends=True) if file.exists() else ():
        entry = from_line(line)
        assert not isinstance(entry, str), entry
        yield entry


class AuditLog:
    def __init__(self, file: Path, actor: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        if (broken := verify(lines)) is not None:
            raise AuditBroken(f"{file}: {broken.why}")
        last = from_line(lines[-1]) if lines else None
        assert not isinstance(last, str), "the chain was just verified"
        self._last = last
        self._lock = threading.Lock()
        self._actor = actor
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, at: datetime, action: str, object: str, fields: Mapping[str, str]) -> Entry:
        """Raises OSError when the disk will not take the line; then none of it stays, and the chain is whole."""
        with self._lock:
            entry = append(self._last, at, self._actor, action, object, fields)
            line = entry.to_line()
            end = os.fstat(self._descriptor).st_size
            try:
                if os.write(self._descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, end)
                raise
            self._last = entry
        return entry

    def close(self) -> None:
        os.close(self._descriptor)
