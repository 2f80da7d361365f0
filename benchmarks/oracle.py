"""How hard is the demo's data? Per site: lesion load, and the Dice of the best FLAIR threshold per test case.

    python benchmarks/oracle.py                       generates the demo's data into a temporary folder
    python benchmarks/oracle.py --data DIR            one folder per site in nnU-Net raw layout (channel 0 is FLAIR)

The threshold is an oracle: it is chosen per case with the truth in hand. The demo's data is neither trivial nor
hopeless when its mean stays between 0.2 and 0.65 at every site; the exit code says so (0 yes, 1 no).
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

import nibabel as nib
import numpy as np
from rich.console import Console
from rich.table import Table

from msfl.imaging.oracle import oracle_threshold_dice
from msfl.imaging.synth import DEFAULT_SPACING_MM, DEMO_CASES, DEMO_SITES, generate_site

LOW, HIGH = 0.2, 0.65


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of site folders; generated when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spacing", type=float, default=DEFAULT_SPACING_MM, help="voxel size in mm")
    parser.add_argument("--train", type=int, help="training cases per site (default: the demo's)")
    parser.add_argument("--test", type=int, help="test cases per site (default: the demo's)")
    arguments = parser.parse_args()
    if arguments.data is not None:
        return report({site.name: (site, None) for site in sorted(arguments.data.iterdir()) if site.is_dir()})
    with tempfile.TemporaryDirectory() as folder:
        sites: dict[str, tuple[Path, float | None]] = {}
        for style in DEMO_SITES:
            n_train, n_test = DEMO_CASES[style.name]
            n_train = n_train if arguments.train is None else arguments.train
            n_test = n_test if arguments.test is None else arguments.test
            out = Path(folder) / style.name
            started = time.perf_counter()
            generate_site(out, style, seed=arguments.seed, n_train=n_train, n_test=n_test, spacing_mm=arguments.spacing)
            sites[style.name] = out, (time.perf_counter() - started) / (n_train + n_test)
        return report(sites)


def report(sites: dict[str, tuple[Path, float | None]]) -> int:
    table = Table("site", "train", "test", "load ml, min / median / max", "oracle Dice", "per test case", "s per case")
    fair = True
    for name, (folder, seconds) in sites.items():
        labels = {part: sorted((folder / f"labels{part}").glob("*.nii.gz")) for part in ("Tr", "Ts")}
        loads = [load_ml(path) for part in labels.values() for path in part]
        dices = [oracle(folder, path) for path in labels["Ts"]]
        if not dices:
            continue
        fair = fair and LOW <= mean(dices) <= HIGH
        table.add_row(
            name,
            str(len(labels["Tr"])),
            str(len(labels["Ts"])),
            f"{min(loads):.1f} / {median(loads):.1f} / {max(loads):.1f}",
            f"{mean(dices):.3f}",
            " ".join(f"{dice:.2f}" for dice in dices),
            "" if seconds is None else f"{seconds:.2f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    verdict = "yes" if fair else "NO"
    console.print(f"mean oracle Dice between {LOW} and {HIGH} at every site: {verdict}", highlight=False)
    return 0 if fair else 1


def load_ml(path: Path) -> float:
    image = nib.load(path)
    voxel_mm3 = abs(float(np.linalg.det(image.affine[:3, :3])))
    return np.count_nonzero(np.asanyarray(image.dataobj)) * voxel_mm3 / 1000


def oracle(folder: Path, label: Path) -> float:
    case = label.name.removesuffix(".nii.gz")
    flair = folder / label.parent.name.replace("labels", "images") / f"{case}_0000.nii.gz"
    return oracle_threshold_dice(np.asanyarray(nib.load(flair).dataobj), np.asanyarray(nib.load(label).dataobj))


if __name__ == "__main__":
    sys.exit(main())
