"""geometry: how big the voxels are, how the slices lie, and whether the whole brain is in the image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from nibabel.affines import obliquity

from msfl.imaging.checks import Volume
from msfl.imaging.volume import Mask


def geometry(image: Volume, brain: Mask) -> Mapping[str, float]:
    """Of an image in canonical orientation, as the scanner made it.

    ==================  ======  ========================================================================
    spacing_min, _max   mm      the shortest and the longest edge of a voxel
    obliquity           degree  the largest angle between an edge of a voxel and the nearest body axis
    brain               ml      volume of the brain mask
    brain_length        mm      from front to back; a brain that is cut off is short in some direction
    brain_width         mm      from left to right
    brain_height        mm      from top to bottom
    cut_top, cut_side   cm²     brain that touches the upper face, or the largest of the four faces around
    cut_bottom          cm²     the same below, where the brain stem leaves the image (up to about 9 cm²)
    ==================  ======  ========================================================================
    """
    spacing = image.spacing_mm
    width, length, height = (
        float(np.ptp(np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis)))) + 1) * spacing[axis]
        for axis in range(3)
    )
    area = [spacing[1] * spacing[2] / 100, spacing[0] * spacing[2] / 100, spacing[0] * spacing[1] / 100]
    cut = [[float(np.count_nonzero(brain.take(end, axis))) * area[axis] for end in (0, -1)] for axis in range(3)]
    return {
        "spacing_min": min(spacing),
        "spacing_max": max(spacing),
        "obliquity": float(np.degrees(np.abs(obliquity(image.affine)).max())),
        "brain": float(np.count_nonzero(brain)) * image.voxel_ml,
        "brain_length": length,
        "brain_width": width,
        "brain_height": height,
        "cut_top": cut[2][1],
        "cut_side": max(*cut[0], *cut[1]),
        "cut_bottom": cut[2][0],
    }
