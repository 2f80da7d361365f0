"""A few SQLite tables that must not forget: `synchronous=FULL`, each statement durable on return.

Safe to use from several threads, and from a command beside the serving gateway.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PATIENCE_S = 10.0  # for another process that is writing


class DurableTables:
    def __init__(self, file: Path, schema: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(file, check_same_thread=False, isolation_level=None, timeout=_PATIENCE_S)
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(schema)

    def do(self, sql: str, *values: str | int | bytes) -> None:
        """Raises OSError when the disk is full or read-only, as the other files of a gateway do."""
        self.do_all([(sql, values)])

    def do_all(self, statements: Iterable[tuple[str, tuple[str | int | bytes, ...]]]) -> None:
        """All of them or none, durable together. Raises OSError likewise."""
        try:
            with self._lock, self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                for sql, values in statements:
                    self._connection.execute(sql, values)
        except sqlite3.OperationalError as error:
            code = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_READONLY: errno.EROFS}
            if (number := code.get(error.sqlite_errorcode & 0xFF)) is None:
                raise
            raise OSError(number, os.strerror(number)) from error

    def ask(self, sql: str, *values: str | int | bytes) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()
