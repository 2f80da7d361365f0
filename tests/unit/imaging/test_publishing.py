"""From checked cases to a published dataset: who is in, what is in it, and that it stays what it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fakes.workspaces import NOON, checked_case, checked_cohort
from msfl.gateway.datasets import changed_file
from msfl.gateway.home import Home
from msfl.imaging.custodian import Published, publish
from msfl.imaging.datasets import check_dataset
from msfl.imaging.quality.overrule import Overrules
from msfl.imaging.quality.verdict import Verdict
from msfl.imaging.record import NotADataset
from msfl.imaging.split import Part
from msfl.imaging.workspace import Entry, Step, Workspace, write_json
from msfl.policies.documents import DatasetRecord
from msfl.policies.refusals import CannotProceed

pytestmark = pytest.mark.slow  # hundreds of small files are made durable, one by one


def published(home: Path, **options: object) -> Published:
    return publish(home, "ms-trial", site="site-a", hands=0, now=NOON, **options)  # type: ignore[arg-type]


def held_out(made: Published) -> set[str]:
    return {case for case, part in made.parts.items() if part is Part.TEST}


def record_of(home: Path) -> DatasetRecord:
    record = Home(home).dataset("ms-trial")
    assert isinstance(record, DatasetRecord)
    return record


def test_what_was_checked_is_laid_out_described_and_offered(tmp_path: Path) -> None:
    workspace = checked_cohort(tmp_path)
    made = published(tmp_path)
    report = check_dataset(workspace.nnunet)
    assert report.ok
    assert (len(report.train_cases), len(report.test_cases)) == (9, 3) == (made.record.n_train, made.record.n_test)
    assert report.channel_names == ("FLAIR", "T1w")
    assert record_of(tmp_path) == made.record
    assert Home(tmp_path).dataset_folder("ms-trial") == workspace.nnunet.resolve()
    assert changed_file(made.record, workspace.nnunet) is None
    assert made.record.quality == {"pass": 12, "left_out": 0}
    assert made.record.spacing_mm == (5.0, 5.0, 5.0)
    assert (made.record.ref, made.record.kind) == ("site-a/ms-trial", "user")
    description = json.loads((workspace.nnunet / "dataset.json").read_text())
    assert description["validation"] == sorted(c for c, part in made.parts.items() if part is Part.VALIDATION)


def test_the_brain_is_whole_and_the_face_is_gone(tmp_path: Path) -> None:
    workspace = checked_cohort(tmp_path)
    made = published(tmp_path)
    case = workspace.case(next(iter(held_out(made))))
    before, after = (np.asarray(nib.load(f).dataobj) for f in (
        case.standard("T1w"), workspace.nnunet / "imagesTs" / f"{case.id}_0001.nii.gz"
    ))  # fmt: skip
    brain = np.asarray(nib.load(case.standard("brain")).dataobj) > 0
    assert (after[brain] == before[brain]).all()
    assert (after[:, -4:, :4] == 0).all(), "in front and below: a chin, a nose"
    assert (after[:, :8, -8:] == before[:, :8, -8:]).all(), "behind and above: nothing is taken"


@pytest.mark.parametrize(("extent", "zeros"), [("head", 0.0), ("brain", 0.9)])
def test_the_custodian_says_how_much_of_the_head_is_published(tmp_path: Path, extent: str, zeros: float) -> None:
    workspace = checked_cohort(tmp_path)
    made = published(tmp_path, extent=extent)
    image = np.asarray(nib.load(workspace.nnunet / "imagesTs" / f"{next(iter(held_out(made)))}_0000.nii.gz").dataobj)
    assert (image == 0).mean() == pytest.approx(zeros, abs=0.06)


def test_who_is_left_out_and_why(tmp_path: Path) -> None:
    workspace = checked_cohort(tmp_path)
    checked_case(workspace, "pa-s1", verdict="fail")
    checked_case(workspace, "pb-s1", lesion=False)
    checked_case(workspace, "pc-s1").record(Entry(Step.QUALITY, NOON, "unreadable", "It cannot be read."))
    checked_case(workspace, "pd-s1").record(Entry(Step.IMPORT, NOON))
    checked_case(workspace, "pe-s1", verdict="warn")
    overruled = checked_case(workspace, "pf-s1", verdict="fail")
    write_json(overruled.qc, {"verdict": "fail", "final": "pass", "overruled": {"reason": "seen"}})
    Overrules(workspace).add("pf-s1", Verdict.PASS, by="cleo", reason="seen", inputs="sha256:1", at=NOON)
    checked_case(workspace, "pg-s1").standard("brain").unlink()
    (workspace.case("pg-s1").folder / "standard" / "brain.nii.gz").write_bytes(b"")
    made = published(tmp_path)
    assert {left.case: left.code for left in made.left_out} == {
        "pa-s1": "quality_failed",
        "pb-s1": "no_lesion_mask",
        "pc-s1": "unreadable",
        "pd-s1": "not_checked",
        "pg-s1": "unreadable",
    }
    assert {"pe-s1", "pf-s1"} <= set(made.parts)
    assert made.record.quality == {"pass": 12, "warn": 1, "overruled": 1, "left_out": 5}
    assert made.record.overrules == Overrules(workspace).head
    assert made.record.overrules is not None


def test_the_same_cases_give_the_same_dataset(tmp_path: Path) -> None:
    checked_cohort(tmp_path / "a")
    checked_cohort(tmp_path / "b")
    assert published(tmp_path / "a").record == published(tmp_path / "b").record


def test_a_changed_file_is_another_version_and_refused_until_published_again(tmp_path: Path) -> None:
    workspace = checked_cohort(tmp_path)
    first = published(tmp_path)
    image = workspace.nnunet / "imagesTr" / "p00-s1_0000.nii.gz"
    image.unlink()
    write = nib.Nifti1Image(np.ones((24, 24, 24), np.int16), np.eye(4))
    nib.save(write, image)
    assert changed_file(record_of(tmp_path), workspace.nnunet) == "imagesTr/p00-s1_0000.nii.gz"
    again = published(tmp_path)
    assert changed_file(record_of(tmp_path), workspace.nnunet) is None
    assert again.record == first.record, "made anew from what was checked: the stray change is gone"


def test_a_file_that_was_changed_in_place_does_not_get_in_by_publishing_again(tmp_path: Path) -> None:
    workspace = checked_cohort(tmp_path)
    first = published(tmp_path)
    image = workspace.nnunet / "labelsTr" / "p00-s1.nii.gz"
    assert os.stat(image).st_nlink == 2
    with image.open("r+b") as file:
        file.seek(100)
        file.write(b"\0\0\0\0")
    assert changed_file(record_of(tmp_path), workspace.nnunet) == "labelsTr/p00-s1.nii.gz"
    assert published(tmp_path).record == first.record


def test_a_corrected_mask_is_a_new_version_with_the_same_test_set(tmp_path: Path) -> None:
    workspace = checked_cohort(tmp_path)
    first = published(tmp_path)
    checked_case(workspace, "p00-s1", seed=0, scanner="d0", lesion_edge=7)
    again = published(tmp_path)
    assert again.record.version != first.record.version
    assert again.record.test_set == first.record.test_set
    assert again.parts == first.parts


def test_the_test_set_is_frozen_when_more_patients_come(tmp_path: Path) -> None:
    workspace = checked_cohort(tmp_path)
    first = published(tmp_path)
    for number in range(20, 40):
        checked_case(workspace, f"p{number}-s1", seed=number)
    tested = sorted(held_out(first))[0]
    checked_case(workspace, f"{tested.split('-')[0]}-s2")
    again = published(tmp_path)
    assert held_out(again) == held_out(first)
    assert again.record.test_set == first.record.test_set
    assert again.aside == (f"{tested.split('-')[0]}-s2",)
    assert first.parts.items() <= again.parts.items()
    assert len(again.parts) == 32


def test_a_test_case_that_fails_later_is_not_dropped_in_silence(tmp_path: Path) -> None:
    workspace = checked_cohort(tmp_path)
    first = published(tmp_path)
    gone = sorted(held_out(first))[0]
    write_json(workspace.case(gone).qc, {"verdict": "fail", "final": "fail"})
    before = record_of(tmp_path)
    with pytest.raises(CannotProceed, match=gone):
        published(tmp_path)
    assert record_of(tmp_path) == before
    again = published(tmp_path, new_test_set=True)
    assert gone not in again.parts
    assert again.record.test_set != first.record.test_set


def test_what_the_source_said_is_the_test_set(tmp_path: Path) -> None:
    workspace = Workspace.of(tmp_path, "ms-trial")
    for number in range(6):
        checked_case(workspace, f"p{number}-s1", seed=number, given="test" if number < 2 else "train")
    assert held_out(published(tmp_path)) == {"p0-s1", "p1-s1"}


def test_too_few_cases_for_a_test_set_are_no_dataset(tmp_path: Path) -> None:
    checked_case(Workspace.of(tmp_path, "ms-trial"), "p0-s1")
    with pytest.raises(NotADataset, match="no test cases"):
        published(tmp_path)
    assert Home(tmp_path).datasets() == []


def test_nothing_to_publish_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotProceed, match="msfl data import"):
        published(tmp_path)
    checked_case(Workspace.of(tmp_path, "ms-trial"), "p0-s1", verdict="fail")
    with pytest.raises(CannotProceed, match="failed by quality control"):
        published(tmp_path)


def test_the_site_is_the_one_that_was_enrolled(tmp_path: Path) -> None:
    checked_cohort(tmp_path)
    with pytest.raises(CannotProceed, match="not enrolled"):
        publish(tmp_path, "ms-trial", hands=0)
    write_json(tmp_path / "site.json", {"site": "site-b"})
    with pytest.raises(CannotProceed, match="enrolled as site-b"):
        published(tmp_path)
    assert publish(tmp_path, "ms-trial", hands=0).record.site == "site-b"
