"""A release of one's own: what is written is whole, works, and is never half there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from fakes.nnunet_plan import demo_plan
from msfl.learning.contract import ModelRefusal
from msfl.learning.new import new
from msfl.learning.nnunet.allowlist import local_training
from msfl.policies.encoding import load_yaml
from msfl.registry.build import Recipe, collect_code

app = typer.Typer()
app.command()(new)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def recipe_of(folder: Path) -> Recipe:
    return load_yaml((folder / "release.yaml").read_bytes(), Recipe, "release.yaml")


def test_the_new_release_is_a_whole_one(tmp_path: Path) -> None:
    said = run(tmp_path / "my-model", "--json")
    assert said.exit_code == 0
    recipe = recipe_of(tmp_path / "my-model")
    assert (recipe.name, recipe.version, recipe.entrypoint[2]) == ("my-model", "0.1.0", "msfl.my_model")
    import msfl

    portions = (*map(Path, msfl.__path__), tmp_path / "my-model" / "msfl")
    code = collect_code(recipe.code, portions)
    assert {name for name in code if "my_model" in name} == {
        f"msfl/my_model/{module}.py" for module in ("__init__", "__main__", "cases", "fingerprint", "model")
    }
    assert not any(b"msfl.learning.logistic" in text for text in code.values())
    assert json.loads(said.stdout)["files"] == sorted(
        p.relative_to(tmp_path / "my-model").as_posix() for p in (tmp_path / "my-model").rglob("*") if p.is_file()
    )


@pytest.mark.slow
def test_its_own_tests_pass(tmp_path: Path) -> None:
    run(tmp_path / "my-model")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=tmp_path / "my-model", env={"PYTHONPATH": "."}, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["My Model", "x_y", "-a", "a" * 65])
def test_a_name_that_no_release_may_have_is_refused(tmp_path: Path, name: str) -> None:
    said = run(tmp_path / "folder", "--name", name)
    assert said.exit_code == 2
    assert "cannot be a release's name" in said.stderr
    assert not (tmp_path / "folder").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert run(tmp_path / "mine").exit_code == 1
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


# ------------------------------------------------------------------ nnU-Net


def trained(folder: Path, name: str = "nnUNetTrainer_250epochs__myPlans__3d_fullres", **change: Any) -> Path:
    plans = demo_plan()["nnunet"]
    plans["configurations"]["3d_fullres"].update({"data_identifier": "myPlans_3d_fullres", **change})
    (folder / name).mkdir()
    (folder / name / "plans.json").write_text(json.dumps(plans))
    return folder / name


def test_a_local_nnunet_becomes_a_release(tmp_path: Path) -> None:
    results = trained(tmp_path, patch_size=[96, 160, 128], batch_size=3)
    assert run(tmp_path / "ours", "--nnunet", results).exit_code == 0
    recipe = recipe_of(tmp_path / "ours")
    assert recipe.entrypoint[2] == "msfl.learning.nnunet"
    full, demo = recipe.profiles["full"], recipe.profiles["demo"]
    assert (full["rounds"], full["batches_per_epoch"], full["patch_size"]) == (250, 250, 0)
    assert (demo["patch_size"], demo["batch_size"], demo["base_features"]) == (160, 3, 8)
    assert "nnUNetTrainer_250epochs" in recipe.description


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("nnUNetTrainerEvil__nnUNetPlans__3d_fullres", {}, "only change epochs"),
        ("nnUNetTrainer__nnUNetPlans__2d", {}, "3d_fullres"),
        ("nnUNetTrainer__nnUNetPlans__3d_fullres", {"preprocessor_name": "os.system"}, "preprocessor_name"),
        ("nnUNetTrainer__nnUNetPlans__3d_fullres", {"patch_size": [1, 1, 1]}, "patch_size"),
    ],
)
def test_what_the_release_would_not_train_is_said(tmp_path: Path, name: str, change: dict[str, Any], why: str) -> None:
    said = run(tmp_path / "ours", "--nnunet", trained(tmp_path, name, **change))
    assert said.exit_code == 1
    assert why in said.stderr
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("plans", [None, [], {}, {"configurations": []}, {"configurations": {"3d_fullres": 3}}])
def test_plans_that_are_none(plans: object) -> None:
    with pytest.raises(ModelRefusal, match="plans"):
        local_training("nnUNetTrainer", "3d_fullres", plans)
