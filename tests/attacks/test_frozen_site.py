"""A token, a certificate or a connection that somebody else holds: the second use freezes the site, and what is revoked
or frozen is refused at every call, also over a connection that was opened before.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from fakes.keyrings import NOW, Applicant, make_keyring, make_token
from fakes.link_doors import PATIENCE_S, Centre, ask, line
from fakes.members import joined
from msfl.orchestrator.keyring.keyring import Enrolled, EnrolmentRefusal, Keyring, SecretUnusable
from msfl.protos.certificates import sign_renewal
from msfl.protos.channel import key_sha256, make_csr
from msfl.protos.registration import RegistrationToken
from msfl.protos.sealing import wrap_run_secret


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
    answer = Applicant(token, ip="192.0.2.9").enrol(keyring)
    assert code(answer) == "token_used"
    assert "msfl orchestrator site unfreeze site-a" in getattr(answer, "message", ""), "whoever did it learns of it"
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
    assert keyring.unfreeze("site-a", "otto", NOW)
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
    assert not keyring.unfreeze("site-z", "otto", NOW)
    assert not keyring.unfreeze("../ca", "otto", NOW)


# ------------------------------------------------------------------ over open connections


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    centre = Centre(tmp_path)
    yield centre
    centre.close()


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
        centre.keyring.unfreeze("site-a", "otto", NOW)
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
