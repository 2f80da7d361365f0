"""The two doors on loopback: who gets through TLS, and whom the other side believes to be speaking."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from fakes.keyrings import Applicant, make_token
from msfl.orchestrator.keyring.keyring import Enrolled, Keyring
from msfl.protos.channel import (
    MAX_MESSAGE_BYTES,
    SERVER_OPTIONS,
    dial,
    make_csr,
    mutual_server_credentials,
    peer_ip,
    peer_site,
    server_credentials,
)


@dataclass
class Site:
    key: bytes
    certificate: bytes


class Centre:
    def __init__(self, folder: Path) -> None:
        self.now = datetime.now(UTC)  # gRPC looks at the machine's clock
        self.keyring = Keyring.create(folder, "msfl-01", self.now)
        self.ca = self.keyring.ca_pem
        self.key, self.certificate = self.keyring.server_certificate(("localhost", "127.0.0.1"), self.now)

    def join(self, site: str, now: datetime | None = None) -> Site:
        now = now or self.now
        key, csr = make_csr(site)
        answer = Applicant(make_token(self.keyring, site, now=now)).enrol(self.keyring, csr=csr, now=now)
        assert isinstance(answer, Enrolled)
        return Site(key, answer.certificate_pem)


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Centre:
    return Centre(tmp_path_factory.mktemp("centre") / "keyring")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Centre:
    """Another federation, with names that are the same."""
    return Centre(tmp_path_factory.mktemp("stranger") / "keyring")


@contextmanager
def door(credentials: grpc.ServerCredentials) -> Iterator[str]:
    """A server that says who it thinks is calling."""

    def who(request: bytes, context: grpc.ServicerContext) -> bytes:
        return f"{peer_site(context)} from {peer_ip(context)}".encode()

    server = grpc.server(ThreadPoolExecutor(2), options=SERVER_OPTIONS)
    handlers = {"Who": grpc.unary_unary_rpc_method_handler(who)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Door", handlers),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture(scope="module")
def gateways(centre: Centre) -> Iterator[str]:
    with door(mutual_server_credentials(centre.key, centre.certificate, centre.ca)) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def people(centre: Centre) -> Iterator[str]:
    with door(server_credentials(centre.key, centre.certificate)) as endpoint:
        yield endpoint


def ask(endpoint: str, ca: bytes, site: Site | None = None, message: bytes = b"") -> str:
    """The answer, or the status that the caller saw instead."""
    channel = dial(endpoint, ca, site.key if site else None, site.certificate if site else None)
    try:
        answer: bytes = channel.unary_unary("/Door/Who")(message, timeout=10)
        return answer.decode()
    except grpc.RpcError as error:
        return str(error.code().name)
    finally:
        channel.close()


def test_a_gateway_is_known_by_its_certificate(centre: Centre, gateways: str) -> None:
    assert ask(gateways, centre.ca, centre.join("site-a")) == "site-a from 127.0.0.1"
    assert ask(gateways, centre.ca, centre.join("site-b")) == "site-b from 127.0.0.1"


def test_without_a_certificate_nobody_enters_the_gateways_door(centre: Centre, gateways: str) -> None:
    assert ask(gateways, centre.ca) == "UNAVAILABLE"


def test_a_certificate_of_another_federation_opens_nothing(centre: Centre, stranger: Centre, gateways: str) -> None:
    assert ask(gateways, centre.ca, stranger.join("site-a")) == "UNAVAILABLE"


def test_an_expired_certificate_opens_nothing(centre: Centre, gateways: str) -> None:
    old = centre.join("site-a", centre.now - timedelta(days=60))
    assert ask(gateways, centre.ca, old) == "UNAVAILABLE"


def test_the_orchestrators_own_certificate_is_no_gateways(centre: Centre, gateways: str) -> None:
    # It is of the right CA; its purpose is to serve.
    assert ask(gateways, centre.ca, Site(centre.key, centre.certificate)) == "UNAVAILABLE"


def test_a_gateways_certificate_does_not_make_an_orchestrator(centre: Centre) -> None:
    # A site that joined honestly and then plays the centre for another.
    site = centre.join("site-a")
    with door(server_credentials(site.key, site.certificate)) as endpoint:
        assert ask(endpoint, centre.ca) == "UNAVAILABLE"


def test_people_need_no_certificate_and_are_no_site(centre: Centre, people: str) -> None:
    assert ask(people, centre.ca) == "None from 127.0.0.1"
    assert ask(people, centre.ca, centre.join("site-a")) == "None from 127.0.0.1"


def test_whoever_trusts_one_federation_does_not_talk_to_another(stranger: Centre, people: str) -> None:
    assert ask(people, stranger.ca) == "UNAVAILABLE"


def test_a_message_has_a_limit(centre: Centre, people: str) -> None:
    assert ask(people, centre.ca, message=bytes(MAX_MESSAGE_BYTES + 1)) == "RESOURCE_EXHAUSTED"
