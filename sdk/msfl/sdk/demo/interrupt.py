"""Ctrl-C, and SIGTERM, for a program that must take its children with it.

    signal ─▶ KeyboardInterrupt in the main thread, wherever it is
        └───▶ a thread of its own ends the children at once, and interrupts again every second until the main thread
              has come out

An exception that a signal handler raises can get lost: in a destructor, in a callback of a C library, in a `with` that
waits for threads which wait for children. So the children are ended beside it, and the main thread is asked again.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable


class Interrupts:
    """Installs itself; `heard` is what the main thread calls when it has come out."""

    def __init__(self, end_children: Callable[[], None]) -> None:
        self._end_children = end_children
        self._asked = threading.Event()
        self._heard = threading.Event()
        self._closer = threading.Thread(target=self._close, name="interrupts", daemon=True)
        self._closer.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def heard(self) -> bool:
        """Whether there was an interrupt; then every child has ended when this returns."""
        self._heard.set()
        if self._asked.is_set():
            self._closer.join()
        return self._asked.is_set()

    def _on_signal(self, number: int, frame: object) -> None:
        self._asked.set()
        if not self._heard.is_set():
            raise KeyboardInterrupt

    def _close(self) -> None:
        self._asked.wait()
        self._end_children()
        while not self._heard.wait(1.0):
            _thread.interrupt_main()
