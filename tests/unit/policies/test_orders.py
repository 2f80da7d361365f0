"""Which orders a job asks for, and which it does not."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.governance import World
from msfl.policies.decide import Request
from msfl.policies.orders import unasked

WORLD = World()
TRAINS = WORLD.request()  # of 50 rounds, with a baseline
EVALUATES = WORLD.request(
    job=WORLD.job.model_copy(update={"evaluate_only": ("site-a/ms-trial",)}),
)
PLAIN = WORLD.request(job=WORLD.job.model_copy(update={"baseline": None}))


def code(asked: Request, verb: str, round: int = 0, task: str = "", **document: Any) -> str:
    refusal = unasked(asked, task or f"{verb}/{round}", verb, round, document)
    return "" if refusal is None else refusal.code.value


@pytest.mark.parametrize(
    ("verb", "round", "document"),
    [
        ("start", 0, {}),
        ("fingerprint", 0, {}),
        ("prepare", 0, {}),
        ("train", 1, {"stream": "federated"}),
        ("train", 50, {"stream": "federated"}),
        ("train", 0, {"stream": "local", "rounds": 50}),
        ("evaluate", 50, {"split": "validation", "candidates": ["federated"]}),
        ("evaluate", 3, {"split": "test"}),
    ],
)
def test_all_that_a_run_needs(verb: str, round: int, document: dict[str, Any]) -> None:
    assert code(TRAINS, verb, round, **document) == ""


@pytest.mark.parametrize("verb", ["train", "evaluate", "prepare", "start"])
def test_no_order_goes_beyond_the_jobs_rounds(verb: str) -> None:
    assert code(TRAINS, verb, 51) == "round_not_in_job"


@pytest.mark.parametrize("rounds", [51, 10**9, "1", True, 1.0, None, [1]])
def test_a_local_model_has_no_more_rounds_than_the_job(rounds: object) -> None:
    assert code(TRAINS, "train", 0, stream="local", rounds=rounds) == "round_not_in_job"


def test_training_is_of_the_kind_that_its_round_says() -> None:
    """Rounds are counted where the stream is federated: without a number it would not be counted."""
    assert code(TRAINS, "train", 0, stream="federated") == "task_not_in_job"
    assert code(TRAINS, "train", 1, stream="local", rounds=1) == "task_not_in_job"
    assert code(TRAINS, "train", 1, stream=["federated"]) == "task_not_in_job"
    assert code(PLAIN, "train", 0, stream="local", rounds=1) == "task_not_in_job"
    assert code(PLAIN, "train", 1, stream="federated") == ""


@pytest.mark.parametrize("document", [{}, {"stream": ""}, {"stream": None}])
def test_training_says_which_it_is(document: dict[str, Any]) -> None:
    assert code(TRAINS, "train", 0, rounds=1, **document) == "task_not_in_job"
    assert code(TRAINS, "train", 1, **document) == "task_not_in_job"


@pytest.mark.parametrize("verb", ["train", "fingerprint", "open", "", "TRAIN", "x" * 10_000])
def test_a_dataset_that_is_only_evaluated_on(verb: str) -> None:
    for round in (0, 1):
        assert code(EVALUATES, verb, round, stream="federated" if round else "local") == "task_not_in_job"


def test_such_a_dataset_shows_nothing_of_its_training_cases() -> None:
    assert code(EVALUATES, "prepare") == ""
    assert code(EVALUATES, "evaluate", 50, split="test") == ""
    assert code(EVALUATES, "evaluate", 50, split="validation") == "task_not_in_job"
    assert code(EVALUATES, "evaluate", 50, split="train") == "task_not_in_job"


def test_a_long_word_is_not_repeated() -> None:
    refusal = unasked(TRAINS, "t", "x" * 10_000, 0, {})
    assert refusal is not None
    assert len(refusal.message) < 300


@pytest.mark.parametrize("task", ["train/1", "train/2b", "train/02", "fingerprint", "x"])
def test_a_round_has_one_name(task: str) -> None:
    assert code(TRAINS, "train", 2, task, stream="federated") == "task_not_in_job"
