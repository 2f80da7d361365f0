"""The engine obeys the run machine: it keeps events, has the central steps done, and wakes whoever waits.

    a door (doors/)                             engine                                   store
      post(run, event) ──▶ news? ──▶ append (durable) ──▶ advance ──▶ ring who is concerned
                                                             │
      orders(site), state(run) ◀─────────────────────────────┘
    one thread per running run    the work of the centre: driver.py
    one ticker thread             posts DeadlinePassed, SiteRevoked, SiteSilent, SiteReturned (by presence.py)

It remembers nothing that the events do not hold: after a restart it replays them and goes on with the same step. Live
progress and what a run waits for at the centre are for eyes, and not kept. What the store cannot keep has not happened:
StoreUnavailable, no state moves, nobody is told it did.

Who is woken: of a run's sites only those whose order may have changed, of its watchers all, of other runs nobody.
Ended runs cost a lookup in a table, and one stop order for each of their sites.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from msfl.orchestrator.clock import SteadyClock
from msfl.orchestrator.driver import Driver, Patience, StartAggregator
from msfl.orchestrator.presence import Bell, Presence
from msfl.orchestrator.runs.events import (
    DeadlinePassed,
    Event,
    SiteReturned,
    SiteRevoked,
    SiteSilent,
    Submitted,
    from_json,
    to_json,
)
from msfl.orchestrator.runs.machine import Phase, RunState, advance, may_take_part, order_for, runnable, submitted
from msfl.orchestrator.store.interface import ArtifactStore, RunStore, StoreDamaged, StoreUnavailable
from msfl.policies.documents import JobSpec
from msfl.policies.encoding import load_json
from msfl.protos.messages import Order

TICK_S = 0.5
# A site that was away when a run ended hears of it when it is back, if it is back within this time.
STOP_ORDERS_FOR_S = 7 * 24 * 3600.0
log = structlog.get_logger()


@dataclass(frozen=True)
class LiveProgress:
    """The latest a site said of what it is doing. Not kept."""

    task_id: str
    phase: str
    done: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class _Run:
    """A run in memory. `since` is when this process saw the present step open: patience counts from there."""

    def __init__(self, state: RunState, now: float) -> None:
        self.state = state
        self.since = now
        self.changing = threading.Lock()
        self.bell = Bell()
        self.progress: dict[str, LiveProgress] = {}
        self.waits_for = ""
        self.driver: threading.Thread | None = None


class Engine:
    def __init__(
        self,
        store: RunStore,
        artifacts: ArtifactStore,
        start_aggregator: StartAggregator,
        clock: Callable[[], float] | None = None,
        patience: Patience | None = None,
        revoked_sites: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self._store = store
        self.artifacts = artifacts
        self._start_aggregator = start_aggregator
        self.now = clock or SteadyClock()
        self._patience = patience or Patience()
        self._presence = Presence(self.now)
        self._revoked_sites = revoked_sites
        self._runs: dict[str, _Run] = {}
        self._active: dict[str, None] = {}
        self._runs_of: dict[str, dict[str, None]] = {}
        self._site_bells: dict[str, Bell] = {}
        self._index = threading.Lock()
        self._stopping = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="ticker")

    # ------------------------------------------------------------- life

    def start(self) -> None:
        """Replay every run, and go on with those that have not ended. Raises StoreDamaged."""
        # All are read before the first goes on: a damaged store starts nothing.
        for state in [self._replayed(run_id) for run_id in self._store.runs()]:
            self._take_in(state)
        self._ticker.start()

    def _replayed(self, run_id: str) -> RunState:
        state: RunState | None = None
        try:
            for stored in self._store.events(run_id):
                event = from_json(stored.text)
                state = _first(event) if state is None else advance(state, event)
        except (ValueError, KeyError, TypeError) as error:
            what = f"run {run_id} holds an event that this version did not write ({error!r})"
            raise StoreDamaged(
                f"{what}: put back your last copy of the runs, or the version that wrote them"
            ) from error
        assert state is not None
        return state

    def stop(self) -> None:
        """Stop every thread and aggregator; runs stay as they are and go on at the next start."""
        self._stopping.set()
        runs = [run for run in list(self._runs.values()) if run.driver is not None]
        for bell in (*(run.bell for run in list(self._runs.values())), *list(self._site_bells.values())):
            bell.ring()
        self._ticker.join()
        for run in runs:
            assert run.driver is not None
            run.driver.join()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    # ----------------------------------------------------------- events

    def submit(self, event: Submitted) -> None:
        """Take on a new run. Raises Malformed when the signed bytes are not a job, StoreUnavailable."""
        state = _first(event)
        self._store.append(event.run_id, to_json(event))
        self._take_in(state)
        self._ring(state.members)

    def post(self, run_id: str, event: Event) -> bool:
        """Keep an event and advance the run. False: it was no news (late or repeated) and nothing changed.

        Raises StoreUnavailable; then nothing changed either.
        """
        run = self._runs[run_id]
        with run.changing:
            before = run.state
            following = advance(before, event)
            if following is before:
                return False
            self._store.append(run_id, to_json(event))
            if _step_of(following) != _step_of(before):
                run.since = self.now()
            run.state = following
            if following.ended != before.ended:
                self._enlist(run)
            self._ring(_concerned(before, following))
            run.bell.ring()
        log.info("run event", run=run_id, event_kind=type(event).__name__, phase=following.phase.value)
        return True

    def _take_in(self, state: RunState) -> None:
        run = _Run(state, self.now())
        self._runs[state.run_id] = run
        self._enlist(run)

    def _enlist(self, run: _Run) -> None:
        """Keep the tables of what goes on, and a driver for what does."""
        state = run.state
        with self._index:
            if state.ended:
                self._active.pop(state.run_id, None)
            else:
                self._active[state.run_id] = None
            if not state.ended or abs(self.now() - (state.ended_at or 0.0)) < STOP_ORDERS_FOR_S:
                for site in state.members:
                    self._runs_of.setdefault(site, {})[state.run_id] = None
        if not state.ended:
            run.driver = threading.Thread(
                target=self._drive, args=(state.run_id, run.driver), name=f"run {state.run_id}"
            )
            run.driver.start()

    def _drive(self, run_id: str, former: threading.Thread | None) -> None:
        if former is not None:
            former.join()  # Of a run that had ended and was resumed: its aggregator may just be stopping.
        Driver(self, run_id, self._start_aggregator, self._patience).drive()

    def _ring(self, sites: Mapping[str, object] | frozenset[str]) -> None:
        for site in sites:
            if (bell := self._site_bells.get(site)) is not None:
                bell.ring()

    # ------------------------------------------------------------ reads

    def state(self, run_id: str) -> RunState | None:
        run = self._runs.get(run_id)
        return None if run is None else run.state

    def runs(self) -> list[RunState]:
        return [run.state for run in list(self._runs.values())]

    def events(self, run_id: str, after: int) -> list[tuple[int, Event]]:
        return [(s.sequence, from_json(s.text)) for s in self._store.events(run_id, after)]

    def seen(self, run_id: str, after: int) -> tuple[RunState, list[tuple[int, Event]]]:
        """The events from a sequence number on, and the state that they have led to: neither is ahead of the other."""
        run = self._runs[run_id]
        with run.changing:
            return run.state, self.events(run_id, after)

    def orders(self, site: str) -> list[tuple[RunState, Order]]:
        """What a site should be doing, over all runs it is part of."""
        with self._index:
            mine = list(self._runs_of.get(site, ()))
        states = [self._runs[run_id].state for run_id in mine]
        return [(state, order) for state in states if (order := order_for(state, site)) is not None]

    def stop_was_heard(self, run_id: str, site: str) -> None:
        """The site knows that this run has ended: no further stop order for it."""
        with self._index:
            if self._runs[run_id].state.ended:
                self._runs_of.get(site, {}).pop(run_id, None)

    def run_bell(self, run_id: str) -> Bell:
        """Rings when the run, its progress or what it waits for has changed."""
        return self._runs[run_id].bell

    def site_bell(self, site: str) -> Bell:
        """Rings when the site's orders may have changed."""
        with self._index:
            return self._site_bells.setdefault(site, Bell())

    # --------------------------------------------------------- presence

    def heard(self, site: str) -> None:
        self._presence.heard(site)

    def present(self, site: str) -> bool:
        return self._presence.present(site)

    def note(self, run_id: str, site: str, progress: LiveProgress) -> None:
        run = self._runs[run_id]
        run.progress[site] = progress
        run.bell.ring()

    def progress(self, run_id: str) -> dict[str, LiveProgress]:
        return dict(self._runs[run_id].progress)

    def waits_for(self, run_id: str, what: str, why: str = "") -> None:
        """Note what of the centre's own a run waits for (`keyring`, `disk`), once per change; empty: nothing."""
        run = self._runs[run_id]
        if run.waits_for == what:
            return
        run.waits_for = what
        if what:
            log.error("a run waits for the centre", run=run_id, waits_for=what, why=why)
        else:
            log.info("a run goes on", run=run_id)
        run.bell.ring()

    def waiting_for(self, run_id: str) -> str:
        run = self._runs[run_id]
        return "" if run.state.ended else run.waits_for

    # ----------------------------------------------------------- ticker

    def _tick(self) -> None:
        failing = False
        while not self._stopping.wait(TICK_S):
            try:
                self._look()
                failing = False
            except StoreUnavailable as error:
                if not failing:
                    log.error("what time has brought cannot be kept", why=str(error))
                failing = True

    def _look(self) -> None:
        with self._index:
            active = list(self._active)
        revoked = self._revoked_sites() if active else frozenset()
        for run_id in active:
            for site in sorted(revoked.intersection(self._runs[run_id].state.members)):
                if may_take_part(self._runs[run_id].state, site):
                    self.post(run_id, SiteRevoked(at=self.now(), site=site))
            self._look_at(self._runs[run_id])

    def _look_at(self, run: _Run) -> None:
        state, since, now = run.state, run.since, self.now()
        if not runnable(state):
            return
        deadline = state.spec.round_deadline_s
        if state.phase is Phase.OFFERED:
            if now - since > deadline:
                self.post(state.run_id, DeadlinePassed(at=now, task_id="offer"))
            return
        for member in state.members.values():
            if member.absent and self._presence.present(member.site):
                self.post(state.run_id, SiteReturned(at=now, site=member.site))
        step = state.step
        if step is None or step.central:
            return
        if now - since > deadline and self.post(state.run_id, DeadlinePassed(at=now, task_id=step.task_id)):
            return
        for site in sorted(step.waiting):
            if self._presence.silent(site, since):
                self.post(state.run_id, SiteSilent(at=now, site=site, task_id=step.task_id))


def _first(event: Event) -> RunState:
    if not isinstance(event, Submitted):
        raise ValueError("a run's first event is its submission; the store is damaged")
    return submitted(event, load_json(event.spec.encode(), JobSpec, "the job"))


def _step_of(state: RunState) -> tuple[object, ...]:
    """Differs as soon as another patience begins."""
    step = state.step
    of_step = (step.task_id, step.opened_at, step.last_call) if step is not None else ()
    return (state.phase, state.generation, state.paused, *of_step)


def _concerned(before: RunState, after: RunState) -> frozenset[str]:
    """The sites whose order may be another one now."""
    if _step_of(before) != _step_of(after):
        return frozenset(after.members)
    changed = frozenset(site for site, member in after.members.items() if member is not before.members.get(site))
    if before.step is None or after.step is None:
        return changed
    return changed | (before.step.waiting ^ after.step.waiting)
