"""Cases as import, standardising and quality control leave them, made in milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from msfl.imaging.checks import Volume
from msfl.imaging.deidentify.nifti import write_volume
from msfl.imaging.workspace import BRAIN, CHANNELS, LESION, Case, Entry, Step, Workspace, write_json

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


def checked_case(
    workspace: Workspace,
    name: str,
    *,
    seed: int = 0,
    scanner: str = "d1",
    given: str = "",
    verdict: str = "pass",
    lesion: bool = True,
    lesion_edge: int = 3,
) -> Case:
    """`name` is "<patient>-<visit>". A ball of brain in the middle, the lesion a cube in it; 5 mm, RAS."""
    case = workspace.case(name)
    rng = np.random.default_rng([seed, *name.encode()])
    at = np.linspace(-1, 1, 24)
    r = np.sqrt(sum(a**2 for a in np.meshgrid(at, at, at, indexing="ij")))
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    affine[:3, 3] = -5.0 * 23 / 2
    mask = np.zeros(r.shape, np.uint8)
    mask[11 : 11 + lesion_edge, 11 : 11 + lesion_edge, 11 : 11 + lesion_edge] = 1
    with case.filling("standard") as fresh:
        for name_ in CHANNELS:
            write_volume(Volume(rng.integers(1, 1000, r.shape).astype(np.int16), affine), fresh / f"{name_}.nii.gz")
        write_volume(Volume((r < 0.5).astype(np.uint8), affine), fresh / f"{BRAIN}.nii.gz")
        if lesion:
            write_volume(Volume(mask, affine), fresh / f"{LESION}.nii.gz")
    source = {"patient": case.id.split("-")[0], "scanner": {"id": scanner}, "split": given}
    write_json(case.folder / "source.json", source)
    write_json(case.qc, {"verdict": verdict, "final": verdict, "overruled": None})
    for step in Step:
        case.record(Entry(step, NOON))
    return case


def checked_cohort(home: Path, patients: int = 12, dataset: str = "ms-trial") -> Workspace:
    workspace = Workspace.of(home, dataset)
    for number in range(patients):
        checked_case(workspace, f"p{number:02d}-s1", seed=number, scanner=f"d{number % 2}", lesion_edge=1 + number % 5)
    return workspace
