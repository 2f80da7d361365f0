"""bias: the slow shading that coils leave, divided out. N4 (Tustison et al., IEEE TMI 2010;29:1310-1320).

The field is found on a shrunken image, where it looks the same, and evaluated at full resolution.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from msfl.imaging.checks import Volume
from msfl.imaging.volume import Mask, from_itk, to_itk


class BiasCorrection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    grid_mm: float = Field(default=4.0, ge=1)
    iterations: tuple[int, ...] = (50, 50, 30)


def correct_bias(volume: Volume, brain: Mask, how: BiasCorrection) -> Volume:
    """The field is fitted inside the brain and has mean 1 there; whole numbers stay whole numbers."""
    import SimpleITK as sitk

    image, mask = to_itk(volume), to_itk(volume.like(brain), np.uint8)
    shrink = [max(1, round(how.grid_mm / mm)) for mm in volume.spacing_mm]
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetNumberOfThreads(1)
    method.SetMaximumNumberOfIterations(list(how.iterations))
    method.Execute(sitk.BinShrink(image, shrink), sitk.BinShrink(mask, shrink))
    field = np.exp(from_itk(method.GetLogBiasFieldAsImage(image), volume).voxels)
    field /= field[brain].mean()
    values = volume.voxels / field
    if volume.voxels.dtype.kind in "iu":
        limits = np.iinfo(volume.voxels.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return volume.like(values.astype(volume.voxels.dtype))
