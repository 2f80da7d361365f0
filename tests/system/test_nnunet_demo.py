"""The main job with nnU-Net itself: `msfl demo` on a small setting, on made-up and on real anatomy, as users run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from msfl.evaluation.report import check_report, read_report

pytestmark = [pytest.mark.system, pytest.mark.slow]

SMALL = ("--rounds", "2", "--batches", "4")


def demo(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "msfl.sdk.main", "demo", "--runs", str(folder), "--name", "run", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    report = read_report(folder / "run")
    check_report(report)
    return report


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("generated")
    return folder / "run", demo(folder, *SMALL)


def test_three_sites_train_one_nnunet_and_every_model_is_tested_everywhere(
    generated: tuple[Path, dict[str, Any]],
) -> None:
    folder, report = generated
    sites = {"site-a", "site-b", "site-c"}
    assert set(report["evaluation"]) == {"federated", *(f"local:{s}" for s in sites)}
    assert all(set(tested) == sites for tested in report["evaluation"].values())
    assert all(entry["n"] == 4 for tested in report["evaluation"].values() for entry in tested.values())
    assert [r["round"] for r in report["rounds"]] == [1, 2]
    assert report["plan"]["patch_size"] == [32, 32, 32]
    assert {d["setting"] for d in report["deviations"]} >= {"patch_size", "base_features", "initial_lr", "rounds"}
    assert set(report["overlays"]) == sites
    for name in ("report.html", "model.zip", "audit/site-a.jsonl", "figures/rounds.png", "figures/matrix.png"):
        assert (folder / name).stat().st_size > 0
    assert report["peak_rss_mib"]["all processes"] < 6 * 1024


def test_stock_nnunet_installs_the_exported_model_and_predicts_with_it(
    generated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = generated
    roots = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for root in roots.values():
        root.mkdir()
    environment = {**os.environ, **{k: str(v) for k, v in roots.items()}, "nnUNet_def_n_proc": "1"}
    programs = Path(sys.executable).parent

    def run(*command: str) -> None:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]

    run(str(programs / "nnUNetv2_install_pretrained_model_from_zip"), str(folder / "model.zip"))
    site = folder / "sites" / "site-a" / "data" / "site-a"
    case = sorted(p.name.removesuffix(".nii.gz") for p in (site / "labelsTs").glob("*.nii.gz"))[0]
    given, out = tmp_path / "in", tmp_path / "out"
    given.mkdir()
    for channel in ("0000", "0001"):
        shutil.copyfile(site / "imagesTs" / f"{case}_{channel}.nii.gz", given / f"{case}_{channel}.nii.gz")
    run(
        str(programs / "nnUNetv2_predict"), "-i", str(given), "-o", str(out), "-d", "501", "-c", "3d_fullres",
        "-f", "all", "-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1", "-step_size", "1.0",
    )  # fmt: skip
    predicted = nib.load(out / f"{case}.nii.gz")
    truth = nib.load(site / "labelsTs" / f"{case}.nii.gz")
    assert predicted.shape == truth.shape
    assert np.allclose(predicted.affine, truth.affine, atol=1e-3)
    assert set(np.unique(np.asarray(predicted.dataobj))) <= {0, 1}


def test_the_exported_model_is_tensors_and_plain_values(generated: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import torch

    folder, _ = generated
    with zipfile.ZipFile(folder / "model.zip") as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("checkpoint_final.pth")]
        archive.extract(name, tmp_path)
    checkpoint = torch.load(tmp_path / name, weights_only=True)  # refuses anything that could run code
    assert checkpoint["trainer_name"] == "nnUNetTrainer"


def reduced_cohort(target: Path) -> Path:
    """A few cases of each site of the real cohort: copies, in the test's own folder."""
    root = os.environ.get("MSFL_TEST_DATA")
    if not root or not (Path(root) / "cohort").is_dir():
        pytest.skip("no real cohort: set MSFL_TEST_DATA to the folder that holds cohort/")
    for site, n_train in (("site-a", 5), ("site-b", 6), ("site-c", 5), ("real-test", 0)):
        source = Path(root) / "cohort" / site
        cases = sorted(p.name.removesuffix(".nii.gz") for p in source.glob("labelsTr/*.nii.gz"))[:n_train]
        tested = sorted(p.name.removesuffix(".nii.gz") for p in source.glob("labelsTs/*.nii.gz"))[:2]
        for split, chosen in (("Tr", cases), ("Ts", tested)):
            for case in chosen:
                for part, pattern in (("images", f"{case}_*.nii.gz"), ("labels", f"{case}.nii.gz")):
                    (target / site / f"{part}{split}").mkdir(parents=True, exist_ok=True)
                    for file in (source / f"{part}{split}").glob(pattern):
                        shutil.copyfile(file, target / site / f"{part}{split}" / file.name)
        description = json.loads((source / "dataset.json").read_text()) | {"numTraining": len(cases)}
        (target / site / "dataset.json").write_text(json.dumps(description))
    return target


@pytest.mark.full
def test_real_brains_and_a_site_that_only_evaluates(tmp_path: Path) -> None:
    data = reduced_cohort(tmp_path / "data")
    report = demo(tmp_path / "runs", "--data", str(data), *SMALL)
    assert report["data"]["kind"] == "user"
    assert report["sites"]["real-test"]["role"] == "evaluate-only"
    assert set(report["evaluation"]["federated"]) == {"site-a", "site-b", "site-c", "real-test"}
    assert "local:real-test" not in report["evaluation"]
    assert all("real-test" not in r["sites"] for r in report["rounds"])


@pytest.mark.full
def test_the_same_spec_on_the_same_data_gives_the_same_nnunet_to_the_bit(
    generated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, first = generated
    second = demo(tmp_path, *SMALL)
    assert second["final_weights_sha256"] == first["final_weights_sha256"]
    assert second["evaluation"] == first["evaluation"]


@pytest.mark.full
def test_the_demo_reaches_its_figures(tmp_path: Path) -> None:
    """On an idle machine with two cores: five minutes, 6 GiB, Dice 0.6 on data that no threshold solves."""
    from msfl.imaging.oracle import oracle_threshold_dice

    report = demo(tmp_path)
    assert report["timings"]["total"] <= 300
    assert report["overhead_share"] <= 0.25
    assert report["peak_rss_mib"]["all processes"] <= 6 * 1024
    federated = [entry["dice"]["mean"] for entry in report["evaluation"]["federated"].values()]
    assert np.mean(federated) >= 0.6
    for site in report["sites"]:
        folder = tmp_path / "run" / "sites" / site / "data" / site
        oracle = []
        for label in sorted((folder / "labelsTs").glob("*.nii.gz")):
            flair = folder / "imagesTs" / label.name.replace(".nii.gz", "_0000.nii.gz")
            truth = np.asarray(nib.load(label).dataobj)
            oracle.append(oracle_threshold_dice(np.asarray(nib.load(flair).dataobj), truth))
        assert 0.2 <= np.mean(oracle) <= 0.65
