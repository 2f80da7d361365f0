"""At the gateways' door with something that TLS itself must turn away. `test_mutual_tls` shows who gets through, and
whom the other side believes to be speaking.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fakes.members import joined
from msfl.orchestrator.keyring.keyring import Keyring
from msfl.protos.certificates import Identity
from msfl.protos.channel import SERVER_OPTIONS, dial, make_csr, mutual_server_credentials, peer_site


class Door:
    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        self.keyring = Keyring.create(folder / "keyring", "msfl-01", now)
        self.member = joined(self.keyring, now=now)
        self.heard: list[str | None] = []
        key, certificate = self.keyring.server_certificate(("127.0.0.1",), now)
        self.server = grpc.server(ThreadPoolExecutor(2), options=SERVER_OPTIONS)
        handlers = {"Who": grpc.unary_unary_rpc_method_handler(self._who)}
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Door", handlers),))
        credentials = mutual_server_credentials(key, certificate, self.keyring.ca_pem)
        self.port = self.server.add_secure_port("127.0.0.1:0", credentials)
        self.server.start()

    def _who(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.heard.append(peer_site(context))
        return str(peer_site(context)).encode()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    door = Door(tmp_path_factory.mktemp("door"))
    yield door
    door.server.stop(0).wait()


def ask(door: Door, identity: Identity, message: bytes = b"", metadata: tuple[tuple[str, str], ...] = ()) -> str:
    channel = dial(f"127.0.0.1:{door.port}", door.keyring.ca_pem, identity.key_pem, identity.certificate_pem)
    try:
        return str(channel.unary_unary("/Door/Who")(message, metadata=metadata, timeout=10).decode())
    except grpc.RpcError as error:
        return str(error.code().name)
    finally:
        channel.close()


def shakes_hands(door: Door, folder: Path, version: ssl.TLSVersion) -> str | None:
    """The version that was agreed on, or None."""
    file = folder / "member.pem"
    file.write_bytes(door.member.certificate_pem + door.member.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=door.keyring.ca_pem.decode())
    context.load_cert_chain(file)
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = version
    context.maximum_version = version
    with socket.create_connection(("127.0.0.1", door.port), 10) as raw:
        try:
            with context.wrap_socket(raw, server_hostname="127.0.0.1") as line:
                return line.version()
        except (ssl.SSLError, OSError):
            return None


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_tls_is_refused(door: Door, tmp_path: Path, version: ssl.TLSVersion) -> None:
    assert shakes_hands(door, tmp_path, version) is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_today_s_tls_is_not(door: Door, tmp_path: Path, version: ssl.TLSVersion) -> None:
    assert shakes_hands(door, tmp_path, version) == version.name.replace("_", ".")


def test_a_certificate_that_a_site_signed_itself(door: Door) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site-a")]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(x509.load_pem_x509_certificate(door.keyring.ca_pem).subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("msfl://site/site-a")]), critical=False
        )
        .sign(key, SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    before = len(door.heard)
    assert ask(door, Identity(pem, certificate.public_bytes(Encoding.PEM))) == "UNAVAILABLE"
    assert len(door.heard) == before


def test_somebody_elses_certificate_without_its_key(door: Door) -> None:
    key, _ = make_csr("site-a")
    before = len(door.heard)
    assert ask(door, Identity(key, door.member.certificate_pem)) == "UNAVAILABLE"
    assert len(door.heard) == before


def test_a_site_is_its_certificate_whatever_it_says(door: Door) -> None:
    claims = (("site", "site-b"), ("x-msfl-site", "site-b"), ("x-forwarded-client-cert", "URI=msfl://site/site-b"))
    assert ask(door, door.member, b"I am site-b", claims) == "site-a"
