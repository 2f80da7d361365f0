"""One FedAvg round of a 31.2 M-parameter model, three sites that do no training: the product, a floor, and its peers.

    python benchmarks/round.py                                  everything, interleaved, about ten minutes
    python benchmarks/round.py --arms floor,product             without the peers: no network, two minutes
    python benchmarks/round.py --arms floor,product,containers     the same with workers in containers
    python benchmarks/round.py --arms product --model-mb 1      the fixed cost of a round
    python benchmarks/round.py --arms product --wire bf16           weights as 16-bit differences
    python benchmarks/round.py --arms product --sites 8         memory of the centre per further site
    python benchmarks/round.py --arms product --rounds 100 --repeats 1        a soak: memory and disk over time

Each repetition runs `floor, floor+M, product, nvflare, floor, product, flower`, each from nothing and each alone, so
that a ratio is always taken between neighbours in time; what is printed is the median of those ratios. A run's first
two rounds are dropped. What each arm does and does not include is in `benchmarks/README.md` and in `round/*_arm.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "round"))

import floor_arm
import flower_arm
import nvflare_arm
from environments import environment
from measured import WARM_UP, CannotMeasure, Measured, Task

REPOSITORY = Path(__file__).resolve().parents[1]
ARMS = ("floor", "floor+M", "product", "containers", "nvflare", "flower")
PEERS = ("nvflare", "flower")
SITES, MODEL_MB = floor_arm.SITES, floor_arm.MODEL_MB
# Seconds to set up and for one round, before anything has been measured: for the time left alone.
GUESS = {
    "floor": (4, 1.5),
    "floor+M": (4, 1.5),
    "product": (15, 4),
    "containers": (60, 4),
    "nvflare": (35, 6),
    "flower": (30, 30),
}
COUNTING_ROUNDS = WARM_UP + 1

Runner = Callable[[Task], Measured]


def main() -> int:
    asked = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return benchmark(asked)
    except CannotMeasure as error:
        print(f"round.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nround.py: stopped; every process it started has ended", file=sys.stderr)
        return 130


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(ARMS), help=f"some of {','.join(ARMS)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8, help=f"of each run; the first {WARM_UP} are dropped")
    parser.add_argument("--flower-rounds", type=int, default=5, help="Flower's are long")
    parser.add_argument("--model-mb", type=float, default=MODEL_MB, help="product only; MB are 10^6 bytes")
    parser.add_argument("--wire", default="float32", help="product only: float32, bf16 or fp16")
    parser.add_argument("--sites", type=int, default=SITES, help="product only; measured beside three sites")
    parser.add_argument("--json", type=Path, help="everything measured, as JSON")
    parser.add_argument(
        "--floor", type=Path, default=Path(os.environ.get("MSFL_FLOOR", REPOSITORY.parent / "shared/tools/floor")),
        help="folder of grpc_floor.py; MSFL_FLOOR when not given, then ../shared/tools/floor beside the repository",
    )  # fmt: skip
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "build/round", help="the peers' environments")
    parser.add_argument(
        "--scratch", type=Path, help="for the runs' folders; the system's temporary folder if not given"
    )
    asked = parser.parse_args()
    asked.arms = [arm for arm in asked.arms.split(",") if arm]
    if unknown := sorted(set(asked.arms) - set(ARMS)):
        parser.error(f"there is no arm {', '.join(unknown)}; there is {', '.join(ARMS)}")
    if min(asked.rounds, asked.flower_rounds) <= WARM_UP or asked.repeats < 1 or asked.sites < 2:
        parser.error(f"at least {WARM_UP + 1} rounds, one repetition and two sites")
    if (asked.model_mb, asked.sites, asked.wire) != (MODEL_MB, SITES, "float32") and asked.arms != ["product"]:
        parser.error("--model-mb, --sites and --wire are for the product alone: add --arms product")
    return asked


# ---------------------------------------------------------------------- the runs


def benchmark(asked: argparse.Namespace) -> int:
    runners = make_ready(asked)
    steps: list[tuple[str, int, int]] = []  # arm, sites, rounds
    if asked.sites != SITES:
        pairs = [("product", sites, asked.rounds) for sites in (SITES, asked.sites)]
        repetitions = [pairs] * asked.repeats
    else:
        rounds = {arm: asked.flower_rounds if arm == "flower" else asked.rounds for arm in ARMS}
        repetitions = [[(arm, SITES, rounds[arm]) for arm in order(asked.arms)]] * asked.repeats
    counting = "product" in asked.arms and asked.sites == SITES and asked.rounds > COUNTING_ROUNDS
    steps = [("product", SITES, COUNTING_ROUNDS)] * counting + [step for r in repetitions for step in r]

    progress = Progress(steps)
    short = _run(runners, progress, steps[0], asked) if counting else None
    results: list[list[Measured | None]] = []
    for repetition in repetitions:
        results.append([_run(runners, progress, step, asked) for step in repetition])
    report = summarise(results, short)
    report["machine"] = machine()
    report["asked"] = {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()}
    print(shown(report))
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1, default=asdict) + "\n")
    return 1 if progress.failures else 0


def order(arms: Sequence[str]) -> list[str]:
    """One repetition. Each peer has a floor and the product as neighbours."""
    light = [arm for arm in ("floor", "product", "containers") if arm in arms]
    found: list[str] = []
    for peer in [peer for peer in PEERS if peer in arms] or [None]:
        found += [*light, peer] if peer else light
    if "floor+M" in arms:
        found.insert(1 if "floor" in arms else 0, "floor+M")
    return found


def make_ready(asked: argparse.Namespace) -> dict[str, Runner]:
    """Everything that can be missing is looked for before the first run. Raises CannotMeasure."""
    runners: dict[str, Runner] = {}
    if {"floor", "floor+M"} & set(asked.arms):
        floor_arm.check(asked.floor)
        runners["floor"] = partial(floor_arm.measure, floor=asked.floor.resolve())
        runners["floor+M"] = partial(floor_arm.measure, floor=asked.floor.resolve(), settings_m=True)
    for name, arm in (("nvflare", nvflare_arm), ("flower", flower_arm)):
        if name in asked.arms:
            print(f"{name}: environment in {asked.cache} …", file=sys.stderr, flush=True)
            bin_folder = environment(name, arm.REQUIREMENTS, asked.cache.resolve())
            runners[name] = partial(arm.measure, bin_folder=bin_folder)
    if {"product", "containers"} & set(asked.arms):
        try:
            import product_arm
        except ModuleNotFoundError as error:
            raise CannotMeasure(f"{error}; run it in the environment that `make venv` makes") from error
        runners["product"] = product_arm.measure
        runners["containers"] = partial(product_arm.measure, containers=True)
    return runners


def _run(
    runners: dict[str, Runner], progress: Progress, step: tuple[str, int, int], asked: argparse.Namespace
) -> Measured | None:
    """One run in a folder of its own, or None when it failed: the others go on without it."""
    arm, sites, rounds = step
    progress.begins(step)
    with tempfile.TemporaryDirectory(prefix="msfl-round-", dir=asked.scratch, ignore_cleanup_errors=True) as name:
        try:
            measured = runners[arm](Task(rounds, sites, asked.model_mb, Path(name), asked.wire))
        except CannotMeasure as error:
            progress.failed(step, error)
            return None
    if sites != SITES:
        measured.arm = f"{arm}, {sites} sites"
    progress.ended(step, measured)
    return measured


class Progress:
    """One line per run, with what is left as far as it can be told."""

    def __init__(self, steps: Sequence[tuple[str, int, int]]) -> None:
        self._left = list(steps)
        self._total = len(steps)
        self._known: dict[tuple[str, int, int], float] = {}
        self._began = 0.0
        self.failures: list[str] = []

    def begins(self, step: tuple[str, int, int]) -> None:
        left = sum(self._known.get(s, GUESS[s[0]][0] + GUESS[s[0]][1] * s[2] * s[1] / SITES) for s in self._left)
        number = self._total - len(self._left) + 1
        arm, sites, rounds = step
        what = f"{arm}, {rounds} rounds" + (f", {sites} sites" if sites != SITES else "")
        self._say(f"[{number}/{self._total}] {what}; about {max(1, round(left / 60))} min left … ", end="")
        self._began = time.monotonic()
        self._left.pop(0)

    def ended(self, step: tuple[str, int, int], measured: Measured) -> None:
        self._known[step] = time.monotonic() - self._began
        cpu = f"{measured.cpu:.2f} CPU-s"
        self._say(f"{measured.wall:.2f} s and {cpu} a round; others took {100 * measured.others:.0f} % of the machine")

    def failed(self, step: tuple[str, int, int], error: CannotMeasure) -> None:
        self._known[step] = time.monotonic() - self._began
        self.failures.append(str(error))
        self._say(f"not measured: {error}")

    @staticmethod
    def _say(text: str, end: str = "\n") -> None:
        print(text, end=end, file=sys.stderr, flush=True)


# -------------------------------------------------------------------- the figures


def summarise(results: list[list[Measured | None]], short: Measured | None) -> dict[str, Any]:
    """Medians over repetitions, and ratios between neighbours."""
    runs = [m for repetition in results for m in repetition if m is not None]
    arms: dict[str, Any] = {}
    for arm in dict.fromkeys(m.arm for m in runs):
        mine = [m for m in runs if m.arm == arm]
        names = sorted({name for m in mine for name in m.memory})
        arms[arm] = {
            "runs": len(mine),
            "wall_s": median(m.wall for m in mine),
            "wall_s_range": [min(m.wall for m in mine), max(m.wall for m in mine)],
            "cpu_s": median(m.cpu for m in mine),
            "others": median(m.others for m in mine),
            "peak_mib": {n: max(m.memory[n].peak for m in mine if n in m.memory) for n in names},
            "wire_mb": _wire(mine, short),
            "extra": [m.extra for m in mine],
        }
    ratios = {
        f"{over} / {under}": ratio
        for over, under in (
            *(("product", under) for under in ARMS if under not in ("product", "containers")),
            *((other, "floor") for other in ("containers", *PEERS)),
        )
        if (ratio := _ratio(results, over, under)) is not None
    }
    return {"arms": arms, "ratios": ratios, "runs": runs, "counting_run": short}


def _ratio(results: list[list[Measured | None]], over: str, under: str) -> dict[str, Any] | None:
    """Each `under` with the `over` nearest to it in the same repetition; the median of the quotients."""
    walls: list[float] = []
    cpus: list[float] = []
    for repetition in results:
        where = [i for i, m in enumerate(repetition) if m is not None and m.arm == over]
        for i, m in enumerate(repetition):
            if m is not None and m.arm == under and where:
                near = repetition[min(where, key=lambda j: abs(j - i))]
                walls.append(near.wall / m.wall)
                cpus.append(near.cpu / m.cpu)
    if not walls:
        return None
    return {"wall": median(walls), "wall_range": [min(walls), max(walls)], "cpu": median(cpus), "pairs": len(walls)}


def _wire(runs: list[Measured], short: Measured | None) -> list[float] | None:
    """MB of one round, down and up: of the product two runs of different length, so that what is no round cancels."""
    per_round: list[tuple[float, float]] = []
    for m in runs:
        if m.wire is None or m.arm.startswith(("floor", "flower", "containers")):
            continue
        rounds = m.rounds
        down, up = m.wire
        if m.arm.startswith("product"):
            if short is None or short.wire is None:
                continue
            down, up, rounds = down - short.wire[0], up - short.wire[1], rounds - short.rounds
        per_round.append((down / rounds / 1e6, up / rounds / 1e6))
    return [median(d for d, _ in per_round), median(u for _, u in per_round)] if per_round else None


def shown(report: dict[str, Any]) -> str:
    lines = [
        "",
        "one round".ljust(20) + "".join(h.rjust(12) for h in ("wall s", "min", "max", "CPU-s", "MB down", "MB up")),
    ]
    for arm, row in report["arms"].items():
        wire = [f"{mb:.1f}" for mb in row["wire_mb"]] if row["wire_mb"] else ["n/m", "n/m"]
        numbers = [f"{v:.2f}" for v in (row["wall_s"], *row["wall_s_range"], row["cpu_s"])] + wire
        lines.append(arm.ljust(20) + "".join(v.rjust(12) for v in numbers))
    if report["ratios"]:
        lines += [
            "",
            "ratio of neighbours".ljust(20) + "".join(h.rjust(12) for h in ("wall", "min", "max", "CPU", "pairs")),
        ]
        for name, r in report["ratios"].items():
            numbers = [f"{v:.2f}" for v in (r["wall"], *r["wall_range"], r["cpu"])] + [str(r["pairs"])]
            lines.append(name.ljust(20) + "".join(v.rjust(12) for v in numbers))
    lines += ["", "peak memory, MiB resident (kernel's high-water mark; the largest process of each name)"]
    for arm, row in report["arms"].items():
        lines.append(arm.ljust(20) + "  " + ", ".join(f"{n} {mib:.0f}" for n, mib in _by_role(row["peak_mib"]).items()))
    for arm, row in report["arms"].items():
        if arm.startswith("product"):
            lines += ["", *_about_the_centre(arm, row, report)]
    return "\n".join(lines)


def _about_the_centre(arm: str, row: dict[str, Any], report: dict[str, Any]) -> list[str]:
    extra = row["extra"][-1]
    both = row["peak_mib"]["orchestrator"] + row["peak_mib"]["aggregator"]
    growth, disk = extra["centre_growth"], extra["centre_disk_mb"]
    before, after = growth["mib"]
    lines = [
        f"{arm}: orchestrator + aggregator {both:.0f} MiB as the sum of both marks, "
        f"{extra['centre_peak_mib']:.0f} MiB at one moment",
        f"  rounds {growth['from_round']} → {growth['to_round']}: {before:.0f} → {after:.0f} MiB "
        f"({100 * (after / before - 1):+.1f} %); the centre's folder {disk['mb'][0]:.0f} → {disk['mb'][1]:.0f} MB",
    ]
    payload = extra["payload_mb"]
    if row["wire_mb"]:
        share = sum(row["wire_mb"]) / (2 * payload)
        lines.append(
            f"  on the wire {sum(row['wire_mb']):.2f} MB a round = {share:.4f} × payload ({2 * payload:.2f} MB)"
        )
    if arm != "product" and "product" in report["arms"]:
        base = report["arms"]["product"]["peak_mib"]
        more = (both - base["orchestrator"] - base["aggregator"]) / (extra["sites"] - SITES)
        lines.append(f"  {more:+.1f} MiB per site beyond {SITES}")
    return lines


def _by_role(peaks: dict[str, float]) -> dict[str, float]:
    """`gateway:site-1`, `gateway:site-2`, … under one name, the largest."""
    roles: dict[str, float] = {}
    for name, mib in peaks.items():
        role = name.partition(":")[0]
        roles[role] = max(mib, roles.get(role, 0.0))
    return roles


def machine() -> dict[str, Any]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
