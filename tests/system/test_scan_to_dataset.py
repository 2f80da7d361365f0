"""The whole road on real patients: DICOM with a drawn mask in, a published dataset out, nobody's name anywhere.

The images are openms patients 07 and 26 (Lesjak et al. 2018, CC-BY) and two heads (`MSFL_TEST_DATA`), written as DICOM.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from nibabel.affines import apply_affine

from fakes.segmentations import openms_as_dicom
from msfl.gateway.datasets import changed_file
from msfl.gateway.home import Home
from msfl.imaging.custodian import import_source, publish
from msfl.imaging.deidentify.deface import without_face
from msfl.imaging.deidentify.nifti import read_volume
from msfl.imaging.importing import look_at_head
from msfl.imaging.quality.control import check_quality
from msfl.imaging.split import Part
from msfl.imaging.workspace import Workspace, read_json

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.full]
LOADS_ML = {"patient07": 1.3, "patient26": 8.2}  # as published with the data


@pytest.fixture(scope="module")
def data() -> Path:
    root = os.environ.get("MSFL_TEST_DATA")
    if not root:
        pytest.skip("no real scans: set MSFL_TEST_DATA to the folder that holds openms/ and heads/")
    return Path(root)


def test_two_patients_from_the_scanner_to_the_federation(tmp_path: Path, data: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    for name in LOADS_ML:
        openms_as_dicom(data, name, source)
    brought = import_source(home, "ms-trial", source)
    assert [o.verdict for o in brought.outcomes] == ["imported"] * 2
    verdicts = check_quality(home, "ms-trial")
    assert {checked.final.value for checked in verdicts} <= {"pass", "warn"}
    made = publish(home, "ms-trial", site="site-a")
    assert sorted(part.value for part in made.parts.values()) == [Part.TEST.value, Part.TRAIN.value]
    workspace = Workspace.of(home, "ms-trial")
    loads = sorted(read_json(case.folder / "final" / "final.json")["load_ml"] for case in workspace.cases())
    assert loads == pytest.approx(sorted(LOADS_ML.values()), abs=0.06)
    record = Home(home).dataset("ms-trial")
    assert record == made.record
    assert changed_file(made.record, workspace.nnunet) is None
    for case in workspace.cases():
        brain = read_volume(case.standard("brain")).voxels > 0
        for name in ("FLAIR", "T1w"):
            before, after = read_volume(case.standard(name)), read_volume(case.folder / "final" / f"{name}.nii.gz")
            assert (before.voxels[brain] == after.voxels[brain]).all()


@pytest.mark.parametrize("name", ["T1w", "FLAIR"])
def test_a_heads_contrast_is_seen_and_its_face_taken_off(data: Path, name: str) -> None:
    from msfl.imaging.brain import extractor

    head = read_volume(data / "heads" / f"{name}_head.nii.gz")
    assert look_at_head(head).value == name
    brain = extractor("deepbet").extract(head, name)
    kept = without_face(head, brain)
    assert kept[brain].all()
    # What lies in front of nearly all of the brain, level with its lower half and below: eyes, nose, mouth.
    places = apply_affine(head.affine, np.argwhere(head.voxels > np.percentile(head.voxels, 60)))
    inside = apply_affine(head.affine, np.argwhere(brain))
    low = places[:, 2] < np.median(inside[:, 2])
    face = places[low & (places[:, 1] > inside[:, 1].max() - 5)]
    there = np.rint(apply_affine(np.linalg.inv(head.affine), face)).astype(int)
    assert len(there) > 1000
    assert kept[tuple(there.T)].mean() < 0.35
