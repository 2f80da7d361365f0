"""lesions: where multiple sclerosis leaves its marks, how large, and of what shape.

Sites of a lesion and their share follow what the McDonald criteria look for (Thompson et al., Lancet Neurol
2018;17:162-173): periventricular (ovoid, standing on the ventricle's wall: Dawson's fingers), deep white matter,
juxtacortical (leaning on the cortex, some crossing it) and infratentorial. Volumes are log-normal. Lesions are drawn
until the person's load is reached; overlapping ones flow together, as they do in patients with many.

A lesion is a soft map between 0 (healthy) and 1 (fully changed): an ellipsoid whose border is wobbled by noise and
fades over one to two millimetres. Where an annotator draws the outline on that slope is habit, and left to the caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from msfl.imaging.synth.anatomy import Person, Volume, smooth_noise


class Place(Enum):
    """Where a lesion sits; the value is its share of all lesions."""

    PERIVENTRICULAR = 0.48
    DEEP = 0.25
    JUXTACORTICAL = 0.22
    INFRATENTORIAL = 0.05


_MEDIAN_ML: Final[Mapping[Place, float]] = {
    Place.PERIVENTRICULAR: 1.0,
    Place.DEEP: 0.55,
    Place.JUXTACORTICAL: 0.5,
    Place.INFRATENTORIAL: 0.3,
}
_SIGMA_LOG: Final = 0.85
_SMALLEST_ML: Final = 0.08
_LARGEST_ML: Final = 6.0
_MOST_LESIONS: Final = 250


@dataclass(frozen=True)
class Lesions:
    """All lesions of a person. ``extent`` is 0 to 1; ``severity`` (0.6 to 1.3) scales the signal change."""

    extent: Volume
    severity: Volume


def draw_lesions(rng: Generator, person: Person, load_ml: float) -> Lesions:
    """Draw lesions until their half-height volume reaches ``load_ml``. Deterministic in ``rng``."""
    shape = person.wm.shape
    extent = np.zeros(shape, dtype=np.float32)
    severity = np.zeros(shape, dtype=np.float32)
    wobble = smooth_noise(rng, _three(shape), 3.2 / person.spacing_mm)
    # White matter takes it easily, cortex at its border, fluid never.
    ground = person.brain * np.clip(1.15 * person.wm + 0.55 * person.gm - 1.5 * person.csf, 0, 1)
    pools = {place: np.flatnonzero(_candidates(person, place)) for place in Place}
    shares = np.array([place.value if pools[place].size else 0.0 for place in Place])
    voxel_ml = person.spacing_mm**3 / 1000
    places = list(Place)
    slope = list(np.gradient(person.ventricle_mm, person.spacing_mm))
    reached = 0.0
    for _ in range(_MOST_LESIONS):
        if reached >= load_ml:
            break
        place = places[int(rng.choice(len(places), p=shares / shares.sum()))]
        centre = np.array(np.unravel_index(int(rng.choice(pools[place])), shape))
        volume = float(np.clip(rng.lognormal(np.log(_MEDIAN_ML[place]), _SIGMA_LOG), _SMALLEST_ML, _LARGEST_ML))
        volume = min(volume, max(_SMALLEST_ML, 1.5 * (load_ml - reached)))
        outwards = np.array([g[tuple(centre)] for g in slope])
        box, local = _ellipsoid(rng, person, place, centre, volume, outwards, wobble)
        local *= ground[box]
        before = extent[box]
        reached += voxel_ml * float(np.count_nonzero((local > 0.5) & (before <= 0.5)))
        # Larger lesions are older and more destructive.
        strength = np.float32(np.clip(rng.normal(0.92 + 0.07 * np.log(volume / 0.4), 0.11), 0.6, 1.3))
        severity[box] = np.where(local > before, strength, severity[box])
        extent[box] = np.maximum(before, local)
    return Lesions(extent=extent, severity=severity)


def _candidates(person: Person, place: Place) -> NDArray[np.bool_]:
    """Voxels in which a lesion of this kind may be centred."""
    x, y, z = person.mni_mm
    above = (z > -14) | (y > -22)
    white = (person.wm > 0.75) & person.brain
    match place:
        case Place.PERIVENTRICULAR:
            near = (person.ventricle_mm > 1) & (person.ventricle_mm < 7)
            # the ventricles' sides, not the callosum's midline nor the deep nuclei beneath
            return near & (person.wm > 0.6) & person.brain & (np.abs(x) > 8) & (z > -12) & ~_deep_nuclei(person)
        case Place.DEEP:
            return white & above & (person.ventricle_mm > 8) & (person.depth_mm > 13) & ~_deep_nuclei(person)
        case Place.JUXTACORTICAL:
            edge = (person.wm > 0.55) & (person.wm < 0.9) & person.brain
            return edge & above & (person.depth_mm > 4) & (person.depth_mm < 16) & (person.ventricle_mm > 10)
        case Place.INFRATENTORIAL:
            return white & (z < -22) & (y < -20) & (person.depth_mm > 5)


def _deep_nuclei(person: Person) -> NDArray[np.bool_]:
    x, y, z = person.mni_mm
    inside: NDArray[np.bool_] = np.square(x / 30) + np.square((y + 4) / 30) + np.square((z - 3) / 15) < 1
    return inside


def _ellipsoid(
    rng: Generator,
    person: Person,
    place: Place,
    centre: NDArray[np.intp],
    volume_ml: float,
    outwards: Volume,
    wobble: Volume,
) -> tuple[tuple[slice, slice, slice], Volume]:
    """Soft ellipsoid around ``centre`` (voxel index) and the box that holds it."""
    long = rng.uniform(1.5, 2.3) if place is Place.PERIVENTRICULAR else rng.uniform(1.0, 1.6)
    wide = rng.uniform(0.85, 1.2)
    radius = (3 * volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    half = radius * np.array([long, wide, 1 / wide]) / long ** (1 / 3)
    axes = _axes(rng, outwards if place is Place.PERIVENTRICULAR else rng.normal(size=3))
    soft = 0.55 + 0.35 * rng.random()
    reach = int(np.ceil(1.5 * half.max() / person.spacing_mm)) + 1
    low = np.maximum(centre - reach, 0)
    high = np.minimum(centre + reach + 1, person.wm.shape)
    box = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])), slice(int(low[2]), int(high[2])))
    offsets = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
    local = (offsets - centre) * person.spacing_mm @ axes.T
    r = np.sqrt(np.square(local / half).sum(-1)) * (1 + 0.16 * wobble[box])
    border_mm = (1 - r) * radius
    out: Volume = (0.5 * (1 + np.tanh(border_mm / (2 * soft)))).astype(np.float32)
    return box, out


def _axes(rng: Generator, first: Volume) -> NDArray[np.float64]:
    """Orthonormal rows, the first one along ``first``."""
    basis = np.column_stack([first + 1e-6, rng.normal(size=(3, 2))])
    axes: NDArray[np.float64] = np.linalg.qr(basis)[0].T
    return axes


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = shape
    return x, y, z
