"""A process that ends when the one that started it does, however that one ends.

Whoever starts `msfl …` as a part of itself puts its own process id into `MSFL_END_WITH`; the command then asks the
kernel for SIGINT at its parent's death (Linux, prctl(2) PR_SET_PDEATHSIG): as by hand, so that a gateway takes its
workers with it, where SIGTERM would leave them to the gateway that comes after. The kernel means the *thread* that
started it, so start from one that stays.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

END_WITH = "MSFL_END_WITH"
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Called first thing by the console script. Does nothing when nobody asked for it."""
    parent = os.environ.pop(END_WITH, None)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != int(parent):
        sys.exit(1)  # It died before the kernel was asked.
