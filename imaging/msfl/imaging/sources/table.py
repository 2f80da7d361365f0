"""Plain NIfTI files that a CSV names, a line for each visit::

    patient,visit,flair,t1w,lesion,split
    1001,2024-02,images/a_flair.nii.gz,images/a_t1.nii.gz,masks/a.nii.gz,

``visit``, ``lesion`` and ``split`` (train or test) may be empty or left out. Paths are relative to the CSV and stay
below its folder. A comma, a semicolon or a tab may stand between the fields.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msfl.imaging.faults import Fault, unusable
from msfl.imaging.sources.files import stays_inside
from msfl.imaging.sources.found import Found, ImageSource, NiftiFile, Visit
from msfl.imaging.workspace import Unusable
from msfl.policies.refusals import CannotProceed

COLUMNS: Final = ("patient", "visit", "flair", "t1w", "lesion", "split")
_REQUIRED = ("patient", "flair", "t1w")
_ROLES = {"FLAIR": "flair", "T1w": "t1w"}
_MOST_BYTES = 16 << 20


def find_in_table(table: Path) -> Found:
    """Raises CannotProceed for a file that is no such table; a bad line is a visit that is unusable."""
    rows = [{k: (v or "").strip() for k, v in row.items() if k} for row in _rows(table)]
    often = Counter((row["patient"], row.get("visit", "")) for row in rows)
    visits = {}
    for number, row in enumerate(rows, 2):
        key = (row["patient"], row.get("visit", ""))
        visit = _visit(row, table.parent, number)
        if often[key] > 1 and row["patient"]:
            what = f"{often[key]} lines of the table are of one patient and visit."
            twice = unusable(Fault.AMBIGUOUS, what, "Write which visit each line is, or leave all but one out.")
            visit = Visit("nifti", *key, unusable=twice)
        visits[key if row["patient"] else (f"line {number}", "")] = visit
    notes = [] if rows else ["The table has a first line and no other."]
    if unread := len({name for row in rows for name in row} - set(COLUMNS)):
        notes.append(f"{unread} columns of the table were not read; those that are: {','.join(COLUMNS)}.")
    return Found(list(visits.values()), notes=notes)


def _rows(table: Path) -> list[dict[str, Any]]:
    if table.stat().st_size > _MOST_BYTES:
        raise CannotProceed(f"{table} is larger than {_MOST_BYTES >> 20} MiB; it is hardly a list of visits.")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CannotProceed(
            f"{table} has letters that are not UTF-8. Save it anew: Excel calls the format CSV UTF-8. Its first line "
            f"must be: {','.join(COLUMNS)}"
        ) from error
    try:
        dialect = csv.Sniffer().sniff(text.partition("\n")[0], ",;\t")
        reader = csv.DictReader(io.StringIO(text), dialect=dialect)
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
        rows = list(reader)
    except csv.Error as error:
        raise CannotProceed(
            f"{table} is not a CSV file ({error}). Its first line must be: {','.join(COLUMNS)}"
        ) from error
    missing = [name for name in _REQUIRED if name not in (reader.fieldnames or [])]
    if missing:
        raise CannotProceed(f"{table} has no column {', '.join(missing)}. Its first line must be: {','.join(COLUMNS)}")
    return rows


def _visit(row: Mapping[str, str], folder: Path, number: int) -> Visit:
    patient, day = row["patient"], row.get("visit", "")
    if not patient:
        why = unusable(Fault.NO_PATIENT, f"Line {number} of the table names no patient.", "Write one.")
        return Visit("nifti", f"line {number}", "", unusable=why)
    images: dict[str, ImageSource] = {}
    problem: Unusable | None = None
    lesion: ImageSource | None = None
    for role, column in (*_ROLES.items(), ("lesion", "lesion")):
        name = row.get(column, "")
        if not name:
            if role != "lesion":
                missing = Fault.MISSING_FLAIR if role == "FLAIR" else Fault.MISSING_T1W
                what = f"Line {number} of the table names no {role} image."
                problem = problem or unusable(missing, what, f"Write its path into the column {column}.")
            continue
        file = folder / name
        if not stays_inside(file, folder):
            problem = problem or unusable(
                Fault.OUTSIDE_SOURCE,
                f"The {role} image on line {number} of the table lies outside of the table's folder.",
            )
        elif not file.is_file():
            problem = problem or unusable(
                Fault.UNREADABLE,
                f"The {role} image on line {number} of the table is not there.",
                "Correct its path, which begins in the table's folder.",
            )
        elif role == "lesion":
            lesion = NiftiFile(file)
        else:
            images[role] = NiftiFile(file)
    split = row.get("split", "").lower()
    if split not in ("", "train", "test"):
        problem = problem or unusable(
            Fault.AMBIGUOUS,
            f"The split on line {number} of the table is neither train nor test.",
            "Write one of the two, or nothing.",
        )
        split = ""
    seen = tuple(folder / row[column] for column in (*_ROLES.values(), "lesion") if row.get(column))
    return Visit("nifti", patient, day, images, lesion, split=split, unusable=problem, seen=seen)  # type: ignore[arg-type]
