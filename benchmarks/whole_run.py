"""A whole federated run against plain nnU-Net that does the same iterations, one process per site, on this machine.

    python benchmarks/whole_run.py [--rounds 20 --batches 40]        an idle machine; about twelve minutes

product   `msfl demo` without baselines and validation: from the first worker's start to the last closed round
plain     the same sites' data in three processes that know nothing of each other: import, plan, preprocess, and the
          same number of batches of the same trainer; from the first process's start to the last one's end

Neither tests its model within the time that counts. Both train with the settings of the profile `demo`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nnunet_oneprocess import RELEASE, nothing, open_site

from demo_runs import run_demo

COUNTED = ("start", "open", "fingerprint", "plan", "prepare", "train", "aggregate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.plain is not None:
        return plain_site(asked.plain, asked.rounds, asked.batches)
    ratios = []
    for _ in range(asked.repeats):
        with tempfile.TemporaryDirectory() as name:
            size = ("--rounds", str(asked.rounds), "--batches", str(asked.batches))
            settings = ("--no-baseline", "--setting", "validation_fraction=0")
            report, _, folder = run_demo(Path(name) / "runs", *size, *settings)
            phases = {phase: report["timings"].get(phase, 0.0) for phase in COUNTED}
            product = sum(phases.values())
            plain = plain_sites(sorted(folder.glob("sites/*/data/*")), size)
            sites = [[site["seconds"] for site in r["sites"].values()] for r in report["rounds"]]
            slowest, mean = sum(max(s) for s in sites), sum(sum(s) / len(s) for s in sites)
        ratios.append(product / plain)
        shown = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases.items())
        print(f"product {product:.1f} s ({shown}); plain {plain:.1f} s; ratio {product / plain:.3f}", flush=True)
        print(f"  in the workers: {mean:.1f} s on average, {slowest:.1f} s of each round's slowest", flush=True)
    print(f"whole run against plain nnU-Net: {sorted(ratios)[len(ratios) // 2]:.3f} x (median of {len(ratios)})")


def plain_sites(folders: list[Path], size: tuple[str, ...]) -> float:
    began = time.monotonic()
    environment = {**os.environ, "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), *size]
    processes = [subprocess.Popen([*command, "--plain", str(folder)], env=environment) for folder in folders]
    if any(process.wait() for process in processes):
        raise SystemExit("a plain site failed")
    return time.monotonic() - began


def plain_site(folder: Path, rounds: int, batches: int) -> None:
    """One site alone: fingerprint, plan, preprocessing, `rounds` times `batches` batches."""
    from ruamel.yaml import YAML

    from msfl.learning.nnunet.model import NnUNet

    config = dict(YAML(typ="safe").load(RELEASE.read_text())["profiles"]["demo"])
    config |= {"rounds": rounds, "batches_per_epoch": batches, "validation_fraction": 0.0}
    with tempfile.TemporaryDirectory() as name:
        site, model = open_site(folder, Path(name), config), NnUNet()
        plan = model.plan({site.site_id: model.fingerprint(site, config)}, config)
        weights = model.initial(plan, config)
        model.prepare(site, plan, config, nothing)
        for round in range(1, rounds + 1):
            weights = model.train(site, weights, "federated", round, config, nothing).weights


if __name__ == "__main__":
    main()
