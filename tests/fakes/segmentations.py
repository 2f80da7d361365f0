"""A radiologist's tool that writes DICOM segmentation objects on a series, and real patients written with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
from highdicom.seg.content import SegmentDescription
from highdicom.seg.enum import SegmentAlgorithmTypeValues, SegmentationTypeValues
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray

from fakes.scanners import FLAIR, T1W, Patient, Scanner


def segment(files: Sequence[Path], mask: NDArray[Any], out: Path, *labels: str) -> Path:
    """`mask` is indexed as the series was scanned (i, j, slice) and holds 1, 2, … for the segments in `labels`."""
    source = [pydicom.dcmread(file) for file in files]
    described = [
        SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=CodedConcept("49755003", "SCT", "Morphologically Altered Structure"),
            segmented_property_type=CodedConcept("123037004", "SCT", "Anatomical Structure"),
            algorithm_type=SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in enumerate(labels, 1)
    ]
    pixels = np.stack([mask[:, :, k].T for k in range(mask.shape[2])]).astype(np.uint8)
    made = highdicom.seg.Segmentation(
        source_images=source,
        pixel_array=pixels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=99,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="Tool",
        manufacturer_model_name="Drawing",
        software_versions="1",
        device_serial_number="1",
    )
    made.save_as(out)
    return out


def openms_as_dicom(data: Path, name: str, source: Path) -> None:
    """A real patient's FLAIR, T1w and lesions of `data` (MSFL_TEST_DATA), as a scanner and a radiologist write them."""
    scanner, files = Scanner(Patient(name, f"Doe^{name}")), []
    for image, contrast in (("FLAIR", FLAIR), ("T1w", T1W)):
        read = nib.load(data / "openms" / name / f"{image}.nii.gz")
        voxels = np.clip(np.asarray(read.dataobj), 0, 32767).astype(np.int16)
        files.append(scanner.scan(voxels, read.affine, source / name, contrast))
    mask = np.asarray(nib.load(data / "openms" / name / "lesion_mask.nii.gz").dataobj) > 0
    segment(files[0], mask.astype(np.uint8), source / name / "mask", "MS lesion")
