"""A centre that wants more updates of a site than `max_rounds` of its policy: the same round on other weights.

It takes all bytes of an update, says that nobody waits for it, and orders the round again; it asks for an old one when
newer ones are done; it orders one of many runs at the same moment. A round that is lost in earnest is done again.

The worker and the sealed inputs are made up here: each story says which model comes in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.governed_sites import PATIENCE_S, GovernedSite
from msfl.gateway.ledger import SENT_FOR_ONE
from msfl.gateway.link import NotWanted
from msfl.gateway.machine import Stage
from msfl.gateway.task_files import Sealed, TaskFiles
from msfl.policies.refusals import Code
from msfl.protos.messages import TaskOrder
from msfl.protos.tasklink import Result, Task
from msfl.runtime.hosted import HostedProcess, ProcessGone

POLICY = "ms-trial-lesion-segmentation"
SPENT = Code.ROUND_BUDGET_SPENT.value


class Centre:
    """`model` is what comes in next; `trained` what was trained on, task by task; `loses` workers, one by one."""

    def __init__(self, site: GovernedSite, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site = site
        self.model: str = "the right one"
        self.trained: list[str] = []
        self.loses = 0
        monkeypatch.setattr(TaskFiles, "take_inputs", lambda _, order, *__: (dict(order.document), {}, 0))
        monkeypatch.setattr(TaskFiles, "inputs_hash", lambda *_: self.model)
        monkeypatch.setattr(TaskFiles, "gate_and_seal", self._seal)
        monkeypatch.setattr(HostedProcess, "call", self._work)

    def _work(self, task: Task, *_: object, **__: object) -> Result:
        if self.loses:
            self.loses -= 1
            raise ProcessGone("process_ended", self.site.home.root / "worker.log")
        self.trained.append(task.task_id)
        return Result(task.task_id, {"n_train": 8}, {})

    def _seal(self, accepted: Any, order: TaskOrder, *_: object) -> Sealed:
        file: Path = self.site.home.run_folder(order.run_id) / "result.sealed"
        file.write_bytes(b"x" * 100)
        return Sealed(file, "blake3:0", ("n_train",), (), "float32")

    def allow(self, max_rounds: int) -> None:
        text = self.site.world.policy_yaml.replace("max_rounds: 300", f"max_rounds: {max_rounds}")
        self.site.sign_policy(4, text=text)

    def starts(self, run_id: str = "run-1", rounds: int = 1) -> None:
        assert self.site.offer(run_id, rounds=rounds) == "allow"
        self.site.order()
        assert self.site.failure() == ""

    def round(self, n: int = 1) -> str:
        self.site.order("train", n, stream="federated")
        return self.site.failure()

    def wants_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It takes the whole update first."""

        def upload(run_id: str, key: str, file: Path) -> None:
            self.site.line.uploads.append(key)
            raise NotWanted("FAILED_PRECONDITION", "nobody waits for it")

        monkeypatch.setattr(self.site.line, "upload", upload)

    def takes(self, update: int) -> None:
        """Order round 1 once more, and wait until so many updates of it were sent, and the site has heard the rest."""
        self.site.order("train", 1, stream="federated")
        run = self.site.runs[-1]
        wait_for(lambda: len(self.site.line.uploads) == update and run._state.stage is Stage.IDLE)


def wait_for(what: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.fixture
def centre(site: GovernedSite, monkeypatch: pytest.MonkeyPatch) -> Centre:
    return Centre(site, monkeypatch)


def test_a_round_on_other_weights_is_another_round(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    centre.allow(max_rounds=2)
    centre.starts()
    centre.wants_none(monkeypatch)
    for n in (1, 2):
        centre.model = f"made up, {n}"
        centre.takes(n)
    centre.model = "made up, 3"
    assert centre.round() == SPENT
    assert len(centre.site.line.uploads) == len(centre.trained) == 2
    assert centre.site.audited("task failed") == [SPENT]


def test_an_update_that_is_lost_again_and_again_costs_a_round_in_the_end(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    centre.allow(max_rounds=2)
    centre.starts()
    centre.wants_none(monkeypatch)
    for n in range(1, SENT_FOR_ONE + 1):
        centre.takes(n)
        assert centre.site.ledger.rounds(POLICY) == 1
    for n in range(SENT_FOR_ONE + 1, 2 * SENT_FOR_ONE + 1):
        centre.takes(n)
        assert centre.site.ledger.rounds(POLICY) == 2
    assert centre.round() == SPENT


def test_an_old_round_is_not_trained_again_however_long_ago_it_was(centre: Centre) -> None:
    centre.allow(max_rounds=40)
    centre.starts(rounds=20)
    for again in ("", "with other weights"):
        centre.model = again
        for n in range(1, 21):
            assert centre.round(n) == ""
    assert centre.trained == [f"train/{n}" for n in range(1, 21)]
    assert len(centre.site.line.uploads) == 20


def test_runs_that_train_at_the_same_moment_share_one_budget(centre: Centre) -> None:
    site = centre.site
    centre.allow(max_rounds=1)
    for n in range(5):
        assert site.offer(f"run-{n}", rounds=1) == "allow"
    for run in site.runs:
        run.hear(TaskOrder(run.run_id, "start/0", "start", 0, 1, {}, ()))
        assert site.failure() == ""
    for run in site.runs:
        run.hear(TaskOrder(run.run_id, "train/1", "train", 1, 1, {"stream": "federated"}, ()))
    assert sorted(site.failure() for _ in site.runs) == ["", SPENT, SPENT, SPENT, SPENT]
    assert len(site.line.uploads) == 1
    assert site.ledger.rounds(POLICY) == 1


def test_the_last_round_of_the_budget_is_done_again_when_its_worker_dies(centre: Centre) -> None:
    centre.allow(max_rounds=1)
    centre.starts()
    centre.loses = 2
    assert centre.round() == ""
    assert centre.trained == ["train/1"]
    assert centre.site.ledger.rounds(POLICY) == 1


def test_a_round_that_was_lost_with_its_run_is_done_again_on_the_same_model(centre: Centre) -> None:
    """Resumed: what was sealed before, nobody can open any more."""
    centre.starts(rounds=centre.site.world.job.rounds)
    assert centre.round() == ""
    centre.site.resend(2)
    assert centre.site.answered() == "allow"
    centre.site.order()
    assert centre.site.failure() == ""
    assert centre.round() == ""
    assert centre.trained == ["train/1", "train/1"]
    assert centre.site.ledger.rounds(POLICY) == 1
