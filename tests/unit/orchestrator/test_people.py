"""The door for people: who may pause and resume which run, when, and what a watcher is told."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from fakes.governance import AUDIENCE, ISSUER, World, key
from msfl.orchestrator.doors.addresses import LOOPBACK, Callers
from msfl.orchestrator.doors.link import Datasets
from msfl.orchestrator.doors.people import (
    DAY_S,
    MOST_OPEN_RUNS,
    MOST_RUNS_A_DAY,
    PeopleDoor,
    standing,
    watched_event,
)
from msfl.orchestrator.runs.events import (
    AbortRequested,
    Answered,
    CentralDone,
    Event,
    PauseRequested,
    Resumed,
    Submitted,
    TaskDone,
    from_json,
    to_json,
)
from msfl.orchestrator.runs.machine import Phase, RunState, advance, owns, submitted
from msfl.policies.documents import JobSpec
from msfl.policies.encoding import encode, load_json
from msfl.policies.identity import mint_token, sign_call, sign_job
from msfl.policies.keys import KeyPair
from msfl.policies.trust import NOTHING_REVOKED, Revoked
from msfl.protos.key_sets import KeySets
from msfl.protos.messages import CALL_PROOF, PEOPLE_METHOD, PROTOCOL
from msfl.protos.v1 import federation_pb2 as wire

ALL = ("a", "b", "c")
RUN = "run-1"
ADA, EVE = "ada@uni.example", "eve@uni.example"
SPEC = JobSpec(
    name="story",
    release="voxel-logistic:1.0.0",
    datasets=tuple(f"{s}/lesions" for s in ALL),
    rounds=2,
    profile="demo",
    min_sites=2,
    round_deadline_s=60,
    seed=1,
    nonce="0123456789abcdef",
)


class Said(Exception):
    """What the door answered instead."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class Caller:
    """A gRPC context with a user's token, and the user's signature over one call."""

    def __init__(
        self, user: str, method: str = "Show", peer: str = "ipv4:127.0.0.1:50000", email: str | None = None
    ) -> None:
        self.key = key(user)
        now = datetime.now(UTC)
        jkt = self.key.thumbprint
        who = (user, user if email is None else email, "uni.example")
        self.token = mint_token(key("issuer"), ISSUER, AUDIENCE, *who, jkt, now)
        call = sign_call(PEOPLE_METHOD + method, self.token, self.key, now, secrets.token_hex(8))
        self.metadata = [("authorization", f"Bearer {self.token}"), (CALL_PROOF, call)]
        self._peer = peer

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self.metadata)

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Said(code, details)

    def is_active(self) -> bool:
        return True

    def add_callback(self, callback: object) -> None:
        pass


class FakeEngine:
    """One run, moved by its events; a watcher that has to wait is told that the centre stops."""

    def __init__(self, *events: Event) -> None:
        first = Submitted(1.0, RUN, encode(SPEC).decode(), "p", "t", ADA)
        self.kept: list[Event] = [first]
        self.run = submitted(first, SPEC)
        self.stopping = False
        self.waits_for = ""
        for event in events:
            self.post(RUN, event)

    def now(self) -> float:
        return 100.0

    def state(self, run_id: str) -> RunState | None:
        return self.run if run_id == RUN else None

    def post(self, run_id: str, event: Event) -> bool:
        following = advance(self.run, event)
        news = following is not self.run
        self.run = following
        if news:
            self.kept.append(event)
        return news

    def runs(self) -> list[RunState]:
        return [self.run]

    def seen(self, run_id: str, after: int) -> tuple[RunState, list[tuple[int, Event]]]:
        return self.run, list(enumerate(self.kept, start=1))[after:]

    def waiting_for(self, run_id: str) -> str:
        return self.waits_for

    def progress(self, run_id: str) -> dict[str, Any]:
        return {}

    def run_bell(self, run_id: str) -> FakeEngine:
        self.stopping = False
        return self

    def ring(self) -> None:
        pass

    def wait(self, heard: int, timeout_s: float) -> int:
        self.stopping = True
        return heard


def running() -> list[Event]:
    return [Answered(2.0, site, "allow", {}, "s") for site in ALL]


def door(
    engine: FakeEngine, revoked: Callable[[], Revoked] = lambda: NOTHING_REVOKED, datasets: Datasets | None = None
) -> PeopleDoor:
    key_sets, callers = KeySets(Path("none")), Callers.of(LOOPBACK)
    root = World().federation_root
    return PeopleDoor(engine, root, datasets or Datasets(), None, key_sets, callers, revoked)  # type: ignore[arg-type]


def pause(engine: FakeEngine, who: str = ADA) -> dict[str, Any]:
    return dict(json.loads(door(engine).Pause(wire.RunName(run_id=RUN), Caller(who, "Pause")).json))


def resume(engine: FakeEngine, who: str = ADA, signer: KeyPair | None = None, spec: bytes = b"") -> dict[str, Any]:
    caller = Caller(who, "Resume")
    generation = engine.run.generation + engine.run.ended
    proof = sign_job(spec or engine.run.spec_text.encode(), signer or caller.key, generation=generation)
    return dict(json.loads(door(engine).Resume(wire.ResumeRun(run_id=RUN, proof=proof), caller).json))


def test_a_run_is_paused_and_resumed_by_its_owner() -> None:
    engine = FakeEngine(*running())
    shown = pause(engine)
    assert (shown["phase"], shown["paused"], shown["pause_reason"]) == ("running", True, f"paused by {ADA}")
    assert pause(engine)["paused"], "asking twice does no harm"
    assert sum(isinstance(event, PauseRequested) for event in engine.kept) == 1
    assert resume(engine)["paused"] is False


def test_an_aborted_run_is_offered_again_with_the_token_and_the_proof_of_today() -> None:
    engine = FakeEngine(*running(), AbortRequested(3.0, ADA))
    shown = resume(engine)
    assert (shown["phase"], shown["generation"]) == ("offered", 2)
    event = engine.kept[-1]
    assert isinstance(event, Resumed)
    assert (event.by, event.at) == (ADA, 100.0)
    assert event.token.count(".") == 2
    assert (engine.run.token, engine.run.proof) == (event.token, event.proof)
    assert engine.run.spec_text == encode(SPEC).decode(), "byte for byte what was submitted"


def test_what_was_signed_is_shown_so_that_it_can_be_signed_again() -> None:
    shown = json.loads(door(FakeEngine()).Show(wire.RunName(run_id=RUN), Caller(ADA)).json)
    assert shown["spec_text"].encode() == encode(SPEC)


@pytest.mark.parametrize("ask", [pause, resume])
def test_nobody_elses_run_is_touched_or_even_known(ask: Any) -> None:
    engine = FakeEngine(*running())
    with pytest.raises(Said, match="you have no run") as said:
        ask(engine, EVE)
    assert said.value.code is grpc.StatusCode.NOT_FOUND
    assert len(engine.kept) == 4


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"signer": key("eve")}, "proof_other_key"),
        ({"spec": encode(SPEC.model_copy(update={"rounds": 99}))}, "proof_invalid"),
    ],
)
def test_a_run_is_resumed_only_with_a_proof_over_its_own_bytes(wrong: dict[str, Any], code: str) -> None:
    engine = FakeEngine(*running(), AbortRequested(3.0, ADA))
    with pytest.raises(Said, match=code) as said:
        resume(engine, **wrong)
    assert said.value.code is grpc.StatusCode.PERMISSION_DENIED
    assert engine.run.phase is Phase.ABORTED


def refused(*events: Event) -> FakeEngine:
    return FakeEngine(*events, *(Answered(2.0, site, "refuse", {}) for site in ALL))


def with_phase(phase: Phase) -> FakeEngine:
    engine = FakeEngine(*running())
    engine.run = RunState(**{**vars(engine.run), "phase": phase, "step": None})
    return engine


@pytest.mark.parametrize(
    ("ask", "engine", "told"),
    [
        (resume, FakeEngine(*running()), "run run-1 is running and not paused: there is nothing to resume"),
        (resume, refused(), "run run-1 was refused and never began: submit the job again"),
        (resume, with_phase(Phase.FINISHED), "run run-1 is finished and cannot be resumed: use run.extend"),
        (resume, with_phase(Phase.EXPLAINED), "run run-1 only asked the sites"),
        (pause, with_phase(Phase.FINISHED), r"run run-1 has ended \(finished\): there is nothing to pause"),
    ],
)
def test_what_cannot_be_done_is_said_clearly(ask: Any, engine: FakeEngine, told: str) -> None:
    before = len(engine.kept)
    with pytest.raises(Said, match=told) as said:
        ask(engine)
    assert said.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert len(engine.kept) == before


# ------------------------------------------------------------------- watching


def watched(engine: FakeEngine, after: int = 0) -> list[tuple[int, str, dict[str, Any]]]:
    asked = wire.WatchRun(run_id=RUN, after=after)
    heard = []
    for event in door(engine).Watch(asked, Caller(ADA, "Watch")):
        heard.append((event.sequence, event.kind, json.loads(event.json)))
    return heard


def test_a_watcher_hears_the_past_and_then_how_it_is_now() -> None:
    engine = FakeEngine(*running(), PauseRequested(3.0, ADA))
    engine.waits_for = "disk"
    heard = watched(engine)
    assert [(sequence, kind) for sequence, kind, _ in heard] == [
        (1, "Submitted"), (2, "Answered"), (3, "Answered"), (4, "Answered"), (5, "PauseRequested"), (0, "Now"),
    ]  # fmt: skip
    assert heard[-1][2] == {
        "at": 100.0, "phase": "running", "task_id": "start", "paused": True, "pause_reason": f"paused by {ADA}",
        "waiting_for": "disk", "waiting_for_sites": [], "absent": [],
    }  # fmt: skip
    assert [kind for _, kind, _ in watched(engine, after=4)] == ["PauseRequested", "Now"]


def test_a_watcher_hears_no_token_and_no_proof() -> None:
    engine = FakeEngine(*running(), AbortRequested(3.0, ADA), Resumed(4.0, ADA, "secret-token", "secret-proof"))
    assert "secret" not in json.dumps(watched(engine))


def test_the_aggregate_of_a_round_says_who_was_refused_and_what_was_conspicuous() -> None:
    spec = SPEC.model_copy(update={"rounds": 9})
    first = Submitted(1.0, RUN, encode(spec).decode(), "p", "t", ADA)
    state = submitted(first, load_json(first.spec.encode(), JobSpec, "the job"))
    for event in running():
        state = advance(state, event)
    seen: list[tuple[int, CentralDone]] = []
    loss = 1.0
    while len(state.rounds) < 4:
        step = state.step
        assert step is not None
        if not step.central:
            for site in sorted(step.waiting):
                state = advance(state, TaskDone(5.0, site, step.task_id, f"k/{step.task_id}/{site}", 1.0, 0, 0))
            continue
        document: dict[str, Any] = {}
        if step.verb == "aggregate":
            loss += 0.5
            sites = {s: {"n_train": 3, "train_loss": loss if s == "b" else 1.0, "incoming": None} for s in ("a", "b")}
            document = {"sites": sites, "refused": {"c": "update_not_finite"}, "weights_blake3": "x"}
            if step.round > 1:
                document["refused"] = {}
                document["sites"]["c"] = {"n_train": 3, "train_loss": 1.0, "incoming": None}
        done = CentralDone(6.0, step.task_id, document)
        state = advance(state, done)
        seen.append((step.round, done))
    shown = {number: watched_event(state, event) for number, event in seen if event.task_id.startswith("aggregate/")}
    assert shown[1]["refused"] == {"c": "update_not_finite"}
    assert [shown[r]["flags"] for r in (1, 2, 3, 4)] == [{}, {}, {}, {"b": ["loss_rising"]}]
    assert standing(state, "")["task_id"] == "train/5"


def test_a_watcher_is_cut_when_the_key_that_vouched_for_it_is_revoked() -> None:
    engine, gone = FakeEngine(*running()), Revoked()

    def turn(heard: int, timeout_s: float) -> int:
        nonlocal gone
        engine.stopping = bool(gone.keys)  # Who is not cut by now is not cut at all.
        gone = Revoked(keys=frozenset({key("issuer").id}))
        return heard

    engine.wait = turn  # type: ignore[method-assign]
    seen = door(engine, lambda: gone).Watch(wire.WatchRun(run_id=RUN), Caller(ADA, "Watch"))
    with pytest.raises(Said, match="issuer_key_revoked"):
        list(seen)


class BusyEngine(FakeEngine):
    """Takes what is submitted."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[RunState] = []

    def runs(self) -> list[RunState]:
        return self.open

    def submit(self, event: Submitted) -> None:
        self.open.append(submitted(event, SPEC))


def busy(engine: BusyEngine, who: str = ADA) -> None:
    spec, caller = encode(SPEC), Caller(who, "Submit")
    catalogue = Datasets()
    for site in ALL:
        catalogue.put(site, ({"ref": f"{site}/lesions"},))
    job = wire.Job(protocol=PROTOCOL, spec=spec, proof=sign_job(spec, caller.key), dry_run=False)
    door(engine, datasets=catalogue).Submit(job, caller)


def test_no_user_takes_the_centre_up_alone() -> None:
    engine = BusyEngine()
    for _ in range(MOST_OPEN_RUNS):
        busy(engine)
    with pytest.raises(Said, match="have not ended") as said:
        busy(engine)
    assert said.value.code is grpc.StatusCode.FAILED_PRECONDITION
    busy(engine, EVE)
    engine.open = [advance(state, AbortRequested(state.submitted_at, ADA)) for state in engine.open]
    busy(engine)
    ended = engine.open[0]
    engine.open = [ended] * MOST_RUNS_A_DAY
    with pytest.raises(Said, match="within a day"):
        busy(engine)
    engine.open = [replace(ended, submitted_at=ended.submitted_at - DAY_S)] * MOST_RUNS_A_DAY
    busy(engine)


def test_a_run_that_had_ended_is_one_more_when_it_is_resumed() -> None:
    engine = FakeEngine(*running(), AbortRequested(3.0, ADA))
    engine.runs = lambda: [submitted(engine.kept[0], SPEC)] * MOST_OPEN_RUNS  # type: ignore[method-assign,arg-type]
    proof = sign_job(engine.run.spec_text.encode(), key(ADA), generation=2)
    with pytest.raises(Said, match="have not ended"):
        door(engine).Resume(wire.ResumeRun(run_id=RUN, proof=proof), Caller(ADA, "Resume"))
    assert engine.run.phase is Phase.ABORTED


def first(user: str, *, token: str = "t", issuer: str = "", subject: str = "") -> FakeEngine:
    """An engine with a run that was submitted so; without an issuer, by an earlier version."""
    engine = FakeEngine()
    event = Submitted(1.0, RUN, encode(SPEC).decode(), "p", token, user, False, issuer, subject)
    stored = json.loads(to_json(event))
    if not issuer:
        del stored["issuer"], stored["subject"]
    kept = from_json(json.dumps(stored))
    assert kept == event
    engine.kept, engine.run = [kept], submitted(event, SPEC)
    return engine


def is_shown(engine: FakeEngine, caller: Caller) -> bool:
    try:
        door(engine).Show(wire.RunName(run_id=RUN), caller)
    except Said as said:
        return said.code is not grpc.StatusCode.NOT_FOUND
    return True


def test_a_subject_that_is_spelled_like_an_address_owns_nothing_of_that_address() -> None:
    for engine in (
        first(ADA, issuer=ISSUER, subject="ada-1"),
        first(ADA, token=Caller("ada-1", email=ADA).token),  # as an earlier version kept it
        first(ADA),
    ):
        alike = Caller(ADA, email="")
        assert not is_shown(engine, alike)
        with pytest.raises(Said, match="no run"):
            door(engine).Abort(wire.RunName(run_id=RUN), Caller(ADA, "Abort", email=""))
        listed = door(engine).List(wire.ListWhat(what="runs"), Caller(ADA, "List", email=""))
        assert json.loads(listed.json) == {"runs": []}
        assert is_shown(engine, Caller("ada-2", email=ADA)), "the address is verified, whatever the subject"


def test_a_run_is_of_the_account_that_submitted_it_and_of_no_other_providers() -> None:
    robot = Caller("robot", email="")
    for engine in (
        first(f"{ISSUER}#robot", issuer=ISSUER, subject="robot"),
        first("robot", token=robot.token),  # as an earlier version kept it
    ):
        assert is_shown(engine, robot)
        assert is_shown(engine, Caller("robot", email="new@uni.example")), "an address that came later changes nothing"
        for subject in ("robot", f"{ISSUER}#robot"):
            assert not owns(
                engine.run, replace(World().user, subject=subject, email="", issuer="https://other.example")
            )
    assert not is_shown(first("robot"), robot), "who submitted it is not known: nobody's but an address's"


def test_what_is_submitted_is_kept_with_the_account() -> None:
    engine = BusyEngine()
    busy(engine)
    (state,) = engine.open
    assert (state.user, state.issuer, state.subject) == (ADA, ISSUER, ADA)
