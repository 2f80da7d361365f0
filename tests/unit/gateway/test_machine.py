"""The site's run machine: stories, and an exhaustive walk of what must hold."""

from __future__ import annotations

import itertools

import pytest

from msfl.gateway.machine import (
    Answer,
    Broken,
    Confirmed,
    Decided,
    Declined,
    Event,
    Instruction,
    Ordered,
    Report,
    RunTask,
    SiteRun,
    Stage,
    StartWorker,
    Stopped,
    StopWorker,
    TaskDone,
    WorkerUp,
    advance,
)
from msfl.protos.messages import TaskOrder, TaskReport


def order(task_id: str = "train/1", verb: str = "train") -> TaskOrder:
    return TaskOrder("run-1", task_id, verb, 1, 1, {}, ())


START = order("start", "start")
TRAIN = order()


def follow(*events: Event, state: SiteRun | None = None) -> tuple[SiteRun, list[Instruction]]:
    state = state or SiteRun("run-1")
    asked: list[Instruction] = []
    for event in events:
        state, instructions = advance(state, event)
        asked += instructions
    return state, asked


def test_a_run_that_goes_well() -> None:
    done = TaskReport("run-1", "train/1", 1, key="k")
    state, asked = follow(
        Decided("allow"), Ordered(START), WorkerUp(), Ordered(TRAIN), TaskDone(done), Stopped("finished")
    )
    assert state.stage is Stage.ENDED
    assert asked == [
        Answer("allow"),
        StartWorker(START),
        Report(TaskReport("run-1", "start", 1)),
        RunTask(TRAIN),
        Report(done),
        StopWorker("finished"),
    ]


def test_a_parked_run_starts_nothing_until_the_custodian_confirms() -> None:
    state, asked = follow(Decided("confirm"), Ordered(START))
    assert asked == [Answer("confirm")]
    state, asked = follow(Confirmed(), Ordered(START), state=state)
    assert asked == [Answer("allow"), StartWorker(START)]


def test_the_custodian_may_decline() -> None:
    state, asked = follow(Decided("confirm"), Declined(), Ordered(START))
    assert state.stage is Stage.REFUSED
    assert asked == [Answer("confirm"), Answer("refuse")]


def test_a_policy_that_expires_between_rounds_stops_the_worker_before_the_next_one() -> None:
    _, asked = follow(Decided("allow"), Ordered(START), WorkerUp(), Ordered(TRAIN, recheck="policy_expired"))
    assert asked[-2:] == [
        StopWorker("policy_expired"),
        Report(TaskReport("run-1", "train/1", 1, failure="policy_expired")),
    ]


def test_what_was_done_is_said_again_and_not_done_again() -> None:
    done = TaskReport("run-1", "train/1", 1, key="k")
    state, _ = follow(Decided("allow"), Ordered(START), WorkerUp(), Ordered(TRAIN), TaskDone(done))
    assert advance(state, Ordered(TRAIN)) == (state, (Report(done),))


def test_a_task_without_a_worker_is_a_failure_not_a_start() -> None:
    _, asked = follow(Decided("allow"), Ordered(TRAIN))
    assert not any(isinstance(i, StartWorker) for i in asked)
    assert Report(TaskReport("run-1", "train/1", 1, failure="worker_lost")) in asked


def test_an_explanation_starts_nothing() -> None:
    _, asked = follow(Decided("allow"), Ordered(START), state=SiteRun("run-1", dry_run=True))
    assert asked == [Answer("allow")]


EVENTS: tuple[Event, ...] = (
    Decided("allow"),
    Decided("confirm"),
    Decided("refuse"),
    Confirmed(),
    Declined(),
    Ordered(START),
    Ordered(TRAIN),
    Ordered(TRAIN, recheck="policy_expired"),
    WorkerUp(),
    TaskDone(TaskReport("run-1", "train/1", 1)),
    Broken("worker_error"),
    Stopped("aborted"),
)


@pytest.mark.parametrize("first", EVENTS)
def test_every_path_of_four_events_keeps_the_promises(first: Event) -> None:
    for path in itertools.product(EVENTS, repeat=3):
        state = SiteRun("run-1")
        allowed = ended = up = busy = False
        for event in (first, *path):
            allowed |= event == Decided("allow") and state.stage is Stage.OFFERED
            allowed |= event == Confirmed() and state.stage is Stage.PARKED
            state, asked = advance(state, event)
            for instruction in asked:
                match instruction:
                    case StartWorker():
                        assert allowed
                        assert not up
                        assert not ended
                        up = True
                    case RunTask():
                        assert up
                        assert not busy
                        assert not ended
                        assert isinstance(event, Ordered)
                        assert not event.recheck
                        busy = True
                    case Report() | StopWorker():
                        busy = False
                    case Answer():
                        pass
            ended |= state.stage in (Stage.ENDED, Stage.REFUSED)
