"""The face goes, the brain never does.

Seen from the side, the face lies in front of and below the brain. Planes that touch the brain there, with some room,
cut away everything beyond them: each keeps the whole brain on its other side, whatever its slope, so all of them do::

         ___brain___
        (           )|  20°     removed: n · p > max over brain (n · p) + room,   n = (0, cos a, −sin a) in RAS
         `._     _.' /
            `---'  /  65°       (quickshear, Schimke and Hale 2011, has one such plane; here is their envelope)
                 /

No template and no registration, so nothing can be misplaced: template masks took brain from a small child's head. What
is kept is joined with the dilated brain mask, and counted afterwards all the same.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from msfl.imaging.checks import Volume
from msfl.imaging.faults import Fault, unusable

ANGLES_DEG: Final = (20.0, 30.0, 40.0, 50.0, 60.0, 65.0)
ROOM_MM: Final = 8.0
BRAIN_MARGIN_MM: Final = 5.0


def without_face(head: Volume, brain: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What of the head stays, as a mask of its shape; `brain` lies on the head's grid. Raises Unusable.

    Coordinates are the affine's (RAS, mm), so the axes of the array may run in any direction.
    """
    if not brain.any():
        raise unusable(Fault.BRAIN_LOST, "Without a brain mask the face cannot be told from the brain.")
    kept = np.ones(brain.shape, np.bool_)
    inside = np.argwhere(brain)
    for angle in np.deg2rad(ANGLES_DEG):
        # n · (A i + t) = (Aᵀ n) · i + n · t; the offset is the same on both sides.
        direction = head.affine[:3, :3].T @ np.array([0.0, np.cos(angle), -np.sin(angle)])
        limit = float((inside @ direction).max()) + ROOM_MM
        i, j, k = (np.arange(n) * d for n, d in zip(brain.shape, direction, strict=True))
        kept &= i[:, None, None] + j[None, :, None] + k[None, None, :] <= limit
    kept |= _dilated(brain, head.spacing_mm)
    if lost := int(np.count_nonzero(brain & ~kept)):
        raise unusable(Fault.BRAIN_LOST, f"Defacing would have taken {lost} voxels of brain.", voxels=lost)
    return kept


def defaced(head: Volume, kept: NDArray[np.bool_]) -> Volume:
    """The head with zeros where the face was."""
    return Volume(np.where(kept, head.voxels, np.zeros((), head.voxels.dtype)), head.affine)


def _dilated(brain: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """All voxels within BRAIN_MARGIN_MM of the brain, in the box around it."""
    room = [int(np.ceil(BRAIN_MARGIN_MM / s)) for s in spacing_mm]
    (box,) = ndimage.find_objects(brain.astype(np.uint8))
    wide = tuple(slice(max(0, s.start - r), min(n, s.stop + r)) for s, r, n in zip(box, room, brain.shape, strict=True))
    made = np.zeros(brain.shape, np.bool_)
    distance: NDArray[Any] = ndimage.distance_transform_edt(~brain[wide], sampling=spacing_mm)
    made[wide] = distance <= BRAIN_MARGIN_MM
    return made
