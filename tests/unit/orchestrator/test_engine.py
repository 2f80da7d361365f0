"""The engine with fakes around it: what it keeps, what it does again after a crash, what it leaves behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fakes.stores import MemoryArtifacts, MemoryRunStore
from msfl.orchestrator.aggregator import CentralResult, CentralTask
from msfl.orchestrator.engine import SILENT_AFTER_S, CentralProcess, Engine, LiveProgress
from msfl.orchestrator.runs.events import AbortRequested, Answered, Submitted, TaskDone
from msfl.orchestrator.runs.machine import Phase, RunState, central_inputs
from msfl.policies.documents import JobSpec
from msfl.policies.encoding import Malformed, encode
from msfl.policies.refusals import Code, Refused, refuse
from msfl.protos.messages import Offer, StopOrder, TaskOrder, result_key
from msfl.runtime.hosted import ProcessGone, TaskFailed

ALL = ("a", "b", "c")
RUN = "run-1"
PATIENCE_S = 20.0
SPEC = JobSpec(
    name="story",
    release="voxel-logistic:1.0.0",
    datasets=tuple(f"{s}/lesions" for s in ALL),
    rounds=2,
    profile="demo",
    baseline="local",
    min_sites=2,
    round_deadline_s=60,
    seed=1,
    nonce="0123456789abcdef",
)


@dataclass
class FakeAggregator:
    """Answers each verb as an aggregator would; `before` sees every task first and may block or raise."""

    folder: Path
    before: Callable[[CentralTask], None] = lambda task: None
    tasks: list[CentralTask] = field(default_factory=list)
    stopped: bool = False

    def do(self, task: CentralTask) -> CentralResult:
        self.tasks.append(task)
        self.before(task)
        recipients = task.document.get("recipients", ())
        files: dict[str, Path] = {}
        document: dict[str, Any] = {}
        match task.verb:
            case "plan":
                files = {f"{what}/{s}": self._file(task, what, s) for s in recipients for what in ("plan", "weights")}
            case "aggregate":
                files = {f"weights/{s}": self._file(task, "weights", s) for s in recipients}
                sites = {s: {"n_train": 4, "train_loss": 1.0, "incoming": None} for s in task.files}
                document = {"sites": sites, "weights_sha256": f"sha256:{task.round}"}
            case "candidates":
                files = {f"federated/{s}": self._file(task, "federated", s) for s in recipients}
            case "collect":
                document = {"sites": {s: {"summaries": {}} for s in task.files}}
            case "export":
                files = {"model": self._file(task, "model", "")}
            case other:
                raise AssertionError(f"no aggregator knows {other}")
        return CentralResult(document, files)

    def stop(self) -> None:
        self.stopped = True

    def _file(self, task: CentralTask, what: str, site: str) -> Path:
        file = self.folder / f"{len(self.tasks)}-{what}-{site}"
        file.write_bytes(f"{task.task_id} {what} {site}".encode())
        return file


class Centre:
    """An engine, its stores and its fake aggregators; `again` is the next process over the same stores."""

    def __init__(self, folder: Path, before: Callable[[CentralTask], None] = lambda task: None) -> None:
        self.folder = folder
        self.store = MemoryRunStore()
        self.artifacts = MemoryArtifacts(folder)
        self.before = before
        self.now = 1000.0
        self.aggregators: list[FakeAggregator] = []
        self.wrapped: list[Mapping[str, bytes]] = []
        self.start_fails: Exception | None = None
        self.engine = self.again()

    def again(self) -> Engine:
        self.engine = Engine(self.store, self.artifacts, self._start, clock=lambda: self.now)
        self.engine.start()
        return self.engine

    def _start(self, state: RunState, wrapped: Mapping[str, bytes]) -> tuple[CentralProcess, dict[str, Any]]:
        if self.start_fails is not None:
            raise self.start_fails
        self.wrapped.append(wrapped)
        self.aggregators.append(FakeAggregator(self.folder, self.before))
        return self.aggregators[-1], {"config": {"rounds": 2}}

    def submit(self, *, dry_run: bool = False) -> None:
        text = encode(SPEC).decode()
        self.engine.submit(Submitted(self.now, RUN, text, "proof", "token", "ada", dry_run))

    @property
    def state(self) -> RunState:
        state = self.engine.state(RUN)
        assert state is not None
        return state

    @property
    def verbs(self) -> list[str]:
        """What all aggregators were asked, in order."""
        return [task.task_id for aggregator in self.aggregators for task in aggregator.tasks]

    def answer_orders(self, sites: tuple[str, ...] = ALL) -> None:
        for site in sites:
            for _, order in self.engine.orders(site):
                match order:
                    case Offer():
                        secret = "c2VjcmV0"
                        self.engine.post(RUN, Answered(self.now, site, "allow", {}, secret))
                    case StopOrder():
                        pass
                    case TaskOrder(task_id=task):
                        key = result_key(task, site, 1)
                        self.artifacts.append(RUN, key, 0, site.encode())
                        self.artifacts.finish(RUN, key, 1)
                        self.engine.post(RUN, TaskDone(self.now, site, task, key, 1.0, 1, 1))

    def play(self, until: Callable[[RunState], bool], sites: tuple[str, ...] = ALL) -> RunState:
        """Sites answer every order until the run is as wanted."""
        version, give_up = -1, time.monotonic() + PATIENCE_S
        while not until(self.state):
            assert time.monotonic() < give_up, self.state
            self.answer_orders(sites)
            if not until(self.state):
                version = self.engine.wait(version, 0.5)
        return self.state

    def play_to(self, task: str) -> RunState:
        return self.play(lambda s: s.step is not None and s.step.task_id == task)


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    before = set(threading.enumerate())
    centre = Centre(tmp_path)
    yield centre
    centre.engine.stop()
    assert set(threading.enumerate()) <= before, "a thread is left"
    assert all(aggregator.stopped for aggregator in centre.aggregators)


def ended(state: RunState) -> bool:
    return state.ended


def test_a_run_from_the_offer_to_the_model(centre: Centre) -> None:
    centre.submit()
    state = centre.play(ended)
    assert state.phase is Phase.FINISHED
    assert centre.verbs == [
        "plan", "aggregate/1", "aggregate/2", "collect/validate", "candidates", "collect/test", "export",
    ]  # fmt: skip
    assert centre.wrapped == [dict.fromkeys(ALL, b"secret")]
    assert centre.artifacts.local(RUN, "export/model").read_bytes() == b"export model "


def test_sealed_streams_are_kept_only_while_somebody_needs_them(centre: Centre) -> None:
    centre.submit()
    centre.play(ended)
    centre.engine.stop()  # The last removal comes after the last event.
    kept = {key.split("/")[0] for key in centre.artifacts.keys}
    # Nobody reads what sites say after start and prepare; these are a few numbers each.
    assert kept == {"start", "prepare", "plan", "aggregate", "candidates", "export"}
    assert not any(key.startswith("aggregate/1") for key in centre.artifacts.keys)


def test_the_aggregator_gets_what_the_sites_sent_under_their_names(centre: Centre) -> None:
    seen: dict[str, dict[str, bytes]] = {}
    centre.before = lambda task: seen.update({task.task_id: {s: p.read_bytes() for s, p in task.files.items()}})
    centre.submit()
    centre.play(ended)
    assert seen["aggregate/1"] == {"a": b"a", "b": b"b", "c": b"c"}
    assert seen["export"] == {}


# ----------------------------------------------------------------------------------------------------- what is kept


def test_events_are_kept_before_anybody_sees_their_effect(centre: Centre) -> None:
    centre.submit()
    centre.play_to("fingerprint")
    kinds = [type(event).__name__ for _, event in centre.engine.events(RUN, 0)]
    assert kinds == ["Submitted", *["Answered"] * 3, *["TaskDone"] * 3, "CentralDone"]
    assert [n for n, _ in centre.engine.events(RUN, 5)] == [6, 7, 8]


def test_what_is_no_news_is_not_kept(centre: Centre) -> None:
    centre.submit()
    centre.play_to("fingerprint")
    before = len(centre.store.events(RUN))
    assert not centre.engine.post(RUN, Answered(0.0, "a", "allow"))
    assert not centre.engine.post(RUN, TaskDone(0.0, "a", "start", "", 1.0, 0, 0))
    assert len(centre.store.events(RUN)) == before


def test_what_is_not_a_job_is_not_taken_in(centre: Centre) -> None:
    with pytest.raises(Malformed):
        centre.engine.submit(Submitted(0.0, "run-2", '{"kind": "JobSpec"}', "", "", "ada"))
    assert centre.store.runs() == []
    assert centre.engine.runs() == []


# ------------------------------------------------------------------------------------------------------------ crash


@pytest.mark.parametrize("task", ["start", "fingerprint", "prepare", "train/1", "train/2", "validate", "baseline"])
def test_after_a_crash_the_same_step_goes_on(centre: Centre, task: str) -> None:
    centre.submit()
    centre.play_to(task)
    centre.artifacts.append(RUN, result_key(task, "a", 1), 0, b"a")
    centre.artifacts.finish(RUN, result_key(task, "a", 1), 1)
    centre.engine.post(RUN, TaskDone(centre.now, "a", task, result_key(task, "a", 1), 1.0, 1, 1))
    before = centre.state
    centre.engine.stop()
    centre.again()
    assert centre.state == before
    assert before.step is not None
    assert before.step.waiting == {"b", "c"}
    assert centre.play(ended).phase is Phase.FINISHED
    assert [r.round for r in centre.state.rounds] == [1, 2]
    assert all(set(r.sites) == set(ALL) for r in centre.state.rounds)


def test_a_crash_inside_a_step_of_the_centre_does_that_step_again_and_counts_nothing_twice(tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def block(task: CentralTask) -> None:
        if task.task_id == "aggregate/1":
            inside.set()
            assert go_on.wait(PATIENCE_S)

    killed = Centre(tmp_path, before=block)
    killed.submit()
    killed.play(lambda s: inside.is_set())
    # What is on disk at that moment is all that the next process has.
    (tmp_path / "next").mkdir()
    after = Centre(tmp_path / "next")
    after.engine.stop()
    for event in killed.store.events(RUN):
        after.store.append(RUN, event.text)
    for key in central_inputs(killed.state).values():
        after.artifacts.append(RUN, key, 0, killed.artifacts.local(RUN, key).read_bytes())
        after.artifacts.finish(RUN, key, 1)
    after.again()
    assert after.play(ended).phase is Phase.FINISHED
    assert after.verbs[0] == "aggregate/1"
    assert [r.round for r in after.state.rounds] == [1, 2]
    go_on.set()
    killed.engine.stop()
    after.engine.stop()


def test_an_ended_run_stays_ended_and_gets_no_aggregator(centre: Centre) -> None:
    centre.submit()
    final = centre.play(ended)
    centre.engine.stop()
    n = len(centre.aggregators)
    centre.again()
    assert centre.state == final
    centre.engine.stop()
    assert len(centre.aggregators) == n


def test_a_store_that_does_not_begin_with_a_submission_is_damaged(tmp_path: Path) -> None:
    centre = Centre(tmp_path)
    centre.submit()
    centre.engine.stop()
    damaged = MemoryRunStore()
    damaged.append(RUN, '{"kind": "AbortRequested", "at": 1.0, "by": "x"}')
    with pytest.raises(ValueError, match="damaged"):
        Engine(damaged, centre.artifacts, centre._start).start()


# ---------------------------------------------------------------------------------------------------------- failure


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ProcessGone("process_ended_at_start", Path("log")), "process_ended_at_start"),
        (TaskFailed("keys_broken", "secret detail"), "keys_broken"),
        (Refused(refuse(Code.ENVIRONMENT_DIFFERS, "another numpy")), "environment_differs"),
    ],
)
def test_an_aggregator_that_does_not_start_fails_the_run_with_its_code(
    centre: Centre, error: Exception, code: str
) -> None:
    centre.start_fails = error
    centre.submit()
    state = centre.play(ended)
    assert (state.phase, state.reason) == (Phase.FAILED, code)


def test_an_aggregator_that_dies_in_a_round_fails_the_run(centre: Centre) -> None:
    def die(task: CentralTask) -> None:
        if task.task_id == "aggregate/2":
            raise ProcessGone("process_ended", Path("log"))

    centre.before = die
    centre.submit()
    state = centre.play(ended)
    assert (state.phase, state.reason) == (Phase.FAILED, "process_ended")
    assert len(state.rounds) == 1


def test_an_abort_stops_the_aggregator(centre: Centre) -> None:
    centre.submit()
    centre.play_to("train/1")
    assert centre.engine.post(RUN, AbortRequested(centre.now, "ada"))
    assert centre.state.phase is Phase.ABORTED
    centre.engine.stop()
    assert all(aggregator.stopped for aggregator in centre.aggregators)


def test_an_explanation_starts_no_aggregator(centre: Centre) -> None:
    centre.submit(dry_run=True)
    assert centre.play(ended).phase is Phase.EXPLAINED
    assert centre.aggregators == []


# ------------------------------------------------------------------------------------------------------------- time


def test_a_site_that_is_not_heard_of_is_left_behind_and_the_round_closes(centre: Centre) -> None:
    centre.submit()
    centre.play_to("train/1")
    centre.answer_orders(("a", "b"))
    centre.now += SILENT_AFTER_S + 1
    state = centre.play(lambda s: bool(s.rounds), sites=())
    assert state.rounds[0].late == ("c",)


def test_a_site_that_beats_is_waited_for_until_the_deadline(centre: Centre) -> None:
    centre.submit()
    centre.play_to("train/1")
    centre.answer_orders(("a", "b"))
    centre.now += SPEC.round_deadline_s
    centre.engine.heard("c")
    assert centre.engine.present("c")
    assert not centre.engine.present("a")
    assert centre.state.step is not None
    assert centre.state.step.waiting == {"c"}
    centre.now += 1
    assert centre.play(lambda s: bool(s.rounds), sites=()).rounds[0].late == ("c",)


def test_offers_have_a_deadline(centre: Centre) -> None:
    centre.submit()
    centre.answer_orders(("a",))
    centre.now += SPEC.round_deadline_s + 1
    state = centre.play(ended, sites=())
    assert state.phase is Phase.REFUSED


def test_progress_is_shown_and_not_kept(centre: Centre) -> None:
    centre.submit()
    before = len(centre.store.events(RUN))
    centre.engine.note(RUN, "a", LiveProgress("train/1", "batches", 1, 2))
    assert centre.engine.progress(RUN) == {"a": LiveProgress("train/1", "batches", 1, 2)}
    assert len(centre.store.events(RUN)) == before


def test_who_waits_is_woken_when_the_engine_stops(centre: Centre) -> None:
    version = centre.engine.wait(-1, 0.0)
    woken = threading.Thread(target=centre.engine.wait, args=(version, 60.0))
    woken.start()
    centre.engine.stop()
    woken.join(PATIENCE_S)
    assert not woken.is_alive()
