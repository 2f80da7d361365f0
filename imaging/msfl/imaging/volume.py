"""volume: one 3-D image and where it lies, read strictly, written so that the same image gives the same bytes.

    file ──read_volume──▶ Volume(data, affine) ──steps──▶ Volume ──write_volume──▶ file
             └── Unusable: cannot be read, not 3-D, no geometry, NaN, empty

Coordinates: `data` is indexed x, y, z as stored; `affine` maps a voxel's index to millimetres in RAS+ (right, anterior,
superior positive), as nibabel has it. SimpleITK wants z, y, x and LPS: `to_itk` and `from_itk` are the only places that
know.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from msfl.imaging.faults import Fault, unusable

Mask = NDArray[np.bool_]
Affine = NDArray[np.float64]

MOST_VOXELS: Final = 1 << 28
"""A damaged header may promise so much that reading would take all memory: 645 voxels cubed are enough."""
_SQUARE: Final = 1e-3  # the largest cosine between two axes
_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Volume:
    """`data` is (x, y, z); `affine` is voxel index → mm, RAS+."""

    data: NDArray[Any]
    affine: Affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        return math.prod(self.spacing_mm) / 1000

    def like(self, data: NDArray[Any]) -> Volume:
        """Other values on the same grid."""
        return Volume(data, self.affine)

    def same_grid(self, other: Volume, tolerance_mm: float = 1e-2) -> bool:
        """Same shape, and no corner further apart than the tolerance."""
        if self.data.shape != other.data.shape:
            return False
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        corners = corners * np.array([*self.data.shape, 1])
        apart = (corners @ (self.affine - other.affine).T)[:, :3]
        return bool(np.linalg.norm(apart, axis=1).max() <= tolerance_mm)


def read_volume(file: Path, what: str) -> Volume:
    """`what` is how people call the image ("FLAIR"). Floats become float32. Raises Unusable."""
    try:
        image: Any = nib.load(file)
        if math.prod(image.shape) > MOST_VOXELS:
            raise unusable(Fault.TOO_LARGE, f"The {what} image promises more voxels than any scanner makes.")
        data: NDArray[Any] = np.asanyarray(image.dataobj)
        affine: Affine = np.asarray(image.affine, dtype=np.float64)
    except FileNotFoundError:
        raise unusable(Fault.MISSING_FLAIR if what == "FLAIR" else Fault.MISSING_T1W, f"There is no {what} image.") from None
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError, HeaderDataError) as error:
        kind = type(error).__name__
        raise unusable(Fault.UNREADABLE, f"The {what} image cannot be read ({kind}).") from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3 or 0 in data.shape or data.dtype.kind not in "iuf":
        shape = " × ".join(map(str, data.shape))
        raise unusable(Fault.NOT_3D, f"The {what} image is {shape} of {data.dtype}.")
    _check_geometry(affine, what)
    if data.dtype.kind == "f":
        data = data.astype(np.float32)
        if bad := int(np.count_nonzero(~np.isfinite(data))):
            raise unusable(Fault.NOT_FINITE, f"{bad} voxels of the {what} image are NaN or infinite.")
    return Volume(data, affine)


def _check_geometry(affine: Affine, what: str) -> None:
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or (lengths < 1e-3).any():
        raise unusable(Fault.BAD_GEOMETRY, f"The {what} image has no finite voxel size.")
    if np.abs(axes.T @ axes / np.outer(lengths, lengths) - np.eye(3)).max() > _SQUARE:
        raise unusable(Fault.BAD_GEOMETRY, f"The axes of the {what} image are not at right angles.")


def write_volume(file: Path, volume: Volume) -> None:
    """NIfTI-1, gzip without a time or a name in it: same volume, same bytes."""
    data = volume.data.astype(np.uint8) if volume.data.dtype == np.bool_ else volume.data
    image = nib.Nifti1Image(data, volume.affine)
    image.set_qform(volume.affine, code=1)
    image.set_sform(volume.affine, code=1)
    image.header.set_xyzt_units("mm")
    plain = io.BytesIO()
    image.file_map["image"].fileobj = plain
    image.to_file_map()
    with file.open("wb") as target, gzip.GzipFile("", "wb", 3, target, mtime=0) as packed:
        packed.write(plain.getbuffer())


def to_itk(volume: Volume, dtype: Any = np.float32) -> Any:
    """As a SimpleITK image."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.astype(dtype, copy=False).transpose(2, 1, 0)))
    lps = _LPS @ volume.affine
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / np.array(volume.spacing_mm)).ravel().tolist())
    return image


def from_itk(image: Any, like: Volume) -> Volume:
    """The values of an image that lies on the grid of `like`."""
    import SimpleITK as sitk

    return like.like(np.ascontiguousarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0)))
