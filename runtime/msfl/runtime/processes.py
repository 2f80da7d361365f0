"""Processes of this machine, by what /proc says of them: families, and their end.

A number alone names nobody for long: `started`, in clock ticks since boot, says whether it is still the same one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One line of /proc: what is needed to find a process's family."""

    pid: int
    parent: int
    session: int
    started: int
    zombie: bool


def read(pid: int) -> Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may hold anything; the fields that count come after the last one.
    fields = text.rpartition(")")[2].split()
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), fields[0] in "ZX")


def lives(pid: int, started: int) -> bool:
    """Whether it is still there, and still the same one."""
    found = read(pid)
    return found is not None and found.started == started and not found.zombie


def everyone() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := read(int(name))) is not None:
            yield found


def family(pid: int) -> list[Process]:
    """The process, all its descendants, and whoever is still in its session."""
    known = {p.pid: p for p in everyone()}
    wanted = {pid}
    grown = True
    while grown:
        more = {p.pid for p in known.values() if p.parent in wanted or p.session == pid} - wanted
        wanted |= more
        grown = bool(more)
    return [known[p] for p in sorted(wanted) if p in known]


def kill_session(session: int, since: int = 0) -> None:
    """SIGKILL whoever is left in the session of a dead leader, until nobody is."""
    while left := [p for p in everyone() if p.session == session and not p.zombie and p.started >= since]:
        for process in left:
            kill(process.pid, signal.SIGKILL)
        time.sleep(0.005)


def kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # It ended by itself in the meantime.
        os.kill(pid, number)


def end(processes: Iterable[Process]) -> None:
    """SIGKILL, until they are gone: the kernel takes a moment, most of all for those inside a sandbox.

    A sandbox whose bubblewrap died while it was being built does not know yet that it should die with it.
    """
    for process in processes:
        while lives(process.pid, process.started):
            kill(process.pid, signal.SIGKILL)
            time.sleep(0.005)


def children(pid: int) -> list[Process]:
    return [p for p in everyone() if p.parent == pid]
