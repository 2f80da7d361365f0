"""A NIfTI file, written anew: voxels and where they lie, nothing else.

Converters and people write into `descrip`, `aux_file`, `intent_name`, `db_name` and header extensions: times of day,
names, whole DICOM headers. A header that is made here has none of them, and the same volume gives the same bytes.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from msfl.imaging.checks import Volume, fault_of_shape
from msfl.imaging.faults import Fault, unusable

_UNITS_MM = 2
_KNOWN_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # as `xyzt_units` counts: unknown, m, mm, µm


def read_volume(file: Path) -> Volume:
    """NIfTI-1 or -2, canonical dtype: integers as stored, where no scaling is set; float32 otherwise.

    Raises Unusable for a file that is damaged, not 3-D, not in millimetres, or that says two things of its geometry.
    """
    try:
        image: Any = nib.load(file)
        if not isinstance(image, nib.Nifti1Image):  # NIfTI-2 is one, too
            raise unusable(Fault.UNREADABLE, "The file is not NIfTI.")
        if fault := fault_of_shape(tuple(map(int, image.shape))):
            raise fault
        _check_header(image)
        values = np.asanyarray(image.dataobj).reshape(image.shape[:3])
    except (ImageFileError, HeaderDataError, ValueError, TypeError) as error:
        raise unusable(Fault.UNREADABLE, "The file is not a NIfTI image that can be read.") from error
    except (EOFError, zlib.error, OSError) as error:
        raise unusable(Fault.TRUNCATED, "The file ends early or is damaged.") from error
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    elif values.dtype.kind not in "iu":
        raise unusable(Fault.NOT_3D, "Its voxels are not numbers but colours or pairs.")
    return Volume(np.asarray(values), np.asarray(image.affine, dtype=np.float64))


def _check_header(image: Any) -> None:
    units = int(image.header["xyzt_units"]) & 0x07
    if _KNOWN_UNITS.get(units, 0.0) != 1.0:
        name = {1: "metres", 3: "micrometres"}.get(units, "an unknown unit")
        raise unusable(Fault.WRONG_UNITS, f"The header gives lengths in {name}.")
    qform, q_code = image.header.get_qform(coded=True)
    sform, s_code = image.header.get_sform(coded=True)
    if not q_code and not s_code:
        raise unusable(Fault.BAD_GEOMETRY, "The header does not say where left and right are.")
    if q_code and s_code and np.linalg.det(qform[:3, :3]) * np.linalg.det(sform[:3, :3]) < 0:
        raise unusable(Fault.BAD_GEOMETRY, "The header's two geometries disagree about left and right.")


def write_volume(volume: Volume, file: Path) -> None:
    """gzip-compressed NIfTI-1, sform and qform equal, no name and no time in it: same volume, same bytes."""
    voxels = volume.voxels
    if voxels.dtype.kind == "f":
        voxels = voxels.astype(np.float32)
    elif voxels.dtype.itemsize == 8:
        voxels = voxels.astype(np.int32)
    elif voxels.dtype == np.bool_:
        voxels = voxels.astype(np.uint8)
    image = nib.Nifti1Image(voxels, volume.affine, dtype=voxels.dtype)
    image.set_sform(volume.affine, code=1)
    image.set_qform(volume.affine, code=1, strip_shears=True)
    image.header["xyzt_units"] = _UNITS_MM
    plain = io.BytesIO()
    image.to_file_map({"header": nib.FileHolder(fileobj=plain), "image": nib.FileHolder(fileobj=plain)})
    with file.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=4, mtime=0) as out:
        out.write(plain.getbuffer())
