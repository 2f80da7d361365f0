"""A made head, small and quick, that T1w and FLAIR can be taken of; and an extractor that knows it.

Ellipsoids: skull, cortex, white matter, ventricles, and three landmarks without a mirror image, so that left and right
differ. Coordinates are RAS mm about the head's middle; fluid is dark in both images, white matter is bright in T1w and
darker than cortex in FLAIR.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from msfl.imaging.checks import Volume
from msfl.imaging.quality.artefacts import Artefact
from msfl.imaging.volume import Mask

GRID = (60, 74, 60)
SPACING_MM = 3.0
SKULL = 240.0


def grid(shape: tuple[int, int, int] = GRID, spacing_mm: float = SPACING_MM) -> Volume:
    """An empty field of view, its middle at 0, 0, 0."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = [-spacing_mm * (n - 1) / 2 for n in shape]
    return Volume(np.zeros(shape, np.float32), affine)


def head(
    modality: str, on: Volume, *, move: NDArray[np.floating[Any]] | None = None, noise: float = 1.0, seed: int = 0
) -> Volume:
    """`move` maps points of the field of view to points of the head (4 × 4, mm)."""
    t1w = modality == "T1w"
    fluid, grey, white, lesion = (25.0, 80.0, 120.0, 75.0) if t1w else (20.0, 110.0, 85.0, 150.0)
    i, j, k = np.meshgrid(*(np.arange(n) for n in on.voxels.shape), indexing="ij")
    points = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ on.affine.T
    if move is not None:
        points = points @ move.T
    x, y, z = (points[..., a] for a in range(3))

    def inside(
        centre: tuple[float, float, float], radii: tuple[float, float, float], edge: float = 2.0
    ) -> NDArray[np.float64]:
        r = np.sqrt(sum(((p - c) / q) ** 2 for p, c, q in zip((x, y, z), centre, radii, strict=True)))
        return np.asarray(np.clip(0.5 - (r - 1) * min(radii) / edge, 0, 1))

    values = np.zeros(on.voxels.shape)
    for part, value in (
        (inside((0, 92, -20), (14, 22, 20)), SKULL),  # nose and ears, without which an ellipsoid turns unseen
        (inside((76, 0, -15), (12, 18, 24)), SKULL),
        (inside((-76, 0, -15), (12, 18, 24)), SKULL),
        (inside((0, 60, -80), (36, 34, 30)), SKULL),
        (inside((0, 0, 0), (72, 98, 84)), SKULL),
        (inside((0, 0, 0), (64, 90, 76)), 4.0),
        (inside((0, 0, 0), (58, 84, 70)), fluid),
        (inside((0, 0, 0), (55, 81, 67)), grey),
        (inside((0, 4, -3), (44, 64, 52)), white),
        (inside((-14, 6, 4), (8, 26, 12)), fluid),
        (inside((14, 6, 4), (8, 26, 12)), fluid),
        (inside((-36, 30, 14), (12, 16, 10)), grey),
        (inside((30, -34, -20), (10, 14, 16)), fluid),
        (inside((-20, -46, 24), (9, 8, 14)), grey),
        (inside((24, 28, 22), (9, 9, 9)), lesion),
    ):
        values = values * (1 - part) + value * part
    values = values + noise * np.random.default_rng([seed, t1w]).standard_normal(values.shape)
    return on.like(np.abs(values).astype(np.float32))


def lesion_mask(on: Volume) -> Volume:
    i, j, k = np.meshgrid(*(np.arange(n) for n in on.voxels.shape), indexing="ij")
    points = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ on.affine.T
    near = np.linalg.norm(points[..., :3] - np.array([24, 28, 22]), axis=-1) < 8
    return on.like(near.astype(np.uint8))


def rigid(turn_deg: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Rotations about x, y, z, in that order, then a shift."""
    out = np.eye(4)
    for axis, degrees in enumerate(turn_deg):
        a, b = ((1, 2), (0, 2), (0, 1))[axis]
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        one = np.eye(4)
        one[a, a], one[a, b], one[b, a], one[b, b] = c, -s, s, c
        out = one @ out
    out[:3, 3] = shift_mm
    return out


class MadeHeadExtractor:
    """Finds the brain of a made head: what is neither air nor skull, in one piece."""

    name = "made head 1"

    def ready(self) -> None:
        pass

    def extract(self, image: Volume, what: str) -> Mask:
        from msfl.imaging.brain import no_brain

        parts, count = ndimage.label((image.voxels > 12) & (image.voxels < 0.85 * SKULL))
        if count == 0:
            raise no_brain(what)
        largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
        return np.asarray(ndimage.binary_fill_holes(largest))


class SameEverywhere:
    """An artefact detector that says one thing of every image."""

    name = "the same everywhere 1"

    def __init__(self, probability: float = 0.1) -> None:
        self._probability = probability

    def ready(self) -> None:
        pass

    def detect(self, image: Volume, brain: Mask) -> Mapping[Artefact, float]:
        return dict.fromkeys(Artefact, self._probability)
