"""signal: how much signal there is, against what. The formulas are MRIQC's and so are the names.

Esteban et al., PLoS ONE 2017;12:e0184661 (MRIQC); SNRd: Dietrich et al., JMRI 2007;26:375-385; CJV: Ganzetti et al.,
Front. Neuroinform. 2016;10:10; EFC: Atkinson et al., IEEE TMI 1997;16:903-910; FBER: Shehzad et al., 2015.

Air tells about noise and ghosts only where the scanner's own values are still there. Where defacing or skull stripping
wrote zeros (more than half of it), and where there is none, SNRd, CNR and FBER are None: not computable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from msfl.imaging.checks import Volume
from msfl.imaging.volume import Mask

Values = NDArray[np.float32]

DIETRICH: Final = 1 / math.sqrt(2 / (4 - math.pi))
FEWEST: Final = 200
"""Voxels below which a region's deviation means little."""


@dataclass(frozen=True)
class Tissue:
    """Cerebrospinal fluid, grey and white matter, on one grid; edges of the brain and voxels in between are in none."""

    csf: Mask
    gm: Mask
    wm: Mask


def tissue(t1w: Volume, brain: Mask) -> Tissue:
    """From the values of a T1w image alone: three means that fit them best (Lloyd, from fixed quantiles).

    Good to half a centimetre of anatomy, which is what figures over whole tissues need; not a segmentation."""
    inner = _eroded(brain, t1w.spacing_mm, 3.0)
    values = np.asarray(t1w.voxels, dtype=np.float32)
    smooth = ndimage.gaussian_filter(values, [0.7 / mm for mm in t1w.spacing_mm])
    means = three_means(smooth[inner])
    spread = [(means[1] - means[0]) / 4, (means[2] - means[1]) / 4]
    csf = inner & (smooth < means[0] + spread[0])
    gm = inner & (smooth > means[1] - spread[0]) & (smooth < means[1] + spread[1])
    wm = inner & (smooth > means[2] - spread[1])
    return Tissue(csf, gm, wm)


def three_means(values: Values) -> tuple[float, float, float]:
    """The centres of three groups of values, ascending."""
    low, high = np.percentile(values, [0.5, 99.5])
    counts, edges = np.histogram(np.clip(values, low, high), 256)
    at = (edges[:-1] + edges[1:]) / 2
    means = np.percentile(values, [5, 40, 85])
    for _ in range(100):
        group = np.abs(at[:, None] - means).argmin(axis=1)
        weight = np.array([counts[group == k].sum() for k in range(3)])
        total = np.array([(counts * at)[group == k].sum() for k in range(3)])
        new = np.where(weight > 0, total / np.maximum(weight, 1), means)
        if np.allclose(new, means):
            break
        means = new
    a, b, c = np.sort(means)
    return float(a), float(b), float(c)


def signal(image: Volume, brain: Mask, parts: Tissue, *, fluid_is_signal: bool) -> Mapping[str, float | None]:
    """`fluid_is_signal`: `snr` is that of CSF (FLAIR), else that of grey and white matter together (T1w)."""
    values = np.asarray(image.voxels, dtype=np.float32)
    head = head_mask(values, brain, image.spacing_mm)
    air = values[~_grown(head, image.spacing_mm, 6.0)]
    air_known = air.size >= FEWEST and np.count_nonzero(air) > air.size / 2
    csf, gm, wm = (values[part] for part in (parts.csf, parts.gm, parts.wm))
    chosen = csf if fluid_is_signal else np.concatenate([gm, wm])
    noise = float(air.std()) if air_known else None
    return {
        "snr": snr(chosen),
        "snrd": snrd(chosen, noise),
        "cnr": cnr(wm, gm, noise),
        "cjv": cjv(wm, gm),
        "efc": efc(values[head]),
        "fber": fber(values[head], air) if air_known else None,
    }


def snr(region: Values) -> float | None:
    if len(region) < FEWEST or not (deviation := float(region.std())):
        return None
    return float(np.median(region)) / (deviation * math.sqrt(len(region) / (len(region) - 1)))


def snrd(region: Values, noise: float | None) -> float | None:
    return DIETRICH * float(np.median(region)) / noise if noise and len(region) >= FEWEST else None


def cnr(wm: Values, gm: Values, noise: float | None) -> float | None:
    if noise is None or min(len(wm), len(gm)) < FEWEST:
        return None
    spread = math.sqrt(noise**2 + float(wm.std()) ** 2 + float(gm.std()) ** 2)
    return abs(float(np.median(wm)) - float(np.median(gm))) / spread if spread else None


def cjv(wm: Values, gm: Values) -> float | None:
    if min(len(wm), len(gm)) < FEWEST:
        return None
    apart = abs(float(np.median(wm)) - float(np.median(gm)))
    return (float(wm.std()) + float(gm.std())) / apart if apart else None


def efc(values: Values) -> float | None:
    """Entropy of the values, over the head only: 0 when one voxel has all energy, 1 when all have the same."""
    energy = math.sqrt(float(np.square(values, dtype=np.float64).sum()))
    if len(values) < FEWEST or not energy:
        return None
    most = math.sqrt(len(values)) * math.log(1 / math.sqrt(len(values)))
    share = np.maximum(values.astype(np.float64), 0) / energy
    return float((share * np.log(share + 1e-16)).sum() / most)


def fber(head: Values, air: Values) -> float | None:
    background = float(np.median(np.square(air, dtype=np.float64)))
    return float(np.median(np.square(head, dtype=np.float64))) / background if background > 1e-3 else None


def head_mask(values: Values, brain: Mask, spacing_mm: tuple[float, float, float]) -> Mask:
    """What is not air: brighter than 0.15 of the brain's median, closed, without holes, and the brain."""
    shrink = tuple(max(1, round(3 / mm)) for mm in spacing_mm)
    small = values[tuple(slice(None, None, s) for s in shrink)]
    bright = ndimage.gaussian_filter(small, 0.7) > 0.15 * np.median(values[brain])
    bright = ndimage.binary_fill_holes(ndimage.binary_closing(bright, iterations=2))
    whole = bright
    for axis, s in enumerate(shrink):
        whole = whole.repeat(s, axis).take(range(values.shape[axis]), axis)
    return np.asarray(whole | brain)


def _eroded(mask: Mask, spacing_mm: tuple[float, float, float], by_mm: float) -> Mask:
    """A voxel thick at least, where slices are thicker than `by_mm`."""
    return ~_grown(~mask, spacing_mm, by_mm)


def _grown(mask: Mask, spacing_mm: tuple[float, float, float], by_mm: float) -> Mask:
    """Axis after axis, as a box: hundreds of times faster than by distance, and as good for a margin."""
    out = mask
    for axis, mm in enumerate(spacing_mm):
        reach = max(1, round(by_mm / mm))
        out = ndimage.maximum_filter1d(out.astype(np.uint8), 2 * reach + 1, axis, mode="constant") > 0
    return out
