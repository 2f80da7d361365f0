"""Who was turned away at one of the centre's doors, and why, in the centre's audit log.

    a door refuses ─▶ log line, each time ─▶ audit entry "turned away": door, code, who, from where

One entry per door, code, caller and hour: an auditor sees that it happened, and nobody fills the disk by knocking. Who
is named was verified (a site by its certificate, a user by the token), or nobody is. An entry that the disk does not
take changes nothing for who was turned away; the disk's own alarms are louder.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias

import structlog

from msfl.protos.audit_log import AuditLog

Note: TypeAlias = Callable[[str, str, str, str], None]  # door, code, who, peer
AGAIN_AFTER_S = 3600.0
MOST = 1000  # different ones within that time; who makes more is known by then
log = structlog.get_logger()


def no_note(door: str, code: str, who: str, peer: str) -> None:
    """Where there is no audit log, in tests of other things."""


class TurnedAway:
    """Its methods may be called by any thread."""

    def __init__(self, audit: AuditLog, clock: Callable[[], datetime]) -> None:
        self._audit = audit
        self._clock = clock
        self._lock = threading.Lock()
        self._noted: dict[tuple[str, str, str, str], float] = {}

    def note(self, door: str, code: str, who: str, peer: str) -> None:
        key, now = (door, code, who, peer), time.monotonic()
        with self._lock:
            self._noted = {k: at for k, at in self._noted.items() if now - at < AGAIN_AFTER_S}
            if key in self._noted or len(self._noted) >= MOST:
                return
            self._noted[key] = now
        try:
            self._audit.write(self._clock(), "turned away", door, {"code": code, "who": who, "peer": peer})
        except OSError as error:
            log.error("not in the audit log", door=door, code=code, why=str(error))
