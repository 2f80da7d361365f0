"""A result that was made before the custodian stopped the run, or revoked what it rests on, and would leave after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.governed_sites import GovernedSite
from msfl.gateway.task_files import Sealed, TaskFiles
from msfl.protos.messages import TaskOrder
from msfl.protos.tasklink import Result, Task
from msfl.runtime.hosted import HostedProcess

Event = Callable[[GovernedSite], None]


def revoked(site: GovernedSite) -> None:
    site.memory.say("release", site.digest, "cleo")


def withdrawn(site: GovernedSite) -> None:
    (site.home.root / "policies/one.dsse").unlink()


def stopped(site: GovernedSite) -> None:
    site.runs[-1].custodian_stops("cleo")


@pytest.mark.parametrize(
    ("happens", "code"), [(revoked, "release_revoked"), (withdrawn, "no_policy"), (stopped, "custodian_stopped")]
)
def test_nothing_leaves_that_was_finished_a_moment_before(
    site: GovernedSite, monkeypatch: pytest.MonkeyPatch, happens: Event, code: str
) -> None:
    made: list[Path] = []

    def work(_: HostedProcess, task: Task, *__: object, **___: object) -> Result:
        return Result(task.task_id, {"n_train": 8}, {})

    def seal(_: TaskFiles, accepted: Any, order: TaskOrder, *__: object) -> Sealed:
        made.append(site.home.run_folder(order.run_id) / "result.sealed")
        made[0].write_bytes(b"x")
        happens(site)  # After the worker, before its result.
        return Sealed(made[0], "blake3:0", ("n_train",), (), "float32")

    monkeypatch.setattr(TaskFiles, "take_inputs", lambda _, order, *__: (dict(order.document), {}, 0))
    monkeypatch.setattr(TaskFiles, "inputs_hash", lambda *_: "a model")
    monkeypatch.setattr(HostedProcess, "call", work)
    monkeypatch.setattr(TaskFiles, "gate_and_seal", seal)
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    site.order("train", 1, stream="federated")
    assert site.failure() == code
    assert made
    assert not made[0].exists()
    assert site.audited("result leaves") == []
    assert site.line.uploads == []
