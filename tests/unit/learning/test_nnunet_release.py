"""The release's recipe agrees with itself and with the code: profiles, bounds, settings, declared outputs."""

from __future__ import annotations

import ast
import json
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

import msfl
from fakes.nnunet_plan import GEOMETRIES
from msfl.learning.contract import ModelRefusal, Site
from msfl.learning.nnunet.fingerprint import count
from msfl.learning.nnunet.settings import Settings

RECIPE: dict[str, Any] = YAML(typ="safe").load((files("msfl.learning.nnunet") / "release.yaml").read_text())


@pytest.mark.parametrize("profile", ["full", "demo"])
def test_a_profile_sets_every_key_within_its_bounds(profile: str) -> None:
    values = RECIPE["profiles"][profile]
    assert set(values) == set(RECIPE["config"])
    for key, bound in RECIPE["config"].items():
        value = values[key]
        assert bound.get("min", value) <= value <= bound.get("max", value), key
        assert value in bound.get("enum", [value]), key
    Settings.from_config(values)


def test_the_full_profile_is_stock_nnunet_with_the_seed_studys_schedule() -> None:
    full = RECIPE["profiles"]["full"]
    schedule = (full["rounds"], full["local_epochs"], full["batches_per_epoch"])
    assert schedule == (50, 1, 250)
    assert (full["initial_lr"], full["momentum"], full["weight_decay"]) == (0.01, 0.99, 3e-5)
    assert full["oversample_foreground"] == 0.33
    own = ("patch_size", "base_features", "convs_per_stage", "batch_size", "inference_tile")
    assert [full[key] for key in own] == [0] * 5


def test_every_setting_is_a_config_key() -> None:
    assert {field.name for field in fields(Settings)} <= set(RECIPE["config"])


@pytest.mark.parametrize(
    "change", [{"rounds": "ten"}, {"rounds": True}, {"rounds": 1.5}, {"profile": "tiny"}, {"momentum": None}]
)
def test_settings_of_another_type_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelRefusal, match="config_invalid"):
        Settings.from_config({**RECIPE["profiles"]["demo"], **change})


def test_a_whole_number_is_a_number() -> None:
    assert Settings.from_config({**RECIPE["profiles"]["demo"], "momentum": 0}).momentum == 0.0


def test_the_seed_of_a_round_depends_on_seed_site_and_round() -> None:
    one = Settings.from_config(RECIPE["profiles"]["demo"])
    two = Settings.from_config({**RECIPE["profiles"]["demo"], "seed": 2})
    seeds = {s.round_seed(site, r) for s in (one, two) for site in ("site-a", "site-b") for r in (1, 2)}
    assert len(seeds) == 8
    assert one.round_seed("site-a", 1) == Settings.from_config(RECIPE["profiles"]["demo"]).round_seed("site-a", 1)


def declared(verb: str) -> jsonschema.Draft202012Validator:
    schema = RECIPE["outputs"][verb]["document"]
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_a_fingerprint_is_as_declared_and_carries_nothing_more() -> None:
    nowhere = Path("/nowhere")
    labels = {"background": 0, "lesion": 1}
    site = Site("site-a", nowhere, nowhere, nowhere, ("FLAIR", "T1w"), labels, ".nii.gz", (), (), ())
    document = json.loads(json.dumps(count(site, GEOMETRIES).to_json()))
    declared("fingerprint").validate(document)
    assert not declared("fingerprint").is_valid({**document, "cases": ["P_001"]})
    assert not declared("fingerprint").is_valid({**document, "axes": [*document["axes"][:2], [[10000, 40.5, 1]]]})


def test_results_are_as_declared_and_closed() -> None:
    trained = {"n_train": 4, "train_loss": -0.3, "seconds": 3.1}
    incoming = {"n_val": 1, "val_loss": None, "val_dice": 0.5}
    declared("prepare").validate({"n_train": 4, "n_val": 1, "n_test": 3})
    declared("train").validate(trained)
    declared("train").validate({**trained, "incoming": incoming})
    assert not declared("train").is_valid({**trained, "losses": [1.0, 2.0]})
    assert not declared("train").is_valid({**trained, "incoming": {**incoming, "case": "P_001"}})
    dice = {"mean": 0.5, "sd": 0.1, "median": 0.5, "histogram": [0] * 20}
    declared("evaluate").validate({"summaries": {"federated": {"n": 3, "dice": dice}, "local:site-a": {"n": 0}}})
    assert not declared("evaluate").is_valid({"summaries": {"P_001": {"n": 1}}})
    assert not declared("evaluate").is_valid({"summaries": {"federated": {"n": 1, "dice": {**dice, "values": [0.5]}}}})


def test_the_image_holds_every_module_that_the_release_imports() -> None:
    """Follow the imports from the entry point through the namespace; each must be named under `code`."""
    held = set(RECIPE["code"])
    todo, seen = ["msfl.learning.nnunet.__main__"], set()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        path = module.replace(".", "/")
        assert any(path == one.removesuffix(".py") or f"{path}/".startswith(f"{one}/") for one in held) or (
            f"{path}/__init__.py" in held
        ), f"{module} is imported but not in the image"
        path_here = _file(module)
        assert path_here is not None
        for node in ast.walk(ast.parse(path_here.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("msfl."):
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                todo += [name for name in [node.module, *inner] if _file(name)]


def _file(module: str) -> Path | None:
    """Where a module of the namespace lies, found without importing it."""
    inside = module.removeprefix("msfl.").replace(".", "/")
    candidates = [
        Path(portion) / name for portion in msfl.__path__ for name in (f"{inside}.py", f"{inside}/__init__.py")
    ]
    return next((path for path in candidates if path.is_file()), None)
