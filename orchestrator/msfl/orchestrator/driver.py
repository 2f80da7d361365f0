"""One run's work at the centre: its aggregator is started, opened, asked for each central step, and started again.

    while the run has not ended and is not paused:
        RUNNING and no aggregator               start one
        a secret the aggregator does not have   open it (again) with all of them
        the current step is central             do it ▸ adopt its files ▸ keep the event ▸ free what nobody needs
        else                                    wait for the run's bell

    what happens                        what is done
    the aggregator dies                 it is started and the step done again, TRIES times in all; then CentreFailed
    it refuses (TaskFailed, Refused)    CentreFailed at once: it would refuse again
    a site's secret does not open       SiteFailed: one site's mistake, or its malice, is that site's alone
    keyring or registry down, disk full the run waits, and says for what; tried again every few seconds

A step may be done twice, its event is kept once. Files are adopted before the event is kept, so a crash in between
leaves files that the same step, done again, adopts over.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import structlog

from msfl.orchestrator.aggregator import CentralResult, CentralTask
from msfl.orchestrator.keyring.client import BadRunSecret, KeyringDown
from msfl.orchestrator.presence import Bell
from msfl.orchestrator.runs.events import CentralDone, CentreFailed, Event, SiteFailed
from msfl.orchestrator.runs.machine import (
    Phase,
    RunState,
    Step,
    abandoned_uploads,
    central_attempts,
    central_broadcasts,
    central_inputs,
    disposable_keys,
    model_to_start_from,
    runnable,
)
from msfl.orchestrator.store.interface import ArtifactStore, StoreUnavailable
from msfl.policies.refusals import Refused
from msfl.protos.durable_files import DISK_TROUBLE
from msfl.protos.messages import output_key
from msfl.registry.interface import RegistryFails
from msfl.runtime.hosted import ProcessGone, TaskFailed

JsonObject: TypeAlias = dict[str, Any]
TRIES = 3
LAST_WORDS = "aggregator_error"  # What it says of an error that it dies of: memory, its disk, a bug.
log = structlog.get_logger()


class CentralProcess(Protocol):
    """The aggregator of one run, as far as the engine needs it."""

    def open(self, wrapped: Mapping[str, bytes], earlier: str) -> None:
        """Hand over the sites' run secrets, all of them; `earlier` is the run that this one starts from.

        Raises BadRunSecret, KeyringDown, ProcessGone, TaskFailed.
        """
        ...

    def do(self, task: CentralTask) -> CentralResult:
        """Raises ProcessGone, TaskFailed, StoreUnavailable."""
        ...

    def stop(self) -> None: ...


class StartAggregator(Protocol):
    """Pull, verify and start the aggregator of a run; it and the facts the run keeps. Raises ProcessGone, Refused."""

    def __call__(self, state: RunState) -> tuple[CentralProcess, JsonObject]: ...


class Runs(Protocol):
    """What a driver needs of the engine."""

    artifacts: ArtifactStore

    @property
    def stopping(self) -> bool: ...

    def now(self) -> float: ...

    def state(self, run_id: str) -> RunState | None: ...

    def run_bell(self, run_id: str) -> Bell: ...

    def post(self, run_id: str, event: Event) -> bool: ...

    def waits_for(self, run_id: str, what: str, why: str = "") -> None:
        """Let people know what of the centre's own the run waits for; empty: nothing any more."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long to wait before something is tried again: doubling from `first_s` to `longest_s`."""

    first_s: float = 0.2
    longest_s: float = 5.0


@dataclass
class _Up:
    """A started aggregator, and the secrets it has been opened with."""

    process: CentralProcess
    facts: JsonObject
    opened: dict[str, bytes] | None = None


class Driver:
    """Serves one run until it ends or the engine stops; its own thread calls `drive`."""

    def __init__(self, runs: Runs, run_id: str, start_aggregator: StartAggregator, patience: Patience) -> None:
        self._runs = runs
        self._run_id = run_id
        self._start_aggregator = start_aggregator
        self._patience = patience
        self._bell = runs.run_bell(run_id)
        self._generation = self._state().generation
        self._heard = -1
        self._up: _Up | None = None
        self._bad_secrets: set[bytes] = set()
        self._failures = ("", 0)  # the step, and how often the aggregator died in it
        self._wait_s = patience.first_s
        self._freed: frozenset[str] = frozenset()

    def drive(self) -> None:
        try:
            while not self._runs.stopping and self._is_mine(self._state()):
                if not self._turn():
                    self._heard = self._bell.wait(self._heard, 60.0)
            if self._state().ended:
                self._free_at_the_end()
        finally:
            self._stop_aggregator()

    def _is_mine(self, state: RunState) -> bool:
        """A run that ended and was resumed, however soon, has a new driver and gets a new aggregator."""
        return not state.ended and state.generation == self._generation

    def _turn(self) -> bool:
        """Do what is due. False: there was nothing to do, wait for the bell."""
        state = self._state()
        try:
            return self._advance(state)
        except BadRunSecret as error:
            log.error("a run secret does not open", run=self._run_id, site=error.site)
            site = error.site
            self._bad_secrets.add(_wrapped(state)[site])
            self._keep(lambda now: SiteFailed(now, site, "open", "bad_run_secret"))
        except KeyringDown as error:
            self._later("keyring", str(error))
        except RegistryFails as error:
            self._later("registry", str(error))
        except StoreUnavailable as error:
            self._later("disk", str(error))
        except OSError as error:
            if error.errno not in DISK_TROUBLE:
                raise
            self._later("disk", str(error))
        except ProcessGone as gone:
            self._aggregator_died(state, gone.code, str(gone))
        except TaskFailed as failed:
            if failed.code == LAST_WORDS:
                self._aggregator_died(state, failed.code, failed.detail)
            else:
                log.error("the aggregator refuses", run=self._run_id, code=failed.code, why=failed.detail)
                self._fail(failed.code)
        except Refused as refused:
            log.error("the aggregator may not be started", run=self._run_id, why=str(refused))
            self._fail(refused.refusal.code.value)
        return True

    def _advance(self, state: RunState) -> bool:
        if state.phase is not Phase.RUNNING or not runnable(state):
            return False
        if self._up is None:
            # Its start takes seconds: begin while the sites start theirs.
            self._up = _Up(*self._start_aggregator(state))
        wrapped = {site: box for site, box in _wrapped(state).items() if box not in self._bad_secrets}
        if self._up.opened is None or not wrapped.items() <= self._up.opened.items():
            self._up.process.open(wrapped, state.spec.start_from.run if state.spec.start_from is not None else "")
            self._up.opened = wrapped
            self._fine()
        if state.step is None or not state.step.central:
            return False
        self._do(state, state.step, self._up)
        return True

    def _do(self, state: RunState, step: Step, up: _Up) -> None:
        began = time.monotonic()
        if step.verb == "open":  # The aggregator was opened before its first step.
            self._keep(lambda now: CentralDone(at=now, task_id=step.task_id, document=up.facts))
            return
        artifacts = self._runs.artifacts
        wanted = central_inputs(state) | central_broadcasts(state)
        files = {name: artifacts.local(state.run_id, key) for name, key in wanted.items()}
        document = {**step.document, "attempts": central_attempts(state), "min_sites": state.spec.min_sites}
        if step.verb == "plan" and (start := state.spec.start_from) is not None:
            earlier = self._runs.state(start.run)
            assert earlier is not None, "the people's door took the job"
            round, keys = model_to_start_from(earlier, start.round)
            try:
                files |= {name: artifacts.local(start.run, key) for name, key in keys.items()}
            except FileNotFoundError as error:
                log.error("the model to start from is gone", run=self._run_id, why=str(error))
                return self._fail("earlier_model_gone")
            document["start_from"] = {"run": start.run, "round": round}
        result = up.process.do(CentralTask(step.task_id, step.verb, step.round, up.facts["config"], document, files))
        made = {}
        for name, path in result.files.items():
            artifact, _, site = name.rpartition("/")
            made[output_key(step.task_id, site, artifact) if artifact else f"{step.task_id}/{name}"] = path
        artifacts.adopt(state.run_id, made)
        seconds = time.monotonic() - began
        self._keep(
            lambda now: CentralDone(
                at=now, task_id=step.task_id, document=result.document, files=tuple(sorted(made)), seconds=seconds
            )
        )
        self._free()

    def _free(self) -> None:
        """Sealed streams are kept only as long as somebody may still need them."""
        # What is there first: an upload that begins after this is none that the state has given up.
        kept = self._runs.artifacts.kept(self._run_id)
        state = self._state()
        disposable = disposable_keys(state)
        for key in sorted((disposable - self._freed) | abandoned_uploads(state, kept)):
            self._runs.artifacts.remove(self._run_id, key)
        self._freed = disposable

    def _free_at_the_end(self) -> None:
        try:
            self._free()
        except OSError as error:
            if error.errno not in DISK_TROUBLE:
                raise
            log.warning("what an ended run no longer needs stays", run=self._run_id, why=error.strerror)

    # ------------------------------------------------------------ trouble

    def _aggregator_died(self, state: RunState, code: str, why: str) -> None:
        task = state.step.task_id if state.step is not None else "start"
        died = self._failures[1] + 1 if self._failures[0] == task else 1
        self._failures = (task, died)
        log.error("the aggregator is gone", run=self._run_id, step=task, times=died, why=why)
        self._stop_aggregator()
        if died >= TRIES:
            self._fail(code)

    def _stop_aggregator(self) -> None:
        if self._up is not None:
            self._up.process.stop()
            self._up = None

    def _fail(self, code: str) -> None:
        self._keep(lambda now: CentreFailed(at=now, code=code))

    def _keep(self, event: Callable[[float], Event]) -> None:
        """Post an event, as soon as the store takes it: what has been done is not done again for a full disk."""
        while not self._runs.stopping:
            try:
                self._runs.post(self._run_id, event(self._runs.now()))
                return self._fine()
            except StoreUnavailable as error:
                self._later("disk", str(error))

    def _later(self, what: str, why: str) -> None:
        self._runs.waits_for(self._run_id, what, why)
        # Saying so has rung the bell; from here on a ring (an abort, a stop) ends the wait.
        self._heard = self._bell.wait(-1, 0.0)
        if not self._runs.stopping:
            self._heard = self._bell.wait(self._heard, self._wait_s)
        self._wait_s = min(2 * self._wait_s, self._patience.longest_s)

    def _fine(self) -> None:
        self._wait_s = self._patience.first_s
        self._runs.waits_for(self._run_id, "")

    def _state(self) -> RunState:
        state = self._runs.state(self._run_id)
        assert state is not None
        return state


def _wrapped(state: RunState) -> dict[str, bytes]:
    """Also of sites that are out: what they sent while they took part may still be read."""
    return {m.site: base64.b64decode(m.wrapped_secret) for m in state.members.values() if m.wrapped_secret}
