"""resample: the values of one image at the points of another one's grid, through a rigid motion, once."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from msfl.imaging.checks import Volume
from msfl.imaging.standard.register import Rigid
from msfl.imaging.volume import Mask, from_itk, to_itk

Interpolation = Literal["linear", "bspline"]


def resample(moving: Volume, onto: Volume, motion: Rigid, interpolation: Interpolation) -> Volume:
    """Outside the moving image is 0. Between voxels a cubic B-spline swings beyond the values it was given: what it
    makes is held to the range of the image. Whole numbers stay whole numbers of the same type."""
    values = _resample(to_itk(moving), onto, motion, interpolation).voxels
    values = np.clip(values, moving.voxels.min(), moving.voxels.max())
    if moving.voxels.dtype.kind in "iu":
        values = np.rint(values)
    return onto.like(values.astype(moving.voxels.dtype))


def resample_mask(moving: Mask, grid: Volume, onto: Volume, motion: Rigid) -> Mask:
    """`grid` is what the mask lies on. A voxel belongs to it when more than half of it does (linear interpolation)."""
    return np.asarray(_resample(to_itk(grid.like(moving), np.float32), onto, motion, "linear").voxels > 0.5)


def _resample(image: Any, onto: Volume, motion: Rigid, interpolation: Interpolation) -> Volume:
    import SimpleITK as sitk

    filter_ = sitk.ResampleImageFilter()
    filter_.SetReferenceImage(to_itk(onto))
    filter_.SetTransform(motion.to_itk())
    filter_.SetInterpolator(sitk.sitkLinear if interpolation == "linear" else sitk.sitkBSpline3)
    filter_.SetDefaultPixelValue(0.0)
    filter_.SetOutputPixelType(sitk.sitkFloat32)
    filter_.SetNumberOfThreads(1)
    return from_itk(filter_.Execute(image), onto)
