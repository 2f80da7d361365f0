"""A NIfTI file, written anew: voxels and where they lie, nothing else.

Converters and people write into `descrip`, `aux_file`, `intent_name`, `db_name` and header extensions: times of day,
names, whole DICOM headers. A header that is made here has none of them, and the same volume gives the same bytes.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from msfl.imaging.checks import Volume, fault_of_shape
from msfl.imaging.faults import Fault, unusable

_ANOTHER = "See that it is the right file; if it is, convert it again from DICOM."
_UNITS_MM = 2
_BEGINNING = 1024
_SLACK = 1 << 20
_KNOWN_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # as `xyzt_units` counts: unknown, m, mm, µm


def read_volume(file: Path) -> Volume:
    """NIfTI-1 or -2, canonical dtype: integers as stored, where no scaling is set; float32 otherwise.

    Raises Unusable for a file that is damaged, not 3-D, not in millimetres, or that says two things of its geometry.
    """
    try:
        image: Any = _whole(file) if file.name.endswith(".gz") else nib.load(file)
        if not isinstance(image, nib.Nifti1Image):  # NIfTI-2 is one, too
            raise unusable(Fault.UNREADABLE, "The file is not NIfTI.", _ANOTHER)
        if fault := fault_of_shape(tuple(map(int, image.shape))):
            raise fault
        _check_header(image)
        values = np.asanyarray(image.dataobj).reshape(image.shape[:3])
    except (ImageFileError, HeaderDataError, ValueError, TypeError) as error:
        raise unusable(Fault.UNREADABLE, "The file is not a NIfTI image that can be read.", _ANOTHER) from error
    except (EOFError, zlib.error, OSError) as error:
        raise unusable(
            Fault.TRUNCATED, "The file ends early or is damaged.", "Copy it, or convert it from DICOM, again."
        ) from error
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    elif values.dtype.kind not in "iu":
        raise unusable(Fault.NOT_3D, "Its voxels are not numbers but colours or pairs.")
    return Volume(np.asarray(values), np.asarray(image.affine, dtype=np.float64))


def _whole(file: Path) -> Any:
    """Read to the end, so that gzip's check sum is held against what came out: nibabel stops before it. A file that
    holds much more than its header promises is no image."""
    with file.open("rb") as raw:
        if raw.read(2) != b"\x1f\x8b":
            raise ImageFileError("not gzip")
    with gzip.open(file) as stream:
        beginning = stream.read(_BEGINNING)
        second = beginning[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")  # NIfTI-2's header size, either way round
        kind = nib.Nifti2Image if second else nib.Nifti1Image
        header = kind.header_class(beginning[: kind.header_class.sizeof_hdr], check=False)
        shape = tuple(map(int, header.get_data_shape()))
        if fault := fault_of_shape(shape):
            raise fault
        promised = int(header.get_data_offset()) + math.prod(shape) * int(header["bitpix"]) // 8
        content = beginning + stream.read(max(0, promised - len(beginning)) + _SLACK + 1)
    if len(content) > promised + _SLACK:
        raise unusable(Fault.TOO_LARGE, "The file holds more than its header promises.")
    return kind.from_bytes(content)


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
