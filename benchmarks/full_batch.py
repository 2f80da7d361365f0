"""One batch of the stock plan on 1 mm data, through worker, gateway and aggregator, on a CPU.

It proves that nothing is tied to the demo's size: the planner's own patch and width, one site, one round, one batch.
It wants about 18 GiB of memory for the one worker.

    python benchmarks/full_batch.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from demo_runs import run_demo, summary


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        command = [sys.executable, "-m", "msfl.sdk.main", "data", "synth", str(data), "--site", "site-a"]
        subprocess.run([*command, "--spacing", "1", "--train", "5", "--test", "2"], check=True)
        report, seconds, _ = run_demo(
            Path(name) / "runs", "--data", str(data), "--profile", "full", "--rounds", "1", "--batches", "1",
            "--no-baseline", "--setting", "inference_mirroring=false", "--setting", "inference_step=1.0",
        )  # fmt: skip
    print(summary(report, seconds))
    print(json.dumps(report["plan"], indent=1))
    print({k: v for k, v in report["peak_rss_mib"].items() if k.startswith(("worker", "aggregator", "gateway", "all"))})
    print("round:", report["rounds"][0])


if __name__ == "__main__":
    main()
