"""From a visit to a case: the images as they came, de-identified, upright in their own space, in the dataset's folder.

::

    visit ─▶ pseudonym ─▶ each image: convert, de-identify, check ─▶ mask on one of their grids ─▶ leak scan ─▶ swap in

One visit is one case and stands or falls alone (`bring_in`). What was imported already from the same bytes is left as
it is; what came in before and is damaged in this source stays as it came in. Nothing is in `raw/` before the last gate.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, TypeAlias

import pydicom

from msfl.imaging.checks import Volume, fault_of
from msfl.imaging.convert import Converted, convert
from msfl.imaging.datasets import file_sha256
from msfl.imaging.deidentify.changes import as_html
from msfl.imaging.deidentify.headers import Options
from msfl.imaging.deidentify.keys import Pseudonyms
from msfl.imaging.deidentify.leaks import leaks, words_of_path
from msfl.imaging.deidentify.nifti import read_volume, write_volume
from msfl.imaging.deidentify.sidecars import read_scrubbed
from msfl.imaging.faults import Fault, about, unusable
from msfl.imaging.masks import read_mask
from msfl.imaging.sources.dicom import series_name
from msfl.imaging.sources.found import DicomSeries, ImageSource, NiftiFile, Visit
from msfl.imaging.sources.series import Weighting
from msfl.imaging.workspace import (
    CHANNELS,
    LESION,
    Case,
    Entry,
    JsonObject,
    State,
    Step,
    Unusable,
    read_json,
    write_json,
    write_whole,
)

MAX_SLICE_MM: Final = 6.0
Verdict: TypeAlias = Literal["imported", "unchanged", "kept", "unusable"]


@dataclass(frozen=True)
class ImportOptions:
    """`max_slice_mm` refuses what no registration can save; what is fit for training, quality control says."""

    deidentify: Options = field(default_factory=Options)
    max_slice_mm: float = MAX_SLICE_MM


@dataclass(frozen=True)
class Outcome:
    """What became of one visit. "kept": it is unusable in this source, and what came in earlier stays; `files` are
    those at fault, for the custodian's own list."""

    case: str
    verdict: Verdict
    code: str = ""
    reason: str = ""
    warnings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def case_name(visit: Visit, pseudonyms: Pseudonyms) -> str:
    patient = pseudonyms.patient(visit.patient)
    return f"{patient}-{pseudonyms.visit(patient, visit.day)}"


def bring_in(
    visit: Visit,
    case: Case,
    pseudonyms: Pseudonyms,
    options: ImportOptions,
    now: datetime,
    private: Path,
    look: Look | None = None,
) -> Outcome:
    """Import one visit into its case. `private` is the custodian's own folder: the page of changes goes there; `look`
    tells what an image shows whose headers do not say."""
    standing = case.standing
    earlier = next((e.inputs for e in reversed(case.journal) if e.step is Step.IMPORT and e.done), "")
    try:
        if visit.unusable is not None:
            raise visit.unusable
        inputs = _inputs(visit, pseudonyms, options)
        if earlier == inputs:
            return Outcome(case.id, "unchanged")
        changed, warnings = _fill(visit, case, pseudonyms, options, private, look or look_at_head)
    except Unusable as why:
        files = tuple(map(str, why.files))
        if standing.state is not State.FOUND:
            return Outcome(case.id, "kept", why.code, why.reason, files=files)
        case.record(Entry(Step.IMPORT, now, why.code, why.reason))
        return Outcome(case.id, "unusable", why.code, why.reason, files=files)
    if not changed:
        return Outcome(case.id, "unchanged", warnings=warnings)
    case.record(Entry(Step.IMPORT, now, inputs=inputs))
    # Made of what was there before; the journal says already that they count no longer.
    shutil.rmtree(case.steps.parent, ignore_errors=True)
    case.qc.unlink(missing_ok=True)
    return Outcome(case.id, "imported", warnings=warnings)


def _inputs(visit: Visit, pseudonyms: Pseudonyms, options: ImportOptions) -> str:
    """Of the bytes of all files, whatever they are called, and of what is done to them."""
    total = hashlib.sha256(repr((options, visit.split, sorted(visit.images))).encode())
    try:
        for digest in sorted(map(file_sha256, visit.files)):
            total.update(bytes.fromhex(digest))
    except OSError as error:
        raise unusable(
            Fault.UNREADABLE, "A file of the visit cannot be opened.", "See that you may read it."
        ) from error
    return pseudonyms.content(total.hexdigest())


def _fill(
    visit: Visit, case: Case, pseudonyms: Pseudonyms, options: ImportOptions, private: Path, look: Look
) -> tuple[bool, tuple[str, ...]]:
    """Whether the case has changed by it, and what the custodian is warned of."""
    patient = pseudonyms.patient(visit.patient)
    # Scratch files name the patient until they are de-identified; nobody else may read them, and none stays.
    scratch = case.folder / ".scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True, mode=0o700)
    try:

        def read_one(image: ImageSource, name: str) -> Converted:
            return _read(image, patient, pseudonyms, options, scratch / name)

        read = {name: read_one(image, name) for name, image in visit.images.items()}
        if missing := [name for name in CHANNELS if name not in read]:
            seen = [read_one(image, f"silent{number}") for number, image in enumerate(visit.silent)]
            read |= _told_apart(seen, missing, [_name_of(image, pseudonyms) for image in visit.silent], look)
        volumes = {name: image.volume for name, image in read.items()}
        raw = scratch / "raw"
        raw.mkdir()
        for name, volume in volumes.items():
            write_volume(volume, raw / f"{name}.nii.gz")
        lesion_on, warnings = _with_mask(visit, case, volumes, raw)
        source = _source(visit, patient, pseudonyms, options, read, lesion_on)
        source["warnings"] = sorted(warnings)
        telling = {word for image in read.values() for word in image.telling}
        telling |= {word for file in visit.files for word in words_of_path(file)}
        write_json(scratch / "source.json", source)
        if leaks([*sorted(raw.iterdir()), scratch / "source.json"], telling):
            raise unusable(Fault.IDENTITY_LEFT, "The last scan found a word of the source's headers or names.")
        warnings |= {warning for image in read.values() for warning in image.warnings}
        if _stands(case) and _is_there(case, raw, read_json(scratch / "source.json")):
            return False, tuple(sorted(warnings))
        with case.filling("raw") as fresh:
            for file in raw.iterdir():
                file.replace(fresh / file.name)
            (scratch / "source.json").replace(case.folder / "source.json")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if diffs := {name: image.changes for name, image in read.items() if image.changes}:
        write_whole(private / "changes" / f"{case.id}.html", as_html(diffs).encode())
    return True, tuple(sorted(warnings))


def _stands(case: Case) -> bool:
    """What lies in its folder came in whole."""
    return case.standing.state is not State.FOUND


def _with_mask(visit: Visit, case: Case, images: Mapping[str, Volume], raw: Path) -> tuple[str, set[str]]:
    """Put the lesion mask beside the images: which of them it is on, and what there is to say.

    A source without a mask does not take away the one that was there, as long as the images are the same.
    """
    warnings = set(visit.warnings)
    file = raw / f"{LESION}.nii.gz"
    if visit.lesion:
        mask, lesion_on = read_mask(visit.lesion, images)
        write_volume(mask, file)
        return lesion_on, warnings
    if not _stands(case):
        return "", warnings
    if case.has_lesion and all(_same(raw / f"{name}.nii.gz", case.raw(name)) for name in images):
        shutil.copyfile(case.raw(LESION), file)
        return str(case.source["lesion_on"]), warnings | {"mask_kept"}
    gone = case.has_lesion or "mask_gone" in case.source.get("warnings", ())
    return "", warnings | ({"mask_gone"} if gone else set())


def _is_there(case: Case, raw: Path, source: JsonObject) -> bool:
    """The case is what would be made: nothing that was made of it has to be made again."""
    there, fresh = ({f.name: file_sha256(f) for f in folder.glob("*")} for folder in (case.folder / "raw", raw))
    said: JsonObject = {"warnings": []}
    return there == fresh and case.source | said == source | said


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and file_sha256(one) == file_sha256(other)


Look: TypeAlias = Callable[[Volume], Weighting]


def look_at_head(head: Volume) -> Weighting:
    """Find the brain, then see how bright its tissues are. Takes half a minute: only for headers that are silent."""
    from msfl.imaging.brain import extractor
    from msfl.imaging.sources.weighting import look_at

    return look_at(head, extractor("deepbet").extract(head, "image"))


def _told_apart(
    seen: Sequence[Converted], missing: Sequence[str], names: Sequence[str], look: Look
) -> dict[str, Converted]:
    """Which of the images that do not say what they are is which missing channel. Raises Unusable."""
    shown = [look(image.volume) for image in seen]
    found = {}
    for channel in missing:
        fitting = [image for image, weighting in zip(seen, shown, strict=True) if weighting.value == channel]
        if len(fitting) != 1:
            series = ", ".join(f"{name} ({weighting})" for name, weighting in zip(names, shown, strict=True))
            what = f"Headers do not say which image is the {channel}; by their looks {len(fitting)} could be: {series}."
            raise unusable(Fault.AMBIGUOUS, what)
        found[channel] = fitting[0]
    return found


def _name_of(image: ImageSource, pseudonyms: Pseudonyms) -> str:
    """As questions and answers call it."""
    if isinstance(image, DicomSeries):
        header = pydicom.dcmread(image.files[0], stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        return series_name(str(header.SeriesInstanceUID), pseudonyms)
    return "an image"


def _read(image: ImageSource, patient: str, pseudonyms: Pseudonyms, options: ImportOptions, scratch: Path) -> Converted:
    if isinstance(image, DicomSeries):
        scratch.mkdir()
        converted = convert(image.files, patient, pseudonyms, options.deidentify, scratch)
        shutil.rmtree(scratch)
    else:
        with about(image.file):
            converted = Converted(read_volume(image.file), read_scrubbed(image.sidecar), frozenset(), ())
    if fault := fault_of(converted.volume, options.max_slice_mm):
        fault.files = (image.file,) if isinstance(image, NiftiFile) else image.files
        raise fault
    return converted


def _source(
    visit: Visit,
    patient: str,
    pseudonyms: Pseudonyms,
    options: ImportOptions,
    read: Mapping[str, Converted],
    lesion_on: str,
) -> dict[str, object]:
    """Where the case comes from, in words that identify nobody."""
    flair = read["FLAIR"]
    says = flair.sidecar
    named = [str(says.get(key, "")) for key in ("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength")]
    device = flair.device or tuple(named)
    return {
        "patient": patient,
        "kind": visit.kind,
        "day": flair.day,
        "scanner": {
            "id": pseudonyms.scanner(*device) if any(device) else "",
            "manufacturer": says.get("Manufacturer", ""),
            "model": says.get("ManufacturersModelName", ""),
            "field_t": says.get("MagneticFieldStrength"),
        },
        "images": {name: image.sidecar for name, image in read.items()},
        "lesion_on": lesion_on,
        "split": visit.split,
        "deidentified": {
            "codes": list(options.deidentify.codes) if visit.kind == "dicom" else [],
            "dates": options.deidentify.dates,
            "warnings": sorted({w for image in read.values() for w in image.warnings}),
        },
    }
