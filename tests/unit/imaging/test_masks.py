"""Lesion masks: DICOM segmentation objects and NIfTI lie where they were drawn, or are refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.affines import apply_affine

from fakes.scanners import FLAIR, T1W, Scanner, head
from fakes.segmentations import segment
from msfl.imaging.custodian import import_source, listing
from msfl.imaging.sources.segments import called_lesion
from msfl.imaging.workspace import Case, Workspace

pytestmark = pytest.mark.slow
LESION = np.zeros((32, 32, 32), np.uint8)
LESION[14:18, 10:12, 20:22] = 1
LESION[5:7, 12:14, 8] = 1


def imported(home: Path, source: Path) -> Case:
    brought = import_source(home, "ms-trial", source, hands=0)
    assert [o.verdict for o in brought.outcomes] == ["imported"], brought
    return Workspace.of(home, "ms-trial").cases()[0]


def visit(folder: Path, turned: bool = False) -> dict[str, list[Path]]:
    scanner = Scanner()
    affine = head()[1]
    if turned:  # sagittal slices, as a 3D series is often stored
        affine = affine @ np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    return {
        "FLAIR": scanner.scan(head(seed=1)[0], affine, folder, FLAIR),
        "T1w": scanner.scan(head(seed=2)[0], head()[1] @ np.diag([1, 1, -1, 1]), folder, T1W),
    }


def where(case: Case) -> set[tuple[int, int, int]]:
    """The lesion's voxels as points in space (RAS, mm)."""
    image = nib.load(case.raw("lesion"))
    points = apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj)))
    return {tuple(np.rint(p * 10).astype(int)) for p in points}


def expected(affine: np.ndarray) -> set[tuple[int, int, int]]:
    points = apply_affine(affine, np.argwhere(LESION))
    return {tuple(np.rint(p * 10).astype(int)) for p in points}


@pytest.mark.parametrize("turned", [False, True])
def test_a_segmentation_lies_where_it_was_drawn(tmp_path: Path, turned: bool) -> None:
    files = visit(tmp_path / "source", turned)
    segment(files["FLAIR"], LESION, tmp_path / "source" / "seg", "MS lesion")
    case = imported(tmp_path / "home", tmp_path / "source")
    affine = head()[1]
    if turned:
        affine = affine @ np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    assert case.source["lesion_on"] == "FLAIR"
    assert where(case) == expected(affine)


def test_a_segmentation_on_the_t1w_stays_there(tmp_path: Path) -> None:
    files = visit(tmp_path / "source", turned=True)
    segment(files["T1w"], LESION, tmp_path / "source" / "seg", "Lesion")
    case = imported(tmp_path / "home", tmp_path / "source")
    assert case.source["lesion_on"] == "T1w"
    assert where(case) == expected(head()[1] @ np.diag([1, 1, -1, 1]))


def test_of_several_segments_those_that_are_lesions_count(tmp_path: Path) -> None:
    files = visit(tmp_path / "source")
    both = LESION.copy()
    both[20:25, 20:25, 20:25] = 2
    segment(files["FLAIR"], both, tmp_path / "source" / "seg", "WMH lesions", "Ventricle")
    assert where(imported(tmp_path / "home", tmp_path / "source")) == expected(head()[1])


@pytest.mark.parametrize("labels", [("Thalamus", "Ventricle"), ("Brain",), ("Tumor",)])
def test_segments_of_something_else_are_no_lesions(tmp_path: Path, labels: tuple[str, ...]) -> None:
    files = visit(tmp_path / "source")
    both = LESION.copy()
    if len(labels) > 1:
        both[20:25, 20:25, 20:25] = 2
    segment(files["FLAIR"], both, tmp_path / "source" / "seg", *labels)
    case = imported(tmp_path / "home", tmp_path / "source")
    assert not case.has_lesion
    assert listing(tmp_path / "home", "ms-trial")[0].warnings == ("segments_left_out",)


@pytest.mark.parametrize(
    ("label", "kind", "lesion"),
    [
        ("MS lesion", "", True), ("WMH", "", True), ("Läsion 3", "", True), ("T2_plaques", "", True),
        ("Brain", "Lesion", False), ("Tumor", "Lesion", False), ("Segment_1", "Lesion", True),
        ("Segment_1", "Brain", False), ("programs", "", False),
    ],
)  # fmt: skip
def test_a_segment_is_what_it_is_called(label: str, kind: str, lesion: bool) -> None:
    assert called_lesion(label, kind) is lesion


def test_beside_a_tumour_the_lesion_alone_is_taken(tmp_path: Path) -> None:
    files = visit(tmp_path / "source")
    tumour = np.zeros_like(LESION)
    tumour[20:25, 20:25, 20:25] = 1
    segment(files["FLAIR"], LESION, tmp_path / "source" / "seg", "lesion")
    segment(files["FLAIR"], tumour, tmp_path / "source" / "other", "Tumor")
    assert where(imported(tmp_path / "home", tmp_path / "source")) == expected(head()[1])


def test_lesions_that_two_people_drew_are_put_together_by_an_answer_only(tmp_path: Path) -> None:
    files = visit(tmp_path / "source")
    other = np.roll(LESION, 3, axis=0)
    segment(files["FLAIR"], LESION, tmp_path / "source" / "seg1", "=lesion of Anna")
    segment(files["FLAIR"], other, tmp_path / "source" / "seg2", "lesion of Bert")
    asked = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0)
    assert [(o.verdict, o.code) for o in asked.outcomes] == [("unusable", "ambiguous")]
    (question,) = asked.questions
    assert (question["image"], list(question["choices"].values())) == (
        "lesion", ["series 99, 1 segments called lesion"] * 2,
    )  # fmt: skip
    table = Path(asked.names).read_text(encoding="utf-8-sig")
    for name, what, file in zip(
        question["choices"], ("'=lesion of Anna", "lesion of Bert"), ("seg1", "seg2"), strict=True
    ):
        assert f"{name},{question['case']},99,{what},1,{tmp_path / 'source' / file}" in table.splitlines()
    assert "Anna" not in repr(asked)
    sizes = []
    for chosen in ([next(iter(question["choices"]))], list(question["choices"])):
        answers = dict.fromkeys(chosen, "lesion")
        import_source(tmp_path / "home", "ms-trial", tmp_path / "source", answers=answers, hands=0)
        (case,) = Workspace.of(tmp_path / "home", "ms-trial").cases()
        sizes.append(len(where(case)))
    assert sizes == [np.count_nonzero(LESION), np.count_nonzero(LESION | other)]
    assert listing(tmp_path / "home", "ms-trial")[0].warnings == ("segments_united",)


def test_a_later_export_without_its_mask_takes_none_away(tmp_path: Path) -> None:
    files = visit(tmp_path / "source")
    mask = segment(files["FLAIR"], LESION, tmp_path / "source" / "seg", "lesion")
    case = imported(tmp_path / "home", tmp_path / "source")
    before = {f: f.read_bytes() for f in case.folder.rglob("*") if f.is_file()}
    mask.unlink()
    (outcome,) = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0).outcomes
    assert (outcome.verdict, outcome.warnings) == ("unchanged", ("mask_kept",))
    assert {f: f.read_bytes() for f in case.folder.rglob("*") if f.is_file()} == before
    for file in files["FLAIR"]:
        image = pydicom.dcmread(file)
        image.PixelData = bytes(b ^ 1 for b in image.PixelData)
        image.save_as(file)
    (outcome,) = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0).outcomes
    assert (outcome.verdict, outcome.warnings) == ("imported", ("mask_gone",))
    assert not case.has_lesion
    assert listing(tmp_path / "home", "ms-trial")[0].warnings == ("mask_gone",)


def test_a_damaged_segmentation_is_said(tmp_path: Path) -> None:
    files = visit(tmp_path / "source")
    file = segment(files["FLAIR"], LESION, tmp_path / "source" / "seg", "lesion")
    file.write_bytes(file.read_bytes()[:-40])
    (outcome,) = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0).outcomes
    assert outcome.verdict == "unusable", outcome
