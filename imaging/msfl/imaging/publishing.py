"""From checked cases to a dataset that the gateway offers: finish, split, lay out, describe, show.

::

    checked case ─▶ finish: no face, load known ─▶ split ─▶ nnunet/ (hard links) ─▶ record with every hash ─▶ catalogue
       └─ not checked, failed, no mask: left out, with the reason

A case that was finished from the same images is not finished again. The old `nnunet/` is there until the new one takes
its place whole; from then until the record is written the gateway finds other files than it knows, and refuses.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from msfl.imaging.checks import Volume
from msfl.imaging.deidentify.deface import defaced, without_face
from msfl.imaging.deidentify.nifti import read_volume, write_volume
from msfl.imaging.quality.overrule import Overrules
from msfl.imaging.quality.words import NO_LESION_MASK
from msfl.imaging.record import make_record, show
from msfl.imaging.split import Dealt, Member, Part, Shares, Split, deal, frozen, hash_of_test_set
from msfl.imaging.workspace import (
    BRAIN,
    CHANNELS,
    LESION,
    Case,
    JsonObject,
    State,
    Workspace,
    read_json,
    swap_in,
    write_json,
)
from msfl.policies.documents import DatasetRecord
from msfl.policies.refusals import CannotProceed

Extent = Literal["defaced", "brain", "head"]
"""What is published of a head: all but the face, the brain only, or all of it."""
_FINISHED: Final = "final.json"


@dataclass(frozen=True)
class LeftOut:
    case: str
    code: str
    reason: str


@dataclass(frozen=True)
class Finished:
    """A case as it is published. `load_ml` is the volume of its lesions."""

    case: str
    load_ml: float
    verdict: str


# ------------------------------------------------------------------- a case


def usable(case: Case) -> LeftOut | str:
    """The verdict of quality control ("pass", "warn", "overruled"), or why this case is not published."""
    standing = case.standing
    if standing.failed is not None:
        return LeftOut(case.id, standing.failed.code, standing.failed.reason)
    if standing.state is not State.CHECKED:
        reason = f"The case is {standing.state}; quality control has not looked at it: msfl data qc."
        return LeftOut(case.id, "not_checked", reason)
    if not case.standard(LESION).exists():
        return LeftOut(case.id, NO_LESION_MASK, "The case has no lesion mask. Add one and import it again.")
    found = read_json(case.qc)
    if found.get("final") not in ("pass", "warn"):
        by = "a person" if found.get("overruled") else "quality control"
        return LeftOut(case.id, "quality_failed", f"The case was failed by {by}; the report says why.")
    return "overruled" if found.get("overruled") else str(found["final"])


def finish(case: Case, extent: Extent) -> JsonObject:
    """Make `final/` from `standard/`. Raises Unusable where a face cannot be told from the brain."""
    inputs = _inputs(case, extent)
    done = case.folder / "final" / _FINISHED
    if done.exists() and (made := read_json(done))["inputs"] == inputs and made["files"] == _files(done.parent):
        return made
    volumes = {name: read_volume(case.standard(name)) for name in CHANNELS}
    lesion = read_volume(case.standard(LESION))
    brain = read_volume(case.standard(BRAIN)).voxels > 0
    with case.filling("final") as fresh:
        for name, volume in volumes.items():
            write_volume(_cut(volume, brain, extent), fresh / f"{name}.nii.gz")
        write_volume(Volume((lesion.voxels > 0).astype(np.uint8), lesion.affine), fresh / f"{LESION}.nii.gz")
        voxel_ml = float(np.prod(lesion.spacing_mm)) / 1000
        load = round(float(np.count_nonzero(lesion.voxels)) * voxel_ml, 4)
        made = {"inputs": inputs, "load_ml": load, "files": _files(fresh)}
        write_json(fresh / _FINISHED, made)
    return made


def _cut(volume: Volume, brain: Any, extent: Extent) -> Volume:
    match extent:
        case "head":
            return volume
        case "brain":
            return defaced(volume, brain)
        case "defaced":
            return defaced(volume, without_face(volume, brain))


def _files(folder: Path) -> JsonObject:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.nii.gz"))}


def _inputs(case: Case, extent: Extent) -> str:
    total = hashlib.sha256(extent.encode())
    for name in (*CHANNELS, LESION, BRAIN):
        total.update(hashlib.sha256(case.standard(name).read_bytes()).digest())
    return f"sha256:{total.hexdigest()}"


# ------------------------------------------------------------------ the dataset


def read_split(workspace: Workspace) -> Split:
    return Split.from_json(read_json(workspace.split)) if workspace.split.exists() else Split()


def members(workspace: Workspace, finished: Sequence[Finished]) -> list[Member]:
    found = []
    for one in finished:
        source = workspace.case(one.case).source
        found.append(
            Member(one.case, str(source["patient"]), str(source["scanner"]["id"]), one.load_ml, str(source["split"]))
        )
    return found


def lay_out(workspace: Workspace, dealt: Dealt) -> None:
    """`nnunet/`, whole: images and labels by part; dataset.json names the cases that validate."""
    fresh = workspace.folder / ".nnunet.new"
    shutil.rmtree(fresh, ignore_errors=True)
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (fresh / part).mkdir(parents=True)
    for case_id, part in dealt.cases.items():
        final, end = workspace.case(case_id).folder / "final", "Ts" if part is Part.TEST else "Tr"
        for number, name in enumerate(CHANNELS):
            os.link(final / f"{name}.nii.gz", fresh / f"images{end}" / f"{case_id}_{number:04d}.nii.gz")
        os.link(final / f"{LESION}.nii.gz", fresh / f"labels{end}" / f"{case_id}.nii.gz")
    for part in ("imagesTr", "labelsTr"):
        if not any((fresh / part).iterdir()):
            (fresh / part).rmdir()  # an evaluate-only site
    write_json(fresh / "dataset.json", _description(workspace, dealt), mode=0o644)  # as readable as the images
    swap_in(fresh, workspace.nnunet)


def _description(workspace: Workspace, dealt: Dealt) -> JsonObject:
    return {
        "name": workspace.dataset,
        "channel_names": {str(number): name for number, name in enumerate(CHANNELS)},
        "labels": {"background": 0, LESION: 1},
        "file_ending": ".nii.gz",
        "numTraining": sum(part is not Part.TEST for part in dealt.cases.values()),
        "validation": sorted(case for case, part in dealt.cases.items() if part is Part.VALIDATION),
    }


def register(
    workspace: Workspace,
    finished: Sequence[Finished],
    left_out: Sequence[LeftOut],
    *,
    site: str,
    shares: Shares,
    new_test_set: bool,
    description: str,
) -> tuple[DatasetRecord, Dealt]:
    """Split, lay out, describe and show. Raises CannotProceed where the frozen test set is not whole, NotADataset where
    what was laid out is no dataset."""
    before = read_split(workspace)
    if new_test_set:
        before = Split()
    dealt = deal(members(workspace, finished), before, shares)
    if dealt.missing:
        raise CannotProceed(
            f"{len(dealt.missing)} cases of the frozen test set cannot be published ({', '.join(dealt.missing[:5])}). "
            "Bring them back (msfl data list says what is wrong), or begin a new test set with --new-test-set: "
            "then results from before cannot be compared with later ones."
        )
    split = frozen(dealt)
    write_json(workspace.split, split.to_json())
    lay_out(workspace, dealt)
    quality = Counter(one.verdict for one in finished if one.case in dealt.cases)
    quality["left_out"] = len(left_out) + len(dealt.aside)
    record = make_record(
        workspace.nnunet,
        site=site,
        dataset_id=workspace.dataset,
        kind="user",
        description=description,
        test_set=hash_of_test_set(split),
        quality=dict(quality),
        overrules=Overrules(workspace).head,
    )
    show(record, workspace.nnunet, workspace.home)
    return record, dealt


def site_of(home: Path, said: str) -> str:
    """The site's id, as it was enrolled; `said` where it is not, yet. Raises CannotProceed."""
    settings = home / "site.json"
    enrolled = str(read_json(settings).get("site", "")) if settings.exists() else ""
    if said and enrolled and said != enrolled:
        raise CannotProceed(f"This gateway ({home}) is enrolled as {enrolled}, not {said}. Leave --site out.")
    if not (said or enrolled):
        raise CannotProceed(f"{home} is not enrolled, so the site's id is not known. Say it with --site.")
    return enrolled or said


__all__ = ["Extent", "Finished", "LeftOut", "finish", "read_split", "register", "site_of", "usable"]
