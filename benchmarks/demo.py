"""The demo's figures: wall time ≤ 5 min, memory ≤ 6 GiB, federated mean test Dice ≥ 0.6, overhead ≤ 25 %.

And that the data are not trivial: the best single FLAIR threshold per case, an oracle, stays in [0.2, 0.65] per site.

    python benchmarks/demo.py [--seed N]        on an idle machine; about five minutes
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from demo_runs import dice, matrix, mean, run_demo, summary
from msfl.imaging.oracle import oracle_threshold_dice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    with tempfile.TemporaryDirectory() as name:
        report, seconds, folder = run_demo(Path(name) / "runs", "--seed", str(seed))
        print(summary(report, seconds))
        print(matrix(report))
        federated = mean([dice(report, "federated", s) for s in report["sites"]])
        print(f"federated mean test Dice {federated:.3f}")
        for site in report["sites"]:
            values = _oracle(folder / "sites" / site / "data" / site)
            cases = " ".join(f"{v:.2f}" for v in values)
            print(f"oracle threshold on {site}: mean {np.mean(values):.3f} (cases {cases})")


def _oracle(site: Path) -> list[float]:
    values = []
    for label in sorted((site / "labelsTs").glob("*.nii.gz")):
        flair = site / "imagesTs" / label.name.replace(".nii.gz", "_0000.nii.gz")
        truth = np.asarray(nib.load(label).dataobj) > 0
        values.append(oracle_threshold_dice(np.asarray(nib.load(flair).dataobj), truth))
    return values


if __name__ == "__main__":
    main()
