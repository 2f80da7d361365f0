"""The site's audit log is shown to the centre, and the centre's is kept: in a thread of its own, beside the work.

    a report has gone out (at least once per round), or 3 s have passed ─▶ has the log grown? ─▶ Witness ─▶ keep

A centre that will not have our checkpoint, or whose own contradicts an earlier one, is written down and said aloud,
once; whether a run goes on is the custodian's to decide, with both checkpoints in hand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime

import structlog

from msfl.gateway.link import LineDown, Link, NotWanted
from msfl.protos.audit_log import AuditLog
from msfl.protos.notary import Notary, Shown

EVERY_S = 3.0
log = structlog.get_logger()


class Witness:
    def __init__(
        self, notary: Notary, link: Link, audit: AuditLog, federation: str, clock: Callable[[], datetime]
    ) -> None:
        self._notary = notary
        self._link = link
        self._audit = audit
        self._centre = f"centre:{federation}"
        self._clock = clock
        self._bell = threading.Event()
        self._stopping = False
        self._alarmed: set[str] = set()
        self._heard_of = -1

    def due(self) -> None:
        """Show the log soon."""
        self._bell.set()

    def serve(self) -> None:
        """Until `stop`."""
        while not self._stopping:
            self._bell.wait(EVERY_S)
            self._bell.clear()
            self.exchange()

    def stop(self) -> None:
        self._stopping = True
        self._bell.set()

    def exchange(self) -> None:
        """Show what is new; nothing, when nothing is. A line that is down is tried again."""
        size = self._audit.size
        if size == self._heard_of:
            return
        try:
            theirs = self._link.witness(self._notary.show())
            self._keep(theirs)
        except LineDown as down:
            log.info("the audit log has not been shown yet", why=str(down))
        except NotWanted as unwanted:
            self._heard_of = size
            if unwanted.status == "FAILED_PRECONDITION":
                self._alarm("the centre says that our audit log contradicts itself", str(unwanted))
            else:
                log.warning("the centre keeps no checkpoint of our audit log", why=str(unwanted))
        except OSError as error:
            log.error("a checkpoint cannot be kept", why=str(error))
        else:
            self._heard_of = size

    def _keep(self, theirs: Shown) -> None:
        if (refused := self._notary.take(self._centre, theirs)) is not None:
            self._alarm(f"the centre's audit log contradicts itself: {refused.code}", refused.why)

    def _alarm(self, what: str, why: str) -> None:
        if what in self._alarmed:
            return
        self._alarmed.add(what)
        log.error(what, why=why, do="stop the runs of this federation and compare exported logs: msfl audit verify")
        try:
            self._audit.write(self._clock(), "audit alarm", self._centre, {"what": what})
        except OSError as error:
            log.error("an alarm cannot be written down", why=str(error))
