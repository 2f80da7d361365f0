"""What a run at this site says, to its audit log and to the orchestrator, and its patience until that has got through.

    the disk is full or read-only    `with_room`: wait until there is room
    the line is down                 `until_sent`: again, until it is up
    nobody wants it any more         `given_up`: the gateway goes down, or the long action (`Aside`) was called off

Progress is for eyes: what is not heard is not said again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from msfl.gateway.disk import GivenUp, with_room
from msfl.gateway.link import LineDown, NotWanted
from msfl.gateway.machine import Event
from msfl.gateway.surroundings import Surroundings
from msfl.protos.messages import SiteProgress

DISK_FULL = "disk full at the site"
_T = TypeVar("_T")
log = structlog.get_logger()


class Aside(threading.Thread):
    """One long action; its outcome is an event, unless nobody wants it any more by then."""

    def __init__(
        self, unwanted: threading.Event, take: Callable[[Event], None], action: Callable[[], Event], name: str
    ) -> None:
        super().__init__(name=name)
        self.unwanted = unwanted
        self._take = take
        self._action = action

    def run(self) -> None:
        try:
            event = self._action()
        except GivenUp:
            return
        if not self.unwanted.is_set():
            self._take(event)


def _unwanted() -> bool:
    """Whether this is a thread whose worker is wanted no more."""
    here = threading.current_thread()
    return isinstance(here, Aside) and here.unwanted.is_set()


class Reporting:
    """One run's. `task_id` is that of its newest order; `closing`: the gateway goes down, nothing waits any more."""

    def __init__(self, run_id: str, around: Surroundings) -> None:
        self.task_id = ""
        self.closing = threading.Event()
        self._run_id = run_id
        self._around = around
        self._last_beat = self._deaf_until = 0.0
        self._ended_phase = ""

    def audit(self, action: str, **fields: str) -> None:
        self.with_room(lambda: self._around.audit.write(self._around.clock(), action, self._run_id, fields))

    def with_room(self, call: Callable[[], _T]) -> _T:
        def waiting() -> None:
            self.beat(SiteProgress(self._run_id, self.task_id, DISK_FULL, 0, 0))

        return with_room(call, self._around.home.root, waiting, self.pause)

    def pause(self, pause_s: float) -> bool:
        """Wait; whether there is nothing left to wait for."""
        until = time.monotonic() + pause_s
        while not (over := self.given_up()) and time.monotonic() < until:
            self.closing.wait(0.2)
        return over

    def given_up(self) -> bool:
        return self.closing.is_set() or _unwanted()

    def stopped(self) -> bool:
        """This thread's worker is wanted no more, and not because the gateway goes down: the next one would go on."""
        return _unwanted() and not self.closing.is_set()

    def beat(self, progress: SiteProgress) -> None:
        now = time.monotonic()
        # The end of a phase is always said, once; however often a worker claims it.
        ends = progress.done >= progress.total and progress.phase != self._ended_phase
        if now < self._deaf_until or (now - self._last_beat < 0.25 and not ends):
            return
        self._last_beat = now
        self._ended_phase = progress.phase if ends else ""
        try:
            self._around.link.beat(progress)
        except (LineDown, NotWanted) as error:
            self._deaf_until = time.monotonic() + 5.0  # The work goes on meanwhile.
            log.info("progress was not heard", run=self._run_id, why=str(error))

    def tell(self, call: Callable[[], None]) -> None:
        try:
            self.until_sent(call)
        except NotWanted as unwanted:
            log.warning("the orchestrator will not have it", run=self._run_id, why=str(unwanted))

    def until_sent(self, call: Callable[[], _T]) -> _T:
        """Try until it gets through: what a site has to say is never lost to a broken line. Raises GivenUp."""
        wait = 0.2
        while not self.given_up():
            try:
                return call()
            except LineDown as down:
                why = str(down)
            except NotWanted as unwanted:
                if unwanted.status != "OUT_OF_RANGE":  # The centre has less of an upload than it had: ask anew.
                    raise
                why = str(unwanted)
            log.info("the line is down", run=self._run_id, why=why)
            self.pause(wait)
            wait = min(wait * 2, 5.0)
        raise GivenUp
