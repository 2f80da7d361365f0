"""A disk that is full or read-only stops work at a site, and loses none: wait until there is room, then go on.

    call ─▶ OSError ENOSPC, EDQUOT or EROFS ─▶ one clear line for the staff ▸ `waiting()` ▸ 5 s ▸ the same call again

Only calls that leave nothing half-written may be given: they write under a temporary name, or begin anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

RETRY_S = 5.0
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_PROBE_BYTES = 1 << 20
_T = TypeVar("_T")
log = structlog.get_logger()


class GivenUp(Exception):
    """What is waited for is not wanted any more: the gateway goes down, or the run is over here."""


def is_full(error: OSError) -> bool:
    return error.errno in _FULL


def probe(folder: Path) -> None:
    """Find out whether a file can be written to `folder` now by writing one. Raises OSError."""
    file = folder / ".room"
    try:
        with open(file, "wb") as target:
            target.write(bytes(_PROBE_BYTES))
            target.flush()
            os.fsync(target.fileno())
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def has_room(folder: Path) -> bool:
    try:
        probe(folder)
    except OSError as error:
        if not is_full(error):
            raise
        return False
    return True


def with_room(call: Callable[[], _T], folder: Path, waiting: Callable[[], None], pause: Callable[[float], bool]) -> _T:
    """`pause(seconds)` waits and says whether to give up. Raises GivenUp, and what else `call` does."""
    said = False
    while True:
        try:
            done = call()
        except OSError as error:
            if not is_full(error):
                raise
            if not said:
                log.error("no room to write", folder=str(folder), why=error.strerror, free_mib=_free_mib(folder),
                          do="free some space there, or make it writable; the gateway goes on by itself")  # fmt: skip
                said = True
            waiting()
            if pause(RETRY_S):
                raise GivenUp from error
        else:
            if said:
                log.info("there is room again", folder=str(folder))
            return done


def _free_mib(folder: Path) -> int:
    return shutil.disk_usage(folder).free >> 20
