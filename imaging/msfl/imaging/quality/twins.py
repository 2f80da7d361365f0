"""twins: the same image twice, and the same head under two names, found over the whole dataset.

A fingerprint is a small picture of the brain: the T1w image without its slow changes, in a box of GRID voxels around
the brain, as whole numbers. Anatomy fits another visit of the same person far better than it fits anybody else. It says
nothing about who that person is, but it is made from a brain: it stays at the site, like the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from msfl.imaging.standard.pipeline import Standard

GRID: Final = (24, 30, 22)
SAME_IMAGE: Final = 0.995
SAME_HEAD: Final = 0.80
SAME_HEAD_AMONG_MANY: Final = 0.50
"""Once what all heads of the dataset have in common is taken away. Visits of one patient by one protocol: 0.93 and
0.77; of different patients: at most 0.68 and 0.23 (openms). A visit by another protocol may be missed."""
_MANY: Final = 8


@dataclass(frozen=True)
class Pair:
    """Two cases that look alike; `likeness` is a correlation of their fingerprints."""

    first: str
    second: str
    likeness: float

    @property
    def same_image(self) -> bool:
        return self.likeness >= SAME_IMAGE


def fingerprint(made: Standard) -> tuple[int, ...]:
    """Values of GRID in x, y, z order, between -127 and 127."""
    box = ndimage.find_objects(made.brain.astype(np.uint8))[0]
    inside = made.brain[box].astype(np.float32)
    values = np.asarray(made.t1w.voxels[box], dtype=np.float32) * inside
    values /= max(float(values[inside > 0].mean()), 1e-6)
    # to about the fingerprint's own resolution first, so that no voxel is left out
    sigma = [0.5 * n / g for n, g in zip(values.shape, GRID, strict=True)]
    weight = ndimage.gaussian_filter(inside, sigma)
    values = ndimage.gaussian_filter(values, sigma) / np.maximum(weight, 0.05)
    points = np.meshgrid(*(np.linspace(0, n - 1, g) for n, g in zip(values.shape, GRID, strict=True)), indexing="ij")
    small = ndimage.map_coordinates(values, points, order=1)
    within = ndimage.map_coordinates(weight, points, order=1) > 0.5
    slow = ndimage.gaussian_filter(np.where(within, small, 0), 3) / np.maximum(
        ndimage.gaussian_filter(within.astype(float), 3), 0.05
    )
    fine = np.where(within, small - slow, 0)
    most = float(np.percentile(np.abs(fine), 99)) or 1.0
    return tuple(int(v) for v in np.rint(np.clip(fine / most, -1, 1) * 127).ravel())


def twins(prints: Mapping[str, tuple[int, ...]], patients: Mapping[str, str]) -> Iterator[Pair]:
    """Pairs of cases that are the same image, or the same head though they are said to be of different patients.

    What all heads of the dataset have in common is taken away first, where there are enough of them."""
    names = sorted(prints)
    if len(names) < 2:
        return
    rows: NDArray[np.float64] = np.array([prints[name] for name in names], dtype=np.float64)
    likeness: NDArray[np.float64] = np.atleast_2d(np.corrcoef(rows))
    many = len(names) >= _MANY
    apart = np.atleast_2d(np.corrcoef(rows - rows.mean(axis=0))) if many else likeness
    for i, first in enumerate(names):
        for j in range(i + 1, len(names)):
            second, value = names[j], float(likeness[i, j])
            other_patient = patients.get(first) != patients.get(second) or first not in patients
            alike = float(apart[i, j]) >= (SAME_HEAD_AMONG_MANY if many else SAME_HEAD)
            if value >= SAME_IMAGE or (alike and other_patient):
                yield Pair(first, second, value)
