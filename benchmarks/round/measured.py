"""What one run of one arm gives, and the exception that ends the benchmark with one line."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from meter import Memory, Meter

WARM_UP = 2  # rounds that are dropped: imports, caches, connections


class CannotMeasure(Exception):
    """What is missing, in one line, with what to do about it."""


@dataclass(frozen=True)
class Task:
    """What every arm is asked for. `scratch` is the run's own folder and is thrown away after it."""

    rounds: int
    sites: int
    model_mb: float
    scratch: Path
    wire: str = "float32"


@dataclass
class Measured:
    """One run. `seconds`: wall time of each round after the warm-up; `cpu`: CPU seconds of one round, all processes."""

    arm: str
    seconds: list[float]
    cpu: float
    rounds: int  # of the whole run, warm-up included
    memory: dict[str, Memory] = field(default_factory=dict)
    wire: tuple[int, int] | None = None  # bytes sent and received by the server in the whole run, not one round
    others: float = 0.0  # share of the machine that other processes took
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def wall(self) -> float:
        return median(self.seconds)


def from_marks(arm: str, ends: list[float], meter: Meter) -> Measured:
    """`ends[i]`: when round i + 1 was over. A round lasts from the end of the one before it to its own."""
    if len(ends) <= WARM_UP:
        raise CannotMeasure(f"{arm}: {len(ends)} rounds ended; {WARM_UP + 1} are the fewest that can be measured")
    kept = ends[WARM_UP - 1 :]
    seconds = [after - before for before, after in pairwise(kept)]
    cpu = (meter.cpu_at(kept[-1]) - meter.cpu_at(kept[0])) / len(seconds)
    return Measured(arm, seconds, cpu, len(ends), meter.memory(), meter.wire(), meter.others())


def wait_for_app(arm: str, child: subprocess.Popen[bytes], checked: Path, log: Path, patience_s: float) -> None:
    """Until a peer's app has checked its result: `<tensors> <largest deviation>`. Raises CannotMeasure."""
    give_up = time.monotonic() + patience_s
    while not (checked.exists() and checked.read_text().endswith("\n")):
        if child.poll() not in (None, 0):
            raise CannotMeasure(f"{arm} ended with status {child.returncode}: {_last_line(log)}")
        if time.monotonic() > give_up:
            raise CannotMeasure(f"{arm} has no result after {patience_s:.0f} s: {_last_line(log)}")
        time.sleep(0.1)
    tensors, worst = checked.read_text().split()
    if tensors != "108" or float(worst) > 1e-4:
        raise CannotMeasure(f"{arm} came to a wrong result: {tensors} tensors, off by {worst}")


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1][:300]


def read_marks(file: Path) -> list[float]:
    """Apps append one line per round, the time when it was over. A line that is being written does not count yet."""
    if not file.exists():
        return []
    return [float(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
