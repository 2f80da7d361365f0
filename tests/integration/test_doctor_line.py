"""The line from a site to the centre, probed step by step on loopback: each kind of failure is told from the others."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import grpc
import pytest

from fakes.keyrings import make_keyring
from fakes.members import joined
from msfl.orchestrator.keyring.keyring import Keyring
from msfl.protos import probe
from msfl.protos.channel import SERVER_OPTIONS, mutual_server_credentials
from msfl.protos.health import Fault, LineFacts, Step
from msfl.protos.messages import PROTOCOL
from msfl.protos.software import SOFTWARE
from msfl.protos.v1 import federation_pb2 as wire

HOUR = timedelta(hours=1)


def an_hour_ahead(request: wire.HealthQuestion, context: grpc.ServicerContext) -> wire.HealthAnswer:
    return wire.HealthAnswer(time=time.time() + 3600, protocol=PROTOCOL, software=SOFTWARE)


HEALTH = grpc.unary_unary_rpc_method_handler(
    an_hour_ahead, wire.HealthQuestion.FromString, wire.HealthAnswer.SerializeToString
)
OLDER: dict[str, grpc.RpcMethodHandler] = {}  # it has never heard of Health


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring.create(tmp_path_factory.mktemp("centre") / "keyring", "msfl-01", datetime.now(UTC))


@contextmanager
def centre(
    keyring: Keyring,
    calls: Mapping[str, grpc.RpcMethodHandler] = MappingProxyType({"Health": HEALTH}),
    names: tuple[str, ...] = ("localhost", "127.0.0.1"),
) -> Iterator[str]:
    key, certificate = keyring.server_certificate(names, datetime.now(UTC))
    server = grpc.server(ThreadPoolExecutor(2), options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("msfl.protos.v1.Link", calls),))
    number = server.add_secure_port("127.0.0.1:0", mutual_server_credentials(key, certificate, keyring.ca_pem))
    server.start()
    yield f"127.0.0.1:{number}"
    server.stop(0).wait()


@contextmanager
def listener(says: bytes | None) -> Iterator[str]:
    """Takes a connection; then says something, or cuts it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                if says is not None:
                    connection.recv(64)
                    connection.sendall(says)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@pytest.fixture
def identity(keyring: Keyring, tmp_path: Path) -> Path:
    return write(joined(keyring, now=datetime.now(UTC)).to_pem(), tmp_path)


def write(pem: bytes, folder: Path) -> Path:
    file = folder / "identity.pem"
    file.write_bytes(pem)
    return file


def failure(facts: LineFacts) -> tuple[Step, Fault | None]:
    assert all(step.fault is None for step in facts.steps[:-1])
    return facts.steps[-1].step, facts.steps[-1].fault


def test_all_steps_work_and_the_clocks_are_compared(keyring: Keyring, identity: Path) -> None:
    with centre(keyring) as endpoint:
        facts = probe.line(endpoint, keyring.ca_pem, identity)
    assert [(s.step, s.fault) for s in facts.steps] == [(step, None) for step in Step]
    assert facts.peer is not None
    assert abs(facts.peer.skew - HOUR) < timedelta(seconds=1) + facts.peer.uncertainty
    assert (facts.peer.protocol, facts.peer.software) == (PROTOCOL, SOFTWARE)


def test_a_name_that_does_not_exist(keyring: Keyring, identity: Path) -> None:
    assert failure(probe.line("nobody.invalid:8444", keyring.ca_pem, identity)) == (Step.DNS, Fault.NO_NAME)


def test_a_port_where_nothing_listens(keyring: Keyring, identity: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    assert failure(probe.line(f"127.0.0.1:{number}", keyring.ca_pem, identity)) == (Step.TCP, Fault.REFUSED)


def test_something_else_listens_there(keyring: Keyring, identity: Path) -> None:
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as endpoint:
        assert failure(probe.line(endpoint, keyring.ca_pem, identity)) == (Step.TLS, Fault.NOT_TLS)


def test_something_cuts_the_handshake(keyring: Keyring, identity: Path) -> None:
    with listener(None) as endpoint:
        assert failure(probe.line(endpoint, keyring.ca_pem, identity)) == (Step.TLS, Fault.CUT)


def test_a_server_of_another_federation(keyring: Keyring, identity: Path, tmp_path: Path) -> None:
    stranger = Keyring.create(tmp_path / "stranger", "msfl-01", datetime.now(UTC))
    with centre(stranger) as endpoint:
        assert failure(probe.line(endpoint, keyring.ca_pem, identity)) == (Step.TLS, Fault.THEIR_CERTIFICATE)


def test_a_server_whose_certificate_is_for_another_name(keyring: Keyring, identity: Path) -> None:
    with centre(keyring, names=("centre.example",)) as endpoint:
        facts = probe.line(endpoint, keyring.ca_pem, identity)
        assert failure(facts) == (Step.TLS, Fault.THEIR_CERTIFICATE)
        assert "127.0.0.1" in facts.steps[-1].said
        # The operator's own look at the port does not stumble over the name.
        line, served = probe.port(endpoint, keyring.ca_pem)
        assert failure(line) == (Step.TLS, None)
        assert served


@pytest.mark.parametrize("case", ["expired", "stranger"])
def test_this_sites_certificate_is_not_taken(keyring: Keyring, tmp_path: Path, case: str) -> None:
    then = datetime.now(UTC) - timedelta(days=60)
    pem = joined(keyring, now=then) if case == "expired" else joined(make_keyring(tmp_path / "stranger"))
    with centre(keyring) as endpoint:
        facts = probe.line(endpoint, keyring.ca_pem, write(pem.to_pem(), tmp_path))
    assert failure(facts) == (Step.TLS, Fault.OUR_CERTIFICATE)


def test_an_orchestrator_that_is_older(keyring: Keyring, identity: Path) -> None:
    with centre(keyring, OLDER) as endpoint:
        assert failure(probe.line(endpoint, keyring.ca_pem, identity)) == (Step.RPC, Fault.OTHER_SOFTWARE)


def test_a_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10))
    facts = probe.disk(tmp_path, probe.largest_file(tmp_path))
    assert (facts.refused, facts.largest) == ("", 10)
    assert facts.free_bytes > 0
    assert probe.total_bytes(tmp_path) == 10
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_folder_that_cannot_be_written_to() -> None:
    # As root a mode forbids nothing; /proc takes no file from anybody.
    assert probe.disk(Path("/proc/self")).refused != ""
