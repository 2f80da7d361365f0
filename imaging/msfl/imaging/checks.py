"""Can this volume be the image of a head? Asked of every image that comes in, before anything is made of it.

A volume is an array with an affine (voxel indices to RAS, mm). Verdicts are faults (`msfl.imaging.faults`) with the
number that decided. Quality control looks at what passes; here is refused what cannot be looked at at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from msfl.imaging.faults import Fault, unusable
from msfl.imaging.workspace import Unusable

FEWEST_VOXELS: Final = 10
MOST_VOXELS: Final = 1 << 29
SMALLEST_HEAD_MM, LARGEST_HEAD_MM = 80.0, 450.0
"""Between them lies the largest extent of every field of view that holds a head."""
_RIGHT_ANGLE = 0.02  # sine of the largest deviation of two axes from a right angle


@dataclass(frozen=True, eq=False)
class Volume:
    """`voxels` (i, j, k); `affine` maps voxel indices to RAS in mm."""

    voxels: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        return math.prod(self.spacing_mm) / 1000

    def like(self, voxels: NDArray[Any]) -> Volume:
        """Other values on the same grid."""
        return Volume(voxels, self.affine)


def fault_of_shape(shape: tuple[int, ...]) -> Unusable | None:
    """Asked before voxels are read: a damaged header may promise more than the machine holds."""
    sized = shape[:3] + tuple(n for n in shape[3:] if n != 1)
    if len(sized) != 3:
        number = " × ".join(map(str, shape))
        return unusable(Fault.NOT_3D, f"The image is {number}: a series over time, or a single slice.")
    if min(sized) < FEWEST_VOXELS:
        return unusable(Fault.TOO_FEW_SLICES, f"The image has only {min(sized)} slices.")
    if np.prod([float(n) for n in sized]) > MOST_VOXELS:
        return unusable(Fault.TOO_LARGE, "The image promises more voxels than any scanner makes.")
    return None


def fault_of(volume: Volume, max_slice_mm: float) -> Unusable | None:
    """The first reason why this cannot be used, or None."""
    return _fault_of_geometry(volume, max_slice_mm) or _fault_of_values(volume.voxels)


def _fault_of_geometry(volume: Volume, max_slice_mm: float) -> Unusable | None:
    affine = volume.affine
    if not np.isfinite(affine).all() or (np.linalg.norm(affine[:3, :3], axis=0) == 0).any():
        return unusable(Fault.BAD_GEOMETRY, "The header gives no voxel size.")
    spacing = np.array(volume.spacing_mm)
    extent = float((spacing * volume.voxels.shape).max())
    if not SMALLEST_HEAD_MM <= extent <= LARGEST_HEAD_MM:
        heads = f"{SMALLEST_HEAD_MM:g} to {LARGEST_HEAD_MM:g} mm"
        size = f"By its header the image is {extent:.4g} mm long; a head takes {heads}."
        return unusable(Fault.WRONG_UNITS, size, extent_mm=extent)
    axes = affine[:3, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > _RIGHT_ANGLE:
        return unusable(Fault.BAD_GEOMETRY, "The header's axes are not at right angles.")
    if spacing.max() > max_slice_mm:
        thick = f"Its slices are {spacing.max():.2g} mm thick; at most {max_slice_mm:g} mm are of use here."
        return unusable(Fault.THICK_SLICES, thick, slice_mm=float(spacing.max()))
    return None


def _fault_of_values(voxels: NDArray[Any]) -> Unusable | None:
    if voxels.dtype.kind not in "iuf":
        return unusable(Fault.NOT_3D, "Its voxels are not numbers but colours or pairs.")
    if voxels.dtype.kind == "f" and (bad := int(np.count_nonzero(~np.isfinite(voxels)))):
        return unusable(Fault.NOT_FINITE, f"{bad} voxels are NaN or infinite.", voxels=bad)
    if voxels.min() == voxels.max():
        return unusable(Fault.CONSTANT, "All voxels have one value.")
    return None


def same_grid(a: Volume, b: Volume, tolerance_mm: float = 0.1) -> bool:
    """Equal shapes, and no corner of one further than the tolerance from the same corner of the other."""
    if a.voxels.shape != b.voxels.shape:
        return False
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [
        *(n - 1 for n in a.voxels.shape),
        1,
    ]
    return bool(np.abs((a.affine - b.affine) @ corners.T).max() <= tolerance_mm)
