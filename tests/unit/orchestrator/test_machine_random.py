"""Anything in any order: the run machine under messages that are lost, repeated, late and of earlier generations.

Hypothesis drives it (always the same examples); after each example all parts behave again, and the run must finish.
A second test walks every pair of troubles from every step of a healthy run.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fakes.run_walk import ALL, Walk, job, started
from msfl.orchestrator.runs.events import (
    AbortRequested,
    Answered,
    CentralDone,
    CentreFailed,
    DeadlinePassed,
    Event,
    PauseRequested,
    Resumed,
    SiteFailed,
    SiteReturned,
    SiteRevoked,
    SiteSilent,
    Submitted,
    TaskDone,
    from_json,
    to_json,
)
from msfl.orchestrator.runs.machine import (
    Phase,
    RunState,
    Standing,
    advance,
    central_broadcasts,
    central_inputs,
    disposable_keys,
    order_for,
    runnable,
    submitted,
    task_of,
    waiting_for,
)
from msfl.policies.documents import JobSpec
from msfl.policies.encoding import load_json
from msfl.protos.messages import StopOrder, TaskOrder, attempt_of, result_key

MOST_STEPS = 200
SITES = st.sampled_from(ALL)


class Observed(Walk):
    """A walk that looks at every transition: what may never happen, whatever is said by whom."""

    def __init__(self, spec: JobSpec | None = None) -> None:
        self.removed: set[str] = set()
        super().__init__(spec)
        self.by_difference = True

    def tell(self, event: Event) -> RunState:
        before, step = self.state, self.state.step
        state = super().tell(event)
        assert advance(before, event) == state, "the same event, the same state"
        if state is before:
            return state
        if isinstance(event, Answered) and state.members[event.site].accepted:
            assert event.generation == state.generation
        if isinstance(event, CentralDone) and step is not None and step.task_id == event.task_id:
            self.removed -= set(event.files)
            if not state.ended:
                self.removed |= disposable_keys(state)  # as the driver does
        if len(state.rounds) > len(before.rounds):
            self._look_at_round(before)
        self.look()
        return state

    def _look_at_round(self, before: RunState) -> None:
        record = self.state.rounds[-1]
        assert record.round == len(self.state.rounds) == len(before.rounds) + 1
        assert len(record.sites) >= self.state.spec.min_sites
        for site in record.sites:
            assert attempt_of(central_inputs(before)[site], f"train/{record.round}", site) == before.generation

    def look(self) -> None:
        state = self.state
        orders = {site: order_for(state, site) for site in ALL}
        if state.ended:
            assert all(isinstance(order, StopOrder) for order in orders.values())
            assert state.step is None
            return
        if not runnable(state):
            assert not any(isinstance(order, TaskOrder) for order in orders.values())
            assert waiting_for(state) == ()
        needed = {*central_inputs(state).values(), *central_broadcasts(state).values()}
        made = {key for files in state.outputs.values() for key in files}
        for site, order in orders.items():
            if isinstance(order, TaskOrder):
                assert (task := task_of(state, site)) is not None
                assert task.task_id == order.task_id
                assert {i.key for i in order.inputs} <= made
                needed |= {i.key for i in order.inputs}
        assert not needed & self.removed
        if state.step is not None:
            assert not state.step.waiting & state.step.away
            assert all(state.members[s].accepted for s in state.step.waiting | state.step.away)
            assert not any(state.members[s].absent for s in state.step.waiting)
            assert all(state.members[s].absent for s in state.step.away)

    def behave(self) -> RunState:
        """From here on all parts do what they should; the end must come."""
        self.bad = {}
        for _ in range(MOST_STEPS):
            state = self.state
            if state.phase in (Phase.FINISHED, Phase.REFUSED):
                return state
            if state.ended or state.paused:
                self.tell(Resumed(self.tick(), "ada"))
                continue
            for site, member in state.members.items():
                if member.standing in (Standing.ASKED, Standing.PARKED):
                    self.answer(site)
                elif member.absent:
                    self.tell(SiteReturned(self.tick(), site))
            for site in ALL:
                if isinstance(order := order_for(self.state, site), TaskOrder):
                    self.done(site, order.task_id)
            if self.state.step is not None and self.state.step.central:
                self.centre(*self.said_by_centre())
        raise AssertionError(f"no end: {self.state}")

    def check_replay(self) -> None:
        first, *rest = (from_json(to_json(event)) for event in self.events)
        assert isinstance(first, Submitted)
        state = submitted(first, load_json(first.spec.encode(), JobSpec, "the job"))
        for event in rest:
            state = advance(state, event)
        assert state == self.state


class AnyOrder(RuleBasedStateMachine):
    @initialize(
        rounds=st.integers(1, 4),
        min_sites=st.integers(1, 2),
        start=st.sampled_from(["all", "quorum"]),
        on_dropout=st.sampled_from(["continue", "wait", "abort"]),
        baseline=st.sampled_from([None, "local"]),
        only_tested=st.sampled_from([(), ("c/lesions",)]),
        keep=st.sampled_from(["best", "last"]),
        best=st.integers(0, 1),
        far=st.integers(0, 14),
    )
    def begin(self, only_tested: tuple[str, ...], best: int, far: int, **spec: Any) -> None:
        """`far`: so many steps have gone well before."""
        retain = {"last": 1, "best": best}
        self.walk = Observed(job(evaluate_only=only_tested, retain=retain, early_stopping={"patience": 2}, **spec))
        self.held: list[TaskDone] = []
        if far:
            self.walk.allow(*(ALL if spec["start"] == "all" else ("a", "b")))
        self.goes_on(far, [0.1, 0.3, 0.2, 0.2, 0.2])

    # ---------------------------------------------------------------- as it should be

    @rule(site=SITES, verdict=st.sampled_from(["allow", "allow", "allow", "confirm"]))
    def answers(self, site: str, verdict: str) -> None:
        self.walk.answer(site, verdict)

    @rule(steps=st.integers(1, 6), dice=st.lists(st.sampled_from([0.1, 0.2, 0.3, None]), min_size=5, max_size=5))
    def goes_on(self, steps: int, dice: list[float | None]) -> None:
        for _ in range(steps):
            step = self.walk.state.step
            if step is not None and runnable(self.walk.state) and (step.central or step.waiting):
                self.walk.do_step(lambda round, site: dice[round])

    @rule(site=SITES)
    def does_its_task(self, site: str) -> None:
        if isinstance(order := order_for(self.walk.state, site), TaskOrder):
            self.walk.done(site, order.task_id)

    # ---------------------------------------------------------------- late, repeated, wrong

    @rule(site=SITES)
    def begins_a_task(self, site: str) -> None:
        """Its report will be heard some time later."""
        if isinstance(order := order_for(self.walk.state, site), TaskOrder):
            key = result_key(order.task_id, site, self.walk.state.generation)
            self.held.append(TaskDone(self.walk.tick(), site, order.task_id, key, 1.0, 1, 1))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def is_heard_late(self, data: st.DataObject) -> None:
        event = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if self._may_be_heard(event):
            self.walk.tell(event)

    def _may_be_heard(self, event: TaskDone) -> bool:
        """A gateway says all it has to say of a generation before it answers the next offer."""
        of_this = event.key == result_key(event.task_id, event.site, self.walk.state.generation)
        return of_this or not self.walk.state.members[event.site].accepted

    @rule(data=st.data())
    def is_heard_again(self, data: st.DataObject) -> None:
        old = [e for e in self.walk.events if isinstance(e, TaskDone | CentralDone | Answered | Submitted)]
        event, step = data.draw(st.sampled_from(old)), self.walk.state.step
        match event:
            case CentralDone(task_id=task_id) if step is not None and step.task_id == task_id:
                return  # A driver posts what it has just done, and of an earlier generation none is left.
            case TaskDone() if not self._may_be_heard(event):
                return
        self.walk.tell(event)

    @rule(bad=st.sets(SITES, max_size=2))
    def sends_bad_updates(self, bad: set[str]) -> None:
        self.walk.bad = dict.fromkeys(bad, "update_not_finite")

    # ---------------------------------------------------------------- trouble

    @rule(site=SITES)
    def is_silent(self, site: str) -> None:
        if self.walk.state.step is not None:
            self.walk.tell(SiteSilent(self.walk.tick(), site, self.walk.task))

    @rule(site=SITES)
    def is_back(self, site: str) -> None:
        self.walk.tell(SiteReturned(self.walk.tick(), site))

    @rule()
    def deadline(self) -> None:
        task = self.walk.task if self.walk.state.step is not None else "offer"
        event = DeadlinePassed(self.walk.tick(), task)
        if advance(self.walk.state, event).phase is not Phase.REFUSED:  # That end is told in stories.
            self.walk.tell(event)

    @rule(site=SITES)
    def fails(self, site: str) -> None:
        if isinstance(order := order_for(self.walk.state, site), TaskOrder):
            self.walk.tell(SiteFailed(self.walk.tick(), site, order.task_id, "worker_lost"))

    @rule(site=SITES)
    def is_revoked(self, site: str) -> None:
        # A run of which too few sites are left would never finish; one that is revoked stays so, when it is resumed.
        event = SiteRevoked(self.walk.tick(), site)
        if not advance(self.walk.state, event).ended:
            self.walk.tell(event)

    @rule()
    def pauses(self) -> None:
        self.walk.tell(PauseRequested(self.walk.tick(), "ada"))

    @rule()
    def resumes(self) -> None:
        self.walk.tell(Resumed(self.walk.tick(), "ada"))

    @precondition(lambda self: self.walk.state.step is not None)
    @rule(abort=st.booleans())
    def ends(self, abort: bool) -> None:
        at = self.walk.tick()
        self.walk.tell(AbortRequested(at, "ada") if abort else CentreFailed(at, "process_ended"))

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "walk"):
            self.walk.look()

    def teardown(self) -> None:
        if hasattr(self, "walk"):
            self.walk.check_replay()
            assert self.walk.behave().phase is Phase.FINISHED
            self.walk.check_replay()


AnyOrder.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestAnyOrder = AnyOrder.TestCase


# ------------------------------------------------------------------------------------------ two troubles, everywhere

STEPS = ["start", "open", "fingerprint", "plan", "prepare", "train/1", "aggregate/1", "train/2", "validate", "baseline",
         "candidates", "evaluate/test", "export"]  # fmt: skip
TROUBLES: dict[str, Callable[[Walk], Event]] = {
    "a is silent": lambda w: SiteSilent(w.tick(), "a", w.task),
    "b is silent": lambda w: SiteSilent(w.tick(), "b", w.task),
    "a fails": lambda w: SiteFailed(w.tick(), "a", w.task, "worker_lost"),
    "b fails": lambda w: SiteFailed(w.tick(), "b", w.task, "worker_lost"),
    "b is revoked": lambda w: SiteRevoked(w.tick(), "b"),
    "a is done": lambda w: TaskDone(w.tick(), "a", w.task, result_key(w.task, "a", 1), 1.0, 1, 1),
    "a is back": lambda w: SiteReturned(w.tick(), "a"),
    "deadline": lambda w: DeadlinePassed(w.tick(), w.task),
    "pause": lambda w: PauseRequested(w.tick(), "ada"),
    "abort": lambda w: AbortRequested(w.tick(), "ada"),
    "centre fails": lambda w: CentreFailed(w.tick(), "process_ended"),
}


@pytest.mark.parametrize(("on_dropout", "least"), [("continue", 2), ("continue", 3), ("wait", 3), ("abort", 2)])
@pytest.mark.parametrize("task", STEPS)
def test_after_any_two_troubles_in_any_step_the_run_finishes(task: str, on_dropout: str, least: int) -> None:
    healthy = Observed(job(on_dropout=on_dropout, min_sites=least))
    healthy.allow()
    healthy.go_to(task)
    for first, second in product(TROUBLES, repeat=2):
        walk = Observed(healthy.state.spec)
        walk.events, walk.state, walk.now = list(healthy.events), healthy.state, healthy.now
        walk.removed = set(healthy.removed)
        for name in (first, second):
            if walk.state.step is not None:
                walk.tell(TROUBLES[name](walk))
        assert walk.behave().phase is Phase.FINISHED, (first, second)
        assert [r.round for r in walk.state.rounds] == [1, 2]


def test_a_run_without_trouble_takes_no_other_way() -> None:
    walk = started()
    walk.to_the_end()
    assert not any(step.startswith("[issue/") for step in walk.steps)
