"""What the door for gateways makes of a run's state: answers and orders by generation, uploads only of what is due."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from fakes.run_walk import Walk, job, started
from fakes.stores import MemoryArtifacts
from msfl.orchestrator.doors.link import PART_BYTES, Datasets, LinkDoor
from msfl.orchestrator.engine import Engine
from msfl.orchestrator.keyring.client import KeyringClient
from msfl.orchestrator.presence import Bell
from msfl.orchestrator.runs.events import AbortRequested, CentreFailed, Event, Resumed, SiteSilent, TaskDone
from msfl.orchestrator.runs.machine import RunState, abandoned_uploads, is_news, order_for
from msfl.protos.messages import PROTOCOL, Order, output_key, result_key
from msfl.protos.notary import Notary
from msfl.protos.parcel import MAX_DOCUMENT_BYTES
from msfl.protos.sealing import EVERYBODY
from msfl.protos.v1 import federation_pb2 as wire


class Refused(Exception):
    pass


class Call:
    """A gateway's call, as far as the door looks at it. `turns`: how often its stream is looked at before it ends."""

    def __init__(self, site: str, turns: int = 0) -> None:
        self.site, self.turns = site, turns

    def abort(self, code: object, details: str) -> None:
        raise Refused(f"{code}: {details}")

    def is_active(self) -> bool:
        self.turns -= 1
        return self.turns >= 0

    def add_callback(self, callback: object) -> None: ...


class WalkingEngine:
    """The engine's part in front of a walk: each look at the orders of a site is followed by the next of `scenes`."""

    stopping = False

    def __init__(self, walk: Walk, folder: Path) -> None:
        self.walk = walk
        self.artifacts = MemoryArtifacts(folder)
        self.bell = Bell()
        self.scenes: list[Any] = []

    def now(self) -> float:
        return self.walk.now

    def heard(self, site: str) -> None: ...

    def state(self, run_id: str) -> RunState:
        return self.walk.state

    def post(self, run_id: str, event: Event) -> bool:
        news = is_news(self.walk.state, event)
        self.walk.tell(event)
        return news

    def site_bell(self, site: str) -> Bell:
        return self.bell

    def orders(self, site: str) -> list[tuple[RunState, Order]]:
        state, order = self.walk.state, order_for(self.walk.state, site)
        if self.scenes:
            self.scenes.pop(0)()
        self.bell.ring()
        return [] if order is None else [(state, order)]


@pytest.fixture
def site_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msfl.orchestrator.doors.link.peer_site", lambda call: call.site)


def door_to(walk: Walk, folder: Path) -> tuple[LinkDoor, WalkingEngine]:
    engine = WalkingEngine(walk, folder)
    return LinkDoor(cast(Engine, engine), Datasets(), cast(KeyringClient, None), cast(Notary, None)), engine


def call(site: str, turns: int = 0) -> Any:
    return Call(site, turns)


@pytest.mark.usefixtures("site_of_the_call")
def test_an_answer_to_an_earlier_offer_is_stale(tmp_path: Path) -> None:
    walk = started().go_to("train/1")
    walk.tell(CentreFailed(walk.tick(), "broken"))
    walk.tell(Resumed(walk.tick(), "ada"))
    door, _ = door_to(walk, tmp_path)
    for generation, stale in ((1, True), (2, False)):
        said = wire.OfferAnswer(
            run_id="run-1", verdict="allow", decision=b"{}", wrapped_secret=b"secret", generation=generation
        )
        assert door.Answer(said, call("a")).stale is stale
    assert walk.state.members["a"].accepted


@pytest.mark.usefixtures("site_of_the_call")
def test_a_site_that_catches_up_may_upload_what_the_others_have_done(tmp_path: Path) -> None:
    walk = started(job(rounds=3)).go_to("prepare")
    walk.tell(SiteSilent(walk.tick(), "b", "prepare"))
    walk.go_to("train/2")
    door, _ = door_to(walk, tmp_path)
    for site, task, may in (
        ("a", "train/2", True),
        ("b", "prepare", True),
        ("a", "prepare", False),
        ("a", "train/1", False),
        ("b", "train/1", False),
    ):
        name = wire.ArtifactName(run_id="run-1", key=result_key(task, site, 1))
        if may:
            assert door.Offset(name, call(site)).offset == 0
        else:
            with pytest.raises(Refused, match="nobody waits"):
                door.Offset(name, call(site))


@pytest.mark.usefixtures("site_of_the_call")
def test_an_order_is_said_once_per_stream_and_generation(tmp_path: Path) -> None:
    walk = started().go_to("train/1")
    door, engine = door_to(walk, tmp_path)

    def resume() -> None:
        walk.tell(Resumed(walk.tick(), "ada"))

    engine.scenes = [
        lambda: None,
        lambda: walk.tell(AbortRequested(walk.tick(), "ada")),
        resume,
        lambda: walk.allow(),
        lambda: walk.go_to("train/1"),
        lambda: walk.tell(AbortRequested(walk.tick(), "ada")),
        lambda: None,
    ]
    hello = wire.Hello(protocol=PROTOCOL, software="test", datasets=b'{"datasets": []}')
    said = []
    for order in door.Attend(hello, call("a", turns=8)):
        kind = order.WhichOneof("order")
        said.append((kind, order.task.task_id if kind == "task" else ""))
    assert said == [
        ("task", "train/1"), ("stop", ""), ("offer", ""), ("task", "start/2"), ("task", "train/1"), ("stop", ""),
    ]  # fmt: skip


def shows(site: str, *datasets: object) -> dict[str, tuple[dict[str, Any], ...]]:
    """What users are shown after a site has shown its catalogue."""
    catalogue = Datasets()
    link = LinkDoor(cast(Engine, DeafEngine()), catalogue, cast(KeyringClient, None), cast(Notary, None))
    said = json.dumps({"datasets": datasets}).encode()
    list(link.Attend(wire.Hello(protocol=PROTOCOL, software="test", datasets=said), call(site)))
    return catalogue.all()


class DeafEngine:
    stopping = False

    def heard(self, site: str) -> None: ...

    def site_bell(self, site: str) -> Bell:
        return Bell()


@pytest.mark.usefixtures("site_of_the_call")
@pytest.mark.parametrize(
    "dataset",
    [{}, [], "a/lesions", {"ref": 7}, {"ref": "lesions"}, {"ref": "a/lesions\n"}, {"ref": "a/lesions", "n_test": -1},
     {"ref": "a/lesions", "labels": {"lesion": [[]]}}, {"ref": "a/lesions", "channel_names": "T1"}],
)  # fmt: skip
def test_a_catalogue_that_is_none_is_refused(dataset: object) -> None:
    with pytest.raises(Refused, match="INVALID_ARGUMENT"):
        shows("a", dataset)


@pytest.mark.usefixtures("site_of_the_call")
def test_a_catalogue_that_nobody_could_be_shown_is_refused() -> None:
    with pytest.raises(Refused, match="KiB"):
        shows("a", *({"ref": f"a/{i}", "kind": "user" * 100} for i in range(1000)))


@pytest.mark.usefixtures("site_of_the_call")
def test_a_site_shows_its_own_datasets_alone_and_of_them_what_is_known() -> None:
    mine = {"ref": "a/lesions", "n_train": 3}
    assert shows("a", {**mine, "spacing": [7]}, {"ref": "b/lesions", "n_train": 999_999}) == {"a": (mine,)}


@pytest.mark.usefixtures("site_of_the_call")
def test_of_many_attempts_one_is_kept_and_none_beside_a_reported_one(tmp_path: Path) -> None:
    walk = started().go_to("train/1")
    door, engine = door_to(walk, tmp_path)

    def upload(attempt: int, site: str = "a", parts: Iterable[bytes] = (b"12", b"34")) -> None:
        head = wire.UploadHead(run_id="run-1", key=result_key("train/1", site, attempt), offset=0, total=4)
        door.upload(head, iter(parts), call(site))

    upload(1, site="b")
    for attempt in range(20):
        upload(attempt)
    assert engine.artifacts.kept("run-1") == {result_key("train/1", "a", 19), result_key("train/1", "b", 1)}

    def overtaken() -> Iterator[bytes]:
        yield b"12"
        upload(21)
        yield b"34"

    with pytest.raises(Refused, match="nobody waits"):
        upload(20, parts=overtaken())
    assert engine.artifacts.kept("run-1") == {result_key("train/1", "a", 21), result_key("train/1", "b", 1)}

    walk.tell(TaskDone(walk.tick(), "a", "train/1", result_key("train/1", "a", 21), 1.0, 4, 0))
    with pytest.raises(Refused, match="nobody waits"):
        upload(22)
    upload(21)
    assert engine.artifacts.size("run-1", result_key("train/1", "a", 21)).complete


def test_what_no_report_has_named_is_abandoned_when_its_step_is_over() -> None:
    walk = started().go_to("train/1")
    reported, left = result_key("train/1", "a", 1), result_key("train/1", "b", 7)
    model = output_key("plan", EVERYBODY, "weights")
    walk.done("a")
    kept = {reported, left, result_key("train/1", "a", 5), model}
    assert abandoned_uploads(walk.state, kept) == {result_key("train/1", "a", 5)}
    walk.go_to("aggregate/1")
    assert reported in walk.state.results["train/1"].values()
    assert abandoned_uploads(walk.state, kept) == {left, result_key("train/1", "a", 5)}
    walk.tell(AbortRequested(walk.tick(), "ada"))
    assert abandoned_uploads(walk.state, kept) == {left, result_key("train/1", "a", 5)}


@pytest.mark.usefixtures("site_of_the_call")
def test_a_site_cannot_fill_the_centres_disk(tmp_path: Path) -> None:
    """A result is no larger than the model it is an update of, whatever is announced, and no longer than announced."""
    walk = started().go_to("train/2")
    door, engine = door_to(walk, tmp_path)
    model = tmp_path / "model"
    model.write_bytes(bytes(100))
    engine.artifacts.adopt("run-1", {output_key("aggregate/1", EVERYBODY, "weights"): model})
    key, most = result_key("train/2", "a", 1), MAX_DOCUMENT_BYTES + PART_BYTES

    def upload(total: int, *parts: bytes) -> None:
        door.upload(wire.UploadHead(run_id="run-1", key=key, offset=0, total=total), iter(parts), call("a"))

    with pytest.raises(Refused, match="announces"):
        upload(most + 1, b"x")
    with pytest.raises(Refused, match="longer than it announced"):
        upload(4, b"1234", b"5")
    assert engine.artifacts.size("run-1", key).bytes == 4
    upload(4, b"1234")
    assert engine.artifacts.size("run-1", key).complete
