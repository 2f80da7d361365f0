"""A user's own calls over TLS: pause, resume, abort, come back to a run; and what is not signed for the centre."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from fakes.governance import AUDIENCE, ISSUER, World, key
from fakes.lines import Line
from fakes.stores import MemoryArtifacts, MemoryRunStore
from msfl.orchestrator.doors.addresses import LOOPBACK, Callers
from msfl.orchestrator.doors.link import Datasets
from msfl.orchestrator.doors.people import PeopleDoor
from msfl.orchestrator.driver import CentralProcess
from msfl.orchestrator.engine import Engine
from msfl.orchestrator.keyring.keyring import Keyring
from msfl.orchestrator.releases import Releases
from msfl.orchestrator.runs.events import Submitted
from msfl.orchestrator.runs.machine import Phase, RunState
from msfl.policies.encoding import encode
from msfl.policies.identity import mint_token, sign_job, verify_job
from msfl.policies.refusals import Code
from msfl.policies.trust import NOTHING_REVOKED
from msfl.protos.channel import SERVER_OPTIONS, server_credentials
from msfl.protos.key_sets import KeySets
from msfl.protos.v1 import federation_pb2 as wire
from msfl.protos.v1.federation_pb2_grpc import add_PeopleServicer_to_server
from msfl.registry.oci_layout import LayoutRegistry
from msfl.sdk import client as sdk
from msfl.sdk.client import BadJob, Client, NotNow, RefusedByGovernance
from msfl.sdk.credentials import Credentials, NotConnected

RUN = "run-1"
WORLD = World()


def token(user: str, key_name: str) -> str:
    now = datetime.now(UTC)
    return mint_token(key("issuer"), ISSUER, AUDIENCE, user, user, "uni.example", key(key_name).thumbprint, now)


class Centre:
    """An engine without sites, and the door for people before it. Ada has a run that is offered."""

    def __init__(self, folder: Path) -> None:
        keyring = Keyring.create(folder / "keyring", "msfl-01", datetime.now(UTC))
        self.ca = keyring.ca_pem.decode()
        self.engine = Engine(MemoryRunStore(), MemoryArtifacts(folder), self._no_aggregator)
        self.engine.start()
        spec = encode(WORLD.job)
        self.first_proof = sign_job(spec, key("ada"))
        self.engine.submit(Submitted(self.engine.now(), RUN, spec.decode(), self.first_proof, "old", "ada@uni.example"))
        releases = Releases(
            LayoutRegistry.create(folder / "registry"),
            WORLD.federation_root,
            lambda: datetime.now(UTC),
            lambda: NOTHING_REVOKED,
        )
        self._server = grpc.server(ThreadPoolExecutor(8), options=SERVER_OPTIONS)
        door = PeopleDoor(
            self.engine,
            WORLD.federation_root,
            Datasets(),
            releases,
            KeySets(folder / "issuers"),
            Callers.of(LOOPBACK),
            lambda: NOTHING_REVOKED,
        )
        add_PeopleServicer_to_server(door, self._server)
        server_key, certificate = keyring.server_certificate(("127.0.0.1",), datetime.now(UTC))
        credentials = server_credentials(server_key, certificate)
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()
        self._clients: list[Client] = []

    def _no_aggregator(self, state: RunState) -> tuple[CentralProcess, dict[str, Any]]:
        raise AssertionError("no site accepts, so nothing starts")

    def client(self, user: str = "ada@uni.example", key_name: str = "ada", port: int = 0) -> Client:
        """`port`: of a line to the centre; the centre's own when not given."""
        pem = key(key_name).to_pem().decode()
        client = Client(Credentials(f"127.0.0.1:{port or self.port}", self.ca, token(user, key_name), pem, user))
        self._clients.append(client)
        return client

    @property
    def state(self) -> RunState:
        state = self.engine.state(RUN)
        assert state is not None
        return state

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.engine.stop()
        self._server.stop(0).wait()


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    centre = Centre(tmp_path)
    yield centre
    centre.close()


def test_a_run_is_paused_and_resumed_with_the_present_token_and_a_proof_of_its_own(centre: Centre) -> None:
    run = centre.client().run(RUN)
    assert run.pause()["pause_reason"] == "paused by ada@uni.example"
    later = centre.client()
    assert not later.run(RUN).resume()["paused"]
    assert centre.state.token.count(".") == 2  # The token of the call, not that of the submission.
    assert verify_job(encode(WORLD.job), centre.state.proof, WORLD.user, proof_required=True) is None
    with pytest.raises(NotNow):
        run.resume()


def test_an_aborted_run_is_resumed_and_looked_at_from_the_beginning(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = centre.client().run(RUN)
    assert run.abort()["phase"] == "aborted"
    with pytest.raises(NotNow):
        run.pause()
    run.resume()
    assert (centre.state.phase, centre.state.generation) == (Phase.OFFERED, 2)
    for generation, answer in ((1, Code.PROOF_INVALID), (2, None)):
        proof = centre.state.proof
        verified = verify_job(encode(WORLD.job), proof, WORLD.user, proof_required=True, generation=generation)
        assert (verified and verified.code) is answer
    run.pause()
    run.resume()  # A pause ends nothing: the signature is for the generation that goes on.
    run.abort()
    monkeypatch.setattr(sdk, "_connected", centre.client())
    kinds = [kind for kind, _ in sdk.attach(RUN).events() if kind not in ("Now", "Progress")]
    pause = ["PauseRequested", "Resumed"]
    assert kinds == ["Submitted", "AbortRequested", "Resumed", *pause, "AbortRequested"]
    with pytest.raises(BadJob, match="you have no run run-2"):
        sdk.attach("run-2")


@pytest.mark.parametrize(("method", "again"), [("List", True), ("Show", True), ("Abort", False)])
def test_a_question_is_asked_again_when_the_line_broke_over_it_and_an_order_is_not(
    centre: Centre, monkeypatch: pytest.MonkeyPatch, method: str, again: bool
) -> None:
    line, came = Line(centre.port), list[str]()
    let_in = PeopleDoor._user

    def cut_once(door: PeopleDoor, context: grpc.ServicerContext, method: str) -> Any:
        came.append(method)
        if len(came) == 1:
            line.cut()
        return let_in(door, context, method)

    monkeypatch.setattr(PeopleDoor, "_user", cut_once)
    client = centre.client(port=line.port)
    asks: dict[str, Callable[[], Any]] = {
        "List": client.runs,
        "Show": partial(client.show, RUN),
        "Abort": partial(client.abort, RUN),
    }
    try:
        with nullcontext() if again else pytest.raises(NotConnected, match="does not answer"):
            asks[method]()
    finally:
        line.close()
    assert came == [method] * (2 if again else 1)


def test_what_another_key_has_signed_is_not_signed_again(centre: Centre) -> None:
    centre.client().run(RUN).abort()
    with pytest.raises(BadJob, match="not signed with the key of your credentials"):
        centre.client(key_name="ada-on-another-machine").run(RUN).resume()
    assert centre.state.generation == 1


def test_a_centre_that_hands_out_another_job_gets_no_signature(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: 'sign your run again', with a job in its place that the centre would like to have signed."""
    client = centre.client()
    client.abort(RUN)
    forged = encode(WORLD.job.model_copy(update={"rounds": 60}))
    shown = client.show(RUN)
    monkeypatch.setattr(client, "show", lambda run_id: shown | {"spec_text": forged.decode()})
    with pytest.raises(BadJob, match="not signed"):
        client.resume(RUN)
    with pytest.raises(BadJob, match="not signed"):
        client.run(RUN).extend(5)


def test_a_proof_of_an_earlier_time_resumes_nothing(centre: Centre) -> None:
    client = centre.client()
    client.abort(RUN)
    with pytest.raises(RefusedByGovernance, match="it was made for another job"):
        client._call("Resume", wire.ResumeRun(run_id=RUN, proof=centre.first_proof))
    client.resume(RUN)
    second = centre.state.proof
    client.abort(RUN)
    with pytest.raises(RefusedByGovernance, match="it was made for another job"):
        client._call("Resume", wire.ResumeRun(run_id=RUN, proof=second))
    client.resume(RUN)
    assert centre.state.generation == 3


def test_a_proof_for_another_job_resumes_nothing(centre: Centre) -> None:
    client = centre.client()
    client.abort(RUN)
    forged = sign_job(b"another job", key("ada"))
    with pytest.raises(RefusedByGovernance):
        client._call("Resume", wire.ResumeRun(run_id=RUN, proof=forged))
    assert centre.state.phase is Phase.ABORTED
