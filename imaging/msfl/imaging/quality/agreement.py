"""agreement: do the two images show one brain, the same way round, and is each what it is called?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from msfl.imaging.checks import Volume
from msfl.imaging.quality.signal import three_means
from msfl.imaging.standard.pipeline import Raw, Standard
from msfl.imaging.standard.register import Registration, centre_mm, register_scored
from msfl.imaging.standard.resample import resample
from msfl.imaging.volume import Mask

GRID_MM = 2.0


def agreement(raw: Raw, made: Standard) -> Mapping[str, float | None]:
    """After registration, unless said otherwise.

    ==================  ======  ==========================================================================
    volume_similarity           1 - |a - b| / (a + b) of the two brains' volumes, before registration
    overlap                     Dice of the two brain masks
    shift               mm      how far the T1w image lay from FLAIR, at the brain's middle
    turn                degree  how far it was turned
    shared                      normalised mutual information of the two inside the brain: 1 means nothing
                                in common (Studholme et al., Pattern Recognition 1999;32:71-86)
    shared_mirrored             how much of what they share beyond 1 is left when T1w is mirrored left to
                                right; above 1 one of the two is mirrored already
    t1w_depth, flair_depth      depth in the brain of its brightest third over that of the middle third;
                                white matter is deep, so T1w is above 1, and FLAIR below T1w
    ==================  ======  ==========================================================================
    """
    a = float(np.count_nonzero(made.flair_brain_raw)) * raw.flair.voxel_ml
    b = float(np.count_nonzero(made.t1w_brain_raw)) * raw.t1w.voxel_ml
    both = np.count_nonzero(made.brain & made.t1w_brain)
    flair, t1w, brain = _coarse(made.flair), _coarse(made.t1w), _coarse_mask(made.flair, made.brain)
    here = shared(flair, t1w, brain)
    mirrored = _mirrored(made, brain, flair, t1w)
    return {
        "volume_similarity": 1 - abs(a - b) / (a + b),
        "overlap": 2 * float(both) / (np.count_nonzero(made.brain) + np.count_nonzero(made.t1w_brain)),
        "shift": made.motion.shift_mm(centre_mm(made.flair, made.brain)),
        "turn": made.motion.turned_deg,
        "shared": here,
        "shared_mirrored": (mirrored - 1) / (here - 1) if here > 1 else None,
        "t1w_depth": depth(t1w, brain),
        "flair_depth": depth(flair, brain),
    }


def shared(a: Volume, b: Volume, inside: Mask, bins: int = 48) -> float:
    """Normalised mutual information (H(a) + H(b)) / H(a, b), between 1 and 2."""
    table, _, _ = np.histogram2d(_ranked(a.voxels[inside]), _ranked(b.voxels[inside]), bins)
    p = table / table.sum()

    def entropy(q: NDArray[np.float64]) -> float:
        q = q[q > 0]
        return -float((q * np.log(q)).sum())

    joint = entropy(p)
    return (entropy(p.sum(0)) + entropy(p.sum(1))) / joint if joint else 1.0


def depth(image: Volume, brain: Mask) -> float | None:
    """How deep in the brain the brightest of three groups of values lies, over how deep the middle one does."""
    deep = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=image.spacing_mm)[1:-1, 1:-1, 1:-1]
    inner = deep > 3
    if not inner.any():
        return None
    low, middle, high = three_means(image.voxels[inner])
    bright = inner & (image.voxels > (middle + high) / 2)
    between = inner & ~bright & (image.voxels > (low + middle) / 2)
    return float(deep[bright].mean() / deep[between].mean()) if bright.any() and between.any() else None


def _mirrored(made: Standard, brain: Mask, flair: Volume, t1w: Volume) -> float:
    """What FLAIR shares with the mirror image of T1w, which is laid on it anew."""
    t1w_brain = _coarse_mask(made.flair, made.t1w_brain)
    mirror, mirror_brain = t1w.like(t1w.voxels[::-1].copy()), t1w_brain[::-1].copy()
    motion, _ = register_scored(mirror, flair, mirror_brain, brain, Registration(), levels=2)
    return shared(flair, resample(mirror, flair, motion, "linear"), brain)


def _ranked(values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.percentile(values, [0.5, 99.5])
    ranked: NDArray[np.float32] = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1)
    return ranked


def _coarse(image: Volume) -> Volume:
    """Means over blocks of about 2 mm; an axis with thicker slices stays as it is."""
    factors = [max(1, round(GRID_MM / mm)) for mm in image.spacing_mm]
    data = np.asarray(image.voxels, dtype=np.float32)
    cut = tuple(slice(0, n // f * f) for n, f in zip(data.shape, factors, strict=True))
    data = data[cut]
    for axis, f in enumerate(factors):
        shape = [*data.shape[:axis], data.shape[axis] // f, f, *data.shape[axis + 1 :]]
        data = data.reshape(shape).mean(axis=axis + 1)
    affine = image.affine @ np.diag([*factors, 1.0])
    affine[:3, 3] = (image.affine @ np.array([*((f - 1) / 2 for f in factors), 1.0]))[:3]
    return Volume(data, affine)


def _coarse_mask(grid: Volume, mask: Mask) -> Mask:
    return np.asarray(_coarse(grid.like(mask)).voxels > 0.5)
