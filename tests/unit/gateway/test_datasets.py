"""A worker starts only on the data that were published."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from msfl.gateway.datasets import changed_file, closed_to
from msfl.policies.documents import DatasetRecord

FILES = ("dataset.json", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz", "labelsTs/b.nii.gz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


RECORD = DatasetRecord(
    id="ms-trial",
    site="site-a",
    version=f"sha256:{0:064x}",
    channel_names=("FLAIR",),
    labels={"background": 0, "lesion": 1},
    n_train=1,
    n_test=1,
    spacing_mm=(1.0, 1.0, 1.0),
    files={name: f"sha256:{hashlib.sha256(name.encode()).hexdigest()}" for name in FILES},
    kind="user",
)


def test_what_was_published_is_unchanged(folder: Path) -> None:
    assert changed_file(RECORD, folder) is None


def test_a_note_beside_the_data_changes_nothing(folder: Path) -> None:
    (folder / "participants.tsv").write_text("notes")
    assert changed_file(RECORD, folder) is None


@pytest.mark.parametrize("name", FILES)
def test_a_changed_or_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("other")
    assert changed_file(RECORD, folder) == name
    (folder / name).unlink()
    assert changed_file(RECORD, folder) == name


def test_a_case_that_came_since_is_named(folder: Path) -> None:
    (folder / "imagesTr" / "c_0000.nii.gz").write_text("new")
    assert changed_file(RECORD, folder) == "imagesTr/c_0000.nii.gz"


def test_what_another_user_may_not_read_is_named(folder: Path) -> None:
    somebody = folder.stat().st_uid + 1
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert closed_to(somebody, RECORD, folder) is None
    (folder / "labelsTr/a.nii.gz").chmod(0o640)
    assert closed_to(somebody, RECORD, folder) == folder / "labelsTr/a.nii.gz"
    (folder / "imagesTs").chmod(0o700)
    assert closed_to(somebody, RECORD, folder) == folder / "imagesTs", "before what is in it"
    assert closed_to(folder.stat().st_uid, RECORD, folder) is None, "to its owner nothing is closed"
    (folder / "labelsTr/a.nii.gz").unlink()
    (folder / "imagesTs").chmod(0o755)
    assert closed_to(somebody, RECORD, folder) is None, "what is not there is another's finding"
