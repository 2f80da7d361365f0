"""The site's run machine: stories, and an exhaustive walk of what must hold."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from msfl.gateway.machine import (
    KEPT_REPORTS,
    LIVING,
    MOST_LOSSES,
    Answer,
    Broken,
    Confirmed,
    Consider,
    Decided,
    Declined,
    Event,
    Instruction,
    Offered,
    Ordered,
    Report,
    ResultSealed,
    RunTask,
    SealedResult,
    Send,
    Sent,
    SiteRun,
    Stage,
    StartWorker,
    Stopped,
    StopWorker,
    Unwanted,
    WorkerLost,
    WorkerUp,
    advance,
    restored,
)
from msfl.protos.messages import TaskOrder, TaskReport


def order(task_id: str = "train/1", verb: str = "train") -> TaskOrder:
    return TaskOrder("run-1", task_id, verb, 1, 1, {}, ())


START = order("start", "start")
TRAIN = order()
DONE = TaskReport("run-1", "train/1", 1, key="k")
SEALED = SealedResult(DONE, "result.sealed")


def follow(*events: Event, state: SiteRun | None = None) -> tuple[SiteRun, list[Instruction]]:
    state = state or SiteRun("run-1")
    asked: list[Instruction] = []
    for event in events:
        state, instructions = advance(state, event)
        asked += instructions
    return state, asked


def failure(code: str, task_id: str = "train/1", attempt: int = 1) -> Report:
    return Report(TaskReport("run-1", task_id, attempt, failure=code))


UP = (Offered(1), Decided("allow"), Ordered(START), WorkerUp())


def test_a_run_that_goes_well() -> None:
    state, asked = follow(*UP, Ordered(TRAIN), ResultSealed(SEALED), Sent(), Stopped("finished"))
    assert state.stage is Stage.ENDED
    assert asked == [
        Consider(),
        Answer("allow"),
        StartWorker(START),
        Report(TaskReport("run-1", "start", 1)),
        RunTask(TRAIN, 1),
        Send(SEALED),
        Report(DONE),
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
    for generation in (1, 2):  # For good: also where it is aborted in between.
        state, asked = follow(Offered(generation), Decided("allow"), Stopped("aborted"), Ordered(START), state=state)
        assert asked == [Answer("refuse"), failure("custodian_refused", "start")]


def test_an_offer_that_comes_again_is_answered_again_and_not_judged_again() -> None:
    for verdict in ("allow", "confirm"):
        _, asked = follow(Offered(1), Decided(verdict), Offered(1))
        assert asked == [Consider(), Answer(verdict), Answer(verdict)]


def test_what_is_over_stays_over_up_to_the_newest_generation_that_was_named() -> None:
    for before in ((), UP, (Offered(1), Decided("refuse")), (Offered(1), Decided("confirm"))):
        state, _ = follow(*before, Stopped("aborted", 2))
        assert (state.stage, state.generation) == (Stage.ENDED, 2)
        assert follow(Offered(1), Offered(2), state=state) == (state, [])
        assert Consider() in follow(Offered(3), state=state)[1]


def test_a_policy_that_expires_between_rounds_stops_the_worker_before_the_next_one() -> None:
    _, asked = follow(*UP, Ordered(TRAIN, recheck="policy_expired"))
    assert asked[-2:] == [StopWorker("policy_expired"), failure("policy_expired")]


def test_a_policy_that_expires_while_the_worker_is_started_again_stops_the_task() -> None:
    _, asked = follow(*UP, Ordered(TRAIN), WorkerLost("process_ended"), WorkerUp(recheck="policy_expired"))
    assert asked[-2:] == [StopWorker("policy_expired"), failure("policy_expired", attempt=2)]


def test_what_was_done_is_said_again_and_not_done_again() -> None:
    state, _ = follow(*UP, Ordered(TRAIN), ResultSealed(SEALED), Sent())
    assert advance(state, Ordered(TRAIN)) == (state, (Report(DONE),))


def test_what_was_done_long_ago_is_not_done_again_either() -> None:
    state, _ = follow(*UP)
    for n in range(100):
        task = replace(TRAIN, task_id=f"train/{n}", round=n)
        sealed = SealedResult(TaskReport("run-1", task.task_id, 1, key="k"), "result.sealed")
        state, _ = follow(Ordered(task), ResultSealed(sealed), Sent(), state=state)
    assert advance(state, Ordered(replace(TRAIN, task_id="train/0")))[1] == (
        Report(TaskReport("run-1", "train/0", 1, key="k")),
    )


def test_of_what_has_no_result_only_the_newest_is_kept() -> None:
    starts = (Ordered(order(f"start/{n}", "start")) for n in range(100))
    state, _ = follow(*UP, *starts, Ordered(TRAIN), ResultSealed(SEALED), Sent())
    assert len(state.reports) == KEPT_REPORTS + 1


def test_a_lost_worker_is_started_again_and_the_third_loss_is_the_last() -> None:
    state, asked = follow(*UP, Ordered(TRAIN), WorkerLost("process_ended"), WorkerUp())
    assert asked[-2:] == [StartWorker(TRAIN), RunTask(TRAIN, 2)]
    state, asked = follow(WorkerLost("process_silent"), WorkerUp(), WorkerLost("process_ended"), state=state)
    assert asked == [
        StartWorker(TRAIN),
        RunTask(TRAIN, 3),
        StopWorker("process_ended"),
        failure("process_ended", attempt=3),
    ]
    assert state.stage is Stage.ENDED


def test_a_worker_lost_to_a_full_disk_is_nobodys_fault() -> None:
    lost = (WorkerLost("worker_error", blameless=True), WorkerUp())
    state, _ = follow(*UP, Ordered(TRAIN), *(lost * 5))
    assert state.stage is Stage.WORKING
    assert state.attempts["train/1"] == 6


def test_a_worker_that_does_not_come_up_is_started_again() -> None:
    _, asked = follow(Offered(1), Decided("allow"), Ordered(START), WorkerLost("process_ended_at_start"), WorkerUp())
    assert asked[-2:] == [StartWorker(START), Report(TaskReport("run-1", "start", 2))]


def test_a_gateway_that_comes_back_does_the_task_again_when_it_is_asked_again() -> None:
    state, _ = follow(*UP, Ordered(TRAIN))
    state, asked = restored(state, sealed_is_whole=False)
    assert not asked
    _, asked_now = follow(Ordered(TRAIN), WorkerUp(), state=state)
    assert asked_now == [StartWorker(TRAIN), RunTask(TRAIN, 2)]


def test_a_gateway_that_comes_back_sends_what_was_sealed() -> None:
    state, _ = follow(*UP, Ordered(TRAIN), ResultSealed(SEALED))
    back, asked = restored(replace(state, task=None), sealed_is_whole=True)
    assert asked == (Send(SEALED),)
    back, asked_now = follow(Ordered(TRAIN), Sent(), Ordered(TRAIN), state=back)
    assert asked_now == [Report(DONE), Report(DONE)]
    assert not back.worker


def test_a_gateway_that_comes_back_to_half_a_sealed_file_does_the_task_again() -> None:
    state, _ = follow(*UP, Ordered(TRAIN), ResultSealed(SEALED))
    state, asked = restored(replace(state, task=None), sealed_is_whole=False)
    assert not asked
    _, asked_now = follow(Ordered(TRAIN), WorkerUp(), state=state)
    assert asked_now == [StartWorker(TRAIN), RunTask(TRAIN, 2)]


def test_a_gateway_that_comes_back_with_its_worker_starts_none() -> None:
    state, _ = follow(*UP, Ordered(TRAIN))
    state, asked = restored(state, sealed_is_whole=False, worker=True)
    assert not asked
    assert follow(Ordered(TRAIN), state=state)[1] == [RunTask(TRAIN, 2)]
    # The policy is looked at again before that, as before any task.
    _, refused = follow(Ordered(TRAIN, "policy_expired"), state=state)
    assert refused == [StopWorker("policy_expired"), failure("policy_expired")]


def test_a_worker_that_is_back_while_its_result_is_sent_does_the_next_task() -> None:
    state, _ = follow(*UP, Ordered(TRAIN), ResultSealed(SEALED))
    back, asked = restored(replace(state, task=None), sealed_is_whole=True, worker=True)
    assert asked == (Send(SEALED),)
    back, _ = follow(Sent(), state=back)
    assert back.worker
    assert follow(Ordered(replace(TRAIN, task_id="train/2")), state=back)[1][0] == RunTask(
        replace(TRAIN, task_id="train/2"), 1
    )


def test_a_worker_is_not_back_in_a_run_that_has_ended() -> None:
    state, _ = follow(*UP, Broken("custodian_stopped"))
    assert restored(state, sealed_is_whole=False, worker=True) == (state, ())


def test_whoever_asks_an_ended_run_hears_why_it_ended() -> None:
    _, asked = follow(*UP, Broken("custodian_stopped"), Ordered(TRAIN))
    assert asked[-2:] == [StopWorker("custodian_stopped"), failure("custodian_stopped")]


def test_a_run_that_was_resumed_and_waits_when_the_custodian_stops_it_waits_no_more() -> None:
    state, asked = follow(Offered(1), Decided("confirm"), Broken("custodian_stopped"), Confirmed(), Ordered(START))
    assert asked[2:] == [Answer("refuse"), failure("custodian_stopped", "start")]
    assert follow(Offered(2), state=state)[1] == [Answer("refuse")]


def test_a_resumed_run_is_judged_afresh_and_its_attempts_go_on_counting() -> None:
    state, _ = follow(*UP, Ordered(TRAIN), ResultSealed(SEALED), Sent(), Stopped("aborted"))
    state, asked = follow(
        Offered(1), Offered(2), Ordered(TRAIN), Decided("allow"), Ordered(TRAIN), WorkerUp(), state=state
    )
    assert asked == [Consider(), Answer("allow"), StartWorker(TRAIN), RunTask(TRAIN, 2)]
    assert state.generation == 2


def test_a_run_that_was_resumed_behind_our_back_ends_before_it_is_judged() -> None:
    _, asked = follow(*UP, Offered(2))
    assert asked[-2:] == [StopWorker("resumed"), Consider()]


def test_what_nobody_waits_for_is_not_called_done() -> None:
    state, asked = follow(*UP, Ordered(TRAIN), ResultSealed(SEALED), Unwanted(), Ordered(TRAIN))
    assert asked[-1] == RunTask(TRAIN, 2)
    assert "train/1" not in state.reports


def test_an_explanation_starts_nothing() -> None:
    _, asked = follow(Offered(1, dry_run=True), Decided("allow"), Ordered(START))
    assert asked == [Consider(), Answer("allow"), failure("explained", "start")]


EVENTS: tuple[Event, ...] = (
    Offered(1),
    Offered(2),
    Decided("allow"),
    Decided("confirm"),
    Decided("refuse"),
    Confirmed(),
    Declined(),
    Ordered(START),
    Ordered(TRAIN),
    Ordered(TRAIN, recheck="policy_expired"),
    WorkerUp(),
    WorkerUp(recheck="policy_expired"),
    WorkerLost("process_ended"),
    ResultSealed(SEALED),
    Sent(),
    Unwanted(),
    Broken("worker_refusal"),
    Stopped("aborted"),
    Stopped("aborted", 2),
)
BEGINNINGS: tuple[tuple[Event, ...], ...] = (
    (),
    (Offered(1), Decided("confirm")),
    (*UP, Ordered(TRAIN)),
    (*UP, Ordered(TRAIN), ResultSealed(SEALED)),
    (*UP, Ordered(TRAIN), WorkerLost("process_ended")),
    (*UP, Stopped("aborted")),
)


class Watch:
    """Follows a run and checks each step of it against what the machine promises."""

    def __init__(self) -> None:
        self.state = SiteRun("run-1")
        self.allowed = self.up = self.starting = self.sealed = False
        self.busy: str | None = None
        self.begun: set[tuple[str, int]] = set()
        self.done: set[str] = set()
        self.over = 0

    def hear(self, event: Event) -> None:
        before = self.state
        self.allowed |= event == Decided("allow") and before.stage is Stage.OFFERED
        self.allowed |= event == Confirmed() and before.stage is Stage.PARKED
        after, asked = advance(before, event)
        if after.generation > before.generation or Consider() in asked:
            self.allowed, self.done = False, set()
        if isinstance(event, Stopped):
            self.over = max(self.over, before.generation, event.generation)
        assert Consider() not in asked or after.generation > self.over
        if isinstance(event, WorkerLost) and before.stage in (Stage.STARTING, Stage.WORKING):
            self.up = self.starting = False
            self.busy = None
        if isinstance(event, WorkerUp) and self.starting:
            self.up, self.starting = True, False
        if isinstance(event, ResultSealed) and before.stage is Stage.WORKING:
            self.sealed = True
        if isinstance(event, Unwanted):
            self.busy = None
        self.state = after
        for instruction in asked:
            self.check(instruction, event)
        assert (after.stage is Stage.ENDED) <= (not after.worker and after.task is None and after.sealed is None)
        assert all(n < MOST_LOSSES for n in after.losses.values()) or after.stage is Stage.ENDED
        back, again = restored(after, sealed_is_whole=True)
        assert all(isinstance(i, Send) for i in again)
        assert not (back.stage in LIVING and back.worker)

    def check(self, instruction: Instruction, event: Event) -> None:
        match instruction:
            case StartWorker():
                assert self.allowed
                assert not self.up
                assert not self.starting
                self.starting = True
            case RunTask(order=asked, attempt=attempt):
                assert self.up
                assert self.busy is None
                assert isinstance(event, Ordered | WorkerUp)
                assert not event.recheck
                assert (asked.task_id, attempt) not in self.begun
                assert asked.task_id not in self.done
                self.begun.add((asked.task_id, attempt))
                self.busy = asked.task_id
            case Send():
                assert self.sealed
                self.sealed = False
            case Report(report=report):
                if not report.failure:
                    self.done.add(report.task_id)
                self.busy = None
            case StopWorker():
                self.up = self.starting = False
                self.busy = None
            case Answer() | Consider():
                pass


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_every_path_of_three_events_from_everywhere_keeps_the_promises(beginning: tuple[Event, ...]) -> None:
    for path in itertools.product(EVENTS, repeat=3):
        watch = Watch()
        for event in (*beginning, *path):
            watch.hear(event)
