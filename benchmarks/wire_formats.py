"""What 16-bit wire formats cost in Dice and save in bytes: the demo, the same seed, once per format.

    python benchmarks/wire_formats.py [--seeds 1]        about eight minutes per seed

Two runs that differ in a bit take different ways; how far Dice varies between seeds is the measure of what a difference
means. Nothing here is clinical evidence: the patients are generated.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from demo_runs import dice, mean, run_demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1")
    for seed in parser.parse_args().seeds.split(","):
        for wire in ("float32", "bf16", "fp16"):
            with tempfile.TemporaryDirectory() as name:
                options = ("--seed", seed, "--no-baseline", "--setting", f"wire={wire}")
                report, _, _ = run_demo(Path(name) / "runs", *options)
            each = {site: dice(report, "federated", site) for site in report["sites"]}
            last = report["rounds"][-1]
            shown = " ".join(f"{site} {value:.3f}" for site, value in each.items() if value is not None)
            megabytes = f"{last['bytes_down'] / 1e6:.2f} MB down, {last['bytes_up'] / 1e6:.2f} up in the last round"
            print(
                f"seed {seed}  {wire:8} mean test Dice {mean(list(each.values())):.3f} ({shown}); {megabytes}",
                flush=True,
            )


if __name__ == "__main__":
    main()
