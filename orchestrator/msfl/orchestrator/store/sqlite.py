"""`RunStore` in one SQLite file, write-ahead log, `synchronous=FULL`: an event is on disk before `append` returns.

A file that is torn or not ours is found when it is opened, before anybody relies on it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msfl.orchestrator.store.interface import StoreDamaged, StoredEvent, StoreUnavailable

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    run_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (run_id, sequence)
) STRICT
"""
_UNAVAILABLE = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY}
)
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class SqliteRunStore:
    """One connection, one lock: events are small and few, and order matters more than concurrency.

    `look_only`: beside a serving orchestrator, or to examine what is there; raises sqlite3.Error when nothing is.
    Otherwise raises StoreUnavailable, StoreDamaged.
    """

    def __init__(self, file: Path, *, look_only: bool = False) -> None:
        self._file = file
        self._lock = threading.Lock()
        if look_only:
            self._connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            return
        with self._named_errors():
            self._connection = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._connection.close()
                raise

    def _open(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("PRAGMA cache_size=-256")  # KiB; what is written is hardly ever read again
        self._connection.execute(_SCHEMA)
        (found,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise self._damaged(found)

    def append(self, run_id: str, text: str) -> int:
        with self._lock, self._named_errors():
            (sequence,) = self._connection.execute(
                "INSERT INTO events SELECT ?1, coalesce(max(sequence), 0) + 1, ?2 FROM events WHERE run_id = ?1"
                " RETURNING sequence",
                (run_id, text),
            ).fetchone()
        return int(sequence)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if primary in _DAMAGED:
                raise self._damaged(str(error)) from error
            if primary not in _UNAVAILABLE:
                raise
            what = f"{self._file} cannot be written ({error}): free or mount its disk; nothing is lost, nothing is kept"
            raise StoreUnavailable(what) from error

    def _damaged(self, why: str) -> StoreDamaged:
        return StoreDamaged(
            f"{self._file} is damaged ({why}). Stop the orchestrator, move this file and its -wal and -shm away, put "
            "back your last copy of the three, and start again; without a copy, runs begin afresh"
        )

    def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
        with self._lock:
            rows = self._connection.execute(
                "SELECT sequence, text FROM events WHERE run_id = ? AND sequence > ? ORDER BY sequence",
                (run_id, after),
            ).fetchall()
        return [StoredEvent(sequence=s, text=t) for s, t in rows]

    def runs(self) -> list[str]:
        with self._lock:
            rows = self._connection.execute("SELECT run_id FROM events WHERE sequence = 1 ORDER BY rowid").fetchall()
        return [run_id for (run_id,) in rows]

    def damage(self) -> str:
        """What SQLite's own quick check finds; empty when the file is sound."""
        with self._lock:
            rows = [str(row[0]) for row in self._connection.execute("PRAGMA quick_check(5)").fetchall()]
        return "" if rows == ["ok"] else "; ".join(rows)

    def close(self) -> None:
        with self._lock:
            self._connection.close()
