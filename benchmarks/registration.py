"""How far registration is from the reference transforms of real pairs, and from moves that are known.

    python benchmarks/registration.py [--data DIR] [--only reference|moves]

`reference`: the six raw T1w and FLAIR pairs of openms (2-D, slices of 3 to 4 mm), whose own rigid transforms come with
the data (made by others with another program: truth is not better known than that). `moves`: the T1w image of patients
07 and 26 (1 mm), moved by a known rigid motion and found again, against what was found without it. Errors are distances
over points all over the brain, mm; CPU is user and system time, which other work on the machine distorts little.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from msfl.imaging.brain.deepbet import Deepbet
from msfl.imaging.checks import Volume
from msfl.imaging.deidentify.nifti import read_volume
from msfl.imaging.standard.register import Registration, Rigid, read_rigid, register_scored
from msfl.imaging.standard.reorient import reorient
from msfl.imaging.standard.resample import resample, resample_mask
from msfl.imaging.volume import Affine, Mask

MOVES = (
    ((3.0, -2.0, 4.0), (5.0, -4.0, 3.0)),
    ((-5.0, 4.0, -2.0), (-8.0, 6.0, -5.0)),
    ((8.0, 6.0, -7.0), (12.0, -10.0, 9.0)),
)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def apart(one: Affine, other: Affine, on: Volume, brain: Mask) -> float:
    points = np.argwhere(brain)[::997]
    points = np.c_[points, np.ones(len(points))] @ on.affine.T
    return float(np.linalg.norm((points @ (one - other).T)[:, :3], axis=1).mean())


def reference(data: Path, extractor: Deepbet, levels: int) -> None:
    errors = []
    for file in sorted((data / "openms/raw").glob("*/*.txt")):
        flair, t1w = (
            reorient(read_volume(file.with_name(f"{file.name[:6]}_{name}.nii.gz"))) for name in ("FLAIR", "T1W")
        )
        brains = extractor.extract(t1w, "T1w"), extractor.extract(flair, "FLAIR")
        begin, truth = cpu(), read_rigid(file).matrix
        found, _ = register_scored(t1w, flair, *brains, Registration(), levels)
        errors.append(apart(found.matrix, truth, flair, brains[1]))
        before = apart(np.eye(4), truth, flair, brains[1])
        took = cpu() - begin
        print(
            f"{file.parent.name} {file.name[:6]}  {errors[-1]:.2f} mm (before {before:.2f})  {took:.1f} s", flush=True
        )
    print(f"mean {statistics.mean(errors):.2f} mm, largest {max(errors):.2f} mm")


def moves(data: Path, levels: int) -> None:
    errors = []
    for patient in ("patient07", "patient26"):
        flair, t1w = (reorient(read_volume(data / "openms" / patient / f"{name}.nii.gz")) for name in ("FLAIR", "T1w"))
        brains = t1w.voxels > 0, flair.voxels > 0
        still, _ = register_scored(t1w, flair, *brains, Registration(), levels)
        for turn, shift in MOVES:
            move = rigid(turn, shift)
            back = Rigid(np.linalg.inv(move))
            begin = cpu()
            there, there_brain = resample(t1w, t1w, back, "bspline"), resample_mask(brains[0], t1w, t1w, back)
            found, _ = register_scored(there, flair, there_brain, brains[1], Registration(), levels)
            errors.append(apart(found.matrix, move @ still.matrix, flair, brains[1]))
            print(f"{patient} turned {turn}°, moved {shift} mm  {errors[-1]:.3f} mm  {cpu() - begin:.1f} s", flush=True)
    print(f"mean {statistics.mean(errors):.3f} mm, largest {max(errors):.3f} mm")


def rigid(turn_deg: tuple[float, ...], shift_mm: tuple[float, ...]) -> Affine:
    out = np.eye(4)
    for (a, b), degrees in zip(((1, 2), (0, 2), (0, 1)), turn_deg, strict=True):
        one, angle = np.eye(4), np.deg2rad(degrees)
        one[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        out = one @ out
    out[:3, 3] = shift_mm
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MSFL_TEST_DATA"))
    parser.add_argument("--only", choices=("reference", "moves"))
    parser.add_argument("--levels", type=int, default=3, help="stop after so many resolutions")
    chosen = parser.parse_args()
    if chosen.only != "moves":
        reference(chosen.data, Deepbet(), chosen.levels)
    if chosen.only != "reference":
        moves(chosen.data, chosen.levels)


if __name__ == "__main__":
    main()
