"""What an arm's processes use, seen from outside: CPU seconds, memory, bytes on sockets. The same meter for every arm.

    with Meter(name_of) as meter:       from here on every process that this one starts, however deep, is measured,
        …                               and every one that is left at the end is ended
        meter.cpu_at(t)                 CPU seconds (user + system) of all of them, from the start to time t

CPU: /proc/<pid>/stat of every descendant five times a second, plus what ended processes left with the one that reaped
them; a value between two samples is interpolated. This process is made the reaper of orphans (prctl(2),
PR_SET_CHILD_SUBREAPER), so a daemon that forks away is still a descendant and its CPU is still counted.
Memory: VmHWM, the kernel's own high-water mark of resident memory, mapped file pages included; and RssAnon, sampled.
Sockets: `ss -ti` on the server's port; see `wire`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

EVERY_S = 0.2
SOCKETS_EVERY_S = 1.0
_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")
_BYTES = re.compile(rb"bytes_(acked|received):(\d+)")


@dataclass(frozen=True)
class Memory:
    """MiB. `peak`: VmHWM; where several processes have one name, the largest. `anonymous`: RssAnon at its highest."""

    peak: float
    anonymous: float


@dataclass
class _Seen:
    """Of all processes of one name: their memory over time, summed. Lists of (time, MiB)."""

    peak: float = 0.0
    anonymous: float = 0.0
    resident: list[tuple[float, float]] = field(default_factory=list)


class Meter:
    """`name_of(command line)` names the processes that are reported one by one; None for the others."""

    def __init__(self, name_of: Callable[[list[str]], str | None], port: int | None = None) -> None:
        self._name_of = name_of
        self.port = port
        self._times: list[float] = []
        self._cpu: list[float] = []
        self._seen: dict[str, _Seen] = defaultdict(_Seen)
        self._sockets: dict[bytes, dict[bytes, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    def __enter__(self) -> Meter:
        self._began, self._busy_before, self._mine_before = time.monotonic(), _busy_seconds(), sum(os.times()[:2])
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with deaf():
            self._close()

    def _close(self) -> None:
        self._stop.set()
        self._thread.join()
        end_descendants()

    # ------------------------------------------------------------------ results

    def cpu_at(self, at: float) -> float:
        """CPU seconds up to the time `at` (as time.time gives it)."""
        give_up = time.monotonic() + 5.0
        while (not self._times or self._times[-1] <= at) and time.monotonic() < give_up:
            time.sleep(EVERY_S)  # Until the first look after it.
        i = bisect_left(self._times, at)
        if i == 0 or i == len(self._times):
            raise ValueError("the meter was not running then")
        t0, t1, c0, c1 = self._times[i - 1], self._times[i], self._cpu[i - 1], self._cpu[i]
        return c0 + (c1 - c0) * (at - t0) / (t1 - t0)

    def others(self) -> float:
        """Share of the machine's cores that processes outside the measurement took meanwhile, 0 to 1."""
        machine = _busy_seconds() - self._busy_before
        mine = sum(os.times()[:2]) - self._mine_before + (self._cpu[-1] - self._cpu[0] if self._cpu else 0.0)
        elapsed = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, machine - mine) / elapsed

    def memory(self) -> dict[str, Memory]:
        return {name: Memory(seen.peak, seen.anonymous) for name, seen in sorted(self._seen.items())}

    def resident(self, name: str, begin: float, end: float) -> float:
        """The most memory, MiB, that was resident under this name between two times. 0 when there was none."""
        return max((mib for t, mib in self._seen[name].resident if begin <= t <= end), default=0.0)

    def resident_together(self, names: tuple[str, ...], begin: float, end: float) -> float:
        """As `resident`, of several names at one time."""
        sums: dict[float, float] = defaultdict(float)
        for name in names:
            for t, mib in self._seen[name].resident:
                if begin <= t <= end:
                    sums[t] += mib
        return max(sums.values(), default=0.0)

    def wire(self) -> tuple[int, int] | None:
        """Bytes that the server's sockets have sent and received so far: TCP payload, TLS included, no IP headers.

        A connection counts up to the last look at it, at most a second before its end. None without `ss`.
        """
        if self.port is None or shutil.which("ss") is None:
            return None
        self._look_at_sockets()
        totals = self._sockets.values()
        return sum(c.get(b"acked", 0) for c in totals), sum(c.get(b"received", 0) for c in totals)

    # ----------------------------------------------------------------- sampling

    def _run(self) -> None:
        sockets_at = 0.0
        while not self._stop.wait(EVERY_S):
            self._sample()
            if self.port is not None and time.monotonic() - sockets_at > SOCKETS_EVERY_S:
                sockets_at = time.monotonic()
                self._look_at_sockets()

    def _sample(self) -> None:
        at = time.time()
        pids = descendants()
        mine = os.times()
        total = mine.children_user + mine.children_system  # of those that ended and were reaped here
        resident: dict[str, float] = defaultdict(float)
        for pid in pids:
            with contextlib.suppress(OSError):  # It may end while we look.
                total += sum(map(int, _stat(pid)[11:15])) / _TICKS
                name = self._name_of(_command(pid))
                if name is None:
                    continue
                status = dict(
                    line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
                )
                if "VmHWM" not in status:
                    continue  # It has ended, and was not reaped yet.
                seen = self._seen[name]
                seen.peak = max(seen.peak, _mib(status["VmHWM"]))
                seen.anonymous = max(seen.anonymous, _mib(status["RssAnon"]))
                resident[name] += _mib(status["VmRSS"])
        for name, mib in resident.items():
            self._seen[name].resident.append((at, mib))
        self._times.append(at)
        # A process that was reaped between two looks at it and at its parent is missing for one sample.
        self._cpu.append(max(total, self._cpu[-1] if self._cpu else 0.0))

    def _look_at_sockets(self) -> None:
        command = ["ss", "-tinHO", "state", "connected", f"( sport = :{self.port} )"]
        try:
            shown = subprocess.run(command, capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return
        for line in shown.splitlines():
            fields = line.split()
            if len(fields) > 4:
                self._sockets[fields[4]] = {kind: int(n) for kind, n in _BYTES.findall(line)}


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Ctrl-C has been heard: a second one does not keep us from ending what we started."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def descendants() -> list[int]:
    """All processes below this one, children before their own children."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                children[int(_stat(int(entry))[1])].append(int(entry))
    found = [os.getpid()]
    for pid in found:  # grows while we go
        found += children[pid]
    return found[1:]


def end_descendants(patience_s: float = 5.0) -> None:
    """SIGTERM to all, then SIGKILL to what is left; every one is reaped, so nothing stays behind."""
    give_up = time.monotonic() + patience_s
    asked: set[int] = set()
    while left := [pid for pid in descendants() if not _reap(pid)]:
        late = time.monotonic() > give_up
        for pid in left if late else [pid for pid in left if pid not in asked]:
            asked.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.05)


def _reap(pid: int) -> bool:
    """Whether the process is gone. Only a direct child can be reaped; others are once they become ours."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return not Path(f"/proc/{pid}").exists()


def _busy_seconds() -> float:
    """Of all cores since boot, idle and waiting for disks left out, what other guests took (steal) included."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split(None, 9)[1:9])
    return (user + nice + system + irq + soft + steal) / _TICKS


def _stat(pid: int) -> list[str]:
    """Fields of proc(5) stat after the name: [0] is the state, [1] the parent, [11:15] u, s, cu and cs in ticks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]


def _mib(shown: str) -> float:
    return int(shown.split()[0]) / 1024
