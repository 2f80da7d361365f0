"""One run at this site: the thread that feeds events to the machine and performs what it asks for.

    queue of events ─▶ machine.advance ─▶ record, durable ─▶ Consider | Answer | StartWorker | RunTask | Send | …
                            ▲                                      │
                            └───────── outcome as an event ◀───────┘   long ones run in a thread of their own

Here are the run's thread and state, its decisions, and its return after a restart; `tasks` has the worker and the steps
of a task, `reporting` what is said, and the patience for it. A result is: sealed ▸ record ▸ upload ▸ record ▸ report.

What goes wrong, and what becomes of it:

    the worker dies, falls silent, has a bug        started again, the same task as its next attempt, thrice at most
    a refusal of model, gate or policy              its code goes out and ends the run at this site
    what it rests on is revoked or expires          the same, within seconds, whatever the worker is doing
    this gateway is killed, or restarted            `record`: the next one goes on where it was, and the worker with it,
                                                    if it comes within `tasks.RESTART_PATIENCE_S`
    the disk is full or read-only                   `reporting`: wait until there is room; costs no attempt. What is to
                                                    end ends first, and is written down when there is room
    the line is down                                `reporting`: again, until it is up

When a run ends, patient data and keys go with it. Only where it may be resumed (aborted, failed, this site was late)
the worker's scratch and the run's secret stay, for `KEPT_FOR` at most: momentum and local models are still there then.
"""

from __future__ import annotations

import json
import queue
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import structlog

from msfl.gateway import confirmations
from msfl.gateway.disk import GivenUp
from msfl.gateway.home import write
from msfl.gateway.judge import Accepted, EngineError, fail_closed, refused
from msfl.gateway.machine import (
    FORBIDDEN_HERE,
    LIVING,
    REFUSED_HERE,
    STOPPED_HERE,
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
    RunTask,
    Send,
    Sent,
    SiteRun,
    Stage,
    StartWorker,
    Stopped,
    StopWorker,
    Unwanted,
    WorkerUp,
    advance,
    restored,
)
from msfl.gateway.record import BadRecord, Kept, RunRecord, boot_id
from msfl.gateway.reporting import Aside, Reporting
from msfl.gateway.reveal import revealed
from msfl.gateway.surroundings import Surroundings
from msfl.gateway.tasks import Worker
from msfl.policies.decide import Decision, Verdict, asks_custodian
from msfl.policies.documents import RunConfirmation, seconds
from msfl.policies.encoding import encode, sha256_of
from msfl.policies.refusals import Code, Refusal, refuse
from msfl.policies.trust import separate_roles, trust_confirmation
from msfl.protos.messages import Offer, OfferAnswer, Order, StopOrder, TaskOrder, TaskReport
from msfl.protos.sealing import wrap_run_secret

log = structlog.get_logger()


@dataclass(frozen=True)
class NotAllowedAnyMore:
    """What the run rests on does not stand any more: a key, the release, the policy was revoked, or expired."""

    refusal: Refusal


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

# After these endings a run is not resumed, or not here: it is done, or this site itself will have no more of it.
_FOR_GOOD = frozenset({"finished", "explained", "refused", *(code.value for code in Code)})
KEPT_FOR = timedelta(days=7)


class RunAtSite:
    def __init__(self, run_id: str, around: Surroundings) -> None:
        """Goes on from the run's record, where there is one."""
        self.run_id = run_id
        self._around = around
        self._home = around.home
        self._site = around.home.settings().site
        self._folder = around.home.run_folder(run_id)
        self._record = RunRecord(self._folder)
        self._say = Reporting(run_id, around)
        self._worker = Worker(run_id, around, self._folder, self._say)
        self._queue: Outcomes = queue.SimpleQueue()
        self._state = SiteRun(run_id)
        self._started: datetime | None = None
        self._ended: datetime | None = None
        self._used = 0.0  # seconds of its time, before it was resumed
        self._decision: Decision | None = None
        self._accepted: Accepted | None = None
        self._offer: Offer | None = None
        self._heard = b""  # the custodian's latest word
        self._forbidden = False  # what the run rests on does not stand any more
        self._unwanted = threading.Event()  # no worker is wanted any more, also none that is just being started
        self._latest: TaskOrder | None = None
        self._limit: threading.Timer | None = None
        self._asides: list[Aside] = []
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
        """The worker is ended here: the run's own thread may be waiting for the line or for room on the disk."""
        living, unwanted = self._state.stage in LIVING, self._unwanted
        self._queue.put(CustodianStops(by))
        if living:
            unwanted.set()
            self._worker.stop(2.0)

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
        self._queue.put(NotAllowedAnyMore(refusal))  # Before the worker's death is: none is started again.
        self._worker.stop(2.0)

    @property
    def parked(self) -> bool:
        return self._state.stage is Stage.PARKED

    def close(self, *, end_worker: bool) -> None:
        """The gateway goes down. A worker that is just being started ends; one that is up works on, for a gateway that
        comes back soon, or ends as well. The rest is left as it is."""
        self._say.closing.set()
        self._unwanted.set()
        self._queue.put(None)
        self._thread.join()
        if self._limit is not None:
            self._limit.cancel()
        if end_worker:
            self._worker.stop(2.0)
        else:
            self._worker.let_go()
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
                self._hear_no()
                if (code := self._state.code) in FORBIDDEN_HERE:
                    self._decision = self._custodians_no(code)
                    self._say.audit("offer refused", code=code, generation=str(item.generation))
                elif self._state.stage is Stage.ENDED and item.generation <= self._state.generation:
                    self._say.audit("offer refused", code="run_over", generation=str(item.generation))
                self._post(Offered(item.generation, item.dry_run))
            case TaskOrder():
                self._latest = item
                self._say.task_id = item.task_id
                self._post(Ordered(item, self._recheck(item)))
            case StopOrder(reason=reason, generation=generation):
                self._hear_no()
                self._home.unpark(self.run_id)
                self._home.forget_said(self.run_id)
                self._post(Stopped(reason, generation))
            case CustodianStops(by=by):
                if self._state.stage in LIVING:
                    self._end_worker()
                    self._say.audit("custodian stops the run", by=by)
                elif self.parked:
                    self._decision = self._custodians_no(STOPPED_HERE)
                    self._say.audit("custodian stops the run", by=by)
                self._post(Broken(STOPPED_HERE))
                self._home.forget_stop(self.run_id)
            case CustodianSigned(envelope=envelope):
                self._take_confirmation(envelope)
            case NotAllowedAnyMore(refusal=refusal):
                if self._state.stage in LIVING:
                    self._end_worker()
                    self._say.audit("run not allowed any more", **_coded(refusal))
                self._post(Broken(refusal.code.value))
            case WorkerUp():
                task = self._state.task
                self._post(WorkerUp(self._recheck(task) if task is not None else ""))
            case _:
                self._post(item)

    def _hear_no(self) -> None:
        """A no of the custodian that lies in the home counts before whatever else is heard of the run."""
        if self._state.stage is Stage.PARKED and self._home.declined(self.run_id) is not None:
            self._decision = self._custodians_no(REFUSED_HERE)
            self._post(Declined())

    def _custodians_no(self, code: str) -> Decision:
        did = "stopped" if code == STOPPED_HERE else "refused"
        return refused(refuse(Code(code), f"The custodian of {self._site} has {did} {self.run_id}.")).decision

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
        """Durable before its effects, but for the end of a worker. Should the gateway be killed in between, whoever
        ended it says so again, or what ended it is found out again."""
        changed, self._state = state != self._state, state
        if changed and state.stage in (Stage.ENDED, Stage.REFUSED) and self._ended is None:
            self._ended = self._around.clock()
        if any(isinstance(instruction, StopWorker) for instruction in instructions):
            self._end_worker()
        if changed and not state.dry_run and state.stage is not Stage.OFFERED:
            self._save()
        for instruction in instructions:
            self._perform(instruction)

    def _save(self) -> None:
        kept = Kept(self._state, self._started, self._ended, used=self._used)
        self._say.with_room(lambda: self._record.save(kept))

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
                self._aside(self._worker.send, result)
            case Report(report=report):
                if not report.key:  # With a result, its entry says both.
                    self._say.audit("report leaves", task=report.task_id, code=report.failure)
                self._say.tell(lambda: self._around.link.report(report))
                self._around.witness.due()
            case StopWorker(reason=reason):
                self._stop_worker(reason)

    def _aside(self, action: Callable[..., Event], *arguments: object) -> None:
        name = f"{self.run_id} {action.__name__}"
        thread = Aside(self._unwanted, self._queue.put, lambda: action(*arguments), name)
        self._asides = [t for t in self._asides if t.is_alive()] + [thread]
        thread.start()

    def _end_worker(self) -> None:
        """Before it is written down: a stop waits for nothing, not even for a disk that is full."""
        self._unwanted.set()
        if self._limit is not None:
            self._limit.cancel()
        self._worker.end(5.0)
        for thread in self._asides:
            thread.join(5.0)  # So that the folder is ours alone; what it was doing has heard by now.

    def _stop_worker(self, reason: str) -> None:
        self._say.audit("run stopped", reason=reason)
        self._worker.tidy(for_good=reason in _FOR_GOOD)

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
        self._state, self._started, self._ended, self._used = kept.state, kept.started, kept.ended, kept.used
        if kept.state.stage not in LIVING:
            self._worker.end_leftovers()
        if kept.state.stage not in LIVING and kept.state.stage is not Stage.PARKED:
            return
        self._hear_no()
        if self._state.stage is Stage.REFUSED:
            return
        for leftover in self._folder.glob("incoming*"):
            leftover.unlink()
        code = self._trust_again()
        # Not before what it rests on is known to hold; and only one that had greeted can be asked for anything.
        back = not code and kept.state.worker and self._worker.take_back()
        if not back:
            self._worker.end_leftovers()
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
            self._say.audit("gateway is back", stage=kept.state.stage.value, worker="works on" if back else "none")
        if back:
            self._keep_time(seconds(self._trusted().policy.document.resources.wall_time))
        self._step(*restored(kept.state, sealed_is_whole=whole, worker=back))

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
            self._home.forget_said(self.run_id)
        self._unwanted = threading.Event()
        self._forbidden = False
        self._latest = None
        self._say.task_id = ""
        try:
            kept = self._record.load_papers()
        except BadRecord:
            kept = None
        judgement = self._say.with_room(lambda: self._around.judge.judge(offer, self._around.clock(), kept))
        self._accepted = judgement.accepted
        asked = (
            fail_closed(lambda: self._asked(self._trusted())) if judgement.decision.verdict is Verdict.CONFIRM else None
        )
        if isinstance(asked, EngineError):  # What no custodian could sign is refused.
            judgement, asked = refused(asked, judgement.job, judgement.user), None
            self._accepted = None
        self._decision = decision = judgement.decision
        if decision.verdict is not Verdict.REFUSE:  # What was kept of it is not kept for longer by offers in vain.
            self._used, self._started, self._ended = self._time_used(), None, None
        self._say.audit(
            "run explained" if offer.dry_run else "run decided",
            verdict=decision.verdict.value,
            policy=decision.policy_id or "",
            policy_sha256=decision.policy_sha256 or "",
            **(_coded(decision.refusal) if decision.refusal else {"code": ""}),
            release=judgement.job.release if judgement.job else "",
            user=judgement.user.name if judgement.user else "",
            **({"generation": str(offer.generation)} if offer.generation > 1 else {}),
            **({"nonce": judgement.job.nonce} if judgement.job and decision.verdict is not Verdict.REFUSE else {}),
        )
        if (papers := judgement.papers) is not None and not offer.dry_run:
            self._say.with_room(lambda: self._record.save_papers(papers))
        if asked is not None and not offer.dry_run:
            job = judgement.job
            shown = {
                "run": self.run_id,
                "job": job.model_dump(mode="json") if job else {},
                "decision": decision.to_json(),
                "asked": json.loads(encode(asked)),
                "last": confirmations.last(self._home, asked, self._around.clock()),
            }
            self._say.with_room(lambda: self._home.park(self.run_id, shown))
        self._post(Decided(decision.verdict.value))

    def _answer(self, verdict: str) -> None:
        """What was answered once is answered again in the same words, and with the same secret."""
        assert self._decision is not None
        wrapped = b""
        dry_run = self._state.dry_run
        if verdict == "allow" and not dry_run:
            if not self._record.has_secret():
                site_key = self._home.secret("site.key")
                self._say.with_room(lambda: self._record.save_secret(secrets.token_bytes(32), site_key))
            secret, site_key = self._record.secret()
            least = self._trusted().job.min_sites  # The centre's aggregator sums no fewer, whatever it is ordered.
            wrapped = wrap_run_secret(self._home.secret("centre.pub"), secret, self.run_id, self._site, site_key, least)
        declined = self._home.declined(self.run_id) if verdict == "refuse" else None
        if declined is not None:
            self._say.audit("custodian answered", verdict=verdict, by=declined.get("by", ""))
        decision = revealed(self._decision, self._home.settings().reveal, self._around.runtime.protections(), verdict)
        answer = OfferAnswer(self.run_id, verdict, decision, wrapped, self._state.generation)
        self._say.tell(lambda: self._around.link.answer(answer))
        if verdict != "confirm":
            self._home.unpark(self.run_id)
            self._home.forget_said(self.run_id)

    def _asked(self, accepted: Accepted) -> RunConfirmation:
        """What a custodian would have to sign for this run, as it was verified here."""
        now = self._around.clock()
        return confirmations.asked(accepted, self._site, self.run_id, self._state.generation, now)

    def _confirmed_by(self, envelope: bytes, accepted: Accepted) -> tuple[str, ...] | Refusal:
        """The custodians of today's root, none of their keys revoked, who signed a yes to exactly this run, and enough
        of whom have no other part in its release."""
        standing, now = self._around.standing, self._around.clock()
        root, federation = standing.site_root(now), standing.federation_root(now)
        if isinstance(root, Refusal):
            return root
        if isinstance(federation, Refusal):
            return federation
        people = trust_confirmation(envelope, self._asked(accepted), root, now, revoked=standing.revoked())
        if isinstance(people, Refusal):
            return people
        what = f"The confirmation of {self.run_id}"
        return separate_roles(what, people, accepted.release.people, root, federation) or people

    def _take_confirmation(self, envelope: bytes) -> None:
        if self._state.stage is not Stage.PARKED:
            return
        people = self._confirmed_by(envelope, self._trusted())
        if isinstance(people, Refusal):
            # Also when a second custodian is still to sign: the run waits on.
            self._say.audit("confirmation not taken", code=people.code.value)
            log.error("the confirmation of a run counts for nothing", run=self.run_id, why=people.message)
            return
        self._say.with_room(lambda: write(self._folder / confirmations.FILE, envelope))
        self._say.audit("custodian answered", verdict="allow", by=", ".join(people), sha256=sha256_of(envelope))
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
        accepted, judge, begun = self._accepted, self._around.judge, self._state.worked
        refusal = self._say.with_room(lambda: judge.recheck(accepted, order, self._around.clock(), begun=begun))
        if refusal is not None:
            self._say.audit("task refused", task=order.task_id, **_coded(refusal))
            return refusal.code.value
        return ""

    # ---------------------------------------------------------------- starting

    def _start_worker(self, order: TaskOrder) -> Event:
        unwanted, accepted = self._unwanted, self._trusted()
        wall_time_s = seconds(accepted.policy.document.resources.wall_time)
        event = self._worker.start(
            order,
            accepted,
            self._unconfirmed(accepted),
            unwanted.is_set,
            wall_time_s=self._time_left(wall_time_s),
            begun=self._state.worked,
        )
        if not isinstance(event, WorkerUp):
            return event
        if unwanted.is_set():
            if self._state.stage is Stage.ENDED:
                self._worker.tidy(for_good=self._state.code in _FOR_GOOD)
            raise GivenUp
        self._keep_time(wall_time_s)
        return event

    def _run_task(self, order: TaskOrder, attempt: int) -> Event:
        return self._worker.do(order, attempt, self._trusted())

    def _keep_time(self, wall_time_s: float) -> None:
        """By the clock since the first start of a worker of this run, whatever happened since, less the time from
        an end to the offer that resumed it: the machine then ends it and says so."""
        if self._started is None:
            self._started = self._around.clock()
            self._save()
        if self._limit is not None:
            self._limit.cancel()
        left = self._time_left(wall_time_s)
        self._limit = threading.Timer(left, self._queue.put, (Broken(Code.RESOURCES_EXCEEDED.value),))
        self._limit.daemon = True
        self._limit.start()

    def _time_left(self, wall_time_s: float) -> float:
        return max(wall_time_s - self._time_used(), 0.0)

    def _time_used(self) -> float:
        if self._started is None:
            return self._used
        until = self._ended or self._around.clock()
        return self._used + max((until - self._started).total_seconds(), 0.0)

    # ------------------------------------------------------------------- small

    def _trusted(self) -> Accepted:
        assert self._accepted is not None
        return self._accepted


def _coded(refusal: Refusal) -> dict[str, str]:
    """What the audit log says of a refusal."""
    error = {"error": refusal.error} if isinstance(refusal, EngineError) else {}
    return {"code": refusal.code.value, **error}


def _is_whole(file: Path, report: TaskReport) -> bool:
    return file.is_file() and file.stat().st_size == report.bytes_up


def utc_now() -> datetime:
    return datetime.now(UTC)
