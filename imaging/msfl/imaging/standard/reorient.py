"""reorient: the axes of an array in the order and direction of R, A, S, as near as turning and mirroring comes.

No value changes and nothing is interpolated: what stays oblique stays so in the affine, and quality control says so.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np

from msfl.imaging.checks import Volume


def reorient(volume: Volume) -> Volume:
    """Canonical axial orientation: x to the right, y to the front, z up. Works on masks alike."""
    turn = nib.orientations.io_orientation(volume.affine)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(turn, volume.voxels.shape)
    return Volume(np.ascontiguousarray(nib.orientations.apply_orientation(volume.voxels, turn)), affine)


def orientation(volume: Volume) -> str:
    """Where the axes point, such as "RAS" or "LPS"."""
    return "".join(nib.orientations.aff2axcodes(volume.affine))
