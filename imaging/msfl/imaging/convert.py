"""A DICOM series becomes a volume: de-identified first, converted then, so that the converter never sees a name.

::

    files ─read whole─▶ complete? one volume? ─▶ de-identified copies ─dcm2niix─▶ volume, scrubbed sidecar

The copies lie in a scratch folder under running numbers and are gone when the volume is there.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian

from msfl.imaging.checks import LARGEST_HEAD_MM, SMALLEST_HEAD_MM, Volume
from msfl.imaging.deidentify.burned_in import looks_written_on, said_by_header
from msfl.imaging.deidentify.changes import Change, changes
from msfl.imaging.deidentify.headers import Options, deidentify
from msfl.imaging.deidentify.keys import Pseudonyms
from msfl.imaging.deidentify.leaks import identifiers
from msfl.imaging.deidentify.nifti import read_volume
from msfl.imaging.deidentify.sidecars import read_scrubbed
from msfl.imaging.faults import Fault, about, unusable
from msfl.imaging.sources.dicom import READ_ERRORS
from msfl.imaging.workspace import JsonObject

_PATIENCE_S: Final = 300
_LARGEST_GAP: Final = 1.5  # times the usual distance of two slices


@dataclass(frozen=True, eq=False)
class Converted:
    """`telling` is everything that must not be found in what is written; `warnings` are codes."""

    volume: Volume
    sidecar: JsonObject
    telling: frozenset[str]
    changes: tuple[Change, ...]
    warnings: tuple[str, ...] = ()
    day: str = ""  # of the visit, moved; YYYYMMDD or ""
    device: tuple[str, ...] = ()  # maker, model, serial number as the header has them, for the scanner's pseudonym


def convert(files: Sequence[Path], patient: str, pseudonyms: Pseudonyms, options: Options, scratch: Path) -> Converted:
    """`patient` is the pseudonym; `scratch` an empty folder. Raises Unusable."""
    copies = scratch / "dicom"
    copies.mkdir()
    telling: set[str] = set()
    positions: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    diff: tuple[Change, ...] = ()
    warnings: set[str] = set()
    middle = len(files) // 2
    first: Dataset | None = None
    made = Dataset()
    for number, file in enumerate(sorted(files)):
        with about(file):
            try:
                source = _read(file)
                telling |= identifiers(source)
                made = deidentify(source, patient, pseudonyms, options)
                made.save_as(copies / f"{number:06d}.dcm", enforce_file_format=True)
                positions += _position(source)
                if said_by_header(source):
                    warnings.add("burned_in_text")
                if number == middle:
                    diff = changes(source, made)
                    if _plain(source) and source.get("NumberOfFrames", 1) == 1 and looks_written_on(source.pixel_array):
                        warnings.add("burned_in_text")
            except READ_ERRORS as error:
                raise unusable(Fault.UNREADABLE, "A file of the series cannot be read.") from error
        first = first or source
    assert first is not None, "a series has files"
    _check_size(first)
    _check_positions(positions, int(first.get("ImagesInAcquisition") or 0), len(files))
    out = scratch / "nifti"
    out.mkdir()
    _run_dcm2niix(copies, out)
    volumes = sorted(out.glob("*.nii"))
    if len(volumes) != 1:
        _needs_room(copies, out)
        what = "nothing" if not volumes else f"{len(volumes)} volumes"
        raise unusable(Fault.CONVERSION_FAILED, f"The series was converted to {what} instead of one volume.")
    sidecar = read_scrubbed(next(iter(out.glob("*.json")), None))
    device = tuple(str(first.get(k) or "") for k in ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber"))
    day = str(made.get("StudyDate") or "")
    return Converted(read_volume(volumes[0]), sidecar, frozenset(telling), diff, tuple(sorted(warnings)), day, device)


def _read(file: Path) -> Dataset:
    """The whole file, its pixels as long as its header says."""
    source = pydicom.dcmread(file)
    if "PixelData" not in source:
        raise unusable(Fault.TRUNCATED, "A file of the series has no picture in it.")
    if _plain(source):
        voxels = int(source.Rows) * int(source.Columns) * int(source.get("NumberOfFrames") or 1)
        expected = voxels * int(source.get("SamplesPerPixel") or 1) * int(source.BitsAllocated) // 8
        if len(source.PixelData) < expected:
            raise unusable(Fault.TRUNCATED, "A file of the series ends inside its picture.")
        if source.file_meta.TransferSyntaxUID == ExplicitVRBigEndian and source.BitsAllocated == 16:
            source.PixelData = np.frombuffer(source.PixelData, ">u2").astype("<u2").tobytes()
    return source


def _plain(source: Dataset) -> bool:
    return not source.file_meta.TransferSyntaxUID.is_compressed


def _position(source: Dataset) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Where a slice lies and how it is turned (LPS, mm); nothing for objects of many frames, which dcm2niix sorts."""
    position, turned = source.get("ImagePositionPatient"), source.get("ImageOrientationPatient")
    if position is None or turned is None or int(source.get("NumberOfFrames") or 1) > 1:
        return []
    return [(tuple(map(float, position)), tuple(map(float, turned)))]


def _check_size(header: Dataset) -> None:
    """A field of view no head fits into is in another unit. Raises Unusable."""
    spacing = header.get("PixelSpacing")
    extent = max(float(s) * n for s, n in zip(spacing, (header.Rows, header.Columns), strict=True)) if spacing else 0.0
    if spacing and not SMALLEST_HEAD_MM <= extent <= LARGEST_HEAD_MM:
        raise unusable(
            Fault.WRONG_UNITS, f"By its header a slice is {extent:.4g} mm long; no head is.", extent_mm=extent
        )


def _check_positions(
    positions: Sequence[tuple[tuple[float, ...], tuple[float, ...]]], promised: int, files: int
) -> None:
    """All slices of one volume, none twice, none missing. Raises Unusable."""
    if not positions:
        return
    turned = np.array([t for _, t in positions])
    if np.abs(turned - turned[0]).max() > 1e-2:
        raise unusable(Fault.NOT_3D, "The slices of the series are turned against each other.")
    normal = np.cross(turned[0][:3], turned[0][3:])
    heights = np.sort([float(np.dot(p, normal)) for p, _ in positions])
    steps = np.diff(heights)
    if Counter(np.round(heights, 2).tolist()).most_common(1)[0][1] > 1:
        raise unusable(
            Fault.NOT_3D, "The series holds several images of one place: several echoes, or a series over time."
        )
    if len(steps) and steps.max() > _LARGEST_GAP * float(np.median(steps)):
        missing = int(np.rint(steps / np.median(steps) - 1).sum())
        raise unusable(Fault.SLICES_MISSING, f"{missing} slices are missing inside the series.", slices=missing)
    if promised > files > 1:
        raise unusable(
            Fault.SLICES_MISSING, f"The series has {files} of {promised} slices.", slices=promised - files
        )  # fmt: skip


def _needs_room(copies: Path, out: Path) -> None:
    """The volume is as large as the copies. Raises OSError: dcm2niix itself does not say that the disk was full."""
    if shutil.disk_usage(out).free < sum(file.stat().st_size for file in copies.iterdir()):
        raise OSError(errno.ENOSPC, "no room for the volume")


def _run_dcm2niix(copies: Path, out: Path) -> None:
    import dcm2niix

    _needs_room(copies, out)

    command = [
        dcm2niix.bin,
        "-b",
        "y",
        "-ba",
        "y",
        "-z",
        "n",
        "-m",
        "y",
        "-w",
        "1",
        "-f",
        "volume",
        "-o",
        str(out),
        str(copies),
    ]
    try:
        subprocess.run(
            command, check=True, capture_output=True, timeout=_PATIENCE_S, env={"HOME": str(out), "PATH": ""}
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        _needs_room(copies, out)
        raise unusable(Fault.CONVERSION_FAILED, "The series could not be converted to a volume.") from error
