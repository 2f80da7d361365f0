"""Which kind of source is this? Seen from its own marks, in this order:

==============================  =========
a CSV file                      table
``dataset.json``, ``imagesTr``  nnU-Net
``sub-*/…/anat``                BIDS
anything else                   DICOM
==============================  =========

Zips, the source itself or inside it, are unpacked first, below `scratch`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from msfl.imaging.deidentify.keys import Pseudonyms
from msfl.imaging.faults import Fault, unusable
from msfl.imaging.sources.archive import Limits, unpack
from msfl.imaging.sources.bids import find_bids
from msfl.imaging.sources.dicom import Answers, Progress, find_dicom
from msfl.imaging.sources.files import regular_files
from msfl.imaging.sources.found import Found, LeftOut
from msfl.imaging.sources.nnunet import find_nnunet
from msfl.imaging.sources.table import find_in_table
from msfl.imaging.workspace import Unusable


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
    left_out: list[LeftOut] = []
    roots = list(_roots(source, scratch, left_out, limits))
    if len(roots) == 1 and (roots[0] / "imagesTr").is_dir() and (roots[0] / "dataset.json").is_file():
        found = find_nnunet(roots[0])
    else:
        outside: list[Path] = []
        files = [f for root in roots for f in regular_files(root, outside) if not _is_zip(f)]
        if outside:
            why = unusable(Fault.OUTSIDE_SOURCE, f"{len(outside)} files are links that lead out of the source.")
            left_out.append(LeftOut(tuple(outside), why))
        if bids := [root for root in roots if any(root.glob("sub-*/anat")) or any(root.glob("sub-*/ses-*/anat"))]:
            found = find_bids(bids[0], [f for f in files if f.is_relative_to(bids[0].resolve())], pseudonyms, answers)
        else:
            found = find_dicom(files, pseudonyms, answers, progress)
    return replace(found, left_out=[*left_out, *found.left_out])


def _roots(source: Path, scratch: Path, left_out: list[LeftOut], limits: Limits | None) -> Iterator[Path]:
    """The source's folder and one folder per zip; where a zip holds a single folder, that folder."""
    if source.is_dir() or not _is_zip(source):
        yield source.resolve()
    archives = [f for f in regular_files(source, []) if _is_zip(f)]
    for number, archive in enumerate(archives):
        into = scratch / f"zip{number:04d}"
        into.mkdir(parents=True)
        try:
            unpack(archive, into, limits)
        except Unusable as why:
            left_out.append(LeftOut((archive,), why))
            continue
        inside = list(into.iterdir())
        yield (inside[0] if len(inside) == 1 and inside[0].is_dir() else into).resolve()


def _is_zip(file: Path) -> bool:
    """By its beginning or its name: a damaged zip is still meant to be one."""
    return file.is_file() and (file.suffix.lower() == ".zip" or zipfile.is_zipfile(file))
