"""The engine obeys the run machine: it keeps events, runs the aggregator's steps and wakes whoever waits.

    a door (service.py)                       engine                               store
      post(run, event) ──▶ news? ──▶ append (durable) ──▶ advance ──▶ wake everybody
                                                             │
      orders(site), state(run) ◀─────────────────────────────┘
    driver thread, one per run: while the current step is central, do it at the aggregator and post the outcome
    ticker thread: post DeadlinePassed and SiteSilent

It remembers nothing that the events do not hold: after a restart it replays them, starts the aggregator again (which
finds its models on its own disk) and goes on with the same step. Live progress is the one exception; it is for eyes.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import structlog

from msfl.orchestrator.aggregator import CentralResult, CentralTask
from msfl.orchestrator.keyring.client import BadRunSecret, KeyringDown
from msfl.orchestrator.runs.events import (
    CentralDone,
    CentreFailed,
    DeadlinePassed,
    Event,
    SiteFailed,
    SiteSilent,
    Submitted,
    from_json,
    to_json,
)
from msfl.orchestrator.runs.machine import (
    Phase,
    RunState,
    Standing,
    Step,
    advance,
    central_attempts,
    central_broadcasts,
    central_inputs,
    order_for,
    submitted,
)
from msfl.orchestrator.store.interface import ArtifactStore, RunStore
from msfl.policies.documents import JobSpec
from msfl.policies.encoding import load_json
from msfl.policies.refusals import Refused
from msfl.protos.messages import Order, output_key
from msfl.protos.sealing import EVERYBODY
from msfl.runtime.hosted import ProcessGone, TaskFailed

JsonObject: TypeAlias = dict[str, Any]
SILENT_AFTER_S = 15.0
log = structlog.get_logger()


class CentralProcess(Protocol):
    """The aggregator of one run, as far as the engine needs it."""

    def do(self, task: CentralTask) -> CentralResult: ...

    def stop(self) -> None: ...


class StartAggregator(Protocol):
    """Pull, verify, start and open the aggregator of a run. Raises ProcessGone, TaskFailed, Refused."""

    def __call__(self, state: RunState, wrapped: Mapping[str, bytes]) -> tuple[CentralProcess, JsonObject]: ...


@dataclass(frozen=True)
class LiveProgress:
    """The latest a site said of what it is doing. Not kept."""

    task_id: str
    phase: str
    done: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Engine:
    def __init__(
        self,
        store: RunStore,
        artifacts: ArtifactStore,
        start_aggregator: StartAggregator,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self.artifacts = artifacts
        self._start_aggregator = start_aggregator
        self._clock = clock
        self._states: dict[str, RunState] = {}
        self._changed = threading.Condition()
        self._version = 0
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._last_heard: dict[str, float] = {}
        self._progress: dict[str, dict[str, LiveProgress]] = {}

    # ------------------------------------------------------------- life

    def start(self) -> None:
        """Replay every run, and go on with those that have not ended."""
        for run_id in self._store.runs():
            state: RunState | None = None
            for stored in self._store.events(run_id):
                event = from_json(stored.text)
                state = _first(event) if state is None else advance(state, event)
            assert state is not None
            self._states[run_id] = state
            if not state.ended:
                self._spawn(f"run {run_id}", self._drive, run_id)
        self._spawn("ticker", self._tick)

    def stop(self) -> None:
        """Stop every thread and aggregator; runs stay as they are and go on at the next start."""
        self._stopping.set()
        self._wake()
        for thread in self._threads:
            thread.join()

    def _spawn(self, name: str, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name=name)
        self._threads.append(thread)
        thread.start()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    # ----------------------------------------------------------- events

    def submit(self, event: Submitted) -> None:
        """Take on a new run. Raises Malformed when the signed bytes are not a job."""
        state = _first(event)
        with self._changed:
            self._store.append(event.run_id, to_json(event))
            self._states[event.run_id] = state
        self._spawn(f"run {event.run_id}", self._drive, event.run_id)
        self._wake()

    def post(self, run_id: str, event: Event) -> bool:
        """Keep an event and advance the run. False: it was no news (late or repeated) and nothing changed."""
        with self._changed:
            state = self._states[run_id]
            following = advance(state, event)
            if following is state:
                return False
            self._store.append(run_id, to_json(event))
            self._states[run_id] = following
            self._version += 1
            self._changed.notify_all()
        log.info("run event", run=run_id, event_kind=type(event).__name__, phase=following.phase.value)
        return True

    def _wake(self) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    # ------------------------------------------------------------ reads

    def state(self, run_id: str) -> RunState | None:
        with self._changed:
            return self._states.get(run_id)

    def runs(self) -> list[RunState]:
        with self._changed:
            return list(self._states.values())

    def events(self, run_id: str, after: int) -> list[tuple[int, Event]]:
        return [(s.sequence, from_json(s.text)) for s in self._store.events(run_id, after)]

    def orders(self, site: str) -> list[tuple[RunState, Order]]:
        """What a site should be doing, over all runs it is part of."""
        with self._changed:
            states = list(self._states.values())
        return [(state, order) for state in states if (order := order_for(state, site)) is not None]

    def wait(self, version: int, timeout_s: float) -> int:
        """Until something changed since `version`, or the time is up; the present version."""
        with self._changed:
            if self._version == version and not self._stopping.is_set():
                self._changed.wait(timeout_s)
            return self._version

    # --------------------------------------------------------- presence

    def heard(self, site: str) -> None:
        self._last_heard[site] = self._clock()

    def present(self, site: str) -> bool:
        return self._clock() - self._last_heard.get(site, 0.0) < SILENT_AFTER_S

    def note(self, run_id: str, site: str, progress: LiveProgress) -> None:
        with self._changed:
            self._progress.setdefault(run_id, {})[site] = progress
            self._version += 1
            self._changed.notify_all()

    def progress(self, run_id: str) -> dict[str, LiveProgress]:
        with self._changed:
            return dict(self._progress.get(run_id, {}))

    # ---------------------------------------------------------- threads

    def _tick(self) -> None:
        started = self._clock()
        while not self._stopping.wait(0.5):
            now = self._clock()
            for state in self.runs():
                if state.ended:
                    continue
                self._tick_run(state, now, started)

    def _tick_run(self, state: RunState, now: float, started: float) -> None:
        deadline = state.spec.round_deadline_s
        if state.phase is Phase.OFFERED:
            if now - state.submitted_at > deadline:
                self.post(state.run_id, DeadlinePassed(at=now, task_id="offer"))
            return
        step = state.step
        if step is None or step.central:
            return
        if now - step.opened_at > deadline:
            self.post(state.run_id, DeadlinePassed(at=now, task_id=step.task_id))
            return
        for site in sorted(step.waiting):
            # A site gets its full patience after a restart of ours, too.
            if now - max(self._last_heard.get(site, 0.0), started, step.opened_at) > SILENT_AFTER_S:
                self.post(state.run_id, SiteSilent(at=now, site=site, task_id=step.task_id))

    def _drive(self, run_id: str) -> None:
        aggregator: CentralProcess | None = None
        facts: JsonObject = {}
        version = -1
        try:
            while not self._stopping.is_set():
                state = self.state(run_id)
                assert state is not None
                if state.ended:
                    return
                step = state.step
                try:
                    # Its start takes seconds: begin while the sites start theirs.
                    if state.phase is Phase.RUNNING and aggregator is None:
                        aggregator, facts = self._start_aggregator(state, _wrapped(state))
                    if step is not None and step.central and aggregator is not None:
                        self._do_central(state, step, aggregator, facts)
                        continue
                except BadRunSecret as error:
                    # One site's mistake, or its malice, is that site's alone: go on without it.
                    log.error("a run secret does not open", run=run_id, site=error.site)
                    self.post(run_id, SiteFailed(self._clock(), error.site, "open", "bad_run_secret"))
                    continue
                except KeyringDown as error:
                    log.error("the keyring does not answer", run=run_id, why=str(error))
                    self.post(run_id, CentreFailed(at=self._clock(), code="keyring_down"))
                    return
                except (ProcessGone, TaskFailed, Refused) as error:
                    log.error("the centre failed", run=run_id, step=step.task_id if step else "start", why=str(error))
                    code = error.refusal.code.value if isinstance(error, Refused) else error.code
                    self.post(run_id, CentreFailed(at=self._clock(), code=code))
                    return
                version = self.wait(version, 5.0)
        finally:
            if aggregator is not None:
                aggregator.stop()

    def _do_central(self, state: RunState, step: Step, aggregator: CentralProcess, facts: JsonObject) -> None:
        began = time.monotonic()
        if step.verb == "open":  # The aggregator was opened when it was started.
            self.post(state.run_id, CentralDone(at=self._clock(), task_id=step.task_id, document=facts))
            return
        wanted = central_inputs(state) | central_broadcasts(state)
        files = {name: self.artifacts.local(state.run_id, key) for name, key in wanted.items()}
        document = {**step.document, "attempts": central_attempts(state), "min_sites": state.spec.min_sites}
        result = aggregator.do(CentralTask(step.task_id, step.verb, step.round, facts["config"], document, files))
        keys = []
        for name, path in result.files.items():
            artifact, _, site = name.rpartition("/")
            key = output_key(step.task_id, site, artifact) if artifact else f"{step.task_id}/{name}"
            self.artifacts.adopt(state.run_id, key, path)
            keys.append(key)
        self.post(
            state.run_id,
            CentralDone(
                at=self._clock(),
                task_id=step.task_id,
                document=result.document,
                files=tuple(sorted(keys)),
                seconds=time.monotonic() - began,
            ),
        )
        self._free(state, step)

    def _free(self, state: RunState, step: Step) -> None:
        """Sealed streams are kept only as long as somebody may still need them."""
        for key in central_inputs(state).values():
            self.artifacts.remove(state.run_id, key)
        if step.verb == "aggregate" and step.round > 1:
            for key in state.outputs.get(f"aggregate/{step.round - 1}", ()):
                if f"/{EVERYBODY}/" not in key:
                    self.artifacts.remove(state.run_id, key)


def _first(event: Event) -> RunState:
    if not isinstance(event, Submitted):
        raise ValueError("a run's first event is its submission; the store is damaged")
    return submitted(event, load_json(event.spec.encode(), JobSpec, "the job"))


def _wrapped(state: RunState) -> dict[str, bytes]:
    return {
        m.site: base64.b64decode(m.wrapped_secret)
        for m in state.members.values()
        if m.standing is Standing.ACCEPTED and m.wrapped_secret
    }
