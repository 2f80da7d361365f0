"""The engine with fakes around it: what it keeps, what it does again after a crash, what it leaves behind."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from fakes.stores import MemoryArtifacts, MemoryRunStore
from msfl.gateway.agent import BEAT_S
from msfl.orchestrator.aggregator import CentralResult, CentralTask
from msfl.orchestrator.clock import SteadyClock
from msfl.orchestrator.driver import TRIES, CentralProcess, Patience
from msfl.orchestrator.engine import TICK_S, Engine, LiveProgress
from msfl.orchestrator.keyring.client import BadRunSecret, KeyringDown
from msfl.orchestrator.presence import SILENT_AFTER_S, Presence
from msfl.orchestrator.runs.events import (
    AbortRequested,
    Answered,
    PauseRequested,
    Resumed,
    SiteFailed,
    Submitted,
    TaskDone,
)
from msfl.orchestrator.runs.machine import Phase, RunState, Standing
from msfl.orchestrator.store.interface import StoreDamaged, StoreUnavailable
from msfl.policies.documents import JobSpec
from msfl.policies.encoding import Malformed, encode
from msfl.policies.refusals import Code, Refused, refuse
from msfl.protos.messages import Offer, StopOrder, TaskOrder, output_key, result_key
from msfl.protos.sealing import EVERYBODY
from msfl.runtime.hosted import ProcessGone, TaskFailed

ALL = ("a", "b", "c")
RUN = "run-1"
MODEL_1 = output_key("aggregate/1", EVERYBODY, "weights")
MODEL_2 = output_key("aggregate/2", EVERYBODY, "weights")
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
    opening: Callable[[Mapping[str, bytes]], None] = lambda wrapped: None
    tasks: list[CentralTask] = field(default_factory=list)
    stopped: bool = False

    def open(self, wrapped: Mapping[str, bytes], earlier: str) -> None:
        self.opening(wrapped)

    def do(self, task: CentralTask) -> CentralResult:
        self.tasks.append(task)
        self.before(task)
        recipients = task.document.get("recipients", ())
        files: dict[str, Path] = {}
        document: dict[str, Any] = {}
        match task.verb:
            case "plan":
                everybody = (*recipients, EVERYBODY)
                files = {f"{what}/{s}": self._file(task, what, s) for s in everybody for what in ("plan", "weights")}
            case "issue":
                files = {f"{what}/{s}": self._file(task, what, s) for s in recipients for what in ("plan", "weights")}
            case "aggregate":
                files = {f"weights/{s}": self._file(task, "weights", s) for s in (*recipients, EVERYBODY)}
                sites = {s: {"n_train": 4, "train_loss": 1.0, "incoming": None} for s in task.files if s in ALL}
                document = {"sites": sites, "refused": {}, "weights_blake3": f"blake3:{task.round}"}
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
        self.opening: Callable[[Mapping[str, bytes]], None] = lambda wrapped: None
        self.revoked: frozenset[str] = frozenset()
        self.engine = self.again()

    def again(self) -> Engine:
        quick = Patience(first_s=0.001, longest_s=0.002)
        self.engine = Engine(
            self.store,
            self.artifacts,
            self._start,
            clock=lambda: self.now,
            patience=quick,
            revoked_sites=lambda: self.revoked,
        )
        self.engine.start()
        return self.engine

    def _start(self, state: RunState) -> tuple[CentralProcess, dict[str, Any]]:
        if self.start_fails is not None:
            raise self.start_fails
        self.aggregators.append(FakeAggregator(self.folder, self.before, self._open))
        return self.aggregators[-1], {"config": {"rounds": 2}}

    def _open(self, wrapped: Mapping[str, bytes]) -> None:
        self.opening(wrapped)
        self.wrapped.append(dict(wrapped))

    def submit(self, *, dry_run: bool = False, **changes: Any) -> None:
        text = encode(SPEC.model_copy(update=changes)).decode()
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
                    case Offer(generation=generation):
                        secret = "c2VjcmV0"
                        self.engine.post(RUN, Answered(self.now, site, "allow", {}, secret, generation))
                    case StopOrder():
                        pass
                    case TaskOrder(task_id=task):
                        key = result_key(task, site, self.state.generation)
                        self.artifacts.append(RUN, key, 0, site.encode())
                        self.artifacts.finish(RUN, key, 1)
                        self.engine.post(RUN, TaskDone(self.now, site, task, key, 1.0, 1, 1))

    def play(self, until: Callable[[RunState], bool], sites: tuple[str, ...] = ALL) -> RunState:
        """Sites answer every order until the run is as wanted."""
        bell = self.engine.run_bell(RUN)
        rung, give_up = -1, time.monotonic() + PATIENCE_S
        while not until(self.state):
            assert time.monotonic() < give_up, self.state
            self.answer_orders(sites)
            if not until(self.state):
                rung = bell.wait(rung, 0.5)
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


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


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
    # Nobody reads what sites say after start and prepare; these are a few numbers each.
    kept = {key for key in centre.artifacts.keys if key.split("/")[0] not in ("start", "prepare")}
    assert kept == {MODEL_1, MODEL_2, output_key("plan", EVERYBODY, "plan"), "export/model"}


def test_the_aggregator_gets_what_the_sites_sent_under_their_names(centre: Centre) -> None:
    seen: dict[str, dict[str, bytes]] = {}
    centre.before = lambda task: seen.update({task.task_id: {s: p.read_bytes() for s, p in task.files.items()}})
    centre.submit()
    centre.play(ended)
    first = b"plan weights ALL"
    assert seen["aggregate/1"] == {"a": b"a", "b": b"b", "c": b"c", "ALL/weights": first}
    assert seen["export"] == {"ALL/plan": b"plan plan ALL", "ALL/weights": b"aggregate/2 weights ALL"}


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
    for key in killed.artifacts.keys:
        data = killed.artifacts.local(RUN, key).read_bytes()
        after.artifacts.append(RUN, key, 0, data)
        after.artifacts.finish(RUN, key, len(data))
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
    with pytest.raises(StoreDamaged, match="submission"):
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


@pytest.mark.parametrize("task", ["plan", "aggregate/1", "aggregate/2", "collect/validate", "candidates", "export"])
@pytest.mark.parametrize("death", [ProcessGone("process_ended", Path("log")), TaskFailed("aggregator_error", "oom")])
def test_an_aggregator_that_dies_is_started_again_and_does_the_step_again(
    centre: Centre, task: str, death: Exception
) -> None:
    died: list[str] = []

    def die(asked: CentralTask) -> None:
        if asked.task_id == task and not died:
            died.append(task)
            raise death

    centre.before = die
    centre.submit()
    assert centre.play(ended).phase is Phase.FINISHED
    assert len(centre.aggregators) == 2
    assert centre.aggregators[0].stopped
    assert centre.verbs.count(task) == 2
    assert [r.round for r in centre.state.rounds] == [1, 2]
    # The second has the same keys as the first.
    assert centre.wrapped == [dict.fromkeys(ALL, b"secret")] * 2


def test_an_aggregator_that_dies_again_and_again_fails_the_run(centre: Centre) -> None:
    def die(task: CentralTask) -> None:
        if task.task_id == "aggregate/2":
            raise ProcessGone("process_ended", Path("log"))

    centre.before = die
    centre.submit()
    state = centre.play(ended)
    assert (state.phase, state.reason) == (Phase.FAILED, "process_ended")
    assert centre.verbs.count("aggregate/2") == TRIES
    assert len(state.rounds) == 1


def test_deaths_are_counted_step_by_step(centre: Centre) -> None:
    died: list[str] = []

    def die(task: CentralTask) -> None:
        if died.count(task.task_id) < TRIES - 1:
            died.append(task.task_id)
            raise ProcessGone("process_ended", Path("log"))

    centre.before = die
    centre.submit()
    assert centre.play(ended).phase is Phase.FINISHED
    assert all(centre.verbs.count(task) == TRIES for task in set(centre.verbs))


def test_an_aggregator_that_refuses_a_step_is_not_asked_again(centre: Centre) -> None:
    def refuse_it(task: CentralTask) -> None:
        if task.task_id == "aggregate/2":
            raise TaskFailed("update_nan", "secret detail")

    centre.before = refuse_it
    centre.submit()
    state = centre.play(ended)
    assert (state.phase, state.reason) == (Phase.FAILED, "update_nan")
    assert centre.verbs.count("aggregate/2") == 1


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_crash_between_adopted_files_and_the_event_is_harmless(tmp_path: Path, kept: int) -> None:
    """The process is killed when `kept` of a round's files are adopted; 3 of 3: only the event is missing."""
    killed = Centre(tmp_path)
    killed.submit()
    killed.play_to("train/1")
    aggregates = [e for e in killed.store.events(RUN) if '"aggregate' in e.text]
    assert aggregates == []
    killed.play_to("train/2")
    killed.engine.stop()
    after = Centre(tmp_path)
    after.engine.stop()
    for event in killed.store.events(RUN):
        if '"kind": "CentralDone"' in event.text and '"aggregate/1"' in event.text:
            break
        after.store.append(RUN, event.text)
    for site in ALL:
        key = result_key("train/1", site, 1)
        after.artifacts.append(RUN, key, 0, site.encode())
        after.artifacts.finish(RUN, key, 1)
    for what in ("plan", "weights"):
        (tmp_path / what).write_bytes(b"made before")
        after.artifacts.adopt(RUN, {output_key("plan", EVERYBODY, what): tmp_path / what})
    for site in ALL[:kept]:
        (tmp_path / "half").write_bytes(b"of a try that was killed")
        after.artifacts.adopt(RUN, {output_key("aggregate/1", site, "weights"): tmp_path / "half"})
    after.again()
    assert after.play(ended).phase is Phase.FINISHED
    assert [r.round for r in after.state.rounds] == [1, 2]
    # The round's files are those of the try whose event was kept; they were freed with the next round.
    assert {key for key in after.artifacts.keys if key.startswith("aggregate/1/")} == {MODEL_1}
    after.engine.stop()


# ----------------------------------------------------------------------------------------- what the centre waits for


def test_a_run_waits_for_the_keyring_and_says_so(centre: Centre) -> None:
    asked = 0
    shown: set[str] = set()

    def down(wrapped: Mapping[str, bytes]) -> None:
        nonlocal asked
        asked += 1
        shown.add(centre.engine.waiting_for(RUN))
        if asked < 5:
            raise KeyringDown("the keyring does not answer")

    centre.opening = down
    centre.submit()
    assert centre.play(ended).phase is Phase.FINISHED
    assert asked == 5
    assert shown == {"", "keyring"}
    assert centre.engine.waiting_for(RUN) == ""
    assert len(centre.aggregators) == 1  # It was not started again for that.


def test_what_a_run_waits_for_is_logged_once_per_change(centre: Centre, capsys: pytest.CaptureFixture[str]) -> None:
    asked = 0

    def down(wrapped: Mapping[str, bytes]) -> None:
        nonlocal asked
        asked += 1
        if asked < 5:
            raise KeyringDown("the keyring does not answer")

    centre.opening = down
    centre.submit()
    centre.play(ended)
    assert capsys.readouterr().out.count("the keyring does not answer") == 1


def test_a_run_that_waits_can_be_aborted(centre: Centre) -> None:
    waits = threading.Event()

    def down(wrapped: Mapping[str, bytes]) -> None:
        waits.set()
        raise KeyringDown("the keyring does not answer")

    centre.opening = down
    centre.submit()
    centre.play(lambda s: waits.is_set())
    assert centre.engine.post(RUN, AbortRequested(centre.now, "ada"))
    assert centre.state.phase is Phase.ABORTED


def test_a_site_whose_secret_does_not_open_is_left_out_alone(centre: Centre) -> None:
    def bad(wrapped: Mapping[str, bytes]) -> None:
        if "b" in wrapped:
            raise BadRunSecret("b")

    centre.opening = bad
    centre.submit()
    assert centre.play(ended).phase is Phase.FINISHED
    assert centre.state.members["b"].code == "bad_run_secret"
    assert set(centre.state.rounds[0].sites) == {"a", "c"}


def test_an_aggregator_gets_all_keys_again_when_they_have_grown(centre: Centre) -> None:
    centre.submit()
    state_now = centre.play_to("train/1")
    late = replace(state_now.members["c"], wrapped_secret="YW5vdGhlcg==")
    run = centre.engine._runs[RUN]
    run.state = replace(state_now, members={**state_now.members, "c": late})
    assert centre.play(ended).phase is Phase.FINISHED
    assert centre.wrapped == [
        dict.fromkeys(ALL, b"secret"),
        {"a": b"secret", "b": b"secret", "c": b"another"},
    ]
    assert len(centre.aggregators) == 1


def test_keys_of_a_site_that_is_out_are_handed_over_too(centre: Centre) -> None:
    """Its last update may be among those which the next aggregator has to read."""
    centre.submit()
    centre.play_to("train/1")
    centre.engine.post(RUN, SiteFailed(centre.now, "c", "train/1", "worker_died"))
    centre.engine.stop()
    centre.again()
    centre.play_to("train/2")
    assert centre.wrapped[-1] == dict.fromkeys(ALL, b"secret")


# ---------------------------------------------------------------------------------------------------- a disk is full


def test_what_cannot_be_kept_has_not_happened(centre: Centre) -> None:
    centre.submit()
    before = centre.state
    centre.store.full = True
    with pytest.raises(StoreUnavailable):
        centre.engine.post(RUN, Answered(centre.now, "a", "allow", {}, "c2VjcmV0"))
    with pytest.raises(StoreUnavailable):
        centre.engine.submit(Submitted(0.0, "run-2", encode(SPEC).decode(), "", "", "ada"))
    assert centre.state is before
    assert centre.engine.state("run-2") is None
    centre.store.full = False
    assert centre.play(ended).phase is Phase.FINISHED


@pytest.mark.parametrize("task", ["plan", "aggregate/1", "export"])
def test_a_step_of_the_centre_waits_for_the_disk_and_is_not_done_twice(centre: Centre, task: str) -> None:
    def fill(asked: CentralTask) -> None:
        centre.store.full = centre.store.full or asked.task_id == task

    centre.before = fill
    centre.submit()
    centre.play(lambda s: centre.engine.waiting_for(RUN) == "disk" and centre.store.refused > 3)
    centre.before = lambda asked: None
    for aggregator in centre.aggregators:
        aggregator.before = centre.before
    centre.store.full = False
    assert centre.play(ended).phase is Phase.FINISHED
    assert centre.verbs.count(task) == 1
    assert centre.engine.waiting_for(RUN) == ""


def test_a_disk_that_is_full_of_files_is_waited_for_too(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    adopt, refused = centre.artifacts.adopt, 0

    def full(run_id: str, files: Mapping[str, Path]) -> None:
        nonlocal refused
        refused += 1
        if refused <= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        adopt(run_id, files)

    monkeypatch.setattr(centre.artifacts, "adopt", full)
    centre.submit()
    assert centre.play(ended).phase is Phase.FINISHED
    assert refused > 2


def test_the_ticker_outlives_a_full_disk(centre: Centre) -> None:
    centre.submit()
    centre.answer_orders(("a",))
    centre.store.full = True
    centre.now += SPEC.round_deadline_s + 1
    until(lambda: centre.store.refused >= 2)
    assert centre.state.phase is Phase.OFFERED
    centre.store.full = False
    assert centre.play(ended, sites=()).phase is Phase.REFUSED


def test_a_run_stops_at_once_while_it_waits_for_the_disk(centre: Centre) -> None:
    centre.before = lambda task: setattr(centre.store, "full", True)
    centre.submit()
    centre.play(lambda s: centre.engine.waiting_for(RUN) == "disk")
    centre.engine.stop()
    assert centre.state.step is not None
    assert centre.state.step.task_id == "plan"


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


def test_a_site_that_is_back_is_waited_for_again(centre: Centre) -> None:
    centre.submit()
    centre.play_to("train/1")
    centre.answer_orders(("a",))
    engine = centre.engine
    centre.now += SILENT_AFTER_S + 1
    engine.heard("b")
    engine._look()
    assert centre.state.members["c"].absent
    engine._look()
    assert centre.state.members["c"].absent
    engine.heard("c")
    engine._look()
    assert not centre.state.members["c"].absent
    assert centre.state.step is not None
    assert centre.state.step.waiting == {"b", "c"}


def test_a_run_that_waits_for_a_quorum_without_end_keeps_no_event_for_that(centre: Centre) -> None:
    centre.submit(on_dropout="wait")
    centre.play_to("train/1")
    centre.answer_orders(("a",))
    for _ in range(5):
        centre.now += SPEC.round_deadline_s + 1
        centre.engine._look()
    kept = len(centre.store.events(RUN))
    for _ in range(5):
        centre.now += SPEC.round_deadline_s + 1
        centre.engine._look()
    assert len(centre.store.events(RUN)) == kept
    assert not centre.state.ended


def test_while_a_run_is_paused_no_time_passes_and_the_centre_does_nothing(centre: Centre) -> None:
    centre.submit()
    centre.play_to("train/1")
    assert centre.engine.post(RUN, PauseRequested(centre.now, "ada"))
    for site in ALL:
        assert centre.engine.orders(site) == []
        key = result_key("train/1", site, 1)
        centre.artifacts.append(RUN, key, 0, site.encode())
        centre.artifacts.finish(RUN, key, 1)
        centre.engine.post(RUN, TaskDone(centre.now, site, "train/1", key, 1.0, 1, 1))
    centre.now += 10 * SPEC.round_deadline_s
    centre.engine._look()
    assert centre.state.step is not None
    assert centre.state.step.task_id == "aggregate/1"
    assert "aggregate/1" not in centre.verbs
    assert centre.engine.post(RUN, Resumed(centre.now, "ada"))
    centre.engine._look()
    assert centre.play(ended).phase is Phase.FINISHED
    assert all(record.late == () for record in centre.state.rounds)


@pytest.mark.parametrize("restart", [False, True])
def test_a_run_that_failed_is_resumed_with_a_new_aggregator_and_new_keys(centre: Centre, restart: bool) -> None:
    def refuse_it(task: CentralTask) -> None:
        if task.task_id == "aggregate/2":
            raise TaskFailed("update_nan", "secret detail")

    centre.before = refuse_it
    centre.submit()
    assert centre.play(ended).phase is Phase.FAILED
    centre.before = lambda task: None
    if restart:
        centre.engine.stop()
        centre.again()
    assert centre.engine.post(RUN, Resumed(centre.now, "ada", "token-2", "proof-2"))
    offers = [order for _, order in centre.engine.orders("a")]
    assert [order.generation for order in offers if isinstance(order, Offer)] == [2]
    assert centre.play(ended).phase is Phase.FINISHED
    assert len(centre.aggregators) == 2
    assert centre.aggregators[1].tasks[0].task_id == "issue/1"
    assert set(centre.aggregators[1].tasks[0].files) == {"ALL/plan", "ALL/weights"}
    assert centre.verbs.count("aggregate/1") == 1
    assert [r.round for r in centre.state.rounds] == [1, 2]


@pytest.mark.parametrize("jump", [-1e9, -3600.0, 3600.0, 1e9])
def test_after_a_restart_with_another_time_sites_and_deadlines_have_their_full_patience(
    centre: Centre, jump: float
) -> None:
    centre.submit()
    centre.play_to("train/1")
    centre.answer_orders(("a",))
    centre.engine.stop()
    centre.now += jump
    engine = centre.again()
    engine._look()
    centre.now += SILENT_AFTER_S - 1
    engine._look()
    assert centre.state.step is not None
    assert centre.state.step.waiting == {"b", "c"}
    for _ in range(4):
        centre.now += 9.9
        for site in ("b", "c"):
            engine.heard(site)
        engine._look()
    assert centre.state.step.waiting == {"b", "c"}
    centre.now += SPEC.round_deadline_s - 11 - 4 * 9.9 + 0.1
    engine._look()
    assert centre.state.step.last_call
    centre.now += SPEC.round_deadline_s - 1
    engine._look()
    assert not centre.state.ended
    centre.now += 2
    engine._look()
    assert centre.state.reason.startswith("quorum_not_reached")


def test_the_wall_clock_may_jump_and_nothing_happens() -> None:
    wall, ticks = 1000.0, 7.0
    clock = SteadyClock(wall=lambda: wall, monotonic=lambda: ticks)
    assert clock() == 1000.0
    wall, ticks = 0.0, 8.5
    assert clock() == 1001.5
    wall = 1e9
    assert clock() == 1001.5
    assert SteadyClock(wall=lambda: wall, monotonic=lambda: ticks)() == 1e9


def test_a_site_is_there_until_it_is_silent_for_long_and_again_with_its_next_sign() -> None:
    now = 0.0
    presence = Presence(lambda: now)
    assert not presence.present("a")  # This process has not heard it.
    presence.heard("a")
    now = SILENT_AFTER_S
    assert presence.present("a")
    now = 3 * SILENT_AFTER_S
    assert not presence.present("a")
    presence.heard("a")
    assert presence.present("a")


def test_silence_is_noticed_within_fifteen_seconds_and_one_lost_beat_is_no_silence() -> None:
    assert SILENT_AFTER_S + TICK_S < 15.0
    assert 3 * BEAT_S < SILENT_AFTER_S


# -------------------------------------------------------------------------------------------------------- who is woken


@pytest.mark.parametrize("kind", ["site", "run"])
def test_who_waits_is_woken_when_the_engine_stops(centre: Centre, kind: str) -> None:
    centre.submit()
    bell = centre.engine.site_bell("a") if kind == "site" else centre.engine.run_bell(RUN)
    rung = bell.wait(-1, 0.0)
    woken = threading.Thread(target=bell.wait, args=(rung, 60.0))
    woken.start()
    centre.engine.stop()
    woken.join(PATIENCE_S)
    assert not woken.is_alive()


def test_only_those_whose_order_may_have_changed_are_woken(centre: Centre) -> None:
    bells = {site: centre.engine.site_bell(site) for site in (*ALL, "stranger")}

    def woken(by: Callable[[], object]) -> set[str]:
        if centre.engine.state(RUN) is not None:
            with centre.engine._runs[RUN].changing:  # What rings for the state that is seen has rung.
                pass
        before = {site: bell.wait(-1, 0.0) for site, bell in bells.items()}
        by()
        return {site for site, bell in bells.items() if bell.wait(-1, 0.0) != before[site]}

    assert woken(centre.submit) == set(ALL)
    assert woken(lambda: centre.answer_orders(("a",))) == {"a"}
    centre.play_to("train/1")
    assert woken(lambda: centre.answer_orders(("b",))) == {"b"}
    progress = LiveProgress("train/1", "batches", 1, 2)
    assert woken(lambda: centre.engine.note(RUN, "a", progress)) == set()
    assert woken(lambda: centre.play_to("train/2")) == set(ALL)


def test_an_ended_run_is_forgotten_by_the_sites_that_have_heard_of_it(centre: Centre) -> None:
    centre.submit()
    centre.play(ended)
    assert [order for _, order in centre.engine.orders("a")] == [StopOrder(RUN, "finished", 1)]
    centre.engine.stop_was_heard(RUN, "a")
    assert centre.engine.orders("a") == []
    assert len(centre.engine.orders("b")) == 1
    centre.engine.stop()
    centre.now += 8 * 24 * 3600.0
    assert centre.again().orders("b") == []


# --------------------------------------------------------------------------------------------------------- revoked


def test_a_site_that_is_revoked_drops_out_of_what_runs(centre: Centre) -> None:
    centre.submit()
    centre.play_to("train/1")
    assert centre.state.members["c"].accepted
    centre.revoked = frozenset({"c"})
    until(lambda: centre.state.members["c"].standing is Standing.OUT)
    assert centre.state.members["c"].code == "site_revoked"
    assert all(isinstance(order, StopOrder) for _, order in centre.engine.orders("c"))
    assert centre.play(ended, ("a", "b")).phase is Phase.FINISHED
    assert set(centre.state.rounds[0].sites) == {"a", "b"}


def test_a_run_that_waits_for_the_answer_of_a_revoked_site_begins_without_it(centre: Centre) -> None:
    centre.submit()
    centre.answer_orders(("a", "b"))
    assert centre.state.phase is Phase.OFFERED
    centre.revoked = frozenset({"c"})
    assert centre.play(ended, ("a", "b")).phase is Phase.FINISHED
    assert centre.state.members["c"].code == "site_revoked"
    # Nor does its late yes count.
    assert not centre.engine.post(RUN, Answered(centre.now, "c", "allow", {}, "c2VjcmV0"))


def test_a_run_without_its_quorum_of_sites_that_are_not_revoked_ends_and_says_why(centre: Centre) -> None:
    centre.submit(min_sites=3)
    centre.revoked = frozenset({"c"})
    until(lambda: centre.state.ended)
    assert centre.state.phase is Phase.REFUSED
    assert "c: site_revoked" in centre.state.reason
