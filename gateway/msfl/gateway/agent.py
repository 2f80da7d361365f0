"""The gateway's main loop: stay on the line, hand orders to runs, beat, and ask the custodian's folder for answers.

    while not stopping:  dial ▸ Attend ▸ for each order: its run hears it      line down: wait 0.5 … 5 s, dial again
    beside it: a heartbeat every 3 s, whose answer brings what the federation's keepers published; every second the
    words of the custodian, and the site's certificate; every 2 s a look at what still may run, and at the datasets: the
    federation is shown them anew when one was published; hourly, what was kept for too long goes; `witness` shows the
    audit log to the centre

The agent never listens. Runs live in threads of their own (`site_run`), one worker process each. At its start every run
that had not ended goes on from its record; of one that has ended, only what is left of it is removed in time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import structlog

from msfl.gateway.disk import is_full
from msfl.gateway.link import LineDown, NotWanted
from msfl.gateway.membership import Membership
from msfl.gateway.record import BadRecord, RunRecord, forget
from msfl.gateway.site_run import KEPT_FOR, RunAtSite
from msfl.gateway.surroundings import Surroundings
from msfl.policies.documents import DatasetRecord
from msfl.policies.refusals import Code
from msfl.protos.convert import BadMessage
from msfl.protos.messages import PROTOCOL, Arrival, JsonObject, Order, SiteProgress, StopOrder

BEAT_S = 3.0
LOOK_S = 2.0
SWEEP_S = 3600.0
log = structlog.get_logger()


class Agent:
    def __init__(self, around: Surroundings, software: str) -> None:
        self._around = around
        self._software = software
        self._membership = Membership(around.home, around.link, around.audit, around.clock)
        self._runs: dict[str, RunAtSite] = {}
        self._stopping = threading.Event()
        self._end_workers = False
        self._shown: dict[str, str] = {}
        self._records: dict[str, int] = {}
        self._policies: dict[str, str] = {}

    def serve(self) -> None:
        """Until `stop` is called. Raises NotWanted when the orchestrator will never talk to us (protocol). Where it
        does not admit this site (frozen, revoked, from another address) the gateway says so and goes on asking."""
        beside = [
            threading.Thread(target=self._every, args=(BEAT_S, self._beat), name="beat"),
            threading.Thread(target=self._every, args=(1.0, self._ask_custodian), name="custodian"),
            threading.Thread(target=self._every, args=(LOOK_S, self._look_again), name="look"),
            threading.Thread(target=self._every, args=(1.0, self._membership.look_after), name="membership"),
            threading.Thread(target=self._every, args=(SWEEP_S, self._sweep), name="sweep"),
            threading.Thread(target=self._around.witness.serve, name="witness"),
        ]
        self._ask_custodian()
        self._restore()
        for thread in beside:
            thread.start()
        try:
            self._attend()
        finally:
            self._stopping.set()
            self._around.witness.stop()
            for thread in beside:
                thread.join()
            for run in self._runs.values():
                run.close(end_worker=self._end_workers)

    def stop(self, *, end_workers: bool = False) -> None:
        """From a signal handler: closing the channel ends the open stream. Workers work on, for the gateway that is
        started next; unless they are to end, too."""
        self._end_workers = end_workers
        self._stopping.set()
        self._around.link.close()

    def _attend(self) -> None:
        wait = 0.5
        while not self._stopping.is_set():
            self._beat()  # First: without fresh trust papers no run may begin.
            self._records = self._around.home.dataset_stamps()  # Before the records: what comes between is seen next.
            try:
                for order in self._around.link.attend(self._announced(self._arrival())):
                    wait = 0.5
                    self.dispatch(order)
            except LineDown as down:
                log.info("the line to the orchestrator is down", why=str(down), again_in_s=wait)
                if not self._stopping.is_set():
                    self._membership.say_if_expired()
            except NotWanted as unwanted:
                if unwanted.status != grpc.StatusCode.PERMISSION_DENIED.name:
                    raise
                log.error("the orchestrator does not admit this site", why=str(unwanted), again_in_s=wait)
            except OSError as error:
                if not is_full(error):
                    raise
                log.error("nothing is shown to the federation before it is written down", why=error.strerror)
            self._stopping.wait(wait)
            wait = min(wait * 2, 5.0)

    def _announced(self, arrival: Arrival) -> Arrival:
        """What the federation is about to be shown of the datasets is in the audit log, once per change; beside it what
        pins the verdicts of quality control that people have overruled, which nobody else is shown."""
        overruled = ", ".join(f"{r.ref} {r.overrules}" for r in self._around.home.datasets() if r.overrules)
        refs = ", ".join(f"{d['ref']} {d['version']}" for d in arrival.datasets)
        fields = {"datasets": refs, **({"overrules": overruled} if overruled else {})}
        if self._shown != fields:
            self._around.audit.write(self._around.clock(), "datasets shown", self._around.home.settings().site, fields)
            self._shown = fields
        return arrival

    def _restore(self) -> None:
        with contextlib.suppress(OSError):  # Now, for a disk that is full has no room for it when it is needed.
            (self._around.home.root / "stopped").mkdir(exist_ok=True, mode=0o700)
        self._sweep()
        living = [folder for folder in self._folders() if RunRecord(folder).living()]
        self._around.images.tidy({folder.name for folder in living})
        for folder in self._folders():
            if folder in living:
                self._runs[folder.name] = RunAtSite(folder.name, self._around)
            elif (left := self._around.runtime.recover(folder / "box")) is not None:
                self._around.runtime.stop(left, 1.0)  # It was being ended when the gateway was killed.

    def _sweep(self) -> None:
        """What was kept of ended runs in case they are resumed does not stay longer than `KEPT_FOR`."""
        oldest = self._around.clock() - KEPT_FOR
        for folder in self._folders():
            try:
                kept = RunRecord(folder).load()
            except BadRecord:
                continue
            if kept is not None and kept.ended is not None and kept.ended < oldest:
                forget(folder)

    def _folders(self) -> list[Path]:
        return sorted(f for f in self._around.home.runs.glob("*") if f.is_dir())

    def runs(self) -> list[RunAtSite]:
        """Those that this process has heard of, or goes on with."""
        return list(self._runs.values())

    def dispatch(self, order: Order | BadMessage) -> None:
        """An order goes to its run. What is none would be sent again: it ends nothing, and is written down."""
        if isinstance(order, BadMessage):
            site, code = self._around.home.settings().site, Code.MALFORMED_DOCUMENT.value
            self._around.audit.write(self._around.clock(), "order refused", site, {"code": code})
            log.error("the orchestrator sent something that is no order", why=str(order))
            return
        run = self._runs.get(order.run_id)
        if run is None:
            if isinstance(order, StopOrder) and RunRecord(self._around.home.run_folder(order.run_id)).over(
                order.generation
            ):
                return  # It is said again on each new stream.
            run = self._runs[order.run_id] = RunAtSite(order.run_id, self._around)
        run.hear(order)

    def _arrival(self) -> Arrival:
        return Arrival(PROTOCOL, self._software, tuple(_shown(r) for r in self._around.home.datasets()))

    def _beat(self) -> None:
        standing, now = self._around.standing, self._around.clock()
        try:
            papers = self._around.link.beat(SiteProgress(run_id="", trust=standing.received))
            if papers is not None:
                standing.take(papers, now)
            standing.tick(now)
        except (LineDown, NotWanted) as error:
            log.info("no answer to the heartbeat", why=str(error))
        except OSError as error:
            log.error("what came with the heartbeat cannot be kept", why=str(error))

    def _look_again(self) -> None:
        try:
            for run in list(self._runs.values()):
                run.look_again()
            self._look_at_datasets()
            self._look_at_policies()
        except OSError as error:
            log.error("what is still allowed cannot be looked up", why=str(error))

    def _look_at_datasets(self) -> None:
        if (stamps := self._around.home.dataset_stamps()) != self._records:
            self._records = stamps
            log.info("the datasets have changed; they are shown to the federation")
            self._around.link.arrive_anew()

    def _look_at_policies(self) -> None:
        """Which count here, and who signed them, is in the audit log, once per change: also that one was taken away."""
        now = self._around.clock()
        counted, others = self._around.standing.policies_as_they_lie(now)
        told = sorted(f"{p.id} version {p.document.version} {p.sha256} by {', '.join(p.signers)}" for p in counted)
        fields = {"count": "; ".join(told), "count_for_nothing": "; ".join(sorted(no.message for no in others))}
        if fields != self._policies:
            self._around.audit.write(now, "policies here", self._around.home.settings().site, fields)
            self._policies = fields

    def _ask_custodian(self) -> None:
        try:
            self._around.standing.look_at_words(self._around.clock())
        except OSError as error:
            log.error("the custodian's word cannot be written down yet", why=str(error))
        for run_id, run in list(self._runs.items()):
            if run.parked and self._around.home.declined(run_id) is not None:
                run.custodian_declines()
            elif run.parked and (envelope := self._around.home.confirmed(run_id)) is not None:
                run.custodian_signed(envelope)
            if (stop := self._around.home.stop_asked(run_id)) is not None:
                run.custodian_stops(stop["by"])

    def _every(self, seconds: float, action: Callable[[], None]) -> None:
        while not self._stopping.wait(seconds):
            action()


def _shown(record: DatasetRecord) -> JsonObject:
    """What the federation may know of a dataset before any policy is asked: no files, no spacing, no free text."""
    return {
        "ref": record.ref,
        "version": record.version,
        "channel_names": list(record.channel_names),
        "labels": dict(record.labels),
        "n_train": record.n_train,
        "n_test": record.n_test,
        "kind": record.kind,
    }
