"""The main job on real input: the semi-real cohort, per-site Dice of federated and local models, minutes, memory.

python benchmarks/cohort.py --data DIR [--seeds 1 2] [--rounds 25 --batches 30]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from demo_runs import matrix, run_demo, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="one folder per site in nnU-Net raw layout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--batches", type=int)
    parser.add_argument("--setting", nargs="*", default=[])
    asked = parser.parse_args()
    more = [f"--{k}={v}" for k in ("rounds", "batches") if (v := getattr(asked, k)) is not None]
    more += [f"--setting={pair}" for pair in asked.setting]
    for seed in asked.seeds:
        with tempfile.TemporaryDirectory() as name:
            report, seconds, _ = run_demo(Path(name) / "runs", "--data", str(asked.data), "--seed", str(seed), *more)
        print(f"\nseed {seed}: {summary(report, seconds)}\n{matrix(report)}", flush=True)


if __name__ == "__main__":
    main()
