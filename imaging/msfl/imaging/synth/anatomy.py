"""anatomy: one person's brain, made from the real average one.

nilearn carries in its wheel the ICBM 152 2009a symmetric template: the T1 average of 152 brains, stripped of the skull,
with its grey and white matter maps (Fonov et al., NeuroImage 2011;54:313-327). The average is real anatomy but
nobody's: it is symmetric, and its sulci are washed out. A person is drawn from it in two steps.

1. Where things are: a small affine change, two random smooth displacement fields (lobes, gyri) and a push outwards from
   the ventricles, which are wider in some people. All of it is one map from the person's grid to template coordinates,
   and the template is sampled once through it, at 1 mm, so nothing is blurred twice.
2. What things are: the template's T1 value decides between CSF, grey and white matter, with thresholds that wander
   from place to place. That opens and closes sulci differently in everyone, and makes borders sharp again.

Coordinates: arrays are indexed x, y, z in RAS; distances are in mm, signed where said (negative inside).
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage, sparse

Volume = NDArray[np.floating[Any]]
"""float32 throughout; the type says less because numpy's arithmetic does not keep it."""
Mask = NDArray[np.bool_]

FIELD_OF_VIEW_MM: Final = ((-80.0, 80.0), (-112.0, 82.0), (-68.0, 89.0))
"""Extent of a person's grid along R, A, S; holds the whole cerebrum, and the brain stem down to the medulla."""

# T1 values of the template (0-255) half way between the peaks of two tissues.
_CSF_GM: Final = 147.0
_GM_WM: Final = 207.0
_MAP_MM: Final = 2.0


@dataclass(frozen=True)
class Template:
    """The average brain at 1 mm and what is derived from it at 2 mm; voxel 0 of both lies at ``origin_mm``."""

    t1: Volume
    wm: Volume
    ventricle_mm: Volume
    """Signed distance to the lateral ventricles, 2 mm grid."""
    depth_mm: Volume
    """Distance to the outside of the brain, 2 mm grid."""
    origin_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Person:
    """One brain on its own grid: tissue fractions (sum to 1 within ``brain``) and where everything is."""

    affine: NDArray[np.float64]
    spacing_mm: float
    brain: Mask
    csf: Volume
    gm: Volume
    wm: Volume
    t1: Volume
    """The template's T1 (0-255), for detail that three classes do not carry, such as thalamus and pallidum."""
    ventricle_mm: Volume
    depth_mm: Volume
    mni_mm: tuple[Volume, Volume, Volume]
    """Template coordinates of every voxel, so that a place such as "insula" can be named."""


@cache
def template() -> Template:
    """Read the template out of the nilearn wheel; about a second, once per process.

    Raises ModuleNotFoundError when nilearn is not installed. nilearn itself is not imported: that takes seconds.
    """
    t1, affine = _read("t1")
    gm, _ = _read("gm")
    wm, _ = _read("wm")
    inside = np.argwhere(t1 > 0)
    low, high = np.maximum(inside.min(0) - 8, 0), inside.max(0) + 9
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    t1, gm, wm = t1[box], gm[box] / 255, wm[box] / 255
    origin = affine[:3, 3] + low

    half = tuple(slice(None, None, int(_MAP_MM)) for _ in range(3))
    brain = ndimage.binary_fill_holes(t1[half] > 0)
    depth = ndimage.distance_transform_edt(brain, sampling=_MAP_MM)
    fluid = brain & (gm[half] + wm[half] < 0.5) & (depth > 24)
    z = origin[2] + _MAP_MM * np.arange(fluid.shape[2])
    parts, n = ndimage.label(fluid & (z > -20))
    ventricles = parts == 1 + int(np.argmax(ndimage.sum_labels(fluid, parts, range(1, n + 1))))
    distance: Volume = ndimage.distance_transform_edt(~ventricles, sampling=_MAP_MM).astype(np.float32)
    distance -= ndimage.distance_transform_edt(ventricles, sampling=_MAP_MM)
    distance = ndimage.gaussian_filter(distance, 0.7)
    return Template(
        t1=t1,
        wm=wm,
        ventricle_mm=distance,
        depth_mm=depth.astype(np.float32),
        origin_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
    )


def _read(kind: str) -> tuple[Volume, NDArray[np.float64]]:
    # importlib.resources.files would import nilearn.datasets, and that scikit-learn; the specification alone does not
    package = find_spec("nilearn")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("nilearn is not installed; install msfl with its extra 'imaging'", name="nilearn")
    data = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    image: Any = nib.load(data / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    return np.asanyarray(image.dataobj).astype(np.float32), np.asarray(image.affine, dtype=np.float64)


def grid(spacing_mm: float) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine (RAS) of a person's grid. Raises ValueError for a voxel size outside 1 to 4 mm."""
    if not 1 <= spacing_mm <= 4:
        raise ValueError(f"voxel size {spacing_mm:g} mm is outside 1 to 4 mm")
    nx, ny, nz = (int((high - low) // spacing_mm) + 1 for low, high in FIELD_OF_VIEW_MM)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = [low for low, _ in FIELD_OF_VIEW_MM]
    return (nx, ny, nz), affine


def smooth_noise(rng: Generator, shape: tuple[int, int, int], sigma: float) -> Volume:
    """Gaussian random field of mean 0 and deviation 1; ``sigma`` is its smoothness in voxels.

    White noise on a lattice one ``sigma`` apart, spread by a Gaussian along each axis in turn. The weights are few per
    voxel, hence sparse: fast on one thread, and the same to the bit whatever BLAS there is.
    """
    step = max(1.0, sigma)
    field = rng.standard_normal([int(n / step) + 7 for n in shape], dtype=np.float32)
    for n in shape:
        lattice = (np.arange(int(n / step) + 7) - 3) * step
        weights = np.exp(-0.5 * np.square((np.arange(n)[:, None] - lattice) / max(sigma, 0.3)))
        weights[weights < 1e-3] = 0
        rest = field.shape[1:]
        spread = sparse.csr_array(weights.astype(np.float32)) @ field.reshape(field.shape[0], -1)
        # the axis just spread goes last: after three turns the order is x, y, z again
        field = np.ascontiguousarray(spread.T).reshape(*rest, n)
    return np.asarray((field - field.mean()) / field.std(), dtype=np.float32)


def person(rng: Generator, spacing_mm: float) -> Person:
    """Draw one brain. Deterministic in ``rng``; raises ValueError as ``grid`` does."""
    shape, affine = grid(spacing_mm)
    source = template()
    mapped = _map_to_template(rng, shape, affine, spacing_mm)
    before = _sample(source.ventricle_mm, _voxels(mapped, source, _MAP_MM), outside=99.0)
    # Wider ventricles: near them, look up a place that lies closer to them.
    push = np.float32(rng.uniform(-0.5, 3.2)) * np.exp(-np.maximum(before, 0) / 16) * (before > -4)
    slope = [ndimage.gaussian_filter(g, 3 / spacing_mm) for g in np.gradient(before, spacing_mm)]
    x, y, z = (m - push * g for m, g in zip(mapped, slope, strict=True))
    mni = (x, y, z)
    at_1mm, at_2mm = _voxels(mni, source, 1.0), _voxels(mni, source, _MAP_MM)
    t1 = _sample(source.t1, at_1mm)
    wm_map = _sample(source.wm, at_1mm)
    ventricle = _sample(source.ventricle_mm, at_2mm, outside=99.0)
    depth = _sample(source.depth_mm, at_2mm)

    # How far the thresholds wander: much at the surface, little where anatomy is stable.
    folding = smooth_noise(rng, shape, 3.0 / spacing_mm)
    fine = smooth_noise(rng, shape, 1.4 / spacing_mm)
    surface: Volume = np.exp(-np.square(np.maximum(depth - 4, 0) / 14), dtype=np.float32)
    csf = _logistic((_CSF_GM - t1 + (11 * folding + 6 * fine) * surface) / 7)
    # The T1 value alone calls the cerebellum's and the brain stem's white matter grey; the template's map knows better.
    border = 7 * smooth_noise(rng, shape, 2.2 / spacing_mm) - 4 * fine
    wm = (1 - csf) * _logistic((t1 - _GM_WM + 20 * (wm_map - 0.4) + border * surface) / 6)
    # Brain extraction leaves a ragged surface, but no holes in the deep cisterns.
    brain = ndimage.binary_fill_holes((t1 > 88 + 16 * folding) | (depth > 7))
    parts, n = ndimage.label(brain)
    if n > 1:
        brain = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return Person(
        affine=affine,
        spacing_mm=spacing_mm,
        brain=np.asarray(brain, dtype=np.bool_),
        csf=csf,
        gm=1 - csf - wm,
        wm=wm,
        t1=t1,
        ventricle_mm=ventricle,
        depth_mm=depth,
        mni_mm=mni,
    )


def _map_to_template(
    rng: Generator, shape: tuple[int, int, int], affine: NDArray[np.float64], spacing_mm: float
) -> tuple[Volume, Volume, Volume]:
    """MNI coordinates (mm) at which the template is seen by each voxel of the person's grid."""
    axes = [affine[i, 3] + spacing_mm * np.arange(n) for i, n in enumerate(shape)]
    points = np.meshgrid(*(a.astype(np.float32) for a in axes), indexing="ij")
    scale = 1.03 + rng.uniform(-0.04, 0.04) + rng.uniform(-0.03, 0.03, 3)
    angles = np.deg2rad(rng.normal(0, 2.5, 3))
    turn = np.eye(3) + np.cross(np.eye(3), angles)
    linear = turn @ np.diag(scale)
    shift = rng.normal(0, 1.5, 3)
    centre = np.array([0.0, -18.0, 8.0])
    mapped = []
    for i in range(3):
        row = sum(np.float32(linear[i, j]) * (points[j] - np.float32(centre[j])) for j in range(3))
        row = row + np.float32(centre[i] + shift[i])
        row += 2.3 * smooth_noise(rng, shape, 22 / spacing_mm) + 1.4 * smooth_noise(rng, shape, 8 / spacing_mm)
        mapped.append(np.asarray(row, dtype=np.float32))
    x, y, z = mapped
    return x, y, z


def _voxels(mni: tuple[Volume, Volume, Volume], source: Template, step_mm: float) -> list[Volume]:
    return [(m - np.float32(o)) / np.float32(step_mm) for m, o in zip(mni, source.origin_mm, strict=True)]


def _sample(volume: Volume, coordinates: list[Any], outside: float = 0.0) -> Volume:
    out: Volume = ndimage.map_coordinates(volume, coordinates, order=1, mode="constant", cval=outside)
    return out


def _logistic(x: NDArray[Any]) -> Volume:
    out: Volume = (0.5 * (1 + np.tanh(0.5 * x))).astype(np.float32)
    return out
