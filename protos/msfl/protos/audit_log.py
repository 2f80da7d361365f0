"""An audit log on disk, at a site or at the centre: one hash-chained JSON line per entry, on disk before its effect.

    audit/log.jsonl           the entries
    audit/checkpoints.jsonl   signed heads, one envelope per line: its own, and those that others have shown (`notary`)
    audit/key.pem             the log's own Ed25519 key, mode 0600: it signs heads, and nothing else
    audit/known-keys.json     the keys of others' logs, as they were when they were first seen

`write` returns only when the line is durable; whoever is about to start, send or stop something calls it first.
On opening, the whole chain is verified: nobody goes on writing behind a broken chain. Several processes may write, at a
site the gateway and its page for staff: each entry is added under a lock on the file, behind those of the others, which
are verified as they are read. Whatever text an entry is given, its line is one that is read again (`audit.append`): a
word from the other side of the line must not end the log.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from msfl.policies.audit import Chain, Entry, append, from_line
from msfl.policies.refusals import CannotProceed

LOG_NAME = "log.jsonl"
_T = TypeVar("_T")


class AuditBroken(CannotProceed):
    """The log was changed behind our back. Nothing goes on; staff compare it with their copies."""


class AuditLog:
    def __init__(self, file: Path, actor: str) -> None:
        """Raises AuditBroken."""
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = file
        self._chain, self._end = Chain(), 0
        self._lock = threading.Lock()
        self._actor = actor
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            with self._alone():
                pass
        except AuditBroken:
            self.close()
            raise

    def write(self, at: datetime, action: str, object: str, fields: Mapping[str, str]) -> Entry:
        """Raises OSError when the disk will not take the line; then none of it stays, and the chain is whole. Raises
        AuditBroken when the log was changed since it was opened."""
        with self._alone():
            entry = append(self._chain.last, at, self._actor, action, object, fields)
            line = entry.to_line()
            assert from_line(line) == entry, line[:1000]
            try:
                if os.write(self._descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self._end)
                raise
            self._chain.add(entry, line)
            self._end += len(line)
        return entry

    @property
    def size(self) -> int:
        return self.look(lambda chain: chain.size)

    def look(self, at_chain: Callable[[Chain], _T]) -> _T:
        """What `at_chain` makes of the chain while nobody adds to it."""
        with self._alone():
            return at_chain(self._chain)

    def close(self) -> None:
        os.close(self._descriptor)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other thread and no other process writes meanwhile, and what others have written is in the chain."""
        with self._lock:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                self._catch_up()
                yield
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if size < self._end:
            raise AuditBroken(f"{self._file}: it was cut off while it was open")
        while self._end < size:
            more = os.pread(self._descriptor, size - self._end, self._end)
            if not more:
                break
            for line in more.splitlines(keepends=True):
                if (broken := self._chain.take(line)) is not None:
                    raise AuditBroken(f"{self._file}: {broken.why}")
                self._end += len(line)


def read_lines(file: Path) -> list[bytes]:
    """The lines of a log, with their newlines; none when there is no log yet."""
    return file.read_bytes().splitlines(keepends=True) if file.exists() else []


def read_chain(file: Path) -> Chain:
    """Raises AuditBroken."""
    chain = Chain()
    for _ in _entries(file, chain):
        pass
    return chain


def read_entries(file: Path) -> list[Entry]:
    """Raises AuditBroken."""
    return list(_entries(file, Chain()))


def _entries(file: Path, chain: Chain) -> Iterator[Entry]:
    for line in read_lines(file):
        if (broken := chain.take(line)) is not None:
            raise AuditBroken(f"{file}: {broken.why}")
        assert chain.last is not None
        yield chain.last
