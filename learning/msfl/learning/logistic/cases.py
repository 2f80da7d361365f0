"""A case as numbers: its volumes on one grid, and one row of features per voxel.

Volumes are turned to RAS axes on reading, arrays are (x, y, z). A voxel is inside when any channel is not 0: images
come skull-stripped or at least with empty air. MR intensities have no unit, so each image is divided by the median of
its own positive voxels. For each channel the features are

    z           (value − centre) / scale, clipped to ±6       centre and scale come from the plan, one for all sites
    z smoothed  the same, after a Gaussian of σ mm            for each σ of the plan

in the order channel 0: z, σ₁, σ₂, …; channel 1: …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from msfl.learning.contract import ModelRefusal, Site

CLIP = 6.0


@dataclass(frozen=True)
class Normalisation:
    """Of one channel: the intensity that becomes 0, and the distance from it that becomes 1."""

    centre: float
    scale: float


@dataclass(frozen=True)
class Case:
    """`images` is (channel, x, y, z), in multiples of each image's median; `labels` (x, y, z); `spacing` in mm."""

    images: NDArray[np.float32]
    labels: NDArray[np.int16]
    spacing: tuple[float, float, float]

    @property
    def inside(self) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = (self.images != 0).any(axis=0)
        return inside


def read_case(site: Site, name: str) -> Case:
    """Raises ModelRefusal when images and label are not volumes on one grid, OSError when a file is missing."""
    part = "Ts" if name in site.test_cases else "Tr"
    files = [
        site.data / f"images{part}" / f"{name}_{channel:04d}{site.file_ending}"
        for channel in range(len(site.channel_names))
    ]
    files.append(site.data / f"labels{part}" / f"{name}{site.file_ending}")
    volumes = [nibabel.as_closest_canonical(nibabel.load(file)) for file in files]
    arrays = [np.asarray(volume.dataobj, dtype=np.float32) for volume in volumes]
    if any(a.ndim != 3 or a.shape != arrays[0].shape for a in arrays):
        raise ModelRefusal("grids_differ", f"case {name}: images and label are not volumes of one shape")
    x, y, z = (float(size) for size in volumes[0].header.get_zooms()[:3])
    return Case(np.stack([_by_median(image) for image in arrays[:-1]]), arrays[-1].astype(np.int16), (x, y, z))


def _by_median(image: NDArray[np.float32]) -> NDArray[np.float32]:
    positive = image[image > 0]
    return image / np.median(positive) if positive.size else image


def features_of(case: Case, normalisations: Sequence[Normalisation], sigmas_mm: Sequence[float]) -> NDArray[np.float32]:
    """`(feature, x, y, z)`."""
    maps: list[NDArray[np.float32]] = []
    for image, norm in zip(case.images, normalisations, strict=True):
        z = np.clip((image - norm.centre) / norm.scale, -CLIP, CLIP).astype(np.float32)
        maps.append(z)
        for sigma in sigmas_mm:
            maps.append(gaussian_filter(z, [sigma / size for size in case.spacing], mode="nearest"))
    return np.stack(maps)


@dataclass(frozen=True)
class Samples:
    """Voxels drawn from cases: `features` is (voxel, feature), `labels` (voxel,)."""

    features: NDArray[np.float32]
    labels: NDArray[np.int16]


def draw_samples(case: Case, features: NDArray[np.float32], most_per_kind: int, random: np.random.Generator) -> Samples:
    """At most so many voxels of foreground and so many of background, all of them inside."""
    inside = case.inside.ravel()
    labels = case.labels.ravel()
    chosen: list[NDArray[np.int64]] = []
    for kind in (inside & (labels > 0), inside & (labels == 0)):
        where = np.flatnonzero(kind)
        chosen.append(np.sort(random.choice(where, min(most_per_kind, where.size), replace=False)))
    where = np.concatenate(chosen)
    return Samples(features.reshape(len(features), -1)[:, where].T.copy(), labels[where])
