"""The plan from merged histograms is the plan that nnU-Net makes from the pooled cases."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from fakes.nnunet_plan import GEOMETRIES, demo_plan
from msfl.learning.contract import ModelRefusal, Site
from msfl.learning.nnunet import allowlist
from msfl.learning.nnunet.fingerprint import Fingerprint, Geometry, count, merge
from msfl.learning.nnunet.settings import Settings

pytestmark = pytest.mark.slow  # importing nnU-Net takes seconds

NOWHERE = Path("/nowhere")
SITE = Site(
    "site-a", NOWHERE, NOWHERE, NOWHERE, ("FLAIR", "T1w"), {"background": 0, "lesion": 1}, ".nii.gz", (), (), ()
)


def settings(profile: str, **changes: Any) -> Settings:
    import msfl.learning.nnunet as release

    recipe = YAML(typ="safe").load(Path(release.__file__).with_name("release.yaml").read_text())
    return Settings.from_config({**recipe["profiles"][profile], **changes})


def plan_of(fingerprint: Fingerprint, chosen: Settings) -> dict[str, Any]:
    from msfl.learning.nnunet.planning import make_plan

    plan: dict[str, Any] = json.loads(json.dumps(make_plan(fingerprint, chosen)))
    allowlist.check(plan)
    return plan


def test_the_planner_still_makes_the_plan_that_other_tests_use() -> None:
    assert plan_of(count(SITE, GEOMETRIES), settings("demo")) == demo_plan()


def stock_plan(cases: list[Geometry], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What stock nnU-Net plans from the per-case lists, with nothing of msfl in between."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        (folder / variable / "Dataset501_msfl").mkdir(parents=True)
        monkeypatch.setenv(variable, str(folder / variable))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.setattr(ExperimentPlanner, "determine_reader_writer", lambda self: SimpleITKIO)
    dataset = {
        "channel_names": {"0": "FLAIR", "1": "T1w"}, "labels": {"background": 0, "lesion": 1},
        "numTraining": len(cases), "file_ending": ".nii.gz", "dataset": {},
    }  # fmt: skip
    fingerprint = {
        "spacings": [case.spacing for case in cases],
        "shapes_after_crop": [case.shape for case in cases],
        "foreground_intensity_properties_per_channel": {"0": {}, "1": {}},
        "median_relative_size_after_cropping": sorted(case.share for case in cases)[len(cases) // 2],
    }
    (folder / "nnUNet_raw" / "Dataset501_msfl" / "dataset.json").write_text(json.dumps(dataset))
    preprocessed = folder / "nnUNet_preprocessed" / "Dataset501_msfl"
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    ExperimentPlanner("Dataset501_msfl").plan_experiment()
    plan: dict[str, Any] = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    return plan


@pytest.mark.parametrize("seed", range(4))
def test_the_full_profile_is_the_stock_plan_of_the_pooled_cases(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    thick = seed % 2 == 1  # every second federation has thick slices, which take another way through the planner

    def case() -> Geometry:
        plane = draw.choice([0.8, 0.9375, 1.0, 1.2])
        slices = draw.choice([3.0, 4.0, 5.0]) if thick else draw.choice([0.9, 1.0, 1.1])
        height = draw.randint(28, 50) if thick else draw.randint(130, 190)
        shape = (height, draw.randint(150, 230), draw.randint(140, 200))
        return Geometry((slices, plane, plane), shape, draw.choice([0.5, 0.6]))

    sites = {f"site-{i}": [case() for _ in range(draw.randint(3, 9))] for i in range(3)}
    merged = merge({name: count(SITE, cases) for name, cases in sites.items()})
    ours = plan_of(merged, settings("full"))
    stock = stock_plan([case for cases in sites.values() for case in cases], tmp_path, monkeypatch)
    stock["configurations"]["3d_fullres"].pop("next_stage", None)
    assert ours["nnunet"]["configurations"] == {"3d_fullres": stock["configurations"]["3d_fullres"]}
    for key in ("transpose_forward", "original_median_shape_after_transp", "original_median_spacing_after_transp"):
        assert ours["nnunet"][key] == stock[key]


def test_the_demo_profile_caps_patch_and_width_and_nothing_else() -> None:
    full = plan_of(count(SITE, GEOMETRIES), settings("full"))
    demo = plan_of(count(SITE, GEOMETRIES), settings("demo", patch_size=16, base_features=4, convs_per_stage=1))
    configuration = demo["nnunet"]["configurations"]["3d_fullres"]
    network = configuration["architecture"]["arch_kwargs"]
    assert configuration["patch_size"] == [16, 16, 16]
    assert network["features_per_stage"] == [4, 8, 16]
    assert network["n_conv_per_stage"] == [1, 1, 1]
    assert network["n_conv_per_stage_decoder"] == [1, 1]
    configuration.update(
        {key: full["nnunet"]["configurations"]["3d_fullres"][key] for key in ("patch_size", "architecture")}
    )
    configuration["batch_size"] = full["nnunet"]["configurations"]["3d_fullres"]["batch_size"]
    assert {**demo, "profile": "full", "summary": full["summary"]} == full


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"channel_names": ("CT",)}, "channel_not_supported"),
        ({"channel_names": ("FLAIR", "noNorm")}, "channel_not_supported"),
        ({"file_ending": ".npy"}, "file_ending_not_supported"),
    ],
)
def test_what_this_release_cannot_plan_is_refused_with_a_reason(changes: dict[str, Any], code: str) -> None:
    from dataclasses import replace

    with pytest.raises(ModelRefusal) as refusal:
        plan_of(count(replace(SITE, **changes), GEOMETRIES), settings("demo"))
    assert refusal.value.code == code
