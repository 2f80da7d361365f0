"""Nobody in particular opens calls at the centre and says nothing, watches without end, or begins to enrol without end.

The threads that serve abort and enrolment stay free: whoever asks something is answered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from msfl.orchestrator.doors.admission import MOST_CALLS, Admission, Caller
from msfl.orchestrator.doors.enrolment import MAX_NONCES, EnrolmentDoor
from msfl.orchestrator.doors.silence import CutTheSilent
from msfl.orchestrator.keyring.client import KeyringClient
from msfl.orchestrator.keyring.keyring import Keyring, SiteStanding
from msfl.policies.trust import NOTHING_REVOKED
from msfl.protos.channel import SERVER_OPTIONS, dial, server_credentials
from msfl.protos.messages import PROTOCOL
from msfl.protos.v1 import federation_pb2 as wire
from msfl.protos.v1.federation_pb2_grpc import EnrolmentStub, add_EnrolmentServicer_to_server

THREADS, SILENT = 4, 2


class Centre:
    """The enrolment door on loopback, and a stream of answers that ends with the centre, behind `CutTheSilent`."""

    def __init__(self, folder: Path) -> None:
        keyring = Keyring.create(folder / "keyring", "msfl-01", datetime.now(UTC))
        self.ca = keyring.ca_pem
        self.watched = threading.Semaphore(0)
        self._over = threading.Event()
        silent = CutTheSilent(SILENT, lambda context: "", ThreadPoolExecutor(THREADS))
        self._server = grpc.server(ThreadPoolExecutor(THREADS), interceptors=(silent,), options=SERVER_OPTIONS)
        add_EnrolmentServicer_to_server(EnrolmentDoor(cast(KeyringClient, None), b"root"), self._server)
        watch = {"Watch": grpc.unary_stream_rpc_method_handler(self._watch)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Door", watch),))
        key, certificate = keyring.server_certificate(("127.0.0.1",), datetime.now(UTC))
        self.port = self._server.add_secure_port("127.0.0.1:0", server_credentials(key, certificate))
        self._server.start()

    def _watch(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self.watched.release()
        self._over.wait()
        yield b""

    def line(self) -> grpc.Channel:
        return dial(f"127.0.0.1:{self.port}", self.ca)

    def begin(self) -> wire.EnrolmentNonce:
        with self.line() as line:
            asked = wire.BeginEnrolment(protocol=PROTOCOL, token_id="x")
            return cast(wire.EnrolmentNonce, EnrolmentStub(line).Begin(asked, timeout=20))

    def close(self) -> None:
        self._over.set()
        self._server.stop(0).wait()


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    centre = Centre(tmp_path)
    yield centre
    centre.close()


def test_who_says_nothing_holds_no_thread_that_others_need(centre: Centre) -> None:
    said = threading.Event()

    def nothing() -> Iterator[bytes]:
        said.wait()
        yield from ()

    with centre.line() as line:
        begin = line.stream_unary("/msfl.protos.v1.Enrolment/Begin")
        held = [begin.future(nothing()) for _ in range(4 * THREADS)]
        cut = threading.Semaphore(0)
        for call in held:
            call.add_done_callback(lambda call: cut.release())
        # For others that say nothing either; no more than SILENT are left.
        for _ in range(len(held) - SILENT):
            assert cut.acquire(timeout=20)
        assert len(centre.begin().nonce) == 32
        said.set()


def test_who_watches_holds_no_thread_that_others_need(centre: Centre) -> None:
    with centre.line() as line:
        watch: Any = line.unary_stream("/Door/Watch")
        held = []
        for _ in range(THREADS):
            held.append(watch(b""))
            assert centre.watched.acquire(timeout=20)
        held.append(watch(b""))  # It waits for a thread of those that answer.
        assert len(centre.begin().nonce) == 32
        assert not any(call.done() for call in held)


class Stranger:
    """A caller, as far as the door of enrolment looks at one."""

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise AssertionError(details)


def test_who_begins_to_enrol_without_end_keeps_nobody_out() -> None:
    door = EnrolmentDoor(cast(KeyringClient, None), b"root")
    asked = wire.BeginEnrolment(protocol=PROTOCOL, token_id="x")
    made = [door.Begin(asked, cast(grpc.ServicerContext, Stranger())).nonce for _ in range(MAX_NONCES + 1)]
    assert len(made[-1]) == 32
    assert len(door._nonces) == MAX_NONCES


class OfASite(Stranger):
    """A call of a site that stays open until its story ends it."""

    def __init__(self, site: str) -> None:
        self.site = site
        self.end: Callable[[], None] = lambda: None

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.end = callback
        return True


def test_a_site_that_opens_calls_without_end_leaves_threads_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Caller, "of", lambda context: Caller(context.site, "key", "127.0.0.1"))
    standing = SiteStanding(("127.0.0.0/8",), frozenset(), None)
    admission = Admission(lambda: {"site-a": standing, "site-b": standing}, lambda: NOTHING_REVOKED)
    admission.refresh()
    calls = [OfASite("site-a") for _ in range(MOST_CALLS)]
    for call in calls:
        admission._admit(cast(grpc.ServicerContext, call))
    with pytest.raises(AssertionError, match="open already"):
        admission._admit(cast(grpc.ServicerContext, one_more := OfASite("site-a")))
    admission._admit(cast(grpc.ServicerContext, OfASite("site-b")))
    one_more.end()
    calls[0].end()
    admission._admit(cast(grpc.ServicerContext, OfASite("site-a")))
