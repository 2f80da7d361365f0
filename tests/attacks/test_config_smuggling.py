"""A job cannot carry a setting past the release's table and the policy's bounds, whatever it dresses it as."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes.governance import POLICY_YAML, World, edit
from msfl.policies.decide import Verdict
from msfl.policies.documents import Bound, JobSpec
from msfl.policies.encoding import Malformed, encode, load_json
from msfl.policies.refusals import Code, Refusal
from msfl.policies.resolve import profile_flaws, resolve_config


def job_with(config: dict[str, Any]) -> JobSpec:
    return World().job.model_copy(update={"config": config})


def resolved_code(config: dict[str, Any]) -> Code:
    refusal = resolve_config(job_with(config), World().statement)
    assert isinstance(refusal, Refusal)
    assert World().decide(job=job_with(config)).verdict is Verdict.REFUSE
    return refusal.code


@pytest.mark.parametrize("key", ["network", "env", "entrypoint", "command", "mounts", "__class__", "Initial_lr"])
def test_a_key_that_the_release_does_not_know_is_refused(key: str) -> None:
    assert resolved_code({key: "host"}) is Code.CONFIG_KEY_UNKNOWN


@pytest.mark.parametrize("key", ["rounds", "seed", "strategy", "profile"])
def test_a_run_key_has_one_place_only(key: str) -> None:
    assert resolved_code({key: 1}) is Code.CONFIG_KEY_UNKNOWN


@pytest.mark.parametrize(
    "config",
    [
        {"local_epochs": True},
        {"local_epochs": 1.0},
        {"local_epochs": "1"},
        {"local_epochs": None},
        {"local_epochs": (1,)},
        {"local_epochs": 10**400},
        {"local_epochs": 0},
        {"initial_lr": True},
        {"initial_lr": "0.01"},
        {"initial_lr": float("nan")},
        {"initial_lr": float("inf")},
        {"initial_lr": 10**400},
        {"initial_lr": -0.1},
        {"deep_supervision": 1},
        {"deep_supervision": "true"},
        {"initial_lr": {"value": 0.01}},
    ],
)
def test_a_value_of_another_type_is_refused(config: dict[str, Any]) -> None:
    assert resolved_code(config) is Code.CONFIG_VALUE_INVALID


@pytest.mark.parametrize(
    "text",
    [
        '{"initial_lr": 1e999}',
        '{"initial_lr": NaN}',
        '{"initial_lr": 0.01, "initial_lr": 0.9}',
        '{"initial_lr": {"value": 0.01}}',
        '{"Initial-LR": 0.01}',
        '{"initial_lr": [[0.01]]}',
    ],
)
def test_what_is_no_config_does_not_pass_as_a_job(text: str) -> None:
    spec = json.loads(encode(World().job))
    spec["config"] = "CONFIG"
    data = json.dumps(spec).replace('"CONFIG"', text).encode()
    with pytest.raises(Malformed):
        load_json(data, JobSpec, "job")


def test_an_extra_member_of_the_job_is_refused() -> None:
    spec = {**json.loads(encode(World().job)), "image": "evil:latest"}
    with pytest.raises(Malformed, match="unknown key"):
        load_json(json.dumps(spec).encode(), JobSpec, "job")


def test_an_integer_where_a_number_is_meant_becomes_that_number() -> None:
    config = resolve_config(job_with({"initial_lr": 1}), World().statement)
    assert not isinstance(config, Refusal)
    assert (type(config["initial_lr"]), config["initial_lr"]) == (float, 1.0)


def test_true_is_not_one_in_a_policy_either() -> None:
    statement = World().statement
    text = edit(POLICY_YAML, "deep_supervision: {enum: [true, false]}", "deep_supervision: {enum: [1, 0]}")
    assert statement.config["deep_supervision"].type == "boolean"
    decision = World(policy_yaml=text).decide()
    assert decision.refusal is not None
    assert decision.refusal.code is Code.CONFIG_OUT_OF_RANGE


def test_a_list_is_bounded_element_by_element() -> None:
    world = World()
    statement = world.statement.model_copy(
        update={
            "config": {**world.statement.config, "patch": Bound(type="integers", min=8, max=64)},
            "profiles": {"full": {**world.statement.profiles["full"], "patch": (32, 32, 32)}},
        }
    )
    good = resolve_config(job_with({"patch": (8, 64, 32)}), statement)
    assert not isinstance(good, Refusal)
    assert good["patch"] == [8, 64, 32]
    for patch in ((8, 65, 8), (8, True, 8), (8, 8.0, 8), ("8",)):
        assert isinstance(resolve_config(job_with({"patch": patch}), statement), Refusal)


def test_a_profile_that_leaves_a_key_unset_is_refused() -> None:
    world = World()
    statement = world.statement.model_copy(update={"profiles": {"full": {"initial_lr": 0.01}}})
    assert [flaw.code for flaw in profile_flaws(statement)] == [Code.CONFIG_VALUE_INVALID]
    assert profile_flaws(world.statement) == ()
    refusal = resolve_config(world.job, statement)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.CONFIG_VALUE_INVALID
