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
from collections import Counter, defaultdict
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
from msfl.imaging.sources.found import DicomSeries, Found, ImageSource, LeftOut, Named, Question, Visit
from msfl.imaging.sources.segments import labels, lesions_and_others
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
"""What a person said: name of a series (`Pseudonyms.uid`, its last eight digits) to FLAIR, T1w, lesion or ignore."""

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
    "SeriesNumber", "SegmentSequence",
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
    read, left_out, rest = _read_all(files, progress)
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
    named: list[Named] = []
    passed: Counter[str] = Counter()
    for (patient, day), members in sorted(visits.items(), key=lambda item: item[0]):
        whole = _whole_ones(members)
        visit = _visit(patient, day, whole, pseudonyms, answers, questions)
        visit = replace(visit, seen=tuple(file.path for file in members))
        visit = replace(visit, unusable=mixed[patient]) if patient in mixed else visit
        passed["copies"] += len(members) - len(whole)
        passed["others"] += len(whole) - len(visit.files) if visit.unusable is None else 0
        found.append(visit)
        named += _names(patient, day, whole, pseudonyms)
    questions = [q for q in questions if q.patient not in mixed]
    return Found(found, left_out, questions, [*_notes(read), *_passed(passed)], named, rest)


def _passed(passed: Mapping[str, int]) -> list[str]:
    words = {
        "copies": "{} DICOM files are copies of others; of each image the largest file was taken.",
        "others": "{} DICOM files of series that are neither FLAIR, T1w nor lesion mask were passed over.",
    }
    return [sentence.format(passed[what]) for what, sentence in words.items() if passed[what]]


def _whole_ones(members: Iterable[_File]) -> list[_File]:
    """Each image once. Of a whole file and one that was cut short the whole one."""
    whole: dict[str, _File] = {}
    for file in members:
        uid = file.text("SOPInstanceUID") or str(file.path)
        if uid not in whole or file.path.stat().st_size > whole[uid].path.stat().st_size:
            whole[uid] = file
    return list(whole.values())


def _names(patient: str, day: str, members: Iterable[_File], pseudonyms: Pseudonyms) -> list[Named]:
    files: dict[str, list[_File]] = defaultdict(list)
    for file in members:
        uid = "SOPInstanceUID" if file.text("SOPClassUID") == SEGMENTATION else "SeriesInstanceUID"
        files[file.text(uid)].append(file)
    return [
        Named(
            series_name(uid, pseudonyms),
            patient,
            day,
            labels(of[0].header) or of[0].text("SeriesDescription"),
            of[0].text("SeriesNumber"),
            tuple(f.path for f in of),
        )
        for uid, of in files.items()
    ]


def _read_all(files: Sequence[Path], progress: Progress | None) -> tuple[list[_File], list[LeftOut], list[Path]]:
    """What can be read, what should have been readable, and what is no DICOM."""
    read: list[_File] = []
    rest: list[Path] = []
    left: dict[Fault, list[Path]] = defaultdict(list)
    for done, path in enumerate(files):
        match _header(path):
            case Dataset() as header:
                read.append(_File(path, header))
            case Fault() as fault:
                left[fault].append(path)
            case None:
                rest.append(path)
        if progress is not None:
            progress(done + 1, len(files))
    words = {
        Fault.ENCRYPTED: "{} files are encrypted.",
        Fault.UNREADABLE: "{} files look like DICOM but cannot be read.",
        Fault.TRUNCATED: "{} files end inside their header, or are damaged there.",
    }
    left_out = [LeftOut(tuple(paths), unusable(f, words[f].format(len(paths)))) for f, paths in sorted(left.items())]
    return read, left_out, rest


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
    shared = unusable(
        Fault.MIXED_PATIENTS,
        "One series or one study holds images of more than one patient.",
        "Correct the patient ID, or the UIDs of series and study, at the archive; folders play no part.",
    )
    mixed = {patient: shared for patients in of_series.values() if len(patients) > 1 for patient in patients}
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
    segmentations: list[_File] = []
    for file in members:
        kind = file.text("SOPClassUID")
        if kind == SEGMENTATION:
            segmentations.append(file)
        elif file.text("Modality") == "MR" and not kind.startswith(_SCREENS):
            series[file.text("SeriesInstanceUID")].append(file)
    facts = {uid: _facts(files) for uid, files in series.items()}
    judged = {uid: (f, recognise(f).weighting) for uid, f in facts.items()}
    open_ = {uid: entry for uid, entry in judged.items() if series_name(uid, pseudonyms) not in answers}
    silent = tuple(uid for uid, (_, weighting) in open_.items() if weighting is Weighting.UNKNOWN)
    answered: dict[str, list[str]] = defaultdict(list)
    for uid in series:
        answered[answers.get(series_name(uid, pseudonyms), "")].append(uid)
    images: dict[str, ImageSource] = {}
    unseen: tuple[ImageSource, ...] = ()
    problem: Unusable | None = None
    for role in CHANNELS:
        weighting = Weighting(role)
        chosen = tuple(answered[role]) or choose(open_, weighting)
        if not chosen and silent:
            unseen = tuple(DicomSeries(tuple(f.path for f in series[uid])) for uid in silent)
        elif not chosen:
            missing = Fault.MISSING_FLAIR if role == "FLAIR" else Fault.MISSING_T1W
            problem = problem or unusable(missing, _none_of(role, [recognise(f) for f in facts.values()]))
        elif len(chosen) > 1 if answered[role] else needs_a_person(judged, chosen, weighting):
            choices = {series_name(uid, pseudonyms): _label(facts[uid], series[uid]) for uid in chosen}
            questions.append(Question(patient, day, role, choices))
            problem = problem or unusable(Fault.AMBIGUOUS, f"{len(chosen)} series could be the {role}.")
        else:
            images[role] = DicomSeries(tuple(f.path for f in series[chosen[0]]))
    mask, warnings, question = _mask(segmentations, pseudonyms, answers)
    if question:
        questions.append(Question(patient, day, "lesion", question))
        problem = problem or unusable(Fault.AMBIGUOUS, f"{len(question)} segmentations of this visit hold lesions.")
    return Visit("dicom", patient, day, images, mask, unseen, unusable=problem, warnings=warnings)


def _mask(
    segmentations: Sequence[_File], pseudonyms: Pseudonyms, answers: Answers
) -> tuple[DicomSeries | None, tuple[str, ...], dict[str, str]]:
    """The objects that hold lesions, what there is to be said of them, and what a person is asked.

    Several objects may be of several people who drew the same lesions: only an answer puts them together.
    """
    held = {series_name(file.text("SOPInstanceUID"), pseudonyms): file for file in segmentations}
    # Where the header does not list its segments it is opened later, and the fault is named then.
    counts = {name: lesions_and_others(file.header) or (1, 0) for name, file in held.items()}
    chosen = [name for name in held if answers.get(name) == "lesion"]
    able = chosen or [name for name, (lesions, _) in counts.items() if lesions and name not in answers]
    warnings = []
    if any(others for _, others in counts.values()):
        warnings.append("segments_left_out")
    if sum(counts[name][0] for name in able) > 1:
        warnings.append("segments_united")
    if len(able) > 1 and not chosen:
        choices = {}
        for name in able:
            number = held[name].text("SeriesNumber")
            choices[name] = (
                f"series {number}, " if number.isdigit() else ""
            ) + f"{counts[name][0]} segments called lesion"
        return None, (), choices
    return (DicomSeries(tuple(held[name].path for name in able)) if able else None), tuple(warnings), {}


def series_name(uid: str, pseudonyms: Pseudonyms) -> str:
    """A short name for a series that says nothing of the patient: what questions and answers call it."""
    return f"x{pseudonyms.uid(uid)[-8:]}"


def _none_of(role: str, judged: Sequence[Any]) -> str:
    seen = ", ".join(sorted({r.weighting.value for r in judged})) or "no MR series"
    return f"No series of this visit was recognised as {role}; there were: {seen}."


def _label(facts: SeriesFacts, files: Sequence[_File]) -> str:
    """For a person who must choose; numbers and what was recognised, no free text."""
    number = files[0].text("SeriesNumber")
    which = (f"series {number}, " if number.isdigit() else "") + f"{len(files)} files: "
    recognised = recognise(facts)
    times = ", ".join(f"{n} {v:g} ms" for n, v in (("TR", facts.tr_ms), ("TE", facts.te_ms), ("TI", facts.ti_ms)) if v)
    size = f"{facts.slices} slices" + (f" of {facts.slice_mm:g} mm" if facts.slice_mm else "")
    kind = "3D" if facts.three_d else "2D"
    return f"{which}{recognised.weighting.value} ({recognised.why}); {kind}, {size}; {times or 'no times'}"


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
