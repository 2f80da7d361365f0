"""What `msfl policy new` writes is a policy that the job it was written for passes, and nothing wider."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fakes.governance import NOW, World
from msfl.policies.decide import Verdict
from msfl.policies.documents import AssetPolicy, Bound, Isolation
from msfl.policies.encoding import Malformed, load_yaml
from msfl.policies.resolve import config_bounds
from msfl.policies.templates import policy_template
from msfl.policies.words import in_words, warnings

EXAMPLES = Path(__file__).parents[3] / "policies" / "examples"


def template(**choices: Any) -> str:
    world = World()
    return policy_template(world.statement, world.dataset, ["ada@uni.example"], NOW, **choices)


def test_the_template_allows_the_job_it_was_written_for() -> None:
    text = template(mode="auto", isolation=Isolation.SANDBOX)
    assert World(policy_yaml=text).decide().verdict is Verdict.ALLOW


def test_the_cautious_defaults() -> None:
    policy = load_yaml(template(reviewers=2).encode(), AssetPolicy)
    assert (policy.isolation, policy.proof, policy.approval.mode) == (Isolation.SANDBOX, "required", "confirm")
    assert (policy.outputs.local_model, policy.outputs.per_case_metrics) == (False, False)
    assert warnings(policy, NOW) == ()


def test_every_key_of_the_resolved_config_is_listed() -> None:
    policy = load_yaml(template().encode(), AssetPolicy)
    assert set(policy.config) == set(config_bounds(World().statement))
    assert set(World().request().resolved) <= set(policy.config)


def test_what_a_person_types_is_quoted() -> None:
    policy = load_yaml(template(purpose='Study "A": #1 – lésions\\').encode(), AssetPolicy)
    assert policy.purpose == 'Study "A": #1 – lésions\\'
    with pytest.raises(Malformed):
        template(auto_for=['x"], mode: auto, max_runs: 5, max_rounds: 9} #'])


def test_open_bounds_of_the_release_are_closed_to_what_its_profiles_use() -> None:
    statement = World().statement
    statement = statement.model_copy(
        update={
            "config": {
                **statement.config,
                "optimiser": Bound(type="string", description="which optimiser"),
                "patch": Bound(type="integers", nullable=True),
                "device": Bound(type="string", const="cpu"),
            },
            "profiles": {
                name: {
                    **profile,
                    "optimiser": "sgd",
                    "patch": None if name == "full" else (32, 32, 48),
                    "device": "cpu",
                }
                for name, profile in statement.profiles.items()
            },
        }
    )
    text = policy_template(statement, World().dataset, ["ada@uni.example"], NOW)
    policy = load_yaml(text.encode(), AssetPolicy)
    assert policy.config["optimiser"].enum == ("sgd",)
    assert "# which optimiser" in text
    assert (policy.config["patch"].enum, policy.config["patch"].nullable) == ((32, 48), True)
    assert policy.config["device"].const == "cpu"


def test_the_example_is_a_policy_that_a_custodian_may_sign() -> None:
    policy = load_yaml((EXAMPLES / "ms-trial-lesion-segmentation.yaml").read_bytes(), AssetPolicy)
    assert warnings(policy, NOW) == ()
    said = "\n".join(in_words(policy))
    assert "ada@uni.example of uni.example" in said
    assert "initial_lr: at least 0.0001, at most 0.05" in said
    assert "You confirm each run." in said


def test_what_deserves_a_second_look_is_said() -> None:
    text = template(isolation=Isolation.NONE, proof="optional", local_model=True, min_sites=1)
    text = re.sub(r"min_cases: .*", "min_cases: {train: 1, metrics: 2}", text)
    assert [look.path[0] for look in warnings(load_yaml(text.encode(), AssetPolicy), NOW)] == [
        "releases",
        "outputs",
        "privacy",
        "privacy",
        "privacy",
        "isolation",
        "proof",
    ]
