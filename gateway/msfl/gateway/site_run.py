"""One run at this site: the thread that feeds events to the machine and performs what it asks for.

    queue of events ─▶ machine.advance ─▶ Answer | StartWorker | RunTask | Report | StopWorker
                            ▲                                │
                            └──── outcome as an event ◀──────┘   long ones run in a thread of their own

A task, step by step: download sealed inputs ▸ open them into the inbox ▸ the worker does the verb ▸ collect its
outputs safely ▸ the egress gate ▸ seal in the same pass ▸ upload ▸ report. What fails names a code and ends the run at
this site; nothing is half sent, because the sealed file exists only after the last check.
"""

from __future__ import annotations

import queue
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import psutil
import structlog

from msfl.gateway.audit_log import AuditLog
from msfl.gateway.datasets import changed_file
from msfl.gateway.home import Home, write
from msfl.gateway.judge import Accepted, Judge, Judgement
from msfl.gateway.ledger import Ledger
from msfl.gateway.link import LineDown, Link, NotWanted
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
from msfl.gateway.task_files import CannotDo, TaskFiles
from msfl.policies.decide import Verdict, allowed_outputs
from msfl.policies.documents import seconds
from msfl.policies.refusals import Code, Refusal, Refused
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
    clock: Callable[[], datetime]


class RunAtSite:
    def __init__(self, run_id: str, around: Surroundings, *, lost: bool = False) -> None:
        """`lost`: a run of before this gateway's restart, whose worker is gone; it can only say so."""
        self.run_id = run_id
        self._around = around
        self._home = around.home
        self._site = around.home.settings().site
        self._folder = around.home.run_folder(run_id)
        self._box = self._folder / "box"  # all of this folder that the worker can see
        self._files = TaskFiles(self._home, run_id, self._site, self._folder)
        self._queue: queue.SimpleQueue[Event | Order | None] = queue.SimpleQueue()
        self._state = SiteRun(run_id, stage=Stage.ACCEPTED if lost else Stage.OFFERED)
        self._lost = lost
        self._judgement: Judgement | None = None
        self._offer: Offer | None = None
        self._process: HostedProcess | None = None
        self._unwanted = threading.Event()  # no worker is wanted any more, also none that is just being started
        self._latest: TaskOrder | None = None
        self._last_beat = 0.0
        self._limit: threading.Timer | None = None
        self._closing = threading.Event()  # the gateway goes down; nothing waits for the line any more
        self._asides: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._loop, name=f"run {run_id}")
        self._thread.start()

    # --------------------------------------------------------- from the agent

    def hear(self, order: Order) -> None:
        self._queue.put(order)

    def custodian_said(self, verdict: str) -> None:
        self._queue.put(Confirmed() if verdict == "confirm" else Declined())

    @property
    def parked(self) -> bool:
        return self._state.stage is Stage.PARKED

    @property
    def over(self) -> bool:
        return self._state.stage in (Stage.ENDED, Stage.REFUSED)

    def close(self) -> None:
        """The gateway goes down: end the worker, also one that is just being started; leave the rest as it is."""
        self._closing.set()
        self._unwanted.set()
        self._queue.put(None)
        self._thread.join()
        if self._process is not None:
            self._process.stop(2.0)  # What waits for its answer hears that it is gone.
        for thread in self._asides:
            thread.join()

    # ----------------------------------------------------------------- thread

    def _loop(self) -> None:
        while (item := self._queue.get()) is not None:
            match item:
                case Offer():
                    if self._offer is None:
                        self._take_offer(item)
                case TaskOrder():
                    self._latest = item
                    self._post(Ordered(item, self._recheck(item)))
                case StopOrder(reason=reason):
                    self._post(Stopped(reason))
                case _:
                    self._post(item)

    def _post(self, event: Event) -> None:
        self._state, instructions = advance(self._state, event)
        for instruction in instructions:
            self._perform(instruction)
        if isinstance(event, TaskDone | WorkerUp) and self._latest is not None:
            latest = self._latest
            if latest.task_id not in self._state.reports:
                self._post(Ordered(latest, self._recheck(latest)))

    def _perform(self, instruction: Instruction) -> None:
        match instruction:
            case Answer(verdict=verdict):
                self._answer(verdict)
            case StartWorker(order=order):
                self._aside(self._start_worker, order)
            case RunTask(order=order):
                self._aside(self._run_task, order)
            case Report(report=report):
                self._tell(lambda: self._around.link.report(report))
            case StopWorker(reason=reason):
                self._unwanted.set()
                self._audit("run stopped", reason=reason)
                if self._limit is not None:
                    self._limit.cancel()
                if self._process is not None:
                    self._process.stop()
                    self._process = None
                self._tidy()

    def _aside(self, action: Callable[[TaskOrder], Event], order: TaskOrder) -> None:
        def act() -> None:
            self._queue.put(action(order))

        thread = threading.Thread(target=act, name=f"{self.run_id} {order.task_id}")
        self._asides = [t for t in self._asides if t.is_alive()] + [thread]
        thread.start()

    # ---------------------------------------------------------------- deciding

    def _take_offer(self, offer: Offer) -> None:
        self._offer = offer
        self._state = SiteRun(self.run_id, dry_run=offer.dry_run)
        self._judgement = self._around.judge.judge(offer, self._around.clock())
        decision = self._judgement.decision
        self._audit(
            "run explained" if offer.dry_run else "run decided",
            verdict=decision.verdict.value,
            policy=decision.policy_id or "",
            policy_sha256=decision.policy_sha256 or "",
            code=decision.refusal.code.value if decision.refusal else "",
            release=self._judgement.job.release if self._judgement.job else "",
            user=self._judgement.user.name if self._judgement.user else "",
        )
        if decision.verdict is Verdict.CONFIRM and not offer.dry_run:
            job = self._judgement.job
            shown = {
                "run": self.run_id,
                "job": job.model_dump(mode="json") if job else {},
                "decision": decision.to_json(),
            }
            self._home.park(self.run_id, shown)
        self._post(Decided(decision.verdict.value))

    def _answer(self, verdict: str) -> None:
        assert self._judgement is not None
        wrapped = b""
        if verdict == "allow" and self._offer is not None and not self._offer.dry_run:
            assert self._judgement.accepted is not None
            secret = secrets.token_bytes(32)
            write(self._folder / "run.secret", secret)
            wrapped = wrap_run_secret(self._home.secret("centre.pub"), secret, self.run_id, self._site)
        if self._home.said(self.run_id) is not None:
            self._audit("custodian answered", verdict=verdict, by=(self._home.said(self.run_id) or {}).get("by", ""))
            self._home.unpark(self.run_id)
        decision = _revealed(self._judgement, self._home.settings().reveal, self._around.runtime, verdict)
        self._tell(lambda: self._around.link.answer(OfferAnswer(self.run_id, verdict, decision, wrapped)))

    def _recheck(self, order: TaskOrder) -> str:
        if self._lost:
            return "worker_lost"
        if self._judgement is None or self._judgement.accepted is None:
            return Code.NO_POLICY.value
        refusal = self._around.judge.recheck(
            self._judgement.accepted, order.round, order.verb == "train" and order.round > 0, self._around.clock()
        )
        if refusal is not None:
            self._audit("task refused", task=order.task_id, code=refusal.code.value)
            return refusal.code.value
        return ""

    # ---------------------------------------------------------------- starting

    def _start_worker(self, order: TaskOrder) -> Event:
        accepted = self._accepted()
        self._beat(SiteProgress(self.run_id, order.task_id, "verify data and image", 0, 3))
        dataset = self._home.dataset(accepted.dataset_id)
        if isinstance(dataset, Refusal):
            return self._broken(order, dataset.code.value, dataset.message)
        if changed := changed_file(dataset, self._home.dataset_folder(dataset.id)):
            why = f"{changed} of {dataset.id} is not what was published"
            return self._broken(order, Code.DATASET_CHANGED.value, why)
        try:
            image = pull(self._around.registry, accepted.release.statement.digest, self._home.root / "images")
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
        if not self._around.ledger.begin_run(self.run_id, policy.id, policy.approval.max_runs):
            why = f"{policy.approval.max_runs} runs of {policy.id} have begun"
            return self._broken(order, Code.RUN_BUDGET_SPENT.value, why)
        protections = self._around.runtime.protections()
        self._audit(
            "worker starts",
            digest=image.digest,
            isolation=protections.isolation.value,
            protections="; ".join(protections.detail),
        )
        try:
            self._process = process = HostedProcess.start(self._around.runtime, start, cancelled=self._unwanted.is_set)
        except Refused as refused:
            return self._broken(order, refused.refusal.code.value, refused.refusal.message)
        except ProcessGone as gone:
            return self._broken(order, gone.code, str(gone))
        if self._unwanted.is_set():
            # The run ended while its worker came up, and who ended it saw no worker to stop.
            process.stop(2.0)
            self._tidy()
            return Broken("run_over")
        # By the clock, whatever the worker is doing: the machine then stops it and says so.
        self._limit = threading.Timer(
            seconds(policy.resources.wall_time), self._queue.put, (Broken(Code.RESOURCES_EXCEEDED.value),)
        )
        self._limit.daemon = True
        self._limit.start()
        return WorkerUp()

    # ------------------------------------------------------------------- tasks

    def _run_task(self, order: TaskOrder) -> Event:
        accepted = self._accepted()
        began = time.monotonic()
        if order.verb == "train" and order.round > 0:
            self._around.ledger.begin_round(self.run_id, order.round, accepted.policy.document.id)
        self._audit("task begins", task=order.task_id, verb=order.verb, round=str(order.round))
        files_here = self._files
        try:
            document, files, received = files_here.take_inputs(order, self._download)
            weights = next((files_here.inbox / f for f in files.values()), None)
            template = weights if order.verb == "train" else None
            if order.verb == "train" and document.get("stream") == "local":
                document["send_weights"] = allowed_outputs(accepted.policy).local_model
            assert self._process is not None
            result = self._process.call(
                Task(order.task_id, order.verb, order.round, accepted.resolved, document, files), self._on_progress
            )
            sealed = files_here.gate_and_seal(accepted, order, order.attempt, document, result, template)
            key = result_key(order.task_id, self._site, order.attempt)
            self._audit("result leaves", task=order.task_id, bytes=str(sealed.stat().st_size))
            self._until_sent(lambda: self._around.link.upload(self.run_id, key, sealed))
            sent = sealed.stat().st_size
            sealed.unlink()
        except CannotDo as error:
            return self._broken(order, error.code, str(error))
        except TaskFailed as failed:
            return self._broken(order, failed.code, failed.detail)
        except ProcessGone as gone:
            return self._broken(order, gone.code, str(gone))
        except NotWanted as unwanted:
            # The centre has closed this step without us; the next order says how it goes on.
            log.warning("nobody waits for this result", run=self.run_id, task=order.task_id, why=str(unwanted))
            return TaskDone(TaskReport(self.run_id, order.task_id, order.attempt))
        finally:
            files_here.clear()
        report = TaskReport(
            run_id=self.run_id,
            task_id=order.task_id,
            attempt=order.attempt,
            key=key,
            bytes_up=sent,
            bytes_down=received,
            seconds=time.monotonic() - began,
            peak_rss_mib=self._peaks(result),
        )
        return TaskDone(report)

    def _download(self, key: str, take: Callable[[bytes], None]) -> int:
        """Goes on at the byte where the line was cut."""
        got = 0

        def take_on(piece: bytes) -> None:
            nonlocal got
            take(piece)
            got += len(piece)

        self._until_sent(lambda: self._around.link.download(self.run_id, key, got, take_on))
        return got

    def _tidy(self) -> None:
        """Pictures stay, in a folder of the site; preprocessed patient data and keys of the run do not."""
        figures = self._box / "figures"
        if figures.is_dir():
            kept = self._home.root / "figures" / self.run_id
            kept.mkdir(parents=True, exist_ok=True, mode=0o700)
            for picture in figures.iterdir():
                # Written by the worker: only plain files, and never through a link.
                if picture.is_file() and not picture.is_symlink():
                    shutil.move(picture, kept / picture.name)
        shutil.rmtree(self._box, ignore_errors=True)
        (self._folder / "run.secret").unlink(missing_ok=True)

    # ------------------------------------------------------------------- small

    def _accepted(self) -> Accepted:
        assert self._judgement is not None
        assert self._judgement.accepted is not None
        return self._judgement.accepted

    def _broken(self, order: TaskOrder, code: str, why: str) -> Broken:
        # `why` may quote what must stay here; only the code goes out.
        self._audit("task failed", task=order.task_id, code=code)
        log.error("task failed", run=self.run_id, task=order.task_id, code=code, why=why)
        return Broken(code)

    def _audit(self, action: str, **fields: str) -> None:
        self._around.audit.write(self._around.clock(), action, self.run_id, fields)

    def _on_progress(self, progress: Progress) -> None:
        rules = allowed_outputs(self._accepted().policy)
        metrics = {k: v for k, v in progress.metrics.items() if k == "train_loss" and "loss" in rules.metrics}
        self._beat(SiteProgress(self.run_id, progress.task_id, progress.phase, progress.done, progress.total, metrics))

    def _beat(self, progress: SiteProgress) -> None:
        now = time.monotonic()
        if now - self._last_beat < 0.25 and progress.done < progress.total:
            return
        self._last_beat = now
        try:
            self._around.link.beat(progress)
        except (LineDown, NotWanted) as error:
            log.info("progress was not heard", run=self.run_id, why=str(error))

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            self._until_sent(call)
        except CannotDo as stopped:
            log.info("not said", run=self.run_id, why=str(stopped))
        except NotWanted as unwanted:
            log.warning("the orchestrator will not have it", run=self.run_id, why=str(unwanted))

    def _until_sent(self, call: Callable[[], Any]) -> Any:
        """Try until it gets through: what a site has to say is never lost to a broken line."""
        wait = 0.2
        while not self._closing.is_set():
            try:
                return call()
            except LineDown as down:
                log.info("the line is down", run=self.run_id, why=str(down))
                self._closing.wait(wait)
                wait = min(wait * 2, 5.0)
        raise CannotDo("gateway_stopped", "the gateway is being stopped")

    def _peaks(self, result: Result) -> dict[str, float]:
        own = psutil.Process().memory_info().rss / 2**20
        peaks = {"gateway": round(own, 1)}
        if isinstance(worker := result.document.get("peak_rss_mib"), int | float):
            peaks["worker"] = float(worker)
        return peaks


def _limits(accepted: Accepted) -> Limits:
    resources = accepted.policy.document.resources
    return Limits(gpus=resources.gpus, memory_bytes=resources.memory_gib << 30)


def _revealed(judgement: Judgement, reveal: str, runtime: Runtime, verdict: str) -> JsonObject:
    """As much of a decision as the site lets others know: reason, code or nothing."""
    decision = judgement.decision
    protections = runtime.protections()
    shown: JsonObject = {
        "policy_id": decision.policy_id,
        "policy_sha256": decision.policy_sha256,
        "isolation": {"level": protections.isolation.value, "detail": list(protections.detail)},
    }
    refusal = decision.refusal
    if verdict == "refuse" and refusal is None:
        shown["refusal"] = {"code": Code.CUSTODIAN_REFUSED.value, "message": "The custodian refused.", "fields": {}}
        return shown
    if verdict != "refuse" or refusal is None:
        return shown
    match reveal:
        case "reason":
            return {**decision.to_json(), **shown, "refusal": refusal.to_json()}
        case "code":
            return {"refusal": {"code": refusal.code.value, "message": "", "fields": {}}}
        case _:
            return {}


def utc_now() -> datetime:
    return datetime.now(UTC)
