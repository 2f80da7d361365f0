"""A run's worker at this site, and its tasks, step by step.

    start   data as published? ▸ image by digest, verified ▸ within the budget of runs ▸ still allowed? ▸ the worker;
            before the first one: may a run begin here now?
    take_back   after a restart of the gateway: the worker of before, if its keeper still has it
    do      download sealed inputs ▸ open them into the inbox ▸ an order of this job? ▸ within the budget of rounds ▸
            the worker does the verb ▸ collect its outputs safely ▸ the egress gate ▸ seal in the same pass ▸
            within what a run may send?
            a worker that was taken back and has this very order already is only waited for
    send    upload; the next order may have made that needless

Nothing is half sent, because the sealed file exists only after the last check. Each step ends in an event for the
machine: `Broken` with a code that may leave, where another attempt would change nothing; `WorkerLost` where it might.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import psutil
import structlog

from msfl.gateway.datasets import changed_file
from msfl.gateway.disk import GivenUp, has_room, probe
from msfl.gateway.egress import Onward, allowance, failure_code, progress_of
from msfl.gateway.judge import Accepted
from msfl.gateway.link import NotWanted
from msfl.gateway.machine import Broken, Event, ResultSealed, SealedResult, Sent, Unwanted, WorkerLost, WorkerUp
from msfl.gateway.record import Asked, RunRecord, forget
from msfl.gateway.reporting import Reporting
from msfl.gateway.surroundings import Surroundings
from msfl.gateway.task_files import CannotDo, TaskFiles
from msfl.policies.decide import allowed_outputs
from msfl.policies.encoding import canonical_json, sha256_of
from msfl.policies.orders import stream_of
from msfl.policies.refusals import Code, Refusal, Refused
from msfl.protos.messages import SiteProgress, TaskOrder, TaskReport, result_key
from msfl.protos.tasklink import Progress, Result, Task
from msfl.registry.interface import RegistryFails
from msfl.registry.pull import VerifiedImage, pull
from msfl.runtime.collect import collect
from msfl.runtime.hosted import HostedProcess, ProcessGone, TaskFailed
from msfl.runtime.interface import Limits, StartOrder
from msfl.runtime.removal import empty

Cancelled: TypeAlias = Callable[[], bool]
# What the worker says when it dies of a bug. Another attempt may do better; what it *refuses* it would refuse again.
_BUG = "worker_error"
REGISTRY_PATIENCE_S = 60.0
MOST_PICTURES, PICTURE_BYTES = 1000, 64 << 20
# How long a worker works on while its gateway is being restarted. Nobody hears a revocation for so long.
RESTART_PATIENCE_S = 60.0
_MOST_MIB = 1 << 24
_WORTH_WAITING_FOR = 1 << 20
log = structlog.get_logger()


class Worker:
    """`folder` is the run's own. One step at a time, each in a thread of its own; any thread may `stop` or `end` it."""

    def __init__(self, run_id: str, around: Surroundings, folder: Path, say: Reporting) -> None:
        self.process: HostedProcess | None = None
        self._run_id = run_id
        self._around = around
        self._home = around.home
        self._site = around.home.settings().site
        self._folder = folder
        self._box = folder / "box"  # all of this folder that the worker can see
        self._files = TaskFiles(around.home, run_id, self._site, folder)
        self._record = RunRecord(folder)
        self._say = say

    def start(
        self,
        order: TaskOrder,
        accepted: Accepted,
        unconfirmed: Refusal | None,
        cancelled: Cancelled,
        *,
        wall_time_s: float,
        begun: bool,
    ) -> Event:
        """Verify data and image, and start it; what is left of an earlier one is ended first. `wall_time_s`: what the
        run has left of its time; `begun`: it had a worker before."""
        self.end(0.0)
        if unconfirmed is not None:
            return self._broken(order, unconfirmed.code.value, unconfirmed.message)
        if wall_time_s <= 0:
            return self._broken(order, Code.RESOURCES_EXCEEDED.value, "the run has had all its time here")
        self._say.beat(SiteProgress(self._run_id, order.task_id, "verify data and image", 0, 3))
        dataset = self._home.dataset(accepted.dataset_id)
        if isinstance(dataset, Refusal):
            return self._broken(order, dataset.code.value, dataset.message)
        if changed := changed_file(dataset, self._home.dataset_folder(dataset.id)):
            why = f"{changed} of {dataset.id} is not what was published"
            return self._broken(order, Code.DATASET_CHANGED.value, why)
        try:
            image = self._pulled(order, accepted.release.statement.digest)
        except Refused as refused:
            return self._broken(order, refused.refusal.code.value, refused.refusal.message)
        except RegistryFails as error:
            return self._broken(order, Code.REGISTRY_UNREACHABLE.value, str(error))
        self._say.beat(SiteProgress(self._run_id, order.task_id, "start worker", 1, 3))
        start = StartOrder(
            run_id=self._run_id,
            image=image,
            release=accepted.job.release,
            role="worker",
            folder=self._box,
            data=self._home.dataset_folder(accepted.dataset_id),
            site=self._site,
            log=self._folder / "worker.log",
            limits=_limits(accepted, wall_time_s),
        )
        policy = accepted.policy.document
        most = policy.approval.max_runs
        if not self._say.with_room(lambda: self._around.ledger.begin_run(self._run_id, policy.id, most)):
            why = f"{most} runs of {policy.id} have begun"
            return self._broken(order, Code.RUN_BUDGET_SPENT.value, why)
        # The image may have taken its time: nothing starts once it is known that it must not.
        stands = partial(self._around.judge.stands, starting=True) if begun else self._around.judge.begins
        refusal = self._say.with_room(lambda: stands(accepted, self._around.clock()))
        if refusal is not None:
            return self._broken(order, refusal.code.value, refusal.message)
        protections = self._around.runtime.protections()
        self._say.audit(
            "worker starts",
            digest=image.digest,
            isolation=protections.isolation.value,
            in_force=", ".join(sorted(protections.in_force)),
            protections="; ".join(protections.detail),
        )
        try:
            self.process = process = self._say.with_room(
                lambda: HostedProcess.start(self._around.runtime, start, cancelled=cancelled)
            )
        except Refused as refused:
            return self._broken(order, refused.refusal.code.value, refused.refusal.message)
        except ProcessGone as gone:
            return self._lost(order, gone.code, str(gone))
        if cancelled():
            process.stop(2.0)  # The run ended while its worker came up, and who ended it saw no worker to stop.
        return WorkerUp()

    def _pulled(self, order: TaskOrder, digest: str) -> VerifiedImage:
        """The image; a registry that is away for a moment is waited for, and asked only for what has not come yet.
        Raises Refused, RegistryFails, GivenUp."""
        around, give_up, counted = self._around, time.monotonic() + REGISTRY_PATIENCE_S, 0
        whole = around.runtime.whole_images

        def coming(done: int, total: int) -> None:
            nonlocal give_up, counted
            if self._say.given_up():
                raise GivenUp
            if done - counted >= _WORTH_WAITING_FOR:
                give_up, counted = time.monotonic() + REGISTRY_PATIENCE_S, done
            self._say.beat(SiteProgress(self._run_id, order.task_id, "pull image, MiB", done >> 20, -(-total >> 20)))

        while True:
            try:
                return self._say.with_room(
                    lambda: pull(around.registry, digest, around.images, by=self._run_id, whole=whole, progress=coming)
                )
            except RegistryFails as error:
                log.warning("the registry cannot be asked", run=self._run_id, why=str(error))
                if time.monotonic() >= give_up:
                    raise
            self._say.beat(SiteProgress(self._run_id, order.task_id, "wait for the registry", 0, 3))
            if self._say.pause(2.0):
                raise GivenUp

    def stop(self, grace_s: float) -> None:
        """End it; what waits for its answer hears that it is gone."""
        if (process := self.process) is not None:
            process.stop(grace_s)

    def end(self, grace_s: float) -> None:
        """The same, for good."""
        self.stop(grace_s)
        self.process = None

    def let_go(self) -> None:
        """The gateway goes down, to come back soon: it works on; what waits for its answer hears that it is gone."""
        if (process := self.process) is not None:
            process.let_go()

    def take_back(self) -> bool:
        """After a restart of the gateway: whether the worker of before is back."""
        left = self._around.runtime.recover(self._box)
        if left is None:
            return False
        try:
            self.process = HostedProcess.take_back(self._around.runtime, left, self._folder / "worker.log")
        except ProcessGone as gone:
            log.warning("the worker of before is lost", run=self._run_id, code=gone.code, why=str(gone))
            return False
        return True

    def do(self, order: TaskOrder, attempt: int, accepted: Accepted) -> Event:
        began = time.monotonic()
        again = {"attempt": str(attempt)} if attempt > 1 else {}
        wire = str(accepted.resolved.get("wire", "float32"))
        shown = "steps, train_loss" if "loss" in allowed_outputs(accepted.policy).metrics else "steps"
        files_here, process = self._files, self.process
        assert process is not None
        before = self._begun_before(order, accepted, process)
        begins = "task begins" if before is None else "task goes on"
        self._say.audit(begins, task=order.task_id, verb=order.verb, round=str(order.round), progress=shown, **again)
        try:
            asked = before or self._take_inputs(order, accepted, wire)
            document, files = asked.document, asked.files
            if (refusal := self._around.judge.unasked(accepted, order, document)) is not None:
                raise CannotDo(refusal.code.value, refusal.message)
            if order.verb == "train" and order.round > 0:
                self._begin_round(order, accepted, asked.inputs)
            weights = next((files_here.inbox / f for f in files.values()), None)
            template = weights if order.verb == "train" else None
            if order.verb == "train" and stream_of(order.round) == "local":
                document["send_weights"] = allowed_outputs(accepted.policy).local_model
            task = Task(order.task_id, order.verb, order.round, accepted.resolved, document, files)
            onward = Onward()
            result = process.call(
                task, lambda said: self._on_progress(order, said, accepted, onward), begun=before is not None
            )
            sealed = self._say.with_room(
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
            log.warning("nobody waits for this task", run=self._run_id, task=order.task_id, why=str(unwanted))
            return Unwanted()
        finally:
            # A worker that is let go works on with them.
            if files_here.inbox.is_dir() and not self._say.closing.is_set():
                files_here.clear()
        # Meanwhile what it rests on may have gone, or the custodian has stopped it: then nothing leaves.
        refusal = self._say.with_room(lambda: self._around.judge.stands(accepted, self._around.clock()))
        if refusal is not None or self._say.stopped():
            sealed.file.unlink()
            if refusal is None:
                raise GivenUp
            return self._broken(order, refusal.code.value, refusal.message)
        report = TaskReport(
            run_id=self._run_id,
            task_id=order.task_id,
            attempt=attempt,
            key=result_key(order.task_id, self._site, attempt),
            bytes_up=sealed.file.stat().st_size,
            bytes_down=asked.received,
            seconds=time.monotonic() - began,
            peak_rss_mib=self._peaks(result),
        )
        most = allowance(accepted.job.rounds, allowed_outputs(accepted.policy))
        if not self._say.with_room(lambda: self._around.ledger.send(self._run_id, report.key, report.bytes_up, most)):
            sealed.file.unlink()
            why = f"the run would send more than {most.uploads} results or {most.bytes} bytes"
            return self._broken(order, Code.OUTPUT_BUDGET_SPENT.value, why)
        self._say.audit(
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
            inputs=asked.inputs,
            report="bytes, seconds, peak memory",
        )
        return ResultSealed(SealedResult(report, sealed.file.name))

    def _take_inputs(self, order: TaskOrder, accepted: Accepted, wire: str) -> Asked:
        """What the worker is to be asked. Raises CannotDo, NotWanted, GivenUp."""
        files_here = self._files
        files_here.clear()
        document, files, received = self._say.with_room(lambda: files_here.take_inputs(order, self._download, wire))
        inputs = files_here.inputs_hash(document, files)
        asked = Asked(_order_hash(order, accepted), document, files, received, inputs)
        self._say.with_room(lambda: self._record.save_asked(asked))
        return asked

    def _begin_round(self, order: TaskOrder, accepted: Accepted, inputs: str) -> None:
        """Raises CannotDo."""
        policy, ledger = accepted.policy.document, self._around.ledger
        most = policy.approval.max_rounds
        if not self._say.with_room(lambda: ledger.begin_round(self._run_id, order.round, inputs, policy.id, most)):
            raise CannotDo(Code.ROUND_BUDGET_SPENT.value, f"{most} rounds of {policy.id} have been trained")

    def send(self, result: SealedResult) -> Event:
        file = self._folder / result.file
        try:
            self._say.until_sent(lambda: self._around.link.upload(self._run_id, result.report.key, file))
        except NotWanted as unwanted:
            # The centre has closed this step without us; the next order says how it goes on.
            log.warning("nobody waits for this result", run=self._run_id, task=result.report.task_id, why=str(unwanted))
            return Unwanted()
        return Sent()

    def _begun_before(self, order: TaskOrder, accepted: Accepted, process: HostedProcess) -> Asked | None:
        """What the worker was asked before this gateway came back, if it is this very order."""
        if process.unfinished != order.task_id:
            return None
        asked = self._record.load_asked()
        return asked if asked is not None and asked.sha256 == _order_hash(order, accepted) else None

    def end_leftovers(self) -> None:
        """What is left of a worker that nobody will ask for anything any more."""
        if (left := self._around.runtime.recover(self._box)) is not None:
            self._around.runtime.stop(left, 1.0)

    def tidy(self, *, for_good: bool) -> None:
        """Pictures stay, in a folder of the site. What else the worker left, and the run's keys, go at once, or stay
        for a run that may be resumed. Its image may go when there is need of room."""
        self._around.images.release(self._run_id)
        figures = self._box / "figures"
        if figures.is_dir() and not figures.is_symlink():
            kept = self._home.root / "figures" / self._run_id
            kept.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in sorted(os.listdir(figures))[:MOST_PICTURES]:
                (kept / name).unlink(missing_ok=True)  # of before the run was resumed
                try:
                    collect(figures, name, kept / name, PICTURE_BYTES)
                except Refused as refused:
                    log.warning("a picture stays behind", run=self._run_id, why=refused.refusal.message)
            empty(figures)
        for leftover in (*self._folder.glob("incoming*"), *self._folder.glob("result*")):
            leftover.unlink()
        if for_good:
            forget(self._folder)

    def _download(self, key: str, take: Callable[[bytes], None]) -> int:
        """Goes on at the byte where the line was cut."""
        got = 0

        def take_on(piece: bytes) -> None:
            nonlocal got
            take(piece)
            got += len(piece)

        self._say.until_sent(lambda: self._around.link.download(self._run_id, key, got, take_on))
        return got

    def _on_progress(self, order: TaskOrder, said: Progress, accepted: Accepted, onward: Onward) -> None:
        progress = progress_of(self._run_id, order.task_id, said, allowed_outputs(accepted.policy))
        if onward.lets_by(progress):
            self._say.beat(progress)

    def _lost(self, order: TaskOrder, code: str, why: str) -> Event:
        """The worker is gone. On a full disk that is nobody's fault: wait for room, then begin the task anew."""
        if self._say.given_up():
            raise GivenUp
        self._say.audit("worker lost", task=order.task_id, code=code)
        log.error("the worker is lost", run=self._run_id, task=order.task_id, code=code, why=why)
        if not has_room(self._folder):
            self._say.with_room(lambda: probe(self._folder))
            return WorkerLost(code, blameless=True)
        return WorkerLost(code)

    def _broken(self, order: TaskOrder, code: str, why: str) -> Broken:
        # `why` may quote what must stay here; only the code goes out.
        self._say.audit("task failed", task=order.task_id, code=code)
        log.error("task failed", run=self._run_id, task=order.task_id, code=code, why=why)
        return Broken(code)

    def _peaks(self, result: Result) -> dict[str, float]:
        own = psutil.Process().memory_info().rss / 2**20
        peaks = {"gateway": round(own, 1)}
        worker = result.document.get("peak_rss_mib")
        if isinstance(worker, int | float) and 0 <= worker <= _MOST_MIB:  # Its own word, and not sealed.
            peaks["worker"] = float(round(worker))
        return peaks


def _limits(accepted: Accepted, wall_time_s: float) -> Limits:
    resources = accepted.policy.document.resources
    return Limits(
        gpus=resources.gpus,
        memory_bytes=resources.memory_gib << 30,
        wall_time_s=wall_time_s,
        orphan_s=min(RESTART_PATIENCE_S, wall_time_s),
    )


def _order_hash(order: TaskOrder, accepted: Accepted) -> str:
    """Of what makes two orders the same task with the same inputs, whichever attempt it is."""
    return sha256_of(canonical_json([asdict(replace(order, attempt=0)), dict(accepted.resolved)]))
