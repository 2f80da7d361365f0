"""`msfl demo --data` on data that cannot be trained on: one clear line, exit code 1, and no federation was started."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fakes.federations import tiny_sites
from msfl.sdk.demo.processes import msfl

pytestmark = [pytest.mark.system, pytest.mark.slow]
Spoil = Callable[[Path], None]


def missing_channel(site: Path) -> None:
    (site / "imagesTr/TTr_001_0001.nii.gz").unlink()


def other_shape(site: Path) -> None:
    label = nibabel.load(site / "labelsTr/TTr_002.nii.gz")
    cut = np.asarray(label.dataobj)[:-1]
    nibabel.save(nibabel.Nifti1Image(cut, label.affine), site / "labelsTr/TTr_002.nii.gz")


def several_at_once(site: Path) -> None:
    other_shape(site)
    label = nibabel.load(site / "labelsTr/TTr_000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(label.dataobj) * 7, label.affine), site / "labelsTr/TTr_000.nii.gz")


def no_test_cases(site: Path) -> None:
    for part in ("imagesTs", "labelsTs"):
        for file in (site / part).iterdir():
            file.unlink()
        (site / part).rmdir()


def broken_description(site: Path) -> None:
    (site / "dataset.json").write_text('{"channel_names": ')


def demo(data: Path, runs: Path) -> subprocess.CompletedProcess[str]:
    command = msfl("demo", "--data", data, "--runs", runs, "--release", "logistic", "--rounds", "1")
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing_channel, ("TTr_001", "channel")),
        (several_at_once, ("TTr_002", "shape", "TTr_000", "7")),
        (no_test_cases, ("test",)),
        (broken_description, ("dataset.json",)),
    ],
)
def test_bad_data_is_one_clear_line_before_anything_starts(
    tmp_path: Path, spoil: Spoil, words: tuple[str, ...]
) -> None:
    tiny_sites(tmp_path / "data")
    spoil(tmp_path / "data/site-b")
    ended = demo(tmp_path / "data", tmp_path / "runs")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stdout + ended.stderr
    told = ended.stdout[ended.stdout.index("the demo cannot go on") :]
    for word in ("site-b", *words):
        assert word in told
    sites = tmp_path / "runs/demo/sites"
    assert not list(sites.glob("*/gateway"))
    assert not list((tmp_path / "runs/demo/logs").glob("gateway*"))
    assert not (tmp_path / "runs/demo/centre/runs.sqlite").exists()


@pytest.mark.parametrize("description", [None, {"channel_names": {}}])
def test_a_folder_without_a_site_to_train_on_is_said_at_once(
    tmp_path: Path, description: dict[str, object] | None
) -> None:
    (tmp_path / "data/site-a").mkdir(parents=True)
    if description is not None:
        (tmp_path / "data/site-a/dataset.json").write_text(json.dumps(description))
    ended = demo(tmp_path / "data", tmp_path / "runs")
    assert ended.returncode == 1
    assert "holds no site to train on" in " ".join(ended.stdout.split())
