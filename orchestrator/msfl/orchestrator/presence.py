"""Which gateways are there, by their last sign of life, and who else waits for something to happen.

    here ──nothing heard for SILENT_AFTER_S──▶ away ──a sign──▶ here

A site is away until this process has heard it once. No time here is ever compared with one of another process:
patience counts from what this process has seen.

`Bell` wakes exactly those who wait for one site's orders or for one run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

# Gateways give a sign every 3 s, and the engine looks twice a second: what stops is noticed within 15 s.
SILENT_AFTER_S = 12.0


class Bell:
    """A number that grows with every ring. Who knows the last number misses no ring, however late it waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rung = 0

    def ring(self) -> None:
        with self._changed:
            self._rung += 1
            self._changed.notify_all()

    def wait(self, heard: int, timeout_s: float) -> int:
        """Until it has rung since `heard` (-1: no ring yet known), or the time is up; the present number."""
        with self._changed:
            self._changed.wait_for(lambda: self._rung != heard, timeout_s)
            return self._rung


class Presence:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}

    def heard(self, site: str) -> None:
        self._last[site] = self._clock()

    def present(self, site: str) -> bool:
        return site in self._last and not self.silent(site, self._last[site])

    def silent(self, site: str, since: float) -> bool:
        """Nothing was heard for too long, where nobody could expect a sign before `since`."""
        return self._clock() - max(self._last.get(site, since), since) > SILENT_AFTER_S
