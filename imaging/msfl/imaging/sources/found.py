"""What was found in a source: visits that can be tried, and what was left out with the reason.

Everything here carries names of patients and files. It lives for the time of an import, and what stays of it is what
`msfl.imaging.importing` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from msfl.imaging.workspace import Unusable

Kind: TypeAlias = Literal["dicom", "bids", "nifti", "nnunet"]


@dataclass(frozen=True)
class DicomSeries:
    """The files of one series, in no particular order."""

    files: tuple[Path, ...]


@dataclass(frozen=True)
class NiftiFile:
    """`sidecar` is the JSON file beside it, where there is one."""

    file: Path
    sidecar: Path | None = None


ImageSource: TypeAlias = DicomSeries | NiftiFile


@dataclass(frozen=True)
class Visit:
    """One patient on one day. `patient` and `day` are the source's own words for them.

    `images` maps a channel (FLAIR, T1w) to where it lies; `silent` are images whose headers do not say what they are:
    one of them may be a channel that is not in `images`; `unusable` says why this visit cannot become a case, although
    it was found; `split` is "train" or "test" where the source has decided already; `warnings` are words of
    `msfl.imaging.faults.WARNINGS`; `seen` is every file of the visit, also where it cannot be used.
    """

    kind: Kind
    patient: str
    day: str
    images: Mapping[str, ImageSource] = field(default_factory=dict)
    lesion: ImageSource | None = None
    silent: tuple[ImageSource, ...] = ()
    split: Literal["", "train", "test"] = ""
    unusable: Unusable | None = None
    warnings: tuple[str, ...] = ()
    seen: tuple[Path, ...] = field(default=(), compare=False, repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        parts = [*self.images.values(), *self.silent, *([self.lesion] if self.lesion else [])]
        return tuple(f for part in parts for f in (part.files if isinstance(part, DicomSeries) else (part.file,)))


@dataclass(frozen=True)
class LeftOut:
    """Files that belong to no visit."""

    files: tuple[Path, ...]
    why: Unusable


@dataclass(frozen=True)
class Question:
    """Several series could be the same image of a visit; `choices` maps a name that is safe to show to what is known of
    it (`label` names no person)."""

    patient: str
    day: str
    role: str
    choices: Mapping[str, str]


@dataclass(frozen=True)
class Named:
    """What a name in questions and answers stands for; for the custodian's eyes only."""

    name: str
    patient: str
    day: str
    what: str
    number: str  # of the series, as the scanner counted
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Found:
    """`rest` are files that are part of no visit and of no fault; `unpacked` says which folder is which archive's."""

    visits: Sequence[Visit]
    left_out: Sequence[LeftOut] = ()
    questions: Sequence[Question] = ()
    notes: Sequence[str] = ()  # for the custodian; no names in them
    named: Sequence[Named] = ()
    rest: Sequence[Path] = ()
    unpacked: Mapping[Path, Path] = field(default_factory=dict)

    def origin(self, file: Path) -> str:
        """Where a file lies for a person: inside which archive, not where that was unpacked to."""
        for folder, archive in self.unpacked.items():
            if file.is_relative_to(folder):
                return f"{self.origin(archive)}/{file.relative_to(folder)}"
        return str(file)
