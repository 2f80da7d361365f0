"""Lesion masks: DICOM segmentation objects and NIfTI lie where they were drawn, or are refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from fakes.scanners import FLAIR, T1W, Scanner, head
from fakes.segmentations import segment
from msfl.imaging.custodian import import_source
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


def test_segments_of_something_else_are_no_lesions(tmp_path: Path) -> None:
    files = visit(tmp_path / "source")
    both = LESION.copy()
    both[20:25, 20:25, 20:25] = 2
    segment(files["FLAIR"], both, tmp_path / "source" / "seg", "Thalamus", "Ventricle")
    (outcome,) = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0).outcomes
    assert outcome.code == "mask_elsewhere"


def test_a_damaged_segmentation_is_said(tmp_path: Path) -> None:
    files = visit(tmp_path / "source")
    file = segment(files["FLAIR"], LESION, tmp_path / "source" / "seg", "lesion")
    file.write_bytes(file.read_bytes()[:-40])
    (outcome,) = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0).outcomes
    assert outcome.verdict == "unusable", outcome
