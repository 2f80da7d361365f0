"""A scanner that writes DICOM: any volume becomes a series as an MR scanner exports it, a patient in every header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

T1W: Mapping[str, Any] = {
    "SeriesDescription": "t1_mprage_sag_p2_iso", "ProtocolName": "t1_mprage_sag_p2_iso",
    "ScanningSequence": ["GR", "IR"],
    "SequenceVariant": ["SK", "SP", "MP"], "MRAcquisitionType": "3D", "SequenceName": "*tfl3d1_16ns",
    "RepetitionTime": 2300.0, "EchoTime": 2.98, "InversionTime": 900.0, "FlipAngle": 9.0,
}  # fmt: skip
FLAIR: Mapping[str, Any] = {
    "SeriesDescription": "t2_space_dark-fluid_sag_iso", "ProtocolName": "t2_space_dark-fluid_sag_iso",
    "ScanningSequence": ["SE", "IR"], "SequenceVariant": ["SK", "SP", "MP"], "MRAcquisitionType": "3D",
    "SequenceName": "*spcir_278ns", "RepetitionTime": 5000.0, "EchoTime": 388.0, "InversionTime": 1800.0,
    "FlipAngle": 120.0,
}  # fmt: skip
SILENT: Mapping[str, Any] = {"SeriesDescription": "", "ProtocolName": "", "SequenceName": ""}
"""Nothing that tells which contrast this is."""


@dataclass(frozen=True)
class Patient:
    number: str = "MRN4711889"
    name: str = "Doe^John^Quincy"
    birth: str = "19660317"


@dataclass
class Scanner:
    """One visit of one patient; every `scan` is a further series of it."""

    patient: Patient = field(default_factory=Patient)
    day: str = "20240229"
    seed: str = "1"
    series: int = 0

    def uid(self, *what: object) -> UID:
        return UID(generate_uid(entropy_srcs=[self.seed, self.patient.number, self.day, *map(str, what)]))

    def scan(
        self,
        voxels: NDArray[Any],
        affine: NDArray[Any],
        folder: Path,
        contrast: Mapping[str, Any] = T1W,
        prefix: str = "IM",
        **headers: Any,
    ) -> list[Path]:
        """`voxels` (i, j, k) with a NIfTI affine (RAS, mm); slices along k. Returns one file per slice."""
        self.series += 1
        folder.mkdir(parents=True, exist_ok=True)
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        step = np.linalg.norm(lps[:3, :3], axis=0)
        along = lps[:3, :3] / step
        files = []
        for k in range(voxels.shape[2]):
            image = self._header(contrast, headers)
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = self.uid(self.series, k)
            image.InstanceNumber = k + 1
            image.ImagePositionPatient = [_decimal(v) for v in (lps @ [0, 0, k, 1])[:3]]
            image.ImageOrientationPatient = [_decimal(v) for v in (*along[:, 0], *along[:, 1])]
            image.PixelSpacing = [_decimal(step[1]), _decimal(step[0])]
            image.SliceThickness = image.SpacingBetweenSlices = _decimal(step[2])
            image.Columns, image.Rows = voxels.shape[:2]
            image.PixelData = np.ascontiguousarray(voxels[:, :, k].T.astype("<i2")).tobytes()
            file = folder / f"{prefix}{self.series:02d}{k:04d}"
            image.save_as(file, enforce_file_format=True)
            files.append(file)
        return files

    def _header(self, contrast: Mapping[str, Any], headers: Mapping[str, Any]) -> Dataset:
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = MRImageStorage
        image.Modality, image.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]
        image.Manufacturer, image.ManufacturerModelName = "SIEMENS", "Skyra"
        image.MagneticFieldStrength = 3.0
        image.PatientID, image.PatientName = self.patient.number, self.patient.name
        image.PatientBirthDate, image.PatientSex = self.patient.birth, "M"
        image.StudyInstanceUID, image.SeriesInstanceUID = self.uid("study"), self.uid("series", self.series)
        image.FrameOfReferenceUID = self.uid("frame")
        image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = self.day
        image.StudyTime = image.AcquisitionTime = "101500"
        image.AccessionNumber, image.StudyID, image.ReferringPhysicianName = "", "", ""
        image.SeriesNumber = self.series
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 1
        for keyword, value in {**contrast, **headers}.items():
            setattr(image, keyword, value)
        return image


def head(size: int = 32, spacing: float = 5.0, seed: int = 0) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Something round in the middle of a volume as large as a head, and its affine (RAS, mm)."""
    rng = np.random.default_rng(seed)
    at = np.linspace(-1, 1, size)
    r = np.sqrt(sum(a**2 for a in np.meshgrid(at, at, at, indexing="ij")))
    voxels = np.where(r < 0.8, 600 + 200 * np.cos(6 * r), 0) + rng.normal(0, 20, r.shape)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (size - 1) / 2
    return np.clip(voxels, 0, 2000).astype(np.int16), affine


def _decimal(value: float) -> str:
    return str(pydicom.valuerep.DSfloat(float(value), auto_format=True))


def enhanced(voxels: NDArray[Any], affine: NDArray[Any], file: Path, contrast: Mapping[str, Any], series: int) -> Path:
    """The same as one object of many frames (Enhanced MR), as newer Philips and Siemens software exports it."""
    scanner = Scanner(series=series)
    parts = scanner.scan(voxels, affine, file.parent / f"{file.name}.parts", contrast)
    slices = [pydicom.dcmread(part) for part in parts]
    made = slices[0]
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    made.NumberOfFrames = len(slices)
    made.PixelData = b"".join(part.PixelData for part in slices)
    shared, measures, orientation, timing, echo, modifier = (Dataset() for _ in range(6))
    measures.PixelSpacing, measures.SliceThickness = made.PixelSpacing, made.SliceThickness
    measures.SpacingBetweenSlices = made.SpacingBetweenSlices
    orientation.ImageOrientationPatient = made.ImageOrientationPatient
    timing.RepetitionTime, timing.FlipAngle = float(made.RepetitionTime), float(made.FlipAngle)
    echo.EffectiveEchoTime = float(made.EchoTime)
    modifier.InversionRecovery, modifier.InversionTimes = "YES", [float(made.InversionTime)]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.MRTimingAndRelatedParametersSequence, shared.MREchoSequence = [timing], [echo]
    shared.MRModifierSequence = [modifier]
    frames = []
    for number, one in enumerate(slices, 1):
        frame, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = one.ImagePositionPatient
        content.StackID, content.InStackPositionNumber = "1", number
        content.DimensionIndexValues = [1, number]
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        frames.append(frame)
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], frames
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                    "SpacingBetweenSlices", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle"):  # fmt: skip
        delattr(made, keyword)
    made.save_as(file, enforce_file_format=True)
    for part in parts:
        part.unlink()
    (file.parent / f"{file.name}.parts").rmdir()
    return file
