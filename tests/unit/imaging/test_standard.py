"""Standardising: nothing is lost, nothing depends on the machine, and a head that moved is found again."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fakes.heads import MadeHeadExtractor, grid, head, lesion_mask, rigid
from msfl.imaging.checks import Volume
from msfl.imaging.deidentify.nifti import read_volume, write_volume
from msfl.imaging.standard.pipeline import Raw, Standard, read_raw, standardise, write_standard
from msfl.imaging.standard.recipe import Recipe
from msfl.imaging.standard.register import Registration, Rigid, read_rigid
from msfl.imaging.standard.reorient import orientation, reorient
from msfl.imaging.workspace import LESION, Case, Unusable, read_json

QUICK = Recipe(interpolation="linear", registration=Registration(grids_mm=(9.0, 6.0, 6.0), sampling=(1.0, 1.0, 1.0)))
MOVE = rigid((4, -3, 5), (6, -5, 4))


def moved_pair() -> Raw:
    on = grid()
    return Raw(head("FLAIR", on), head("T1w", on, move=np.linalg.inv(MOVE)), lesion_mask(on))


@pytest.fixture(scope="module")
def made() -> Standard:
    return standardise(moved_pair(), QUICK, MadeHeadExtractor())


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "ASR", "SPL"])
def test_turning_moves_no_value_and_no_point(axes: str) -> None:
    on = grid((5, 6, 7), 2.0)
    volume = on.like(np.arange(210, dtype=np.int16).reshape(5, 6, 7))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(axes))
    )
    stored = Volume(
        nib.orientations.apply_orientation(volume.voxels, turn),
        on.affine @ nib.orientations.inv_ornt_aff(turn, volume.voxels.shape),
    )
    assert orientation(stored) == axes
    back = reorient(stored)
    assert orientation(back) == "RAS"
    assert np.array_equal(back.voxels, volume.voxels)
    assert np.allclose(back.affine, volume.affine)


def test_a_head_that_moved_is_found_within_half_a_millimetre(made: Standard) -> None:
    points = np.argwhere(made.brain)[::50]
    points = np.c_[points, np.ones(len(points))] @ made.flair.affine.T
    apart = np.linalg.norm((points @ (made.motion.matrix - MOVE).T)[:, :3], axis=1)
    assert apart.mean() < 0.5


def test_labels_drawn_on_flair_are_not_resampled(made: Standard) -> None:
    assert made.lesion is not None
    assert np.array_equal(made.lesion.voxels, lesion_mask(grid()).voxels)


@pytest.mark.slow
def test_labels_drawn_on_t1w_move_with_it() -> None:
    on = grid()
    elsewhere = grid((58, 72, 58), 3.1)
    raw = Raw(head("FLAIR", on), head("T1w", elsewhere), lesion_mask(elsewhere))
    moved = standardise(raw, QUICK, MadeHeadExtractor()).lesion
    assert moved is not None
    expected = lesion_mask(on).voxels > 0
    both = np.count_nonzero(expected & (moved.voxels > 0))
    assert 2 * both / (np.count_nonzero(expected) + np.count_nonzero(moved.voxels)) > 0.7


def test_labels_that_lie_on_neither_grid_are_refused() -> None:
    raw = moved_pair()
    with pytest.raises(Unusable, match="mask_elsewhere"):
        standardise(Raw(raw.flair, raw.t1w, lesion_mask(grid((40, 40, 40)))), QUICK, MadeHeadExtractor())


def test_no_brain_no_standard() -> None:
    on = grid()
    with pytest.raises(Unusable, match="no_brain"):
        standardise(Raw(on, head("T1w", on), None), QUICK, MadeHeadExtractor())


def test_a_speck_is_no_brain() -> None:
    on = grid()
    speck = np.zeros(on.voxels.shape, np.float32)
    speck[30:34, 30:34, 30:34] = 90
    with pytest.raises(Unusable, match="no_brain"):
        standardise(Raw(on.like(speck), head("T1w", on), None), QUICK, MadeHeadExtractor())


def case_with(folder: Path, raw: Raw) -> Case:
    case = Case(folder / "c1")
    case.raw("FLAIR").parent.mkdir(parents=True)
    for name, volume in (("FLAIR", raw.flair), ("T1w", raw.t1w), (LESION, raw.lesion)):
        if volume is not None:
            write_volume(volume, case.raw(name))
    return case


def standardise_case(case: Case) -> None:
    raw = read_raw(case)
    made = standardise(raw, QUICK, MadeHeadExtractor())
    with case.filling("standard") as folder:
        write_standard(folder, case, raw, made, QUICK, MadeHeadExtractor.name)


@pytest.mark.slow
def test_same_input_same_bytes(tmp_path: Path) -> None:
    listed = []
    for place in ("one", "two"):
        case = case_with(tmp_path / place, moved_pair())
        standardise_case(case)
        listed.append({file.name: file.read_bytes() for file in sorted((case.folder / "standard").iterdir())})
    assert listed[0] == listed[1]
    images = {"FLAIR.nii.gz", "T1w.nii.gz", "lesion.nii.gz", "brain.nii.gz", "brain_T1w.nii.gz"}
    assert set(listed[0]) == images | {"T1w_to_FLAIR.txt", "steps.json"}


def test_other_parameters_other_digest(tmp_path: Path) -> None:
    digests = {Recipe().sha256, QUICK.sha256, Recipe(brain="hd-bet").sha256}
    assert len(digests) == 3


@pytest.mark.slow
def test_the_record_says_what_was_done_with_what(tmp_path: Path) -> None:
    case = case_with(tmp_path, moved_pair())
    standardise_case(case)
    record = read_json(case.steps)
    assert [(s["step"], s["of"]) for s in record["steps"]] == [
        ("reorient", "FLAIR"), ("reorient", "T1w"), ("brain", "FLAIR"), ("brain", "T1w"),
        ("register", "T1w"), ("resample", "T1w"),
    ]  # fmt: skip
    assert record["recipe_sha256"] == QUICK.sha256
    register = record["steps"][4]
    assert 6 < register["shift_mm"] < 11
    assert register["parameters"]["seed"] == 1
    motion = read_rigid(case.folder / "standard" / register["transform"])
    assert np.allclose(motion.matrix[:3, :3] @ motion.matrix[:3, :3].T, np.eye(3), atol=1e-5)


@pytest.mark.slow
def test_what_cannot_be_standardised_leaves_what_was_there(tmp_path: Path) -> None:
    case = case_with(tmp_path, moved_pair())
    standardise_case(case)
    before = case.steps.read_bytes()
    write_volume(grid().like(np.full(grid().voxels.shape, np.nan, np.float32)), case.raw("FLAIR"))
    with pytest.raises(Unusable, match="not_finite"):
        standardise_case(case)
    assert case.steps.read_bytes() == before


def test_a_transform_reads_back(tmp_path: Path) -> None:
    Rigid(MOVE).write(tmp_path / "move.txt")
    assert np.allclose(read_rigid(tmp_path / "move.txt").matrix, MOVE)
    assert "AffineTransform" in (tmp_path / "move.txt").read_text()


@pytest.mark.slow
def test_shading_is_divided_out() -> None:
    from msfl.imaging.standard.bias import BiasCorrection, correct_bias

    on = grid()
    flat = head("T1w", on)
    shade = np.exp(0.3 * np.linspace(-1, 1, on.voxels.shape[0], dtype=np.float32))[:, None, None]
    brain = MadeHeadExtractor().extract(flat, "T1w")
    mended = correct_bias(flat.like(flat.voxels * shade), brain, BiasCorrection(grid_mm=6.0))
    white = brain & (np.abs(flat.voxels - 120) < 6)
    assert mended.voxels[white].std() < 0.5 * (flat.voxels * shade)[white].std()


def test_volumes_read_back_as_written(tmp_path: Path) -> None:
    volume = head("T1w", grid())
    write_volume(volume, tmp_path / "v.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "v.nii.gz").voxels, volume.voxels)
