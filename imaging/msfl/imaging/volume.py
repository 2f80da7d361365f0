"""volume: an image in memory, on its way through SimpleITK and back.

`Volume` (`msfl.imaging.checks`) is indexed x, y, z and lies in RAS+ (right, anterior, superior positive), mm. SimpleITK
wants z, y, x and LPS: `to_itk` and `from_itk` are the only places that know.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from msfl.imaging.checks import Volume

Mask = NDArray[np.bool_]
Affine = NDArray[np.float64]

LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From RAS+ to LPS and back."""


def to_itk(volume: Volume, dtype: Any = np.float32) -> Any:
    """As a SimpleITK image."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.voxels.astype(dtype, copy=False).transpose(2, 1, 0)))
    lps = LPS @ volume.affine
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / np.array(volume.spacing_mm)).ravel().tolist())
    return image


def from_itk(image: Any, like: Volume) -> Volume:
    """The values of an image that lies on the grid of `like`."""
    import SimpleITK as sitk

    return like.like(np.ascontiguousarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0)))
