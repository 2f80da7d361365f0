"""Quality control of real scans: good ones pass, and every fault that is put into them is found and named.

The pairs are 1 mm, without skull (openms, Lesjak et al. 2018), so the brain is what is not zero; raw heads with thick
slices come from the same group (Lesjak et al. 2016). `benchmarks/registration.py` has the figures of registration.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from msfl.imaging.brain import extractor
from msfl.imaging.checks import Volume
from msfl.imaging.deidentify.nifti import read_volume, write_volume
from msfl.imaging.quality.artefacts.trained import Trained
from msfl.imaging.quality.control import check_quality
from msfl.imaging.quality.limits import default_limits
from msfl.imaging.quality.measure import measure
from msfl.imaging.quality.verdict import Checked, Verdict, judge
from msfl.imaging.standard.pipeline import Raw, standardise
from msfl.imaging.standard.recipe import Recipe
from msfl.imaging.standard.register import Registration, read_rigid, register
from msfl.imaging.standard.reorient import reorient
from msfl.imaging.volume import Mask
from msfl.imaging.workspace import Entry, State, Step, Workspace, now_utc, write_json

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def data() -> Path:
    root = os.environ.get("MSFL_TEST_DATA")
    if not root or not (Path(root) / "openms").is_dir():
        pytest.skip("no real scans: set MSFL_TEST_DATA to the folder that holds openms/")
    return Path(root)


class StrippedBefore:
    """The brain is what somebody left of the head."""

    name = "stripped before 1"

    def ready(self) -> None:
        pass

    def extract(self, head: Volume, what: str) -> Mask:
        return np.asarray(ndimage.binary_fill_holes(head.voxels > 0))


def images(data: Path, patient: str) -> dict[str, Volume]:
    names = {"FLAIR": "FLAIR", "T1w": "T1w", "lesion": "lesion_mask"}
    folder = data / "openms" / patient
    return {name: reorient(read_volume(folder / f"{file}.nii.gz")) for name, file in names.items()}


def check(flair: Volume, t1w: Volume, lesion: Volume | None) -> Checked:
    raw = Raw(flair, t1w, lesion)
    made = standardise(raw, Recipe(interpolation="linear"), StrippedBefore())
    return judge("c1", measure(raw, made, Trained()).figures, default_limits())


def failed(checked: Checked) -> set[str]:
    return {finding.figure for finding in checked.findings if finding.verdict is Verdict.FAIL}


def test_a_real_pair_does_not_fail(data: Path) -> None:
    scans = images(data, "patient07")
    checked = check(scans["FLAIR"], scans["T1w"], scans["lesion"])
    assert checked.verdict is not Verdict.FAIL, checked.findings
    assert checked.figures["lesion.volume"] == pytest.approx(1.3, abs=0.01)
    assert checked.figures["FLAIR.snrd"] is None, "its air was cut away"


def test_a_dataset_is_checked_in_processes_of_its_own(data: Path, tmp_path: Path) -> None:
    case = Workspace.of(tmp_path, "ms-trial").case("p07-v1")
    with case.filling("raw") as fresh:
        for name, image in images(data, "patient07").items():
            write_volume(image, fresh / f"{name}.nii.gz")
    write_json(case.folder / "source.json", {"patient": "p07", "scanner": {"id": "d1"}, "split": ""})
    case.record(Entry(Step.IMPORT, now_utc()))
    (checked,) = check_quality(tmp_path, "ms-trial", hands=1)
    assert checked.verdict is Verdict.PASS, checked.findings
    assert case.standing.state is State.CHECKED
    assert sorted(file.name for file in (case.folder / "pictures").iterdir()) == [
        "after.webp",
        "before.webp",
        "flair.webp",
        "mosaic.webp",
    ]
    assert check_quality(tmp_path, "ms-trial", hands=1) == (checked,), "kept, not measured again"


def test_a_brain_that_is_cut_off_is_found(data: Path) -> None:
    scans = images(data, "patient07")
    top = int(np.flatnonzero(scans["FLAIR"].voxels.any(axis=(0, 1))).max()) - 25
    cut = Volume(scans["FLAIR"].voxels[:, :, :top].copy(), scans["FLAIR"].affine)
    assert "FLAIR.cut_top" in failed(check(cut, scans["T1w"], None))


def test_left_and_right_that_do_not_agree_are_found(data: Path) -> None:
    scans = images(data, "patient07")
    mirrored = scans["T1w"].like(scans["T1w"].voxels[::-1].copy())
    assert "pair.shared_mirrored" in failed(check(scans["FLAIR"], mirrored, None))


def test_swapped_images_are_found(data: Path) -> None:
    scans = images(data, "patient07")
    assert "pair.flair_below_t1w" in failed(check(scans["T1w"], scans["FLAIR"], None))


def test_images_of_two_people_are_found(data: Path) -> None:
    one, other = images(data, "patient07"), images(data, "patient26")
    assert {"pair.overlap", "pair.shared", "pair.shared_mirrored"} & failed(check(one["FLAIR"], other["T1w"], None))


def test_thick_slices_are_found_and_a_defaced_head_has_a_brain(data: Path) -> None:
    from msfl.imaging.quality.geometry import geometry

    folder = data / "openms" / "raw" / "patient04"
    flair, t1w = (reorient(read_volume(folder / f"study1_{name}.nii.gz")) for name in ("FLAIR", "T1W"))
    find = extractor("deepbet")
    flair_brain, t1w_brain = find.extract(flair, "FLAIR"), find.extract(t1w, "T1w")
    figures = {f"FLAIR.{name}": value for name, value in geometry(flair, flair_brain).items()}
    assert {"FLAIR.spacing_min", "FLAIR.spacing_max"} <= failed(judge("c1", figures, default_limits()))
    a, b = (float(np.count_nonzero(m)) * v.voxel_ml for m, v in ((flair_brain, flair), (t1w_brain, t1w)))
    assert 1 - abs(a - b) / (a + b) > 0.98
    found = register(t1w, flair, t1w_brain, flair_brain, Registration())
    points = np.argwhere(flair_brain)[::997]
    points = np.c_[points, np.ones(len(points))] @ flair.affine.T
    truth = read_rigid(folder / "study1_T1W_intrastudy_to_FLAIR.txt")
    assert np.linalg.norm((points @ (found.matrix - truth.matrix).T)[:, :3], axis=1).mean() < 1.0
