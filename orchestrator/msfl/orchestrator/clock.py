"""`SteadyClock`: seconds since 1970 that never jump while this process lives.

It reads the wall once, at its start, and goes on with the monotonic clock: when somebody sets the machine's clock,
no deadline passes and no site falls silent because of it. The price: after such a correction the times in events are
off by it until the next restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class SteadyClock:
    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset = wall() - monotonic()

    def __call__(self) -> float:
        return self._offset + self._monotonic()
