"""What is in this source? Every file of it is claimed by the first that knows it, and what nobody knows is counted:

==================================  =================  ==========================================
a CSV file, named itself            table
``dataset.json`` with ``imagesTr``  nnU-Net            wherever the folder lies
``sub-*/…/anat/*.nii.gz``           BIDS               wherever the folder lies
anything else                       DICOM              if its content says so
NIfTI that none of them claims      left out           nothing says whose it is
other files                         one line: so many
==================================  =================  ==========================================

Zips, the source itself or inside it, or inside each other, are unpacked first, below `scratch`.
"""

from __future__ import annotations

import itertools
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from msfl.imaging.deidentify.keys import Pseudonyms
from msfl.imaging.faults import Fault, unusable
from msfl.imaging.sources.archive import Limits, unpack
from msfl.imaging.sources.bids import NOT_THE_IMAGES, find_bids
from msfl.imaging.sources.dicom import Answers, Progress, find_dicom
from msfl.imaging.sources.files import regular_files
from msfl.imaging.sources.found import Found, LeftOut, Visit
from msfl.imaging.sources.nnunet import IMAGES, find_nnunet, is_nnunet
from msfl.imaging.sources.table import find_in_table
from msfl.imaging.workspace import Unusable

_OTHER_ARCHIVES: Final = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_OFFICE: Final = frozenset({".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".jar", ".npz"})  # zips, but no archives
_NIFTI: Final = (".nii", ".nii.gz")
_SUBJECT, _SESSION = re.compile(r"sub-[a-zA-Z0-9]+"), re.compile(r"ses-[a-zA-Z0-9]+")
_LOOKED_FOR: Final = (
    "Looked for: DICOM, whatever its files are called; BIDS folders (sub-…/anat/….nii.gz) and nnU-Net raw folders "
    "(dataset.json beside imagesTr), wherever they lie."
)


def find(
    source: Path,
    scratch: Path,
    pseudonyms: Pseudonyms,
    answers: Answers | None = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Found:
    """Every visit in `source`. Raises CannotProceed where the source as a whole cannot be understood."""
    answers = answers or {}
    if source.suffix.lower() == ".csv":
        return find_in_table(source)
    opened = _open(source, scratch, limits or Limits())
    parts: list[Found] = []
    files = [file for file in opened.files if not _is_of_a_mac(file)]
    rest = [file for file in opened.files if _is_of_a_mac(file)]
    notes: list[str] = []
    for root in _nnunet_folders(files):
        of_root, files = _divided(files, lambda f, root=root: f.parent in {root, *(root / name for name in IMAGES)})  # type: ignore[misc]
        parts.append(find_nnunet(root, of_root))
    unclaimed = [file for part in parts for file in part.rest]
    for root in (roots := _bids_folders(files, opened.places)):
        deeper = [other for other in roots if other != root and other.is_relative_to(root)]
        of_root, files = _divided(
            files,
            lambda f, root=root, deeper=deeper: f.is_relative_to(root) and not any(map(f.is_relative_to, deeper)),  # type: ignore[misc]
        )
        parts.append(part := find_bids(root, of_root, pseudonyms, answers))
        of_bids, beside = _divided(
            part.rest,
            lambda f, root=root: bool(NOT_THE_IMAGES & set(f.relative_to(root).parts)) or _is_nifti(f),  # type: ignore[misc]
        )
        unclaimed += of_bids
        files += beside
    parts.append(find_dicom(files, pseudonyms, answers, progress))
    nameless, unknown = _divided(parts[-1].rest, _is_nifti)
    closed, others = _divided(unknown, lambda f: f.name.lower().endswith(_OTHER_ARCHIVES))
    if unclaimed:
        notes.append(
            f"{len(unclaimed)} further files of the BIDS or nnU-Net folders are neither FLAIR, T1w nor lesion mask of "
            "a visit, and were passed over."
        )
    if rest := [*rest, *others]:
        notes.append(f"{len(rest)} files that are no images were passed over.")
    left_out = [*opened.left_out, *(left for part in parts for left in part.left_out)]
    if nameless:
        what = f"{len(nameless)} NIfTI files lie in no BIDS or nnU-Net folder, and nothing says whose they are."
        advice = "Import a CSV that names them."
        left_out.append(LeftOut(tuple(nameless), unusable(Fault.NO_PATIENT, what, advice)))
    if closed:
        what = f"{len(closed)} archives are of a kind that is not opened here (only zip is)."
        advice = "Unpack them, and import the folder."
        left_out.append(LeftOut(tuple(closed), unusable(Fault.UNREADABLE, what, advice)))
    visits, also = _together([part.visits for part in parts])
    notes += also
    if not visits:
        notes += _nothing(opened.files, len(opened.unpacked))
    return Found(
        visits,
        left_out,
        [question for part in parts for question in part.questions],
        [*(note for part in parts for note in part.notes), *notes],
        [named for part in parts for named in part.named],
        unpacked=opened.unpacked,
    )


# ------------------------------------------------------------------- files


@dataclass
class _Opened:
    """`places` are the source's folder and a folder for each archive."""

    files: list[Path] = field(default_factory=list)
    places: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    unpacked: dict[Path, Path] = field(default_factory=dict)


def _open(source: Path, scratch: Path, limits: Limits) -> _Opened:
    opened, outside, number = _Opened(), list[Path](), itertools.count()

    def look_into(place: Path) -> list[Path]:
        archives, files = _divided(regular_files(place, outside), _is_zip)
        opened.places.append(place)
        opened.files += files
        return archives

    for outermost in look_into(source.resolve()):
        left, waiting = limits, [(outermost, 1)]
        while waiting:
            archive, level = waiting.pop(0)
            into = scratch.resolve() / f"zip{next(number):04d}"
            into.mkdir(parents=True)
            try:
                if level > limits.levels:
                    raise unusable(Fault.TOO_LARGE, f"The archive lies in {level - 1} others, one in another.")
                done = unpack(archive, into, left)
            except Unusable as why:
                opened.left_out.append(LeftOut((archive,), why))
                continue
            left = (left.inside(outermost) if archive == outermost else left).less(done)
            opened.unpacked[into] = archive
            waiting += [(inner, level + 1) for inner in look_into(into)]
    if outside:
        what = f"{len(outside)} files are links that lead out of the source."
        opened.left_out.append(LeftOut(tuple(outside), unusable(Fault.OUTSIDE_SOURCE, what)))
    return opened


def _is_zip(file: Path) -> bool:
    """By its beginning or its name: a damaged zip is still meant to be one."""
    suffix = file.suffix.lower()
    return not _is_of_a_mac(file) and (suffix == ".zip" or (suffix not in _OFFICE and zipfile.is_zipfile(file)))


def _is_nifti(file: Path) -> bool:
    return file.name.lower().endswith(_NIFTI)


def _is_of_a_mac(file: Path) -> bool:
    """What macOS puts beside every file of a zip; it carries the names of images and is none."""
    return "__MACOSX" in file.parts or file.name.startswith("._") or file.name == ".DS_Store"


def _divided(files: Iterable[Path], belongs: Callable[[Path], bool]) -> tuple[list[Path], list[Path]]:
    sides: tuple[list[Path], list[Path]] = ([], [])
    for file in files:
        sides[0 if belongs(file) else 1].append(file)
    return sides


def _nnunet_folders(files: Iterable[Path]) -> list[Path]:
    return sorted({file.parent for file in files if file.name == "dataset.json" and is_nnunet(file.parent)})


def _bids_folders(files: Iterable[Path], places: Sequence[Path]) -> list[Path]:
    """Folders of subjects' folders with an anat folder with images in it, other than those of a BIDS folder's own."""
    found = set()
    for file in filter(_is_nifti, files):
        place = max((p for p in places if file.is_relative_to(p)), key=lambda p: len(p.parts))
        parts = file.relative_to(place).parts
        for at, part in enumerate(parts):
            after = parts[at + 1 :]
            session = after[1:] if after and _SESSION.fullmatch(after[0]) else after
            if _SUBJECT.fullmatch(part) and session[:1] == ("anat",) and not NOT_THE_IMAGES & set(parts[:at]):
                found.add(place.joinpath(*parts[:at]))
                break
    return sorted(found)


# ------------------------------------------------------------------- visits


def _together(parts: Sequence[Sequence[Visit]]) -> tuple[list[Visit], list[str]]:
    """Of all parts. The same visit in two of them is no visit: nobody knows which is right."""
    by_key: dict[tuple[str, str], list[Visit]] = defaultdict(list)
    of_patient: dict[str, set[int]] = defaultdict(set)
    for number, part in enumerate(parts):
        for visit in part:
            by_key[visit.patient, visit.day].append(visit)
            of_patient[visit.patient].add(number)
    visits = []
    for same in by_key.values():
        first = same[0]
        if len(same) > 1:
            why = unusable(
                Fault.AMBIGUOUS,
                f"{len(same)} folders of the source hold a patient and a visit of this name.",
                "Import only one of them, or give the visits names of their own.",
            )
            first = Visit(first.kind, first.patient, first.day, unusable=why, seen=sum((v.seen for v in same), ()))
        visits.append(first)
    twice = sum(len(numbers) > 1 for numbers in of_patient.values())
    note = f"{twice} names of patients stand in several folders of the source, and were taken for one person each."
    return visits, [note] if twice else []


def _nothing(files: Sequence[Path], archives: int) -> list[str]:
    kinds = Counter(_kind(file) for file in files)
    seen = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "no file"
    zips = f", after {archives} zips were unpacked" if archives else ""
    notes = [f"{_LOOKED_FOR} Seen: {seen}{zips}."]
    if any(kinds[kind] for kind in ("CSV", "TSV", "text", "Excel")):
        notes.append("If a table names the images, save it as CSV (UTF-8) and import the CSV itself.")
    return notes


_KINDS: Final[Mapping[str, str]] = {
    ".gz": "packed", ".nii": "NIfTI", ".csv": "CSV", ".json": "JSON", ".dcm": "DICOM", ".ima": "DICOM",
    ".tsv": "TSV", ".txt": "text", ".pdf": "PDF", ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".xlsx": "Excel",
    ".mgz": "MGZ", ".nrrd": "NRRD", ".mha": "MHA", ".img": "IMG", ".hdr": "HDR",
}  # fmt: skip


def _kind(file: Path) -> str:
    """No word of a file's own name is repeated."""
    return "NIfTI" if _is_nifti(file) else _KINDS.get(file.suffix.lower(), "of another kind")
