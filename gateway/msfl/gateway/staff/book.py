"""Accounts, failures and sessions of a site's staff, durable in `staff/book.sqlite` of its folder.

Read afresh for every request, so that what a command beside the page says about an account holds at once.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msfl.gateway.durable import DurableTables
from msfl.gateway.staff.accounts import Account, Invitation, Role
from msfl.gateway.staff.lockout import FORGOTTEN, Failures
from msfl.gateway.staff.sessions import LIFE, Session

_SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, password TEXT NOT NULL, locked INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS invitations (name TEXT PRIMARY KEY, code TEXT NOT NULL, until INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS failures (what TEXT PRIMARY KEY, count INTEGER NOT NULL, latest INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS sessions (
    key TEXT PRIMARY KEY, account TEXT NOT NULL, proof TEXT NOT NULL, begun INTEGER NOT NULL, seen INTEGER NOT NULL
) STRICT;
"""


class Book:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = folder / "book.sqlite"
        file.touch(mode=0o600)
        self._tables = DurableTables(file, _SCHEMA)

    # ---------------------------------------------------------------- accounts

    def account(self, name: str) -> Account | None:
        rows = self._tables.ask("SELECT name, role, password, locked FROM accounts WHERE name = ?", name)
        return _account(rows[0]) if rows else None

    def accounts(self) -> tuple[Account, ...]:
        rows = self._tables.ask("SELECT name, role, password, locked FROM accounts ORDER BY name")
        return tuple(_account(row) for row in rows)

    def add(self, account: Account) -> None:
        values = (account.name, account.role.value, account.password, int(account.locked))
        self._tables.do("INSERT INTO accounts VALUES (?, ?, ?, ?)", *values)

    def set_password(self, account: Account, password: str) -> None:
        """Nothing happens when it was changed meanwhile; whoever locked the account meanwhile is not undone."""
        values = (password, account.name, account.password)
        self._tables.do("UPDATE accounts SET password = ? WHERE name = ? AND password = ?", *values)

    def set_role(self, name: str, role: Role) -> None:
        self._tables.do("UPDATE accounts SET role = ? WHERE name = ?", role.value, name)

    def set_locked(self, name: str, locked: bool) -> None:
        self._tables.do("UPDATE accounts SET locked = ? WHERE name = ?", int(locked), name)

    def remove(self, name: str) -> None:
        self._tables.do("DELETE FROM accounts WHERE name = ?", name)

    def invitation(self, name: str) -> Invitation | None:
        rows = self._tables.ask("SELECT code, until FROM invitations WHERE name = ?", name)
        return Invitation(rows[0][0], _time(rows[0][1])) if rows else None

    def invite(self, name: str, invitation: Invitation) -> None:
        """The one before it, if any, counts no more."""
        values = (name, invitation.code, _number(invitation.until))
        self._tables.do("INSERT OR REPLACE INTO invitations VALUES (?, ?, ?)", *values)

    def uninvite(self, name: str) -> None:
        self._tables.do("DELETE FROM invitations WHERE name = ?", name)

    # ---------------------------------------------------------------- failures

    def failures(self, what: str) -> Failures:
        """`what`: an account or an address, with its kind before it."""
        rows = self._tables.ask("SELECT count, latest FROM failures WHERE what = ?", what)
        return Failures(rows[0][0], _time(rows[0][1])) if rows else Failures()

    def count(self, what: str, failures: Failures) -> None:
        if failures.latest is None:
            self._tables.do("DELETE FROM failures WHERE what = ?", what)
        else:
            values = (what, failures.count, _number(failures.latest))
            self._tables.do("INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", *values)

    # ---------------------------------------------------------------- sessions

    def session(self, key: str) -> Session | None:
        rows = self._tables.ask("SELECT key, account, proof, begun, seen FROM sessions WHERE key = ?", key)
        if not rows:
            return None
        key, account, proof, begun, seen = rows[0]
        return Session(key, account, proof, _time(begun), _time(seen))

    def begin(self, session: Session) -> None:
        values = (session.key, session.account, session.proof, _number(session.begun), _number(session.seen))
        self._tables.do("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", *values)

    def see(self, key: str, now: datetime) -> None:
        self._tables.do("UPDATE sessions SET seen = ? WHERE key = ?", _number(now), key)

    def end(self, key: str) -> None:
        self._tables.do("DELETE FROM sessions WHERE key = ?", key)

    def end_all(self, account: str) -> None:
        self._tables.do("DELETE FROM sessions WHERE account = ?", account)

    # ------------------------------------------------------------------- small

    def sweep(self, now: datetime) -> None:
        """What counts for nothing any more goes, so that strangers cannot fill the disk."""
        self._tables.do("DELETE FROM failures WHERE latest <= ?", _number(now - FORGOTTEN))
        self._tables.do("DELETE FROM sessions WHERE begun <= ?", _number(now - LIFE))
        self._tables.do("DELETE FROM invitations WHERE until <= ?", _number(now))

    def close(self) -> None:
        self._tables.close()


def _account(row: tuple[Any, ...]) -> Account:
    return Account(row[0], Role(row[1]), row[2], bool(row[3]))


def _number(at: datetime) -> int:
    """Microseconds: a lock ends when it says."""
    return round(at.timestamp() * 1_000_000)


def _time(number: int) -> datetime:
    return datetime.fromtimestamp(number / 1_000_000, UTC)
