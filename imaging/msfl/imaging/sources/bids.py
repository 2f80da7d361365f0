"""BIDS: ``sub-<label>[/ses-<label>]/anat/…_FLAIR.nii.gz`` and ``…_T1w.nii.gz``; masks below ``derivatives/``.

The name of a file says what it is (BIDS entities and suffix), so headers are not asked. A mask is a file of the same
subject and session that ends in ``_mask`` or ``_dseg`` and says ``lesion``. Several images of one kind are a question,
except that a T1w with contrast agent (``ce-``) steps back behind one without.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from msfl.imaging.deidentify.keys import Pseudonyms
from msfl.imaging.faults import Fault, unusable
from msfl.imaging.sources.dicom import Answers
from msfl.imaging.sources.found import Found, ImageSource, Named, NiftiFile, Question, Visit
from msfl.imaging.workspace import CHANNELS, Unusable

_IMAGE = re.compile(
    r"(?P<entities>sub-[a-zA-Z0-9]+(?:_[a-zA-Z]+-[a-zA-Z0-9+]+)*)_(?P<suffix>[a-zA-Z0-9]+)\.nii(?:\.gz)?"
)
NOT_THE_IMAGES: Final = frozenset({"derivatives", "sourcedata"})
"""What was made of the images, and what they were made of."""


def find_bids(root: Path, files: Iterable[Path], pseudonyms: Pseudonyms, answers: Answers) -> Found:
    images: dict[tuple[str, str], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    masks: dict[tuple[str, str], list[Path]] = defaultdict(list)
    files = list(files)
    for file in files:
        match = _IMAGE.fullmatch(file.name)
        if match is None:
            continue
        entities = dict(part.split("-", 1) for part in match["entities"].split("_"))
        visit = (entities["sub"], entities.get("ses", ""))
        parts = file.relative_to(root).parts
        if match["suffix"] in CHANNELS and not NOT_THE_IMAGES & set(parts) and file.parent.name == "anat":
            images[visit][match["suffix"]].append(file)
        elif match["suffix"] in ("mask", "dseg") and "lesion" in file.name.lower() and "sourcedata" not in parts:
            masks[visit].append(file)
    questions: list[Question] = []
    found = [
        _visit(visit, by_suffix, masks.get(visit, []), pseudonyms, answers, questions)
        for visit, by_suffix in sorted(images.items())
    ]
    named = [
        Named(_name(file, pseudonyms), *visit, file.name, "", (file,))
        for visit, by_suffix in images.items()
        for file in sorted(itertools.chain(*by_suffix.values()))
    ]
    # Of a visit that is used, what was not chosen (a T1w with contrast agent beside one without) counts as left over.
    known = {file for visit in found for file in (visit.seen if visit.unusable else visit.files)}
    known |= {_nifti(file).sidecar or file for file in known}
    return Found(found, (), questions, named=named, rest=[file for file in files if file not in known])


def _visit(
    visit: tuple[str, str],
    by_suffix: dict[str, list[Path]],
    masks: Sequence[Path],
    pseudonyms: Pseudonyms,
    answers: Answers,
    questions: list[Question],
) -> Visit:
    images: dict[str, ImageSource] = {}
    problem: Unusable | None = None
    for role in CHANNELS:
        candidates = by_suffix.get(role, [])
        answered = [f for f in candidates if answers.get(_name(f, pseudonyms)) == role]
        plain = [f for f in candidates if "_ce-" not in f.name and answers.get(_name(f, pseudonyms)) is None]
        chosen = answered or plain or candidates
        if not chosen:
            missing = Fault.MISSING_FLAIR if role == "FLAIR" else Fault.MISSING_T1W
            advice = f"Add it as anat/sub-…_{role}.nii.gz."
            problem = problem or unusable(missing, f"The session has no {role} image.", advice)
        elif len(chosen) > 1 or (not answered and not plain):
            numbered = {_name(f, pseudonyms): f"image {n} of {len(chosen)}" for n, f in enumerate(chosen, 1)}
            questions.append(Question(*visit, role, numbered))
            problem = problem or unusable(Fault.AMBIGUOUS, f"{len(chosen)} images could be the {role}.")
        else:
            images[role] = _nifti(chosen[0])
    if len(masks) > 1:
        advice = "Leave one of them in the folder."
        problem = problem or unusable(Fault.AMBIGUOUS, f"{len(masks)} files could be the lesion mask.", advice)
    lesion = _nifti(masks[0]) if len(masks) == 1 else None
    every = [_nifti(file) for file in itertools.chain(*by_suffix.values(), masks)]
    seen = tuple(file for one in every for file in (one.file, one.sidecar) if file)
    return Visit("bids", *visit, images, lesion, unusable=problem, seen=seen)


def _nifti(file: Path) -> NiftiFile:
    sidecar = file.with_name(re.sub(r"\.nii(\.gz)?$", ".json", file.name))
    return NiftiFile(file, sidecar if sidecar.is_file() else None)


def _name(file: Path, pseudonyms: Pseudonyms) -> str:
    return f"x{pseudonyms.uid(file.name)[-8:]}"
