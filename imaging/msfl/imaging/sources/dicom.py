"""DICOM, sorted by what the headers say: files may be called anything and lie anywhere.

::

    files ─header─▶ patient (ID and issuer) ─▶ visit (day) ─▶ series (UID) ─▶ what it shows ─▶ FLAIR, T1w of the visit

Doubts about who it is are never resolved by guessing. One series, or one study, of two patients, or one patient ID with
two birth dates (or, where none is known, two names that share no word) makes all visits concerned unusable
(`mixed_patients`). One birth date and several names are one person, and the custodian is told.
"""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

import msfl.imaging.deidentify.silence  # noqa: F401  # before any value is read
from msfl.imaging.deidentify.keys import Pseudonyms
from msfl.imaging.faults import Fault, unusable
from msfl.imaging.sources.found import DicomSeries, Found, ImageSource, LeftOut, Question, Visit
from msfl.imaging.sources.series import (
    FEWEST_SLICES,
    SeriesFacts,
    Weighting,
    choose,
    needs_a_person,
    recognise,
)
from msfl.imaging.workspace import CHANNELS, Unusable

Progress = Callable[[int, int], None]
Answers = Mapping[str, str]
"""What a person said: name of a series (`Pseudonyms.uid`, its last eight digits) to FLAIR, T1w or ignore."""

READ_ERRORS = (
    InvalidDicomError, BytesLengthException, EOFError, ValueError, NotImplementedError, AttributeError, TypeError,
    OverflowError, LookupError, RecursionError, struct.error, zlib.error,
)  # fmt: skip
"""All that pydicom raises for damaged bytes. Its list is not documented; `tests/fuzz/test_images.py` keeps it."""

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_SCREENS = "1.2.840.10008.5.1.4.1.1.7"  # secondary captures, all kinds
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "StudyDate",
    "StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName",
    "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "ScanningSequence", "SequenceVariant", "ImageType",
    "ContrastBolusAgent", "MRAcquisitionType", "SliceThickness", "SpacingBetweenSlices", "NumberOfFrames", "Modality",
    "SharedFunctionalGroupsSequence", "FrameOfReferenceUID", "ImagesInAcquisition",
]  # fmt: skip
_DESCRIBING = ("SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName")
_ENCRYPTED_BEGINNINGS = (b"Salted__", b"-----BEGIN PGP MESSAGE", b"-----BEGIN PKCS7", b"age-encryption.org")
_ENVELOPED = bytes.fromhex("06092a864886f70d010703")  # CMS envelopedData: PS3.15's secure DICOM file


@dataclass(frozen=True)
class _File:
    path: Path
    header: Dataset

    def text(self, keyword: str) -> str:
        value = self.header.get(keyword)
        return "" if value is None else str(value).strip()

    @property
    def patient(self) -> str:
        return "\\".join(filter(None, (self.text("PatientID"), self.text("IssuerOfPatientID"))))

    @property
    def day(self) -> str:
        return self.text("StudyDate") or self.text("StudyInstanceUID")

    @property
    def person(self) -> tuple[str, str]:
        return (self.text("PatientName").replace("^", " ").casefold().strip(), self.text("PatientBirthDate"))


def find_dicom(
    files: Sequence[Path], pseudonyms: Pseudonyms, answers: Answers, progress: Progress | None = None
) -> Found:
    """Sort the files into visits; what is no DICOM is left out, with a reason if it was meant to be."""
    read, left_out = _read_all(files, progress)
    visits: dict[tuple[str, str], list[_File]] = defaultdict(list)
    nameless: list[Path] = []
    for file in read:
        if file.patient:
            visits[file.patient, file.day].append(file)
        else:
            nameless.append(file.path)
    if nameless:
        left_out.append(LeftOut(tuple(nameless), unusable(Fault.NO_PATIENT, "The images carry no patient ID.")))
    mixed = _mixed(read)
    found: list[Visit] = []
    questions: list[Question] = []
    for (patient, day), members in sorted(visits.items(), key=lambda item: item[0]):
        visit = _visit(patient, day, members, pseudonyms, answers, questions)
        found.append(replace(visit, unusable=mixed[patient]) if patient in mixed else visit)
    notes = _notes(read)
    return Found(found, left_out, [q for q in questions if q.patient not in mixed], notes)


def _read_all(files: Sequence[Path], progress: Progress | None) -> tuple[list[_File], list[LeftOut]]:
    read: list[_File] = []
    left: dict[Fault, list[Path]] = defaultdict(list)
    for done, path in enumerate(files):
        match _header(path):
            case Dataset() as header:
                read.append(_File(path, header))
            case Fault() as fault:
                left[fault].append(path)
            case None:
                pass
        if progress is not None:
            progress(done + 1, len(files))
    words = {
        Fault.ENCRYPTED: "{} files are encrypted.",
        Fault.UNREADABLE: "{} files look like DICOM but cannot be read.",
        Fault.TRUNCATED: "{} files end inside their header, or are damaged there.",
    }
    return read, [LeftOut(tuple(paths), unusable(f, words[f].format(len(paths)))) for f, paths in sorted(left.items())]


def _header(path: Path) -> Dataset | Fault | None:
    """The header's listed attributes; a fault for what was meant to be DICOM; None for anything else."""
    with path.open("rb") as file:
        beginning = file.read(132)
        if beginning[128:] != b"DICM":
            if beginning.startswith(_ENCRYPTED_BEGINNINGS) or (beginning[:1] == b"\x30" and _ENVELOPED in beginning):
                return Fault.ENCRYPTED
            return Fault.UNREADABLE if path.suffix.lower() in (".dcm", ".ima", ".dicom") else None
        file.seek(0)
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
            if header.file_meta.get("MediaStorageSOPClassUID") == "1.2.840.10008.1.3.10":
                return None  # DICOMDIR: a table of contents
            for keyword in _TAGS:
                header.get(keyword)  # values are converted when they are asked for, and may turn out to be damaged
        except READ_ERRORS:
            return Fault.UNREADABLE
    if "SeriesInstanceUID" not in header or "SOPClassUID" not in header:
        return Fault.TRUNCATED
    return header


def _mixed(read: Iterable[_File]) -> dict[str, Unusable]:
    """Patients whose images may not all be theirs."""
    of_series: dict[str, set[str]] = defaultdict(set)
    persons: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for file in read:
        if file.patient:
            of_series[file.text("SeriesInstanceUID")].add(file.patient)
            of_series[file.text("StudyInstanceUID")].add(file.patient)
            for known, said in zip(persons[file.patient], file.person, strict=True):
                known.update({said} - {""})
    mixed = {
        patient: unusable(Fault.MIXED_PATIENTS, "One series or one study holds images of more than one patient.")
        for patients in of_series.values()
        if len(patients) > 1
        for patient in patients
    }
    for patient, (names, births) in persons.items():
        if len(births) > 1:
            mixed[patient] = unusable(Fault.MIXED_PATIENTS, "One patient ID stands for birth dates that differ.")
        elif not births and _strangers(names):
            mixed[patient] = unusable(
                Fault.MIXED_PATIENTS, "One patient ID stands for names that have no word in common."
            )
    return mixed


def _strangers(names: Iterable[str]) -> bool:
    """People marry, and are written with and without their second name: one word in common is enough."""
    words = [set(name.split()) for name in names]
    return len(words) > 1 and not set.intersection(*words)


def _notes(read: Iterable[_File]) -> list[str]:
    folders: dict[Path, set[str]] = defaultdict(set)
    for file in read:
        folders[file.path.parent].add(file.patient)
    notes = []
    if several := sum(len(patients) > 1 for patients in folders.values()):
        notes.append(f"{several} folders hold images of more than one patient; they were sorted by patient ID.")
    names: dict[str, set[str]] = defaultdict(set)
    for file in read:
        names[file.patient].add(file.person[0])
    if renamed := sum(len(said) > 1 for said in names.values()):
        notes.append(
            f"{renamed} patient IDs stand for several names with one birth date, and were taken for one person."
        )
    return notes


def _visit(
    patient: str,
    day: str,
    members: Sequence[_File],
    pseudonyms: Pseudonyms,
    answers: Answers,
    questions: list[Question],
) -> Visit:
    series: dict[str, list[_File]] = defaultdict(list)
    masks: dict[str, list[_File]] = defaultdict(list)
    # The same object twice, from a folder and a zip, is one.
    for file in {file.text("SOPInstanceUID"): file for file in members}.values():
        kind = file.text("SOPClassUID")
        if kind == SEGMENTATION:
            masks[file.text("SOPInstanceUID")].append(file)
        elif file.text("Modality") == "MR" and not kind.startswith(_SCREENS):
            series[file.text("SeriesInstanceUID")].append(file)
    facts = {uid: _facts(files) for uid, files in series.items()}
    judged = {uid: (f, recognise(f).weighting) for uid, f in facts.items()}
    open_ = {uid: entry for uid, entry in judged.items() if series_name(uid, pseudonyms) not in answers}
    silent = tuple(uid for uid, (_, weighting) in open_.items() if weighting is Weighting.UNKNOWN)
    answered = {answers[name]: uid for uid in series if (name := series_name(uid, pseudonyms)) in answers}
    images: dict[str, ImageSource] = {}
    unseen: tuple[ImageSource, ...] = ()
    problem: Unusable | None = None
    for role in CHANNELS:
        weighting = Weighting(role)
        chosen = (answered[role],) if role in answered else choose(open_, weighting)
        if not chosen and silent:
            unseen = tuple(DicomSeries(tuple(f.path for f in series[uid])) for uid in silent)
        elif not chosen:
            missing = Fault.MISSING_FLAIR if role == "FLAIR" else Fault.MISSING_T1W
            problem = problem or unusable(missing, _none_of(role, [recognise(f) for f in facts.values()]))
        elif role not in answered and needs_a_person(judged, chosen, weighting):
            choices = {series_name(uid, pseudonyms): _label(facts[uid]) for uid in chosen}
            questions.append(Question(patient, day, role, choices))
            problem = problem or unusable(Fault.AMBIGUOUS, f"{len(chosen)} series could be the {role}.")
        else:
            images[role] = DicomSeries(tuple(f.path for f in series[chosen[0]]))
    return Visit("dicom", patient, day, images, _mask(masks), unseen, unusable=problem)


def _mask(masks: Mapping[str, Sequence[_File]]) -> DicomSeries | None:
    """All segmentation objects of the visit; which of them holds lesions is decided when they are read."""
    files = tuple(file.path for files in masks.values() for file in files[:1])
    return DicomSeries(files) if files else None


def series_name(uid: str, pseudonyms: Pseudonyms) -> str:
    """A short name for a series that says nothing of the patient: what questions and answers call it."""
    return f"x{pseudonyms.uid(uid)[-8:]}"


def _none_of(role: str, judged: Sequence[Any]) -> str:
    seen = ", ".join(sorted({r.weighting.value for r in judged})) or "no MR series"
    return f"No series of this visit was recognised as {role}; there were: {seen}."


def _label(facts: SeriesFacts) -> str:
    """For a person who must choose; numbers and what was recognised, no free text."""
    recognised = recognise(facts)
    times = ", ".join(f"{n} {v:g} ms" for n, v in (("TR", facts.tr_ms), ("TE", facts.te_ms), ("TI", facts.ti_ms)) if v)
    size = f"{facts.slices} slices" + (f" of {facts.slice_mm:g} mm" if facts.slice_mm else "")
    kind = "3D" if facts.three_d else "2D"
    return f"{recognised.weighting.value} ({recognised.why}); {kind}, {size}; {times or 'no times'}"


def _facts(files: Sequence[_File]) -> SeriesFacts:
    first = files[0].header
    shared = next(iter(first.get("SharedFunctionalGroupsSequence") or []), Dataset())
    nested = {"TimingAndRelated": "MRTimingAndRelatedParametersSequence", "Echo": "MREchoSequence",
              "Modifier": "MRModifierSequence"}  # fmt: skip
    inner = {key: next(iter(shared.get(name) or []), Dataset()) for key, name in nested.items()}
    inversion = _number(first, "InversionTime") or _number(inner["Modifier"], "InversionTimes")
    return SeriesFacts(
        text=" ".join(str(first.get(keyword) or "") for keyword in _DESCRIBING),
        tr_ms=_number(first, "RepetitionTime") or _number(inner["TimingAndRelated"], "RepetitionTime"),
        te_ms=_number(first, "EchoTime") or _number(inner["Echo"], "EffectiveEchoTime"),
        ti_ms=inversion,
        flip_deg=_number(first, "FlipAngle") or _number(inner["TimingAndRelated"], "FlipAngle"),
        scanning=frozenset(_strings(first, "ScanningSequence")),
        variant=frozenset(_strings(first, "SequenceVariant")),
        image_type=tuple(_strings(first, "ImageType")),
        contrast_agent=bool(str(first.get("ContrastBolusAgent") or "").strip()),
        three_d=str(first.get("MRAcquisitionType") or "") == "3D",
        slices=len(files) if len(files) > 1 else int(_number(first, "NumberOfFrames") or 1),
        slice_mm=_number(first, "SpacingBetweenSlices") or _number(first, "SliceThickness"),
    )  # fmt: skip


def _number(header: Dataset, keyword: str) -> float | None:
    value = header.get(keyword)
    if isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
        value = value[0] if value else None
    try:
        return None if value in (None, "") else float(value)
    except (TypeError, ValueError):
        return None


def _strings(header: Dataset, keyword: str) -> tuple[str, ...]:
    value = header.get(keyword)
    if value is None or isinstance(value, str):
        return (value,) if value else ()
    return tuple(str(part) for part in value)


__all__ = ["FEWEST_SLICES", "READ_ERRORS", "SEGMENTATION", "Answers", "find_dicom", "series_name"]
