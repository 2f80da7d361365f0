"""A hundred rounds: no process grows, and the centre's disk holds no more than the retention rule says.

Resident memory of every long-running process is read between rounds, as the median of three rounds around round 10 and
before round 100. It may grow by 2 %, and by `ALLOWANCE_MIB` besides: a run's history is kept in memory (a few kB per
round), and an allocator's pages come in steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fakes.federations import SITES, LiveFederation
from msfl.sdk.run import Run

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.full]
ROUNDS = 100
EARLY, LATE = 10, ROUNDS - 1
ALLOWANCE_MIB = 2.0
SHARE = 0.02


@dataclass
class Soak:
    """By round, after it closed: MiB by process, bytes and number of files of the run's artifacts at the centre."""

    memory: dict[int, dict[str, float]] = field(default_factory=dict)
    bytes: dict[int, int] = field(default_factory=dict)
    files: dict[int, int] = field(default_factory=dict)

    def around(self, round: int, process: str) -> float:
        return statistics.median(self.memory[r][process] for r in (round - 1, round, round + 1) if r in self.memory)


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak]:
    with LiveFederation.up(tmp_path_factory.mktemp("soak"), rounds_max=ROUNDS) as live:
        run = live.client.submit(live.job(rounds=ROUNDS, seed=5))
        yield watched(live, run)


def watched(live: LiveFederation, run: Run) -> Soak:
    soak = Soak()
    folder = live.federation.folder / "centre/artifacts" / run.run_id
    for _, document in run.events():
        if document.get("event") != "CentralDone" or not document["task_id"].startswith("aggregate/"):
            continue
        round = int(document["task_id"].rpartition("/")[2])
        soak.memory[round] = memory(live)
        files = [f for f in folder.rglob("*") if f.is_file()]
        soak.files[round] = len(files)
        soak.bytes[round] = sum(size(f) for f in files)
    state = run.wait()
    assert state["phase"] == "finished", state
    assert all(set(r["sites"]) == set(SITES) for r in state["rounds"])
    return soak


def size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0  # Freed while one looks.


def memory(live: LiveFederation) -> dict[str, float]:
    found = {name: rss(live.process(name)) for name in ("orchestrator", "keyring")}
    found["aggregator"] = largest(live.process("orchestrator"))
    for site in SITES:
        gateway = live.process(f"gateway:{site}")
        found |= {f"gateway:{site}": rss(gateway), f"worker:{site}": largest(gateway)}
    return found


def largest(parent: psutil.Process) -> float:
    """Of what a process has started: launchers of sandboxes are small, and what works in them is not."""
    return max(rss(child) for child in parent.children(recursive=True))


def rss(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


def test_no_process_grows(soak: Soak) -> None:
    assert set(soak.memory) == set(range(1, ROUNDS + 1))
    growth = {p: (soak.around(EARLY, p), soak.around(LATE, p)) for p in soak.memory[EARLY]}
    grown = {p: f"{a:.1f} -> {b:.1f} MiB" for p, (a, b) in growth.items() if b > a * (1 + SHARE) + ALLOWANCE_MIB}
    assert not grown


def test_the_centres_disk_is_bounded_by_the_retention_rule(soak: Soak) -> None:
    assert soak.files[LATE] <= soak.files[EARLY]
    assert soak.bytes[LATE] <= 1.02 * soak.bytes[EARLY]
