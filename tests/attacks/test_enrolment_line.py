"""Attack 16 on a real line: a registration token that is used twice, too late, from elsewhere or by somebody else, and
a proxy between site and centre that holds a certificate of a public CA.

No certificate goes out, no home is made, and the centre's audit log has the code. What goes over the line and into logs
never holds what the token keeps secret.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from fakes.governance import World, key
from fakes.tls_proxy import TlsProxy
from msfl.gateway import enrol as enrol_module
from msfl.gateway.enrol import EnrolmentFailed, enrol
from msfl.orchestrator.doors.enrolment import EnrolmentDoor
from msfl.orchestrator.doors.turned_away import TurnedAway
from msfl.orchestrator.keyring.client import KeyringClient
from msfl.orchestrator.keyring.keyring import Enrolled, EnrolmentRefusal, Keyring
from msfl.policies.encoding import encode, sha256_of
from msfl.policies.envelope import FEDERATION_ROOT, sign
from msfl.policies.trust import TrustedFederationRoot
from msfl.policies.words import federation_in_words
from msfl.protos.audit_log import AuditLog, read_entries
from msfl.protos.certificates import Identity
from msfl.protos.channel import SERVER_OPTIONS, dial, make_csr, server_credentials
from msfl.protos.messages import PROTOCOL
from msfl.protos.registration import RegistrationToken, proof
from msfl.protos.v1 import federation_pb2 as wire
from msfl.protos.v1.federation_pb2_grpc import EnrolmentStub, add_EnrolmentServicer_to_server

HERE = ("127.0.0.0/8",)


class Centre:
    """The enrolment door on loopback, over a keyring in the same process; `late` is how far its clock has gone on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now, self.late = datetime.now(UTC), timedelta(0)
        self.keyring = Keyring.create(folder / "keyring", "msfl-01", self.now)
        self.root = sign(encode(World().federation_root.document), FEDERATION_ROOT, [key("otto")])
        self._log = folder / "audit/log.jsonl"
        self._audit = AuditLog(self._log, "orchestrator msfl-01")
        note = TurnedAway(self._audit, lambda: datetime.now(UTC)).note
        door = EnrolmentDoor(cast(KeyringClient, self), self.root, turned_away=note)
        self._server = grpc.server(ThreadPoolExecutor(4), options=SERVER_OPTIONS)
        add_EnrolmentServicer_to_server(door, self._server)
        server_key, certificate = self.keyring.server_certificate(("127.0.0.1",), self.now)
        self.port = self._server.add_secure_port("127.0.0.1:0", server_credentials(server_key, certificate))
        self._server.start()

    def enrol(
        self, *, token_id: str, csr_pem: bytes, nonce: bytes, proof: bytes, peer_ip: str, again: bool
    ) -> Enrolled | EnrolmentRefusal:
        """As the keyring's client passes it on."""
        at = self.now + self.late
        return self.keyring.enrol(
            token_id=token_id, csr_pem=csr_pem, nonce=nonce, proof_=proof, peer_ip=peer_ip, now=at, again=again
        )

    def token(self, site: str = "site-a", cidrs: tuple[str, ...] = HERE, port: int = 0) -> RegistrationToken:
        return self.keyring.issue_token(
            federation="msfl-test",
            site=site,
            endpoint=f"127.0.0.1:{port or self.port}",
            link_endpoint="127.0.0.1:1",
            registry="/srv/registry",
            federation_root_sha256=sha256_of(self.root),
            life=timedelta(hours=1),
            cidrs=cidrs,
            now=self.now,
        )

    def join(self, token: RegistrationToken, name: str = "gateway") -> Path:
        return enrol(token, self.folder / name, {"cleo": key("cleo")}, self.now, lambda root: True).root

    def turned_away(self) -> list[tuple[str, str]]:
        entries = read_entries(self._log)
        assert all((e.action, e.object) == ("turned away", "enrolment") for e in entries)
        return [(str(e.fields["code"]), str(e.fields["who"])) for e in entries]

    def close(self) -> None:
        self._server.stop(0).wait()
        self._audit.close()


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    centre = Centre(tmp_path)
    yield centre
    centre.close()


def ask(centre: Centre, token: RegistrationToken, shown: bytes | None = None) -> str:
    """Somebody with a client of their own, which checks nothing: `joined`, or the code of the answer."""
    channel = dial(f"127.0.0.1:{centre.port}", centre.keyring.ca_pem)
    stub = EnrolmentStub(channel)
    _, csr = make_csr(token.site)
    try:
        begun = stub.Begin(wire.BeginEnrolment(protocol=PROTOCOL, token_id=token.token_id), timeout=10)
        mine = proof(token.secret, csr, token.ca_sha256, begun.nonce) if shown is None else shown
        asked = wire.EnrolmentProof(token_id=token.token_id, csr_pem=csr, nonce=begun.nonce, proof=mine)
        stub.Enrol(asked, timeout=10)
        return "joined"
    except grpc.RpcError as error:
        return str(error.details()).partition(":")[0]
    finally:
        channel.close()


def test_a_token_opens_once(centre: Centre) -> None:
    token = centre.token()
    centre.join(token)
    with pytest.raises(EnrolmentFailed, match="token_used"):
        centre.join(token, "another")
    assert not (centre.folder / "another").exists()
    assert centre.turned_away() == [("token_used", f"token {token.token_id}")]
    assert centre.keyring.standings()["site-a"].frozen is not None


def test_a_federation_that_the_custodian_does_not_accept_is_not_joined(centre: Centre) -> None:
    """Who owns the centre names the publishers, reviewers and identity providers of its root."""
    shown: list[str] = []

    def no(root: TrustedFederationRoot) -> bool:
        shown.extend(federation_in_words(root.document, root.sha256))
        return False

    with pytest.raises(EnrolmentFailed, match="not accepted, and nothing was written"):
        enrol(centre.token(), centre.folder / "gateway", {"cleo": key("cleo")}, centre.now, no)
    assert not (centre.folder / "gateway").exists()
    assert any("publishes releases:   paul" in line for line in shown)
    assert any("reviews them:         rosa, rui" in line for line in shown)


def test_what_is_wrong_at_the_site_does_not_use_the_token_up(centre: Centre) -> None:
    token, file = centre.token(), centre.folder / "a-file"
    file.write_text("in the way")
    with pytest.raises(EnrolmentFailed, match="no name for a signer"):
        enrol(token, centre.folder / "gateway", {"Cleo Smith": key("cleo")}, centre.now, lambda root: True)
    with pytest.raises(OSError, match="a-file"):
        centre.join(token, "a-file/gateway")
    assert not (centre.folder / "gateway").exists()
    assert centre.join(token).is_dir()


def test_of_racing_redemptions_one_wins_and_the_others_are_written_down_once(centre: Centre) -> None:
    token = centre.token()
    with ThreadPoolExecutor(4) as pool:
        answers = sorted(pool.map(lambda _: ask(centre, token), range(4)))
    assert answers == ["joined", "token_used", "token_used", "token_used"]
    assert centre.turned_away() == [("token_used", f"token {token.token_id}")]


def test_an_expired_token(centre: Centre) -> None:
    token, centre.late = centre.token(), timedelta(hours=1)
    assert ask(centre, token) == "token_expired"
    assert centre.turned_away() == [("token_expired", f"token {token.token_id}")]
    assert centre.keyring.sites() == {}


def test_from_another_address(centre: Centre) -> None:
    token = centre.token(cidrs=("10.1.0.0/16",))
    assert ask(centre, token) == "address_not_allowed"
    assert centre.turned_away() == [("address_not_allowed", f"token {token.token_id}")]
    assert centre.keyring.sites() == {}


def test_another_sites_token_under_this_ones_name(centre: Centre) -> None:
    """Whoever holds site-b's token knows site-a's id, which is no secret, and not what proves it."""
    mine, other = centre.token("site-a"), centre.token("site-b")
    assert ask(centre, replace(mine, secret=other.secret)) == "bad_proof"
    assert centre.turned_away() == [("bad_proof", f"token {mine.token_id}")]
    assert centre.keyring.sites() == {}


def test_a_token_that_nobody_made_is_not_repeated_in_the_audit_log(centre: Centre) -> None:
    assert ask(centre, replace(centre.token(), token_id="DOEJOHN")) == "unknown_token"
    assert centre.turned_away() == [("unknown_token", "")]


# ------------------------------------------------------------------------------------------- on the way there


def public_ca(folder: Path) -> tuple[Path, Identity]:
    """A CA that every machine trusts, and its certificate for the centre's address in somebody else's hand."""
    now = datetime.now(UTC)

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, ca: bool) -> bytes:
        names = [x509.NameAttribute(NameOID.COMMON_NAME, subject)]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(names))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A public CA")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(by, SHA256()).public_bytes(Encoding.PEM)

    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    file = folder / "public-ca.pem"
    file.write_bytes(certificate("A public CA", authority, authority, ca=True))
    pem = server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return file, Identity(pem, certificate("127.0.0.1", server, authority, ca=False))


def reaches(proxy: TlsProxy, ca: bytes | None) -> bool:
    """Whether a client that trusts `ca` alone (None: what this machine trusts) talks through the proxy."""
    credentials = grpc.ssl_channel_credentials(ca)
    channel = grpc.secure_channel(f"127.0.0.1:{proxy.port}", credentials)
    try:
        stub = EnrolmentStub(channel)
        stub.Begin(wire.BeginEnrolment(protocol=PROTOCOL, token_id="x"), timeout=10)
        return True
    except grpc.RpcError:
        return False
    finally:
        channel.close()


def test_a_proxy_with_a_certificate_of_a_public_ca_hears_nothing(
    centre: Centre, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC's own roots are fixed when it is first used, so here the public CA is trusted by handing it over: then the
    proxy works. A site trusts the CA of its token alone."""
    monkeypatch.setattr(enrol_module, "PATIENCE_S", 3.0)
    public, stolen = public_ca(tmp_path)
    with TlsProxy(tmp_path, centre.port, centre.keyring.ca_pem, stolen, stolen).up() as proxy:
        assert reaches(proxy, public.read_bytes()), "else this test would prove nothing"
    with TlsProxy(tmp_path, centre.port, centre.keyring.ca_pem, stolen, stolen).up() as proxy:
        token = centre.token(port=proxy.port)
        with pytest.raises(EnrolmentFailed):
            centre.join(token)
        assert proxy.passed == {"up": 0, "down": 0}, "not a byte left the site"
    assert not (centre.folder / "gateway").exists()
    assert centre.keyring.sites() == {}
    centre.join(replace(token, endpoint=f"127.0.0.1:{centre.port}"))  # Nor was the token used up.


def test_what_a_token_keeps_secret_is_in_no_log_and_not_on_the_line(
    centre: Centre, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    as_centre = Identity(*centre.keyring.server_certificate(("127.0.0.1",), centre.now))
    with TlsProxy(tmp_path, centre.port, centre.keyring.ca_pem, as_centre, as_centre).up() as proxy:
        token = centre.token(port=proxy.port)
        with capture_logs() as logs:
            centre.join(token)
            with pytest.raises(EnrolmentFailed) as failed:
                centre.join(token, "another")
        assert token.token_id.encode() in proxy.read["up"], "the line is read in clear"
        line = bytes(proxy.read["up"] + proxy.read["down"])
    output = capfd.readouterr()
    written = [output.out, output.err, repr(logs), str(failed.value), repr(token), f"{token}", f"{[token]}"]
    written.append((centre.folder / "audit/log.jsonl").read_text())
    said = line + "\n".join(written).encode()
    for secret in (token.secret, token.site_key):
        spelled = (secret, secret.hex().encode(), base64.b64encode(secret)[:-2], base64.urlsafe_b64encode(secret)[:-2])
        assert [s for s in spelled if s in said] == []
    assert token.encode().split(".")[1].encode() not in said
