"""One run at this site: the thread that feeds events to the machine and performs what it asks for.

    queue of events ─▶ machine.advance ─▶ record, durable ─▶ Consider | Answer | StartWorker | RunTask | Send | …
                            ▲                                      │
                            └───────── outcome as an event ◀───────┘   long ones run in a thread of their own

A task, step by step: download sealed inputs ▸ open them into the inbox ▸ the worker does the verb ▸ collect its
outputs safely ▸ the egress gate ▸ seal in the same pass ▸ record ▸ upload ▸ record ▸ report. Nothing is half sent,
because the sealed file exists only after the last check.

What goes wrong, and what becomes of it:

    the worker dies, falls silent, has a bug        started again, the same task as its next attempt, thrice at most
    a refusal of model, gate or policy              its code goes out and ends the run at this site
    what it rests on is revoked or expires          the same, within seconds, whatever the worker is doing
    this gateway is killed                          `record`: the next one goes on where it was
    the disk is full or read-only                   `disk`: wait until there is room; costs no attempt
    the line is down                                `_until_sent`: again, until it is up

When a run ends, patient data and keys go with it. Only where it may be resumed (aborted, failed, this site was late)
the worker's scratch and the run's secret stay, for `KEPT_FOR` at most: momentum and local models are still there then.
"""

from __future__ import annotations

import json
import queue
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import psutil
import structlog

from msfl.gateway import confirmations
from msfl.gateway.datasets import changed_file
from msfl.gateway.disk import GivenUp, has_room, probe, with_room
from msfl.gateway.egress import allowance, failure_code, progress_of
from msfl.gateway.home import Home, write
from msfl.gateway.judge import Accepted, Judge
from msfl.gateway.ledger import Ledger
from msfl.gateway.link import LineDown, Link, NotWanted
from msfl.gateway.machine import (
    LIVING,
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
from msfl.gateway.record import BadRecord, Kept, RunRecord, boot_id, forget
from msfl.gateway.reveal import revealed
from msfl.gateway.standing import Standing
from msfl.gateway.task_files import CannotDo, TaskFiles
from msfl.gateway.witness import Witness
from msfl.policies.decide import Decision, Verdict, allowed_outputs, asks_custodian
from msfl.policies.documents import RunConfirmation, seconds
from msfl.policies.encoding import encode, sha256_of
from msfl.policies.refusals import Code, Refusal, Refused, refuse
from msfl.policies.trust import trust_confirmation
from msfl.protos.audit_log import AuditLog
from msfl.protos.messages import (
    Offer,
    OfferAnswer,
    Order,
    SiteProgress,
    StopOrder,
    TaskOrder,
    TaskReport,
    result_key,
)
from msfl.protos.sealing import wrap_run_secret
from msfl.protos.tasklink import Progress, Result, Task
from msfl.registry.interface import Registry
from msfl.registry.pull import pull
from msfl.runtime.hosted import HostedProcess, ProcessGone, TaskFailed
from msfl.runtime.interface import Limits, Runtime, StartOrder

JsonObject: TypeAlias = dict[str, Any]
DISK_FULL = "disk full at the site"
_T = TypeVar("_T")
log = structlog.get_logger()


@dataclass(frozen=True)
class Surroundings:
    """What every run of this gateway shares."""

    home: Home
    judge: Judge
    ledger: Ledger
    audit: AuditLog
    registry: Registry
    runtime: Runtime
    link: Link
    witness: Witness
    clock: Callable[[], datetime]
    standing: Standing


@dataclass(frozen=True)
class NotAllowedAnyMore:
    """What the run rests on does not stand any more: a key, the release, the policy was revoked, or expired."""

    code: str


@dataclass(frozen=True)
class CustodianStops:
    """The custodian wants no more of this run here."""

    by: str


@dataclass(frozen=True)
class CustodianSigned:
    """A yes lies in the home; whether it is one is seen when it is taken."""

    envelope: bytes


Word: TypeAlias = CustodianStops | CustodianSigned | NotAllowedAnyMore
Outcomes: TypeAlias = "queue.SimpleQueue[Event | Order | Word | None]"

# What the worker says when it dies of a bug. Another attempt may do better; what it *refuses* it would refuse again.
_BUG = "worker_error"
# After these endings a run is not resumed, or not here: it is done, or this site itself will have no more of it.
_FOR_GOOD = frozenset({"finished", "explained", "refused", *(code.value for code in Code)})
KEPT_FOR = timedelta(days=7)


class _Aside(threading.Thread):
    """One long action; its outcome is an event, unless nobody wants it any more by then."""

    def __init__(self, unwanted: threading.Event, outcomes: Outcomes, action: Callable[[], Event], name: str) -> None:
        super().__init__(name=name)
        self.unwanted = unwanted
        self._outcomes = outcomes
        self._action = action

    def run(self) -> None:
        try:
            event = self._action()
        except GivenUp:
            return
        if not self.unwanted.is_set():
            self._outcomes.put(event)


class RunAtSite:
    def __init__(self, run_id: str, around: Surroundings) -> None:
        """Goes on from the run's record, where there is one."""
        self.run_id = run_id
        self._around = around
        self._home = around.home
        self._site = around.home.settings().site
        self._folder = around.home.run_folder(run_id)
        self._record = RunRecord(self._folder)
        self._box = self._folder / "box"  # all of this folder that the worker can see
        self._files = TaskFiles(self._home, run_id, self._site, self._folder)
        self._queue: Outcomes = queue.SimpleQueue()
        self._state = SiteRun(run_id)
        self._started: datetime | None = None
        self._ended: datetime | None = None
        self._decision: Decision | None = None
        self._accepted: Accepted | None = None
        self._offer: Offer | None = None
        self._heard = b""  # the custodian's latest word
        self._process: HostedProcess | None = None
        self._forbidden = False  # what the run rests on does not stand any more
        self._unwanted = threading.Event()  # no worker is wanted any more, also none that is just being started
        self._latest: TaskOrder | None = None
        self._last_beat = self._deaf_until = 0.0
        self._ended_phase = ""
        self._limit: threading.Timer | None = None
        self._closing = threading.Event()  # the gateway goes down; nothing waits for the line any more
        self._asides: list[_Aside] = []
        self._thread = threading.Thread(target=self._live, name=f"run {run_id}")
        self._thread.start()

    # --------------------------------------------------------- from the agent

    def hear(self, order: Order) -> None:
        self._queue.put(order)

    def custodian_declines(self) -> None:
        self._queue.put(Declined())

    def custodian_signed(self, envelope: bytes) -> None:
        if envelope != self._heard:  # It is looked at once; another signature makes it another one.
            self._heard = envelope
            self._queue.put(CustodianSigned(envelope))

    def custodian_stops(self, by: str) -> None:
        self._queue.put(CustodianStops(by))

    def look_again(self) -> None:
        """Decide anew on a run that has begun, from another thread than its own, which may be waiting for the line or
        for room on the disk: the worker is ended here, and what there is to say is said there."""
        accepted = self._accepted
        if accepted is None or self._state.stage not in LIVING or self._forbidden:
            return
        refusal = self._around.judge.stands(accepted, self._around.clock()) or self._unconfirmed(accepted)
        if refusal is None or self._accepted is not accepted:
            return
        log.error("the run is not allowed any more", run=self.run_id, code=refusal.code.value, why=refusal.message)
        self._forbidden = True
        self._queue.put(NotAllowedAnyMore(refusal.code.value))  # Before the worker's death is: none is started again.
        if (process := self._process) is not None:
            process.stop(2.0)

    @property
    def parked(self) -> bool:
        return self._state.stage is Stage.PARKED

    def close(self) -> None:
        """The gateway goes down: end the worker, also one that is just being started; leave the rest as it is."""
        self._closing.set()
        self._unwanted.set()
        self._queue.put(None)
        self._thread.join()
        if self._limit is not None:
            self._limit.cancel()
        if self._process is not None:
            self._process.stop(2.0)  # What waits for its answer hears that it is gone.
        for thread in self._asides:
            thread.join()

    # ----------------------------------------------------------------- thread

    def _live(self) -> None:
        try:
            self._come_back()
            while (item := self._queue.get()) is not None:
                self._take(item)
        except GivenUp:
            log.info("the gateway stops; the run goes on with the next one", run=self.run_id)

    def _take(self, item: Event | Order | Word) -> None:
        match item:
            case Offer():
                self._offer = item
                self._post(Offered(item.generation, item.dry_run))
            case TaskOrder():
                self._latest = item
                self._post(Ordered(item, self._recheck(item)))
            case StopOrder(reason=reason):
                self._home.unpark(self.run_id)
                self._home.forget_said(self.run_id)
                self._post(Stopped(reason))
            case CustodianStops(by=by):
                if self._state.stage in LIVING:
                    self._audit("custodian stops the run", by=by)
                self._post(Broken(Code.CUSTODIAN_STOPPED.value))
                self._home.forget_stop(self.run_id)
            case CustodianSigned(envelope=envelope):
                self._take_confirmation(envelope)
            case NotAllowedAnyMore(code=code):
                if self._state.stage in LIVING:
                    self._audit("run not allowed any more", code=code)
                self._post(Broken(code))
            case WorkerUp():
                task = self._state.task
                self._post(WorkerUp(self._recheck(task) if task is not None else ""))
            case _:
                self._post(item)

    def _post(self, event: Event) -> None:
        before = self._state
        self._step(*advance(before, event))
        if not isinstance(event, WorkerUp | Sent | Unwanted):
            return
        over = before.task.task_id if before.task is not None else ""
        if before.sealed is not None:
            over = before.sealed.report.task_id
            (self._folder / before.sealed.file).unlink(missing_ok=True)
        latest, now = self._latest, self._state
        if latest is not None and now.stage is Stage.IDLE and latest.task_id not in (over, *now.reports):
            self._post(Ordered(latest, self._recheck(latest)))

    def _step(self, state: SiteRun, instructions: tuple[Instruction, ...]) -> None:
        """Durable before its effects."""
        if state != self._state:
            if state.stage is Stage.ENDED and self._state.stage is not Stage.ENDED:
                self._ended = self._around.clock()
            self._state = state
            if not state.dry_run and state.stage is not Stage.OFFERED:
                self._save()
        for instruction in instructions:
            self._perform(instruction)

    def _save(self) -> None:
        kept = Kept(self._state, self._started, self._ended)
        self._with_room(lambda: self._record.save(kept))

    def _perform(self, instruction: Instruction) -> None:
        match instruction:
            case Consider():
                self._judge()
            case Answer(verdict=verdict):
                self._answer(verdict)
            case StartWorker(order=order):
                self._aside(self._start_worker, order)
            case RunTask(order=order, attempt=attempt):
                self._aside(self._run_task, order, attempt)
            case Send(result=result):
                self._aside(self._send, result)
            case Report(report=report):
                if not report.key:  # With a result, its entry says both.
                    self._audit("report leaves", task=report.task_id, code=report.failure)
                self._tell(lambda: self._around.link.report(report))
                self._around.witness.due()
            case StopWorker(reason=reason):
                self._stop_worker(reason)

    def _aside(self, action: Callable[..., Event], *arguments: object) -> None:
        thread = _Aside(self._unwanted, self._queue, lambda: action(*arguments), f"{self.run_id} {action.__name__}")
        self._asides = [t for t in self._asides if t.is_alive()] + [thread]
        thread.start()

    def _stop_worker(self, reason: str) -> None:
        # Ended before it is written down: a stop waits for nothing, not even for a disk that is full.
        self._unwanted.set()
        if self._limit is not None:
            self._limit.cancel()
        if self._process is not None:
            self._process.stop()
            self._process = None
        for thread in self._asides:
            thread.join(5.0)  # So that the folder is ours alone; what it was doing has heard by now.
        self._audit("run stopped", reason=reason)
        self._tidy(for_good=reason in _FOR_GOOD)

    # ------------------------------------------------------------- coming back

    def _come_back(self) -> None:
        """After a restart of the gateway: the state and the trust of before, or the code why they do not hold."""
        try:
            kept = self._record.load()
        except BadRecord as error:
            log.error("the record of a run is broken", run=self.run_id, why=str(error))
            self._step(SiteRun(self.run_id, stage=Stage.ENDED, code="record_broken"), (StopWorker("record_broken"),))
            return
        if kept is None:
            return
        self._state, self._started, self._ended = kept.state, kept.started, kept.ended
        if kept.state.stage not in LIVING and kept.state.stage is not Stage.PARKED:
            return
        self._end_leftovers()
        code = self._trust_again()
        if code and kept.state.stage in LIVING:
            log.error("the run cannot go on after the restart", run=self.run_id, code=code)
            self._post(Broken(code))
            return
        if code:  # It was only waiting; the offer comes again and is judged afresh.
            self._home.unpark(self.run_id)
            self._state = SiteRun(self.run_id, generation=kept.state.generation, attempts=kept.state.attempts)
            return
        sealed = kept.state.sealed
        whole = sealed is not None and kept.boot == boot_id() and _is_whole(self._folder / sealed.file, sealed.report)
        if kept.state.stage in LIVING:
            self._audit("gateway is back", stage=kept.state.stage.value)
        self._step(*restored(kept.state, sealed_is_whole=whole))

    def _end_leftovers(self) -> None:
        """The worker dies with its gateway; should one be left all the same, it ends now."""
        if (left := self._around.runtime.recover(self._box)) is not None:
            self._around.runtime.stop(left, 1.0)
        for leftover in self._folder.glob("incoming*"):
            leftover.unlink()

    def _trust_again(self) -> str:
        try:
            papers = self._record.load_papers()
        except BadRecord as error:
            log.error("the papers of a run are broken", run=self.run_id, why=str(error))
            return "record_broken"
        if papers is None:
            return "record_broken"
        accepted = self._around.judge.again(papers, self._around.clock())
        if isinstance(accepted, Refusal):
            log.error("what a run rested on does not hold any more", run=self.run_id, why=accepted.message)
            return accepted.code.value
        self._accepted = accepted
        self._decision = Decision(Verdict.ALLOW, papers.policy_id, papers.policy_sha256, (), None)
        return ""

    # ---------------------------------------------------------------- deciding

    def _judge(self) -> None:
        offer = self._offer
        assert offer is not None
        if offer.generation > 1:
            self._home.forget_stop(self.run_id)
            self._home.forget_said(self.run_id)
        self._unwanted = threading.Event()
        self._forbidden = False
        self._latest = self._started = self._ended = None
        try:
            kept = self._record.load_papers()
        except BadRecord:
            kept = None
        judgement = self._with_room(lambda: self._around.judge.judge(offer, self._around.clock(), kept))
        self._accepted, self._decision = judgement.accepted, judgement.decision
        decision = judgement.decision
        self._audit(
            "run explained" if offer.dry_run else "run decided",
            verdict=decision.verdict.value,
            policy=decision.policy_id or "",
            policy_sha256=decision.policy_sha256 or "",
            code=decision.refusal.code.value if decision.refusal else "",
            release=judgement.job.release if judgement.job else "",
            user=judgement.user.name if judgement.user else "",
            **({"generation": str(offer.generation)} if offer.generation > 1 else {}),
        )
        if (papers := judgement.papers) is not None and not offer.dry_run:
            self._with_room(lambda: self._record.save_papers(papers))
        if decision.verdict is Verdict.CONFIRM and not offer.dry_run:
            job = judgement.job
            shown = {
                "run": self.run_id,
                "job": job.model_dump(mode="json") if job else {},
                "decision": decision.to_json(),
                "asked": json.loads(encode(self._asked(self._trusted()))),
                "last": confirmations.last(self._home, self._asked(self._trusted()), self._around.clock()),
            }
            self._with_room(lambda: self._home.park(self.run_id, shown))
        self._post(Decided(decision.verdict.value))

    def _answer(self, verdict: str) -> None:
        """What was answered once is answered again in the same words, and with the same secret."""
        assert self._decision is not None
        wrapped = b""
        dry_run = self._state.dry_run
        if verdict == "allow" and not dry_run:
            if not self._record.has_secret():
                site_key = self._home.secret("site.key")
                self._with_room(lambda: self._record.save_secret(secrets.token_bytes(32), site_key))
            secret, site_key = self._record.secret()
            wrapped = wrap_run_secret(self._home.secret("centre.pub"), secret, self.run_id, self._site, site_key)
        declined = self._home.declined(self.run_id) if verdict == "refuse" else None
        if declined is not None:
            self._audit("custodian answered", verdict=verdict, by=declined.get("by", ""))
        decision = revealed(self._decision, self._home.settings().reveal, self._around.runtime.protections(), verdict)
        answer = OfferAnswer(self.run_id, verdict, decision, wrapped, self._state.generation)
        self._tell(lambda: self._around.link.answer(answer))
        if verdict != "confirm":
            self._home.unpark(self.run_id)
            self._home.forget_said(self.run_id)

    def _asked(self, accepted: Accepted) -> RunConfirmation:
        """What a custodian would have to sign for this run, as it was verified here."""
        now = self._around.clock()
        return confirmations.asked(accepted, self._site, self.run_id, self._state.generation, now)

    def _confirmed_by(self, envelope: bytes, accepted: Accepted) -> tuple[str, ...] | Refusal:
        """The custodians of today's root, none of their keys revoked, who signed a yes to exactly this run."""
        standing, now = self._around.standing, self._around.clock()
        root = standing.site_root(now)
        if isinstance(root, Refusal):
            return root
        return trust_confirmation(envelope, self._asked(accepted), root, now, revoked=standing.revoked())

    def _take_confirmation(self, envelope: bytes) -> None:
        if self._state.stage is not Stage.PARKED:
            return
        people = self._confirmed_by(envelope, self._trusted())
        if isinstance(people, Refusal):
            # Also when a second custodian is still to sign: the run waits on.
            self._audit("confirmation not taken", code=people.code.value)
            log.error("the confirmation of a run counts for nothing", run=self.run_id, why=people.message)
            return
        self._with_room(lambda: write(self._folder / confirmations.FILE, envelope))
        self._audit("custodian answered", verdict="allow", by=", ".join(people), sha256=sha256_of(envelope))
        self._post(Confirmed())

    def _unconfirmed(self, accepted: Accepted) -> Refusal | None:
        """Where the policy asks for the custodian's yes: why there is none for exactly this run, now."""
        if not asks_custodian(accepted.policy.document, accepted.user):
            return None
        file = self._folder / confirmations.FILE
        if not file.exists():
            return refuse(Code.NOT_CONFIRMED, f"No custodian has confirmed {self.run_id}.")
        people = self._confirmed_by(file.read_bytes(), accepted)
        return people if isinstance(people, Refusal) else None

    def _recheck(self, order: TaskOrder) -> str:
        if self._state.stage not in LIVING:
            return ""
        if self._accepted is None:
            return Code.NO_POLICY.value
        accepted, trains = self._accepted, order.verb == "train" and order.round > 0
        refusal = self._with_room(
            lambda: self._around.judge.recheck(accepted, order.round, trains, self._around.clock())
        )
        if refusal is not None:
            self._audit("task refused", task=order.task_id, code=refusal.code.value)
            return refusal.code.value
        return ""

    # ---------------------------------------------------------------- starting

    def _start_worker(self, order: TaskOrder) -> Event:
        unwanted = self._unwanted
        if self._process is not None:
            self._process.stop(0.0)
            self._process = None
        accepted = self._trusted()
        if (refusal := self._unconfirmed(accepted)) is not None:
            return self._broken(order, refusal.code.value, refusal.message)
        self._beat(SiteProgress(self.run_id, order.task_id, "verify data and image", 0, 3))
        dataset = self._home.dataset(accepted.dataset_id)
        if isinstance(dataset, Refusal):
            return self._broken(order, dataset.code.value, dataset.message)
        if changed := changed_file(dataset, self._home.dataset_folder(dataset.id)):
            why = f"{changed} of {dataset.id} is not what was published"
            return self._broken(order, Code.DATASET_CHANGED.value, why)
        digest, images = accepted.release.statement.digest, self._home.root / "images"
        try:
            image = self._with_room(lambda: pull(self._around.registry, digest, images))
        except Refused as refused:
            return self._broken(order, refused.refusal.code.value, refused.refusal.message)
        self._beat(SiteProgress(self.run_id, order.task_id, "start worker", 1, 3))
        start = StartOrder(
            run_id=self.run_id,
            image=image,
            release=accepted.job.release,
            role="worker",
            folder=self._box,
            data=self._home.dataset_folder(accepted.dataset_id),
            site=self._site,
            log=self._folder / "worker.log",
            limits=_limits(accepted),
        )
        policy = accepted.policy.document
        most = policy.approval.max_runs
        if not self._with_room(lambda: self._around.ledger.begin_run(self.run_id, policy.id, most)):
            why = f"{most} runs of {policy.id} have begun"
            return self._broken(order, Code.RUN_BUDGET_SPENT.value, why)
        # The image may have taken its time: nothing starts once it is known that it must not.
        if (refusal := self._with_room(lambda: self._around.judge.stands(accepted, self._around.clock()))) is not None:
            return self._broken(order, refusal.code.value, refusal.message)
        protections = self._around.runtime.protections()
        self._audit(
            "worker starts",
            digest=image.digest,
            isolation=protections.isolation.value,
            protections="; ".join(protections.detail),
        )
        try:
            self._process = process = self._with_room(
                lambda: HostedProcess.start(self._around.runtime, start, cancelled=unwanted.is_set)
            )
        except Refused as refused:
            return self._broken(order, refused.refusal.code.value, refused.refusal.message)
        except ProcessGone as gone:
            return self._lost(order, gone.code, str(gone))
        if unwanted.is_set():
            # The run ended while its worker came up, and who ended it saw no worker to stop.
            process.stop(2.0)
            if self._state.stage is Stage.ENDED:
                self._tidy(for_good=self._state.code in _FOR_GOOD)
            raise GivenUp
        self._keep_time(seconds(policy.resources.wall_time))
        return WorkerUp()

    def _keep_time(self, wall_time_s: float) -> None:
        """By the clock since the first start of a worker of this run, whatever happened since: the machine then ends
        it and says so."""
        if self._started is None:
            self._started = self._around.clock()
            self._save()
        if self._limit is not None:
            self._limit.cancel()
        left = wall_time_s - (self._around.clock() - self._started).total_seconds()
        self._limit = threading.Timer(max(left, 0.0), self._queue.put, (Broken(Code.RESOURCES_EXCEEDED.value),))
        self._limit.daemon = True
        self._limit.start()

    # ------------------------------------------------------------------- tasks

    def _run_task(self, order: TaskOrder, attempt: int) -> Event:
        accepted = self._trusted()
        began = time.monotonic()
        if order.verb == "train" and order.round > 0:
            policy_id = accepted.policy.document.id
            self._with_room(lambda: self._around.ledger.begin_round(self.run_id, order.round, policy_id))
        again = {"attempt": str(attempt)} if attempt > 1 else {}
        wire = str(accepted.resolved.get("wire", "float32"))
        shown = "steps, train_loss" if "loss" in allowed_outputs(accepted.policy).metrics else "steps"
        self._audit("task begins", task=order.task_id, verb=order.verb, round=str(order.round), progress=shown, **again)
        files_here, process = self._files, self._process
        assert process is not None
        try:
            files_here.clear()
            document, files, received = self._with_room(lambda: files_here.take_inputs(order, self._download, wire))
            weights = next((files_here.inbox / f for f in files.values()), None)
            template = weights if order.verb == "train" else None
            if order.verb == "train" and document.get("stream") == "local":
                document["send_weights"] = allowed_outputs(accepted.policy).local_model
            task = Task(order.task_id, order.verb, order.round, accepted.resolved, document, files)
            result = process.call(task, self._on_progress)
            sealed = self._with_room(
                lambda: files_here.gate_and_seal(accepted, order, attempt, document, result, template)
            )
        except CannotDo as error:
            return self._broken(order, error.code, str(error))
        except TaskFailed as failed:
            if failed.code == _BUG:
                return self._lost(order, failed.code, failed.detail)
            # The code is the worker's own word; what it says stays here unless it is one that is known.
            return self._broken(order, failure_code(failed.code), f"{failed.code}: {failed.detail}")
        except ProcessGone as gone:
            return self._lost(order, gone.code, str(gone))
        except NotWanted as unwanted:
            log.warning("nobody waits for this task", run=self.run_id, task=order.task_id, why=str(unwanted))
            return Unwanted()
        finally:
            if files_here.inbox.is_dir():
                files_here.clear()
        report = TaskReport(
            run_id=self.run_id,
            task_id=order.task_id,
            attempt=attempt,
            key=result_key(order.task_id, self._site, attempt),
            bytes_up=sealed.file.stat().st_size,
            bytes_down=received,
            seconds=time.monotonic() - began,
            peak_rss_mib=self._peaks(result),
        )
        most = allowance(accepted.job.rounds, allowed_outputs(accepted.policy))
        if not self._with_room(lambda: self._around.ledger.send(self.run_id, report.key, report.bytes_up, most)):
            sealed.file.unlink()
            why = f"the run would send more than {most.uploads} results or {most.bytes} bytes"
            return self._broken(order, Code.OUTPUT_BUDGET_SPENT.value, why)
        self._audit(
            "result leaves",
            task=order.task_id,
            verb=order.verb,
            round=str(order.round),
            attempt=str(attempt),
            bytes=str(report.bytes_up),
            blake3=sealed.blake3,
            fields=", ".join(sealed.fields),
            withheld=", ".join(sealed.withheld),
            weights=sealed.weights,
            stream=str(document.get("stream", "")),
            report="bytes, seconds, peak memory",
        )
        return ResultSealed(SealedResult(report, sealed.file.name))

    def _send(self, result: SealedResult) -> Event:
        file = self._folder / result.file
        try:
            self._until_sent(lambda: self._around.link.upload(self.run_id, result.report.key, file))
        except NotWanted as unwanted:
            # The centre has closed this step without us; the next order says how it goes on.
            log.warning("nobody waits for this result", run=self.run_id, task=result.report.task_id, why=str(unwanted))
            return Unwanted()
        return Sent()

    def _download(self, key: str, take: Callable[[bytes], None]) -> int:
        """Goes on at the byte where the line was cut."""
        got = 0

        def take_on(piece: bytes) -> None:
            nonlocal got
            take(piece)
            got += len(piece)

        self._until_sent(lambda: self._around.link.download(self.run_id, key, got, take_on))
        return got

    def _tidy(self, *, for_good: bool) -> None:
        """Pictures stay, in a folder of the site. What else the worker left, and the run's keys, go at once, or stay
        for a run that may be resumed."""
        figures = self._box / "figures"
        if figures.is_dir():
            kept = self._home.root / "figures" / self.run_id
            kept.mkdir(parents=True, exist_ok=True, mode=0o700)
            for picture in figures.iterdir():
                # Written by the worker: only plain files, and never through a link.
                if picture.is_file() and not picture.is_symlink():
                    shutil.move(picture, kept / picture.name)
        for leftover in (*self._folder.glob("incoming*"), *self._folder.glob("result*")):
            leftover.unlink()
        if for_good:
            forget(self._folder)

    # ------------------------------------------------------------------- small

    def _trusted(self) -> Accepted:
        assert self._accepted is not None
        return self._accepted

    def _lost(self, order: TaskOrder, code: str, why: str) -> Event:
        """The worker is gone. On a full disk that is nobody's fault: wait for room, then begin the task anew."""
        if self._given_up():
            raise GivenUp
        self._audit("worker lost", task=order.task_id, code=code)
        log.error("the worker is lost", run=self.run_id, task=order.task_id, code=code, why=why)
        if not has_room(self._folder):
            self._with_room(lambda: probe(self._folder))
            return WorkerLost(code, blameless=True)
        return WorkerLost(code)

    def _broken(self, order: TaskOrder, code: str, why: str) -> Broken:
        # `why` may quote what must stay here; only the code goes out.
        self._audit("task failed", task=order.task_id, code=code)
        log.error("task failed", run=self.run_id, task=order.task_id, code=code, why=why)
        return Broken(code)

    def _audit(self, action: str, **fields: str) -> None:
        self._with_room(lambda: self._around.audit.write(self._around.clock(), action, self.run_id, fields))

    def _with_room(self, call: Callable[[], _T]) -> _T:
        def waiting() -> None:
            task = self._latest.task_id if self._latest is not None else ""
            self._beat(SiteProgress(self.run_id, task, DISK_FULL, 0, 0))

        return with_room(call, self._home.root, waiting, self._pause)

    def _pause(self, pause_s: float) -> bool:
        """Wait; whether there is nothing left to wait for."""
        until = time.monotonic() + pause_s
        while not (over := self._given_up()) and time.monotonic() < until:
            self._closing.wait(0.2)
        return over

    def _given_up(self) -> bool:
        here = threading.current_thread()
        return self._closing.is_set() or (isinstance(here, _Aside) and here.unwanted.is_set())

    def _on_progress(self, progress: Progress) -> None:
        task = self._state.task
        rules = allowed_outputs(self._trusted().policy)
        self._beat(progress_of(self.run_id, task.task_id if task is not None else "", progress, rules))

    def _beat(self, progress: SiteProgress) -> None:
        now = time.monotonic()
        # The end of a phase is always said, once; however often a worker claims it.
        ends = progress.done >= progress.total and progress.phase != self._ended_phase
        if now < self._deaf_until or (now - self._last_beat < 0.25 and not ends):
            return
        self._last_beat = now
        self._ended_phase = progress.phase if ends else ""
        try:
            self._around.link.beat(progress)
        except (LineDown, NotWanted) as error:
            self._deaf_until = time.monotonic() + 5.0  # The work goes on meanwhile.
            log.info("progress was not heard", run=self.run_id, why=str(error))

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            self._until_sent(call)
        except NotWanted as unwanted:
            log.warning("the orchestrator will not have it", run=self.run_id, why=str(unwanted))

    def _until_sent(self, call: Callable[[], _T]) -> _T:
        """Try until it gets through: what a site has to say is never lost to a broken line. Raises GivenUp."""
        wait = 0.2
        while not self._given_up():
            try:
                return call()
            except LineDown as down:
                why = str(down)
            except NotWanted as unwanted:
                if unwanted.status != "OUT_OF_RANGE":  # The centre has less of an upload than it had: ask anew.
                    raise
                why = str(unwanted)
            log.info("the line is down", run=self.run_id, why=why)
            self._pause(wait)
            wait = min(wait * 2, 5.0)
        raise GivenUp

    def _peaks(self, result: Result) -> dict[str, float]:
        own = psutil.Process().memory_info().rss / 2**20
        peaks = {"gateway": round(own, 1)}
        if isinstance(worker := result.document.get("peak_rss_mib"), int | float):
            peaks["worker"] = float(worker)
        return peaks


def _limits(accepted: Accepted) -> Limits:
    resources = accepted.policy.document.resources
    return Limits(gpus=resources.gpus, memory_bytes=resources.memory_gib << 30)


def _is_whole(file: Path, report: TaskReport) -> bool:
    return file.is_file() and file.stat().st_size == report.bytes_up


def utc_now() -> datetime:
    return datetime.now(UTC)
