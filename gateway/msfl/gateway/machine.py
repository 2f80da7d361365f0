"""One run at one site, as a pure state machine: `(state, event) -> (state, instructions)`.

                                ┌─ refuse ─▶ REFUSED
    OFFERED ─ judged, decided ──┼─ confirm ▶ PARKED ─ custodian confirms ─▶ IDLE     (or declines ─▶ REFUSED)
                                └─ allow ──▶ IDLE

    IDLE ─ task, no worker ─▶ STARTING ─ worker greets ─▶ WORKING        "start" is done with the greeting ─▶ IDLE
    IDLE ─ task, a worker ──▶ WORKING ─ result sealed ─▶ SENDING ─ durable at the centre, reported ─▶ IDLE
    STARTING, WORKING ─ worker lost ─▶ STARTING, the same task as its next attempt; the third time ─▶ ENDED
    WORKING, SENDING ─ nobody waits for the result any more ─▶ IDLE
    IDLE … SENDING ─ stop order, policy no longer holds, a refusal, the custodian stops it ─▶ ENDED
    ENDED, REFUSED ─ offer of a higher generation ─▶ OFFERED, judged afresh; a living run is ended first
    ENDED or REFUSED by the custodian ─ any offer ─▶ the answer is no, for good
    the gateway comes back (`restored`): SENDING goes on sending; STARTING and WORKING ─▶ IDLE, with the worker if it
    was taken back: asked for the same task again it goes on with it, as another attempt

What must hold, and is walked exhaustively in the tests:
* no `StartWorker` without an earlier `Decided(allow)` or a confirmation, in this generation;
* no `RunTask` unless the policy was re-checked for that very task, just before;
* at most one worker and one task at a time; a task that was done already is reported again, never done again;
* a result is sent only after it was sealed, and each attempt of a task has a number that no other attempt had;
* what the custodian has stopped or refused is never judged again; its state outlives everything else of the run;
* from ENDED and REFUSED nothing starts; whoever asks an ended run for a task hears why it ended;
* what is over is over up to the newest generation that a stop order named, also where it never began.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias, assert_never

from msfl.policies.refusals import Code
from msfl.protos.messages import TaskOrder, TaskReport

MOST_LOSSES = 3
STOPPED_HERE, REFUSED_HERE = Code.CUSTODIAN_STOPPED.value, Code.CUSTODIAN_REFUSED.value
FORBIDDEN_HERE = frozenset({STOPPED_HERE, REFUSED_HERE})
KEPT_REPORTS = 16  # of tasks without a result; of which there are as many as somebody orders


class Stage(StrEnum):
    OFFERED = "offered"
    PARKED = "parked"
    REFUSED = "refused"
    IDLE = "idle"
    STARTING = "starting"
    WORKING = "working"
    SENDING = "sending"
    ENDED = "ended"


LIVING = frozenset({Stage.IDLE, Stage.STARTING, Stage.WORKING, Stage.SENDING})


@dataclass(frozen=True)
class SealedResult:
    """What is ready to leave: the report that will be said once `file`, in the run's folder, is durable at the centre.

    `report.bytes_up` is the size of the file.
    """

    report: TaskReport
    file: str


@dataclass(frozen=True)
class SiteRun:
    """`reports` are the tasks that are done, by id: what was said once is said again to whoever asks again.

    `attempts` counts by task how often it was begun, over all generations; `losses` by task how often a worker was
    lost over it. `code` says why an ended run ended, or that the custodian refused it. `worker`: one is up;
    `worked`: one was, in this generation, so the run has begun.
    """

    run_id: str
    stage: Stage = Stage.OFFERED
    generation: int = 1
    dry_run: bool = False
    worker: bool = False
    worked: bool = False
    task: TaskOrder | None = None
    sealed: SealedResult | None = None
    attempts: Mapping[str, int] = field(default_factory=dict)
    losses: Mapping[str, int] = field(default_factory=dict)
    reports: Mapping[str, TaskReport] = field(default_factory=dict)
    code: str = ""


# ------------------------------------------------------------------- events


@dataclass(frozen=True)
class Offered:
    """The orchestrator offers the run; it does so again on every new stream until it has the answer."""

    generation: int
    dry_run: bool = False


@dataclass(frozen=True)
class Decided:
    """The gateway's pure decision on an offer, already in the audit log."""

    verdict: str


@dataclass(frozen=True)
class Confirmed:
    """The custodian said yes to a parked run."""


@dataclass(frozen=True)
class Declined:
    """The custodian said no to a parked run."""


@dataclass(frozen=True)
class Ordered:
    """The orchestrator asks for a task. `recheck` is the code that forbids it now; empty: the policy still holds."""

    order: TaskOrder
    recheck: str = ""


@dataclass(frozen=True)
class WorkerUp:
    """The verified image runs and its worker has greeted. `recheck` is about the task that it was started for."""

    recheck: str = ""


@dataclass(frozen=True)
class WorkerLost:
    """The worker did not come up, died or fell silent; `blameless`: because the site's disk was full."""

    code: str
    blameless: bool = False


@dataclass(frozen=True)
class ResultSealed:
    """The running task's result passed the egress gate and lies sealed and durable in the run's folder."""

    result: SealedResult


@dataclass(frozen=True)
class Sent:
    """The sealed result is durable at the centre."""


@dataclass(frozen=True)
class Unwanted:
    """The centre has closed this step without us; its next order says how it goes on."""


@dataclass(frozen=True)
class Broken:
    """What no further attempt would change: a refusal of model, gate or policy, an input that does not open."""

    code: str


@dataclass(frozen=True)
class Stopped:
    """The orchestrator ended the run, or let this site go, in this generation or the site's own, if that is later."""

    reason: str
    generation: int = 0


Event: TypeAlias = (
    Offered
    | Decided
    | Confirmed
    | Declined
    | Ordered
    | WorkerUp
    | WorkerLost
    | ResultSealed
    | Sent
    | Unwanted
    | Broken
    | Stopped
)


# ------------------------------------------------------------- instructions


@dataclass(frozen=True)
class Consider:
    """Judge the offer that was just heard."""


@dataclass(frozen=True)
class Answer:
    verdict: str


@dataclass(frozen=True)
class StartWorker:
    """End what may be left of an earlier worker, then start one."""

    order: TaskOrder


@dataclass(frozen=True)
class RunTask:
    order: TaskOrder
    attempt: int


@dataclass(frozen=True)
class Send:
    result: SealedResult


@dataclass(frozen=True)
class Report:
    report: TaskReport


@dataclass(frozen=True)
class StopWorker:
    """End the worker and clean up; `reason` goes to the audit log."""

    reason: str


Instruction: TypeAlias = Consider | Answer | StartWorker | RunTask | Send | Report | StopWorker
Step: TypeAlias = tuple[SiteRun, tuple[Instruction, ...]]


def advance(state: SiteRun, event: Event) -> Step:
    """The one transition function. An event that does not fit the stage changes nothing and asks for nothing."""
    match event:
        case Offered():
            return _offered(state, event)
        case Decided(verdict=verdict):
            return _decided(state, verdict)
        case Confirmed():
            if state.stage is not Stage.PARKED:
                return state, ()
            return replace(state, stage=Stage.IDLE), (Answer("allow"),)
        case Declined():
            if state.stage is not Stage.PARKED:
                return state, ()
            return replace(state, stage=Stage.REFUSED, code=REFUSED_HERE), (Answer("refuse"),)
        case Ordered(order=order, recheck=recheck):
            return _ordered(state, order, recheck)
        case WorkerUp(recheck=recheck):
            return _worker_up(state, recheck)
        case WorkerLost(code=code, blameless=blameless):
            return _worker_lost(state, code, 0 if blameless else 1)
        case ResultSealed(result=result):
            if state.stage is not Stage.WORKING or state.task is None or result.report.task_id != state.task.task_id:
                return state, ()
            return replace(state, stage=Stage.SENDING, sealed=result), (Send(result),)
        case Sent():
            if state.stage is not Stage.SENDING or state.sealed is None:
                return state, ()
            return _reported(state, state.sealed.report)
        case Unwanted():
            if state.stage not in (Stage.WORKING, Stage.SENDING):
                return state, ()
            return _idle(state), ()
        case Broken(code=code):
            return _broken(state, code)
        case Stopped(reason=reason, generation=generation):
            state = replace(state, generation=max(state.generation, generation))
            if state.stage in LIVING or state.stage is Stage.PARKED:
                return _ended(state, reason), (StopWorker(reason),)
            return _ended(state, state.code or reason), ()
        case _:
            assert_never(event)


def restored(state: SiteRun, *, sealed_is_whole: bool, worker: bool = False) -> Step:
    """The state of before a restart of the gateway, and what to go on with. `worker`: the one of before is back.

    A task that was under way is not ordered by itself: the orchestrator asks for it on the new stream.
    """
    if state.stage not in LIVING:
        return state, ()
    state = replace(state, worker=worker)
    if state.stage is Stage.SENDING and state.sealed is not None and sealed_is_whole:
        return state, (Send(state.sealed),)
    return _idle(state), ()


def _offered(state: SiteRun, offer: Offered) -> Step:
    if state.code in FORBIDDEN_HERE:
        return replace(state, generation=max(state.generation, offer.generation)), (Answer("refuse"),)
    if offer.generation > state.generation and state.stage is not Stage.OFFERED:
        fresh = SiteRun(state.run_id, generation=offer.generation, dry_run=offer.dry_run, attempts=state.attempts)
        end: tuple[Instruction, ...] = (StopWorker("resumed"),) if state.stage in LIVING else ()
        return fresh, (*end, Consider())
    if offer.generation < state.generation:
        return state, ()
    match state.stage:
        case Stage.OFFERED | Stage.REFUSED:
            asked = replace(state, stage=Stage.OFFERED, generation=offer.generation, dry_run=offer.dry_run)
            return asked, (Consider(),)
        case Stage.PARKED:
            return state, (Answer("confirm"),)
        case Stage.ENDED:
            return state, ()
        case _:
            return state, (Answer("allow"),)


def _decided(state: SiteRun, verdict: str) -> Step:
    if state.stage is not Stage.OFFERED:
        return state, ()
    if state.dry_run:
        return _ended(state, "explained"), (Answer(verdict),)
    stage = {"allow": Stage.IDLE, "confirm": Stage.PARKED}.get(verdict, Stage.REFUSED)
    return replace(state, stage=stage), (Answer(verdict),)


def _ordered(state: SiteRun, order: TaskOrder, recheck: str) -> Step:
    if order.run_id != state.run_id:
        return state, ()
    if state.stage is Stage.ENDED:
        return state, (Report(_failure(state, order, state.code)),)
    if state.stage not in LIVING:
        return state, ()
    if (said := state.reports.get(order.task_id)) is not None:
        return state, (Report(said),)
    if state.task is not None or state.sealed is not None:
        return state, ()  # One task at a time; the agent brings the newest order again when this one is done.
    if recheck:
        return _broken(state, recheck, order)
    if not state.worker:
        return replace(_begun(state, order), stage=Stage.STARTING), (StartWorker(order),)
    if order.verb == "start":
        return _reported(state, TaskReport(state.run_id, order.task_id, order.attempt))
    state = _begun(state, order)
    return replace(state, stage=Stage.WORKING), (RunTask(order, state.attempts[order.task_id]),)


def _begun(state: SiteRun, order: TaskOrder) -> SiteRun:
    attempt = state.attempts.get(order.task_id, 0) + 1
    return replace(state, task=order, attempts={**state.attempts, order.task_id: attempt})


def _worker_up(state: SiteRun, recheck: str) -> Step:
    order = state.task
    if state.stage is not Stage.STARTING or order is None:
        return state, ()
    state = replace(state, worker=True, worked=True)
    if recheck:
        return _broken(state, recheck)
    attempt = state.attempts[order.task_id]
    if order.verb == "start":
        return _reported(state, TaskReport(state.run_id, order.task_id, attempt))
    return replace(state, stage=Stage.WORKING), (RunTask(order, attempt),)


def _worker_lost(state: SiteRun, code: str, counts: int) -> Step:
    order = state.task
    if state.stage not in (Stage.STARTING, Stage.WORKING) or order is None:
        return state, ()
    losses = state.losses.get(order.task_id, 0) + counts
    state = replace(state, worker=False, losses={order.task_id: losses})
    if losses >= MOST_LOSSES:
        return _broken(state, code)
    return replace(_begun(state, order), stage=Stage.STARTING), (StartWorker(order),)


def _idle(state: SiteRun) -> SiteRun:
    return replace(state, stage=Stage.IDLE, task=None, sealed=None)


def _reported(state: SiteRun, report: TaskReport) -> Step:
    reports = {**state.reports, report.task_id: report}
    for task_id in [task_id for task_id, said in reports.items() if not said.key][:-KEPT_REPORTS]:
        del reports[task_id]
    return replace(_idle(state), reports=reports, losses={}), (Report(report),)


def _broken(state: SiteRun, code: str, order: TaskOrder | None = None) -> Step:
    if code == STOPPED_HERE and state.stage in (Stage.ENDED, Stage.REFUSED):
        return _ended(state, code), ()  # It was over when the custodian's word was heard; it does not come back.
    if code == STOPPED_HERE and state.stage is Stage.PARKED:
        return _ended(state, code), (Answer("refuse"),)  # It was resumed meanwhile.
    if state.stage not in LIVING:
        return state, ()
    stop = StopWorker(code)
    if (order := order or state.task) is not None:
        return _ended(state, code), (stop, Report(_failure(state, order, code)))
    if state.sealed is not None:  # It was being sent when the gateway was restarted; the order is not known any more.
        said = state.sealed.report
        return _ended(state, code), (stop, Report(TaskReport(state.run_id, said.task_id, said.attempt, failure=code)))
    return _ended(state, code), (stop,)


def _failure(state: SiteRun, order: TaskOrder, code: str) -> TaskReport:
    attempt = state.attempts.get(order.task_id, order.attempt)
    return TaskReport(state.run_id, order.task_id, attempt, failure=code or "run_over")


def _ended(state: SiteRun, code: str) -> SiteRun:
    return replace(state, stage=Stage.ENDED, worker=False, task=None, sealed=None, code=code)
