"""Lesion masks, as NIfTI or as DICOM segmentation object, become one volume of 0 and 1.

A mask stays on the grid that it was drawn on (FLAIR or T1w); standardising moves it with that image. Where neither grid
fits, there is no telling where the lesions are, and the case is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from msfl.imaging.checks import Volume, same_grid
from msfl.imaging.deidentify.nifti import read_volume
from msfl.imaging.faults import Fault, about, unusable
from msfl.imaging.sources.dicom import READ_ERRORS
from msfl.imaging.sources.found import DicomSeries, ImageSource, NiftiFile
from msfl.imaging.sources.segments import called_lesion

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_mask(source: ImageSource, images: Mapping[str, Volume]) -> tuple[Volume, str]:
    """The mask (uint8, 0 and 1) on the grid of the image it belongs to, and which image that is. Raises Unusable."""
    match source:
        case NiftiFile(file):
            with about(file):
                return _placed(_binary(read_volume(file)), images)
        case DicomSeries(files):
            return _of_segmentations(files, images)


def _binary(mask: Volume) -> Volume:
    values = np.unique(mask.voxels)
    if not set(values.tolist()) <= {0, 1}:
        shown = ", ".join(f"{float(v):g}" for v in values[:5]) + (", …" if len(values) > 5 else "")
        raise unusable(Fault.MASK_NOT_BINARY, f"The lesion mask holds the values {shown}.")
    return Volume(mask.voxels.astype(np.uint8), mask.affine)


def _placed(mask: Volume, images: Mapping[str, Volume]) -> tuple[Volume, str]:
    for name, image in images.items():
        if same_grid(mask, image):
            return mask, name
    upright = _upright(mask)
    for name, image in images.items():
        # Another converter may have stored the same grid with its axes in another order.
        if same_grid(upright, _upright(image)):
            return upright, name
    raise unusable(Fault.MASK_ELSEWHERE, "The lesion mask lies on neither image's grid.")


def _upright(volume: Volume) -> Volume:
    image: Any = nib.as_closest_canonical(nib.Nifti1Image(volume.voxels, volume.affine))
    return Volume(np.asanyarray(image.dataobj), image.affine)


def _of_segmentations(files: tuple[Path, ...], images: Mapping[str, Volume]) -> tuple[Volume, str]:
    """All segments that are called lesion, together; no other, not even where it is the only one."""
    import highdicom

    found: list[tuple[Volume, str]] = []
    for file in files:
        with about(file):
            try:
                segmentation = highdicom.seg.segread(file)
                numbers = [number for number in segmentation.segment_numbers if _is_lesion(segmentation, number)]
                if not numbers:
                    continue
                made = segmentation.get_volume(segment_numbers=numbers, combine_segments=False)
            except (*READ_ERRORS, RuntimeError) as error:
                raise unusable(Fault.UNREADABLE, "The DICOM segmentation cannot be read.") from error
            values = np.asarray(made.array).reshape(*made.spatial_shape, -1)
            voxels = np.asarray(np.any(values > 0, axis=-1))
            mask = Volume(voxels.astype(np.uint8), _LPS_TO_RAS @ np.asarray(made.affine, dtype=np.float64))
            found.append(_placed_inside(mask, images))
    if not found:
        what = "No segment of the visit's DICOM segmentations is called lesion."
        raise unusable(Fault.MASK_ELSEWHERE, what, "Name the segment, or leave the segmentation out.")
    if len({name for _, name in found}) > 1 or len({mask.voxels.shape for mask, _ in found}) > 1:
        what = "Several DICOM segmentations hold lesions, on different images."
        raise unusable(Fault.AMBIGUOUS, what, "Name the one to use with --series FILE, as lesion.")
    together = np.any([mask.voxels for mask, _ in found], axis=0).astype(np.uint8)
    return Volume(together, found[0][0].affine), found[0][1]


def _is_lesion(segmentation: Any, number: int) -> bool:
    described = segmentation.get_segment_description(number)
    return called_lesion(str(described.segment_label), str(described.segmented_property_type.meaning))


def _placed_inside(mask: Volume, images: Mapping[str, Volume]) -> tuple[Volume, str]:
    """A segmentation object leaves empty slices out: it is a block of whole voxels inside an image's grid."""
    for name, image in images.items():
        to_image = np.linalg.inv(image.affine) @ mask.affine
        axes = np.rint(to_image[:3, :3])
        start = to_image[:3, 3]
        permutes = (np.abs(axes).sum(axis=0) == 1).all() and (np.abs(axes).sum(axis=1) == 1).all()
        if not permutes or np.abs(to_image[:3, :3] - axes).max() > 1e-2 or np.abs(start - np.rint(start)).max() > 0.1:
            continue
        indices = np.argwhere(mask.voxels) @ axes.T.astype(int) + np.rint(start).astype(int)
        if (indices < 0).any() or (indices >= image.voxels.shape).any():
            continue
        placed = np.zeros(image.voxels.shape, np.uint8)
        placed[tuple(indices.T)] = 1
        return Volume(placed, image.affine), name
    raise unusable(Fault.MASK_ELSEWHERE, "The DICOM segmentation lies on neither image's grid.")
