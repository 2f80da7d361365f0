"""A token, a certificate or a connection that somebody else holds: the second use freezes the site, and what is revoked
or frozen is refused at every call, also over a connection that was opened before.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from fakes.keyrings import NOW, Applicant, make_keyring, make_token
from fakes.members import joined
from msfl.orchestrator.doors.admission import Admission
from msfl.orchestrator.doors.turned_away import TurnedAway
from msfl.orchestrator.keyring.client import KeyringDown
from msfl.orchestrator.keyring.keyring import Enrolled, EnrolmentRefusal, Keyring, SecretUnusable, SiteStanding
from msfl.protos.audit_log import AuditLog, read_entries
from msfl.protos.certificates import Identity, sign_renewal
from msfl.protos.channel import SERVER_OPTIONS, dial, key_sha256, make_csr, mutual_server_credentials
from msfl.protos.registration import RegistrationToken
from msfl.protos.sealing import wrap_run_secret

PATIENCE_S = 20
HERE = ("127.0.0.0/8",)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return make_keyring(tmp_path)


def code(answer: Enrolled | EnrolmentRefusal) -> str:
    assert isinstance(answer, EnrolmentRefusal)
    return answer.code


def used(keyring: Keyring) -> RegistrationToken:
    token = make_token(keyring)
    assert isinstance(Applicant(token).enrol(keyring), Enrolled)
    return token


# ------------------------------------------------------------------ a second use


def test_a_second_use_freezes_the_site(keyring: Keyring, tmp_path: Path) -> None:
    token = used(keyring)
    assert keyring.standings()["site-a"].frozen is None
    assert code(Applicant(token, ip="192.0.2.9").enrol(keyring)) == "token_used"
    frozen = keyring.standings()["site-a"].frozen
    assert frozen is not None
    assert frozen.why == f"token {token.token_id} was used a second time, from 192.0.2.9"
    # A restart does not lift it.
    assert Keyring(tmp_path / "keyring").standings()["site-a"].frozen == frozen


def test_the_first_reason_stays(keyring: Keyring) -> None:
    token = used(keyring)
    Applicant(token).enrol(keyring)
    first = keyring.standings()["site-a"].frozen
    Applicant(token, ip="192.0.2.9").enrol(keyring)
    assert keyring.freeze("site-a", "something else", "otto", NOW)
    assert keyring.standings()["site-a"].frozen == first


def test_who_has_read_a_log_cannot_freeze_a_site(keyring: Keyring) -> None:
    # The token's id is no secret.
    token = used(keyring)
    assert code(Applicant(token).enrol(keyring, shown=bytes(32))) == "token_used"
    assert keyring.standings()["site-a"].frozen is None


def test_of_racing_redemptions_one_wins_and_the_site_is_frozen(keyring: Keyring) -> None:
    token, racers = make_token(keyring), 4
    start = threading.Barrier(racers)

    def race(_: int) -> Enrolled | EnrolmentRefusal:
        start.wait()
        return Applicant(token).enrol(keyring)

    with ThreadPoolExecutor(racers) as pool:
        answers = list(pool.map(race, range(racers)))
    assert sum(isinstance(a, Enrolled) for a in answers) == 1
    assert keyring.standings()["site-a"].frozen is not None


# ------------------------------------------------------------------ what a frozen site cannot do


def test_a_frozen_site_gets_no_certificate_by_renewal_and_no_run_key(keyring: Keyring) -> None:
    identity = joined(keyring)
    assert keyring.freeze("site-a", "its laptop was stolen", "otto", NOW)
    csr = make_csr("site-a")[1]

    def renewed() -> Enrolled | EnrolmentRefusal:
        proof = sign_renewal(identity, csr)
        return keyring.renew(certificate_pem=identity.certificate_pem, csr_pem=csr, proof=proof, now=NOW)

    assert code(renewed()) == "site_frozen"
    public, site_key = make_token(keyring).centre_public_key, _site_key(keyring)
    wrapped = {"site-a": wrap_run_secret(public, bytes(32), "run-7", "site-a", site_key)}
    with pytest.raises(SecretUnusable, match="frozen"):
        keyring.hand_over("run-7", wrapped, public, NOW)
    assert keyring.unfreeze("site-a")
    assert isinstance(renewed(), Enrolled)
    assert keyring.hand_over("run-7", wrapped, public, NOW)


def _site_key(keyring: Keyring) -> bytes:
    kept = keyring._get("sites", "site-a")
    assert kept is not None
    return base64.b64decode(kept["site_key"])


def test_a_new_enrolment_revokes_every_certificate_before_it(keyring: Keyring) -> None:
    stolen = joined(keyring)
    csr = make_csr("site-a")[1]
    proof = sign_renewal(stolen, csr)
    renewed = keyring.renew(certificate_pem=stolen.certificate_pem, csr_pem=csr, proof=proof, now=NOW)
    assert isinstance(renewed, Enrolled)
    # Renewal leaves the old one in force: channels are open with it.
    assert keyring.standings()["site-a"].revoked == frozenset()
    mine = joined(keyring)
    revoked = keyring.standings()["site-a"].revoked
    assert revoked == {key_sha256(stolen.certificate_pem), key_sha256(renewed.certificate_pem)}
    assert key_sha256(mine.certificate_pem) not in revoked
    # Nor does the thief get a new one with it.
    again = keyring.renew(certificate_pem=stolen.certificate_pem, csr_pem=csr, proof=proof, now=NOW)
    assert code(again) == "certificate_revoked"


def test_only_what_exists_is_frozen_and_unfrozen(keyring: Keyring) -> None:
    assert not keyring.freeze("site-z", "", "otto", NOW)
    assert not keyring.freeze("../ca", "", "otto", NOW)
    assert not keyring.unfreeze("site-z")
    assert not keyring.unfreeze("../ca")


# ------------------------------------------------------------------ over open connections


class Centre:
    """A real door with admission; the keyring's word is fetched when a story says so."""

    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        self.keyring = Keyring.create(folder / "keyring", "msfl-01", now)
        self.down = False
        self._log = folder / "audit/log.jsonl"
        self._audit = AuditLog(self._log, "orchestrator msfl-01")
        self.admission = Admission(self._ask, TurnedAway(self._audit, lambda: datetime.now(UTC)).note)
        self.calls: list[str] = []
        self.streaming = threading.Event()
        key, certificate = self.keyring.server_certificate(("127.0.0.1",), now)
        self._server = grpc.server(ThreadPoolExecutor(4), interceptors=(self.admission,), options=SERVER_OPTIONS)
        handlers = {
            "Ask": grpc.unary_unary_rpc_method_handler(self._answer),
            "Watch": grpc.unary_stream_rpc_method_handler(self._stream),
            "Send": grpc.stream_unary_rpc_method_handler(self._take),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Door", handlers),))
        credentials = mutual_server_credentials(key, certificate, self.keyring.ca_pem)
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def _ask(self) -> dict[str, SiteStanding]:
        if self.down:
            raise KeyringDown("it does not answer")
        return self.keyring.standings()

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls.append("Ask")
        return request

    def _stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        over = threading.Event()
        context.add_callback(over.set)
        yield b"first"
        over.wait(PATIENCE_S)

    def _take(self, request: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        for _ in request:
            self.streaming.set()
        return b"taken"

    def join(self, site: str = "site-a", cidrs: tuple[str, ...] = HERE) -> Identity:
        now = datetime.now(UTC)
        key, csr = make_csr(site)
        token = make_token(self.keyring, site, cidrs=(*cidrs, "10.1.0.0/16"), now=now)
        answer = Applicant(token).enrol(self.keyring, csr=csr, now=now)
        assert isinstance(answer, Enrolled)
        return Identity(key, answer.certificate_pem)

    def dial(self, identity: Identity) -> grpc.Channel:
        return dial(f"127.0.0.1:{self.port}", self.keyring.ca_pem, identity.key_pem, identity.certificate_pem)

    def turned_away(self) -> list[tuple[str, str]]:
        """Who, and why, as the centre's audit log has it."""
        entries = read_entries(self._log)
        assert all((e.action, e.object, e.fields["peer"]) == ("turned away", "gateways", "127.0.0.1") for e in entries)
        return [(str(e.fields["who"]), str(e.fields["code"])) for e in entries]

    def close(self) -> None:
        self._server.stop(0).wait()
        self._audit.close()


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    centre = Centre(tmp_path)
    yield centre
    centre.close()


@contextmanager
def line(centre: Centre, identity: Identity) -> Iterator[grpc.Channel]:
    channel = centre.dial(identity)
    yield channel
    channel.close()


def ask(channel: grpc.Channel) -> str:
    try:
        return str(channel.unary_unary("/Door/Ask")(b"hello", timeout=PATIENCE_S).decode())
    except grpc.RpcError as error:
        return f"{error.code().name} {(error.details() or '').partition(':')[0]}"


def test_a_frozen_site_is_refused_on_the_connection_that_it_has(centre: Centre) -> None:
    with line(centre, centre.join()) as channel, line(centre, centre.join("site-b")) as other:
        centre.admission.refresh()
        assert ask(channel) == ask(other) == "hello"
        centre.keyring.freeze("site-a", "its laptop was stolen", "otto", NOW)
        with capture_logs() as logs:
            centre.admission.refresh()
            centre.admission.refresh()
        (alarm,) = [entry for entry in logs if entry["log_level"] == "critical"]
        assert (alarm["site"], alarm["why"]) == ("site-a", "its laptop was stolen")
        assert "site unfreeze site-a" in alarm["do"]
        assert ask(channel) == ask(channel) == "PERMISSION_DENIED site_frozen"
        assert centre.turned_away() == [("site-a", "site_frozen")], "once, however often it knocks"
        assert ask(other) == "hello"
        assert len(centre.calls) == 3
        centre.keyring.unfreeze("site-a")
        centre.admission.refresh()
        assert ask(channel) == "hello"


def test_streams_of_a_frozen_site_are_cut_and_those_of_others_are_not(centre: Centre) -> None:
    with line(centre, centre.join()) as channel, line(centre, centre.join("site-b")) as other:
        centre.admission.refresh()
        cut, left = channel.unary_stream("/Door/Watch")(b""), other.unary_stream("/Door/Watch")(b"")
        assert next(cut) == next(left) == b"first"
        more = threading.Event()

        def parts() -> Iterator[bytes]:
            yield b"part"
            more.wait(PATIENCE_S)

        upload = channel.stream_unary("/Door/Send").future(parts())
        assert centre.streaming.wait(PATIENCE_S)
        centre.keyring.freeze("site-a", "", "otto", NOW)
        centre.admission.refresh()
        with pytest.raises(grpc.RpcError) as ended:
            next(cut)
        assert ended.value.code() is grpc.StatusCode.CANCELLED
        assert isinstance(upload.exception(PATIENCE_S), grpc.RpcError)
        assert centre.turned_away() == [("site-a", "site_frozen")]
        more.set()
        assert left.is_active()
        left.cancel()


def test_a_revoked_certificate_is_refused_on_an_open_connection_while_the_new_one_serves(centre: Centre) -> None:
    with line(centre, centre.join()) as old:
        centre.admission.refresh()
        assert ask(old) == "hello"
        with line(centre, centre.join()) as new:
            centre.admission.refresh()
            assert ask(old) == "PERMISSION_DENIED certificate_revoked"
            assert ask(new) == "hello"
            assert centre.turned_away() == [("site-a", "certificate_revoked")]


def test_a_key_used_from_elsewhere_than_its_token_named(centre: Centre) -> None:
    with line(centre, centre.join(cidrs=())) as channel:
        centre.admission.refresh()
        assert ask(channel) == "PERMISSION_DENIED address_not_allowed"
    assert centre.calls == []
    assert centre.turned_away() == [("site-a", "address_not_allowed")]


def test_an_address_is_what_the_socket_says_and_no_header(centre: Centre) -> None:
    with line(centre, centre.join(cidrs=())) as channel:
        centre.admission.refresh()
        claims = (("x-forwarded-for", "10.1.2.3"), ("forwarded", "for=10.1.2.3"), ("x-real-ip", "10.1.2.3"))
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/Door/Ask")(b"hello", metadata=claims, timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert centre.calls == []
    assert centre.turned_away() == [("site-a", "address_not_allowed")]


def test_nobody_is_admitted_before_the_keyring_has_been_heard_and_its_last_word_counts(centre: Centre) -> None:
    centre.down = True
    with line(centre, centre.join()) as channel:
        centre.admission.refresh()
        assert ask(channel).startswith("UNAVAILABLE")
        centre.down = False
        centre.admission.refresh()
        assert ask(channel) == "hello"
        centre.down = True
        centre.admission.refresh()
        assert ask(channel) == "hello"
