"""How long nobody may try again after wrong passwords. Pure: `(failures, now) -> free | locked until`.

    per account    5 failures are free, then 30 s, 1 min, 2 min … at most 15 min      forgotten after a day, or a log-in
    per address    20 failures are free, then the same                                forgotten after a day

Names that are no account count like those that are. While locked no password is looked at, and nothing counts: who goes
on trying does not keep the right person out for longer. A clock that went back lengthens a lock by no more than its own
length: the latest failure is then taken to have been now (`seen`). Fifteen minutes, because anybody can lock an
account: a custodian can wait that long, and a hundred guesses a day do not find a password that `accounts` lets pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

FORGOTTEN = timedelta(days=1)
FIRST, LONGEST = timedelta(seconds=30), timedelta(minutes=15)


@dataclass(frozen=True)
class Failures:
    """Wrong passwords in a row, and when the latest was."""

    count: int = 0
    latest: datetime | None = None


@dataclass(frozen=True)
class Locked:
    until: datetime


FREE_PER_ACCOUNT, FREE_PER_ADDRESS = 5, 20


def seen(failures: Failures, now: datetime) -> Failures:
    """As it stands now: forgotten after a day, and never in the future."""
    if failures.latest is None or now - failures.latest >= FORGOTTEN:
        return Failures()
    return replace(failures, latest=min(failures.latest, now))


def failed(failures: Failures, now: datetime) -> Failures:
    return Failures(seen(failures, now).count + 1, now)


def lock(failures: Failures, free: int, now: datetime) -> Locked | None:
    """None: a password may be tried."""
    failures = seen(failures, now)
    if failures.latest is None or failures.count < free:
        return None
    # The exponent is bounded: 2^(10^6) is no time.
    until = failures.latest + min(LONGEST, FIRST * 2 ** min(failures.count - free, 16))
    return Locked(until) if now < until else None
