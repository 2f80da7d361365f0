"""Why something that was to be imported cannot be used: a closed vocabulary, and for every word what to do about it.

A fault is data. It says what, where, why and what to do in one line that names no patient, file or path: the line is
kept in the case's journal and may be shown to anybody at the site. Which file it is, the custodian's own list says
(`msfl.imaging.deidentify.links`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

from msfl.imaging.workspace import Unusable
from msfl.policies.refusals import CannotProceed


class Fault(StrEnum):
    # The bytes
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    ENCRYPTED = "encrypted"
    ARCHIVE_UNSAFE = "archive_unsafe"
    TOO_LARGE = "too_large"
    OUTSIDE_SOURCE = "outside_source"
    # The patient and the visit
    MIXED_PATIENTS = "mixed_patients"
    NO_PATIENT = "no_patient"
    MISSING_FLAIR = "missing_flair"
    MISSING_T1W = "missing_t1w"
    AMBIGUOUS = "ambiguous"
    # The images
    SLICES_MISSING = "slices_missing"
    NOT_3D = "not_3d"
    TOO_FEW_SLICES = "too_few_slices"
    THICK_SLICES = "thick_slices"
    WRONG_UNITS = "wrong_units"
    NOT_FINITE = "not_finite"
    CONSTANT = "constant"
    BAD_GEOMETRY = "bad_geometry"
    CONVERSION_FAILED = "conversion_failed"
    # The mask
    MASK_NOT_BINARY = "mask_not_binary"
    MASK_ELSEWHERE = "mask_elsewhere"
    # What must not leave the scanner, and what must never happen
    IDENTITY_LEFT = "identity_left"
    BRAIN_LOST = "brain_lost"
    CRASHED = "crashed"
    DISK_FULL = "disk_full"


ADVICE: Final[Mapping[Fault, str]] = {
    Fault.UNREADABLE: "Export it again from the archive (PACS).",
    Fault.TRUNCATED: "The copy was cut short: export it again from the archive (PACS).",
    Fault.ENCRYPTED: "Decrypt it first; no password is asked for or kept here.",
    Fault.ARCHIVE_UNSAFE: "Unpack it yourself, look at what it holds, and import the folder.",
    Fault.TOO_LARGE: "Unpack it yourself, look at what it holds, and import the folder.",
    Fault.OUTSIDE_SOURCE: "Copy the file into the folder instead of linking it.",
    Fault.MIXED_PATIENTS: "Correct the patient ID, the name or the date of birth at the archive; folders play no part.",
    Fault.NO_PATIENT: "Export it again with a patient ID, or give the patient in a CSV.",
    Fault.MISSING_FLAIR: "Add the FLAIR series, or name it with --series if it was not recognised.",
    Fault.MISSING_T1W: "Add the T1-weighted series, or name it with --series if it was not recognised.",
    Fault.AMBIGUOUS: "Say which series it is: --series FILE.",
    Fault.SLICES_MISSING: "Export the whole series again from the archive (PACS).",
    Fault.NOT_3D: "Give one three-dimensional image per modality.",
    Fault.TOO_FEW_SLICES: "This is a localiser or a part of a series: give the whole head.",
    Fault.THICK_SLICES: "Use the 3D acquisition of this visit, or raise the limit with --max-slice-mm.",
    Fault.WRONG_UNITS: "Correct the unit of length in the header to millimetres.",
    Fault.NOT_FINITE: "Export it again: voxels without a value would spoil the training.",
    Fault.CONSTANT: "The image is empty: export it again.",
    Fault.BAD_GEOMETRY: "Convert it again from DICOM, so that the header says where the voxels lie.",
    Fault.CONVERSION_FAILED: "Look at the series in a viewer; export it again if it looks right there.",
    Fault.MASK_NOT_BINARY: "Give a mask of 0 (no lesion) and 1 (lesion).",
    Fault.MASK_ELSEWHERE: "Give the mask on the grid of the FLAIR or of the T1w image that it was drawn on.",
    Fault.IDENTITY_LEFT: "Nothing was kept. Report this: the rules of de-identification must be extended.",
    Fault.CRASHED: "The others are not affected. Run it again with --jobs 1 (less memory); report it if it stays so.",
    Fault.DISK_FULL: "Make room, and run it again: what was done is kept.",
    Fault.BRAIN_LOST: (
        "Look at its outlines in the report of quality control. Leave the case out (msfl data qc --overrule CASE "
        "--verdict fail), or publish the dataset with --extent head, which keeps all faces."
    ),
}


WARNINGS: Final[Mapping[str, str]] = {
    "burned_in_text": "Text is burned into the picture, or its header says so: look at it before you publish.",
    "mask_kept": "This source holds no lesion mask; the images are the same, and the mask that was there stays.",
    "mask_gone": "The images are others than before and came without a lesion mask: the one that was there is gone.",
    "segments_left_out": "Segments of its DICOM segmentation that are not called lesion were left out.",
    "segments_united": "Several segments called lesion became one mask: see that one person drew them.",
}
"""What a custodian has to look at although the case came in."""


def unusable(fault: Fault, what: str, advice: str = "", **figures: float) -> Unusable:
    """`what` is the fact; the advice of the fault is added, unless there is a better one here."""
    return Unusable(fault.value, f"{what} {advice or ADVICE[fault]}", figures)


@contextmanager
def about(file: Path) -> Iterator[None]:
    """A fault that is found meanwhile is one of this file: the custodian's own list names it."""
    try:
        yield
    except Unusable as why:
        why.files = why.files or (file,)
        raise


NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says of a full disk, or of a share of it that is used up."""


@contextmanager
def room_on(folder: Path) -> Iterator[None]:
    """A full disk is the disk's fault, not the images'. Raises CannotProceed."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise CannotProceed(
            f"There is no room left on the disk of {folder}. What was done is kept. Make room, and run it again."
        ) from error
