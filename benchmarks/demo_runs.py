"""How the benchmarks run the demo: as a user does, from a fresh process, and read what its report says.

Everything they print comes from `report.json` or from the clock around the process; nothing is computed twice.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TypeAlias

Report: TypeAlias = dict[str, Any]


def run_demo(folder: Path, *arguments: str) -> tuple[Report, float, Path]:
    """`msfl demo …` in `folder`; its report, the wall seconds of the whole process, and the run's folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "msfl.sdk.main", "demo", "--runs", str(folder), "--name", "run", *arguments]
    subprocess.run(command, check=True)
    seconds = time.monotonic() - began
    return json.loads((folder / "run" / "report.json").read_text()), seconds, folder / "run"


def dice(report: Report, model: str, site: str) -> float | None:
    entry = report["evaluation"].get(model, {}).get(site, {})
    return entry["dice"]["mean"] if entry.get("n") else None


def mean(values: list[float | None]) -> float:
    known = [v for v in values if v is not None]
    return sum(known) / len(known)


def matrix(report: Report) -> str:
    """Models down, test sites across, mean test Dice."""
    sites = list(report["sites"])
    lines = ["model".ljust(18) + "".join(s.rjust(12) for s in sites) + "mean".rjust(10)]
    for model in report["evaluation"]:
        values = [dice(report, model, s) for s in sites]
        shown = "".join(("–" if v is None else f"{v:.3f}").rjust(12) for v in values)
        lines.append(model.ljust(18) + shown + f"{mean(values):.3f}".rjust(10))
    return "\n".join(lines)


def summary(report: Report, seconds: float) -> str:
    timings = report["timings"]
    shown = ", ".join(f"{k} {v:.1f}" for k, v in sorted(timings.items(), key=lambda kv: -kv[1]) if v >= 0.5)
    return (
        f"wall {seconds:.0f} s ({seconds / 60:.1f} min); overhead {100 * report['overhead_share']:.1f} %; "
        f"peak memory of all processes {report['peak_rss_mib']['all processes']:.0f} MiB; "
        f"evaluated round {report['evaluated_round']} of {len(report['rounds'])}\nseconds: {shown}"
    )
