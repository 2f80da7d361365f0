"""A gateway changes its certificate while it talks: what is under way ends on the old connection, what follows takes
the new one, and the stream of orders is begun anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from fakes.members import joined
from msfl.gateway.link import LineDown, Link
from msfl.orchestrator.keyring.keyring import Keyring
from msfl.protos.certificates import Identity
from msfl.protos.channel import SERVER_OPTIONS, dial, mutual_server_credentials, peer_certificate
from msfl.protos.messages import PROTOCOL, Arrival, SiteProgress, StopOrder
from msfl.protos.v1 import federation_pb2 as wire

HELLO = Arrival(PROTOCOL, "test", ())
PATIENCE_S = 20


class Centre:
    """It notes the certificate of every call. A beat for the run `slow` waits to be let go."""

    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        self.keyring = Keyring.create(folder / "keyring", "msfl-01", now)
        self.seen: list[bytes | None] = []
        self.slow_is_here, self.let_go = threading.Event(), threading.Event()
        key, certificate = self.keyring.server_certificate(("127.0.0.1",), now)
        self._server = grpc.server(ThreadPoolExecutor(4), options=SERVER_OPTIONS)
        calls = {
            "Beat": grpc.unary_unary_rpc_method_handler(
                self._beat, wire.Progress.FromString, wire.Ack.SerializeToString
            ),
            "Attend": grpc.unary_stream_rpc_method_handler(
                self._attend, wire.Hello.FromString, wire.Order.SerializeToString
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("msfl.protos.v1.Link", calls),))
        credentials = mutual_server_credentials(key, certificate, self.keyring.ca_pem)
        self._port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def _beat(self, request: wire.Progress, context: grpc.ServicerContext) -> wire.Ack:
        self.seen.append(peer_certificate(context))
        if request.run_id == "slow":
            self.slow_is_here.set()
            assert self.let_go.wait(PATIENCE_S)
        return wire.Ack()

    def _attend(self, request: wire.Hello, context: grpc.ServicerContext) -> Iterator[wire.Order]:
        self.seen.append(peer_certificate(context))
        over = threading.Event()
        context.add_callback(over.set)
        yield wire.Order(stop=wire.StopOrder(run_id="run-7", reason="hello"))
        over.wait(PATIENCE_S)

    def dial(self, identity: Identity) -> grpc.Channel:
        return dial(f"127.0.0.1:{self._port}", self.keyring.ca_pem, identity.key_pem, identity.certificate_pem)

    def close(self) -> None:
        self.let_go.set()
        self._server.stop(0).wait()


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    centre = Centre(tmp_path)
    yield centre
    centre.close()


def test_calls_under_way_end_where_they_began(centre: Centre) -> None:
    old, new = (joined(centre.keyring, now=datetime.now(UTC)) for _ in range(2))
    link = Link(centre.dial(old))
    orders = link.attend(HELLO)
    assert next(orders) == StopOrder("run-7", "hello")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(link.beat, SiteProgress("slow"))
        assert centre.slow_is_here.wait(PATIENCE_S)
        link.switch(centre.dial(new))
        with pytest.raises(LineDown):
            next(orders)
        link.beat(SiteProgress("quick"))
        assert not slow.done()
        centre.let_go.set()
        slow.result(PATIENCE_S)
    again = link.attend(HELLO)
    assert next(again) == StopOrder("run-7", "hello")
    assert [c == new.certificate_pem for c in centre.seen] == [False, False, True, True]
    link.close()
    with pytest.raises(LineDown):
        next(again)
    with pytest.raises(LineDown):
        link.beat(SiteProgress("late"))


def test_a_closed_line_stays_closed(centre: Centre) -> None:
    identity = joined(centre.keyring, now=datetime.now(UTC))
    link = Link(centre.dial(identity))
    link.close()
    link.switch(centre.dial(identity))
    with pytest.raises(LineDown):
        link.beat(SiteProgress("late"))
    link.close()
