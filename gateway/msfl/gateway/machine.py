"""One run at one site, as a pure state machine: `(state, event) -> (state, instructions)`.

                    ┌─ refuse ─▶ REFUSED
    OFFERED ─decide─┼─ confirm ▶ PARKED ─ custodian confirms ─┐   (or refuses ─▶ REFUSED)
                    └─ allow ──────────────────────────────────┴▶ ACCEPTED
    ACCEPTED ─ task "start" ─▶ STARTING ─ worker greets ─▶ IDLE ─ task ─▶ WORKING ─ done ─▶ IDLE
    any of the living states ─ stop order, policy no longer holds, worker gone ─▶ ENDED

What must hold, and is walked exhaustively in the tests:
* no `StartWorker` without an earlier `Decided(allow)` or a confirmation;
* no `RunTask` unless the policy was re-checked for that very task;
* at most one worker and one task at a time; a task that was done already is reported again, never done again;
* from ENDED and REFUSED nothing starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias, assert_never

from msfl.protos.messages import TaskOrder, TaskReport


class Stage(StrEnum):
    OFFERED = "offered"
    PARKED = "parked"
    REFUSED = "refused"
    ACCEPTED = "accepted"
    STARTING = "starting"
    IDLE = "idle"
    WORKING = "working"
    ENDED = "ended"


@dataclass(frozen=True)
class SiteRun:
    """`reports` are the tasks that are done, by id: what was said once is said again to whoever asks again."""

    run_id: str
    stage: Stage = Stage.OFFERED
    task: TaskOrder | None = None
    reports: Mapping[str, TaskReport] = field(default_factory=dict)
    dry_run: bool = False


# ------------------------------------------------------------------- events


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
    """The verified image runs and its worker has greeted."""


@dataclass(frozen=True)
class TaskDone:
    """The running task's result passed the egress gate and is durable at the centre."""

    report: TaskReport


@dataclass(frozen=True)
class Broken:
    """The worker or the way to its result failed: started not, died, was refused by the gate."""

    code: str


@dataclass(frozen=True)
class Stopped:
    """The orchestrator ended the run, or let this site go."""

    reason: str


Event: TypeAlias = Decided | Confirmed | Declined | Ordered | WorkerUp | TaskDone | Broken | Stopped


# ------------------------------------------------------------- instructions


@dataclass(frozen=True)
class Answer:
    verdict: str


@dataclass(frozen=True)
class StartWorker:
    order: TaskOrder


@dataclass(frozen=True)
class RunTask:
    order: TaskOrder


@dataclass(frozen=True)
class Report:
    report: TaskReport


@dataclass(frozen=True)
class StopWorker:
    """End the worker and clean up; `reason` goes to the audit log."""

    reason: str


Instruction: TypeAlias = Answer | StartWorker | RunTask | Report | StopWorker

_LIVING = frozenset({Stage.ACCEPTED, Stage.STARTING, Stage.IDLE, Stage.WORKING})


def advance(state: SiteRun, event: Event) -> tuple[SiteRun, tuple[Instruction, ...]]:
    """The one transition function. An event that does not fit the stage changes nothing and asks for nothing."""
    match event:
        case Decided(verdict=verdict):
            return _decided(state, verdict)
        case Confirmed():
            if state.stage is not Stage.PARKED:
                return state, ()
            return replace(state, stage=Stage.ACCEPTED), (Answer("allow"),)
        case Declined():
            if state.stage is not Stage.PARKED:
                return state, ()
            return replace(state, stage=Stage.REFUSED), (Answer("refuse"),)
        case Ordered(order=order, recheck=recheck):
            return _ordered(state, order, recheck)
        case WorkerUp():
            if state.stage is not Stage.STARTING or state.task is None:
                return state, ()
            report = TaskReport(state.run_id, state.task.task_id, state.task.attempt)
            return _reported(replace(state, stage=Stage.IDLE, task=None), report)
        case TaskDone(report=report):
            if state.stage is not Stage.WORKING or state.task is None or report.task_id != state.task.task_id:
                return state, ()
            return _reported(replace(state, stage=Stage.IDLE, task=None), report)
        case Broken(code=code):
            return _broken(state, code)
        case Stopped(reason=reason):
            if state.stage in _LIVING:
                return replace(state, stage=Stage.ENDED, task=None), (StopWorker(reason),)
            return replace(state, stage=Stage.ENDED, task=None), ()
        case _:
            assert_never(event)


def _decided(state: SiteRun, verdict: str) -> tuple[SiteRun, tuple[Instruction, ...]]:
    if state.stage is not Stage.OFFERED:
        return state, ()
    if state.dry_run:
        return replace(state, stage=Stage.ENDED), (Answer(verdict),)
    stage = {"allow": Stage.ACCEPTED, "confirm": Stage.PARKED}.get(verdict, Stage.REFUSED)
    return replace(state, stage=stage), (Answer(verdict),)


def _ordered(state: SiteRun, order: TaskOrder, recheck: str) -> tuple[SiteRun, tuple[Instruction, ...]]:
    if order.run_id != state.run_id or state.stage not in _LIVING:
        return state, ()
    if (said := state.reports.get(order.task_id)) is not None:
        return state, (Report(said),)
    if recheck:
        return _broken(state, recheck, order)
    if state.task is not None:
        return state, ()  # One task at a time; the agent brings the newest order again when this one is done.
    match state.stage:
        case Stage.ACCEPTED:
            if order.verb != "start":
                # This gateway came back without its worker, and with it went what the worker had prepared.
                return _broken(state, "worker_lost", order)
            return replace(state, stage=Stage.STARTING, task=order), (StartWorker(order),)
        case Stage.IDLE:
            return replace(state, stage=Stage.WORKING, task=order), (RunTask(order),)
        case _:
            return state, ()


def _reported(state: SiteRun, report: TaskReport) -> tuple[SiteRun, tuple[Instruction, ...]]:
    return replace(state, reports={**state.reports, report.task_id: report}), (Report(report),)


def _broken(state: SiteRun, code: str, order: TaskOrder | None = None) -> tuple[SiteRun, tuple[Instruction, ...]]:
    order = order or state.task
    if state.stage not in _LIVING:
        return state, ()
    ended = replace(state, stage=Stage.ENDED, task=None)
    if order is None:
        return ended, (StopWorker(code),)
    failure = TaskReport(state.run_id, order.task_id, order.attempt, failure=code)
    return ended, (StopWorker(code), Report(failure))
