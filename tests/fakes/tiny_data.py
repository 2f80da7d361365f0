"""Datasets of a few small volumes with one bright ball each: real NIfTI files, made in milliseconds.

Channel 0 is FLAIR-like (lesions brighter than tissue), channel 1 T1w-like (darker). `gain` scales the intensities, as
another scanner would; `seed` moves everything. Outside an ellipsoid "head" everything is 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

LABELS: Mapping[str, int] = {"background": 0, "lesion": 1}


def tiny_dataset(
    folder: Path, *, n_train: int, n_test: int, seed: int = 0, gain: float = 1.0, edge: int = 16, prefix: str = "T"
) -> Path:
    """A folder in nnU-Net raw layout; volumes have `edge` voxels of 2 mm per axis."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    description: dict[str, Any] = {
        "channel_names": {"0": "FLAIR", "1": "T1w"},
        "labels": dict(LABELS),
        "numTraining": n_train,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    for part, n in (("Tr", n_train), ("Ts", n_test)):
        for kind in ("images", "labels"):
            if n:
                (folder / f"{kind}{part}").mkdir()
        for i in range(n):
            _write_case(folder, part, f"{prefix}{part}_{i:03d}", random, gain, edge)
    return folder


def _write_case(folder: Path, part: str, name: str, random: np.random.Generator, gain: float, edge: int) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij")).astype(np.float64)
    head = ((grid - (edge - 1) / 2) ** 2).sum(axis=0) < (0.48 * edge) ** 2
    centre = edge / 2 + random.uniform(-0.15, 0.15, 3) * edge
    lesion = ((grid - centre[:, None, None, None]) ** 2).sum(axis=0) < (random.uniform(0.12, 0.2) * edge) ** 2
    tissue = random.normal(100, 8, (2, edge, edge, edge))
    tissue[0][lesion] += 60
    tissue[1][lesion] -= 30
    for channel in range(2):
        _write(folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz", np.where(head, gain * tissue[channel], 0))
    _write(folder / f"labels{part}" / f"{name}.nii.gz", lesion & head)


def _write(path: Path, values: Any) -> None:
    nibabel.save(nibabel.Nifti1Image(np.asarray(values, dtype=np.int16), np.diag([2.0, 2.0, 2.0, 1.0])), path)
