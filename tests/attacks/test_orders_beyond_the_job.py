"""A centre that orders what nobody asked for: further rounds, training where the job only evaluates, another split.

The policy would allow each of it for some job; the user signed another one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes.governed_sites import PATIENCE_S, GovernedSite
from msfl.gateway.task_files import TaskFiles
from msfl.learning import weights as weight_files
from msfl.protos.tasklink import Result, Task
from msfl.runtime.hosted import HostedProcess

ORDERS = [
    pytest.param("train", 4, {"stream": "federated"}, "round_not_in_job", id="a round more than the job has"),
    pytest.param("evaluate", 4, {"split": "test"}, "round_not_in_job", id="a model of a round that is not to be"),
    pytest.param("train", 0, {"stream": "local", "rounds": 4}, "round_not_in_job", id="a longer local model"),
    pytest.param("train", 0, {"stream": "federated"}, "task_not_in_job", id="a round that is not counted"),
    pytest.param("train", 0, {"rounds": 1}, "task_not_in_job", id="a local model that is not called one"),
    pytest.param("export", 0, {}, "task_not_in_job", id="a verb that there is not"),
]
EVALUATE_ONLY = [
    pytest.param("train", 1, {"stream": "federated"}, id="train"),
    pytest.param("train", 0, {"stream": "local", "rounds": 1}, id="train a local model"),
    pytest.param("fingerprint", 0, {}, id="fingerprint"),
    pytest.param("evaluate", 1, {"split": "validation"}, id="look at training cases"),
]


def refused(site: GovernedSite, code: str) -> None:
    assert site.failure() == code
    assert site.line.uploads == []
    assert site.audited("task begins") == []
    assert site.audited("run stopped") == [""]


@pytest.mark.parametrize(("verb", "round", "document", "code"), ORDERS)
def test_no_worker_starts_for_it(
    site: GovernedSite, verb: str, round: int, document: dict[str, Any], code: str
) -> None:
    assert site.offer(rounds=3) == "allow"
    site.order(verb, round, **document)
    refused(site, code)
    assert site.runtime.started == []
    assert site.audited("task refused") == [code]
    assert site.ledger.rounds("ms-trial-lesion-segmentation") == 0


@pytest.mark.parametrize(("verb", "round", "document", "code"), ORDERS)
def test_the_worker_that_is_up_does_not_do_it(
    site: GovernedSite, verb: str, round: int, document: dict[str, Any], code: str
) -> None:
    assert site.offer(rounds=3) == "allow"
    site.order()
    assert site.failure() == ""
    site.order(verb, round, **document)
    refused(site, code)
    assert site.runtime.ended.wait(PATIENCE_S)
    assert not site.runtime.busy.is_set()
    assert site.audited("task refused") == [code]


@pytest.mark.parametrize(("verb", "round", "document"), EVALUATE_ONLY)
def test_a_dataset_that_the_job_only_evaluates_on(
    site: GovernedSite, verb: str, round: int, document: dict[str, Any]
) -> None:
    assert site.offer(evaluate_only=("site-a/ms-trial",)) == "allow"
    site.order(verb, round, **document)
    refused(site, "task_not_in_job")
    assert site.runtime.started == []
    assert site.audited("task refused") == ["task_not_in_job"]


def test_what_comes_sealed_makes_an_order_no_wider(site: GovernedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters also come inside sealed inputs, and take the place of those in the order."""

    def take_inputs(self: TaskFiles, order: Any, *_: object) -> tuple[dict[str, Any], dict[str, str], int]:
        return {**order.document, "split": "validation"}, {}, 0

    monkeypatch.setattr(TaskFiles, "take_inputs", take_inputs)
    assert site.offer(evaluate_only=("site-a/ms-trial",)) == "allow"
    site.order("evaluate", 1, split="test", candidates=[])
    assert site.failure() == "task_not_in_job"
    assert site.line.uploads == []
    assert not site.runtime.busy.is_set(), "the worker was asked for it"
    assert site.audited("task failed") == ["task_not_in_job"]


def test_a_round_is_not_trained_once_more_under_another_name(site: GovernedSite) -> None:
    """Each time on other weights: the budget counts rounds, and a task that is done by its name."""
    assert site.offer(rounds=3) == "allow"
    site.order()
    assert site.failure() == ""
    site.order("train", 1, nth=2, stream="federated")
    refused(site, "task_not_in_job")
    assert not site.runtime.busy.is_set()


def test_a_local_model_stays_whatever_the_centre_calls_it(site: GovernedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy says `local_model: false`; the worker saves its model all the same, and the order says to send it."""

    def take_inputs(self: TaskFiles, order: Any, *_: object) -> tuple[dict[str, Any], dict[str, str], int]:
        weight_files.write(self.inbox / "000.safetensors", {"w": np.zeros(8, np.float32)})
        return dict(order.document), {"weights": "000.safetensors"}, 0

    def call(self: HostedProcess, task: Task, *_: object, **__: object) -> Result:
        weight_files.write(self.handle.folder / "outbox/weights.safetensors", {"w": np.arange(8, dtype=np.float32)})
        return Result(task.task_id, {"n_train": 8}, {"weights": "weights.safetensors"})

    monkeypatch.setattr(TaskFiles, "take_inputs", take_inputs)
    monkeypatch.setattr(HostedProcess, "call", call)
    site.put_release(outputs={"train": {"document": {"type": "object", "properties": {"n_train": {}}}}})
    assert site.offer(rounds=3, baseline="local") == "allow"
    site.order("train", 0, stream="local", rounds=1, send_weights=True)
    assert site.failure() == "output_blocked"
    assert site.line.uploads == []
    assert site.audited("result leaves") == []


def test_the_last_round_of_the_job_is_trained(site: GovernedSite) -> None:
    assert site.offer(rounds=3) == "allow"
    site.order("train", 3, stream="federated")
    assert site.runtime.busy.wait(PATIENCE_S)
    assert site.audited("task refused") == []
