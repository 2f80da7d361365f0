"""Registration tokens: one site, one use, from where it was meant, with what it was meant for."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fakes.keyrings import NONCE, NOW, Applicant, make_keyring, make_token
from msfl.orchestrator.keyring import keyring as keyring_module
from msfl.orchestrator.keyring.keyring import Enrolled, EnrolmentRefusal, Keyring
from msfl.protos.channel import SITE_URI, make_csr
from msfl.protos.durable_files import write_durably
from msfl.protos.registration import proof


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return make_keyring(tmp_path)


def code(answer: Enrolled | EnrolmentRefusal) -> str:
    assert isinstance(answer, EnrolmentRefusal)
    return answer.code


# ---------------------------------------------------------------------- one use


def test_a_second_use_is_refused_and_recorded(keyring: Keyring, tmp_path: Path) -> None:
    token = make_token(keyring)
    assert isinstance(Applicant(token).enrol(keyring), Enrolled)
    assert code(Applicant(token).enrol(keyring)) == "token_used"
    assert code(Applicant(token).enrol(keyring)) == "token_used"
    record = json.loads((tmp_path / "keyring" / "tokens" / f"{token.token_id}.json").read_text())
    assert record["refused_uses"] == 2
    assert record["used_at"] == int(NOW.timestamp())


def test_a_restart_does_not_make_a_token_new(keyring: Keyring, tmp_path: Path) -> None:
    token = make_token(keyring)
    assert isinstance(Applicant(token).enrol(keyring), Enrolled)
    assert code(Applicant(token).enrol(Keyring(tmp_path / "keyring"))) == "token_used"


def test_of_racing_redemptions_exactly_one_wins(keyring: Keyring) -> None:
    token = make_token(keyring)
    racers = 8
    start = threading.Barrier(racers)
    requests = [make_csr("site-a")[1] for _ in range(racers)]

    def race(csr: bytes) -> Enrolled | EnrolmentRefusal:
        start.wait()
        return Applicant(token).enrol(keyring, csr=csr)

    with ThreadPoolExecutor(racers) as pool:
        answers = list(pool.map(race, requests))
    assert sum(isinstance(a, Enrolled) for a in answers) == 1
    assert {code(a) for a in answers if isinstance(a, EnrolmentRefusal)} == {"token_used"}


def test_a_crash_may_cost_a_token_and_never_gives_two_certificates(
    keyring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(Exception):
        pass

    token = make_token(keyring)

    def crash_after(kind: str) -> Callable[[Path, bytes], None]:
        def crashing(file: Path, data: bytes) -> None:
            if file.parent.name == kind:
                raise Crash
            write_durably(file, data)

        return crashing

    # Before the token is consumed on disk, nothing has happened.
    monkeypatch.setattr(keyring_module, "write_durably", crash_after("tokens"))
    with pytest.raises(Crash):
        Applicant(token).enrol(keyring)
    # After that, and before the certificate went out, it is gone.
    monkeypatch.setattr(keyring_module, "write_durably", crash_after("sites"))
    with pytest.raises(Crash):
        Applicant(token).enrol(keyring)
    monkeypatch.undo()
    assert code(Applicant(token).enrol(Keyring(tmp_path / "keyring"))) == "token_used"


def test_a_used_token_leaves_no_symmetric_key_behind(keyring: Keyring, tmp_path: Path) -> None:
    token = make_token(keyring)
    Applicant(token).enrol(keyring)
    record = json.loads((tmp_path / "keyring" / "tokens" / f"{token.token_id}.json").read_text())
    assert record["site_key"] == ""


# --------------------------------------------------------- not yet, not now, not you


def test_an_expired_token_is_refused(keyring: Keyring) -> None:
    token = make_token(keyring, life=timedelta(hours=1))
    assert code(Applicant(token).enrol(keyring, now=NOW + timedelta(hours=1))) == "token_expired"
    assert isinstance(Applicant(token).enrol(keyring, now=NOW + timedelta(minutes=59)), Enrolled)


@pytest.mark.parametrize("life", [timedelta(0), timedelta(seconds=-1), timedelta(hours=72, seconds=1)])
def test_no_token_lives_longer_than_three_days(keyring: Keyring, life: timedelta) -> None:
    with pytest.raises(ValueError, match="lives at most"):
        make_token(keyring, life=life)


@pytest.mark.parametrize("ip", ["10.2.0.1", "127.0.0.1", "192.0.2.1", "::1", "::ffff:10.1.2.3", "", "nowhere"])
def test_another_address_is_refused(keyring: Keyring, ip: str) -> None:
    assert code(Applicant(make_token(keyring), ip=ip).enrol(keyring)) == "address_not_allowed"


def test_without_allowed_addresses_there_are_none(keyring: Keyring) -> None:
    assert code(Applicant(make_token(keyring, cidrs=())).enrol(keyring)) == "address_not_allowed"


def test_a_proof_by_anybody_else_is_refused(keyring: Keyring) -> None:
    mine, other = make_token(keyring), make_token(keyring, "site-b")
    csr = make_csr("site-a")[1]
    proofs = {
        "nothing": b"",
        "another token's secret": proof(other.secret, csr, mine.ca_sha256, NONCE),
        "another request": proof(mine.secret, make_csr("site-a")[1], mine.ca_sha256, NONCE),
        "another CA, as a TLS proxy would show": proof(mine.secret, csr, "0" * 64, NONCE),
        "another conversation": proof(mine.secret, csr, mine.ca_sha256, bytes(31) + b"\1"),
    }
    assert {name: code(Applicant(mine).enrol(keyring, csr=csr, shown=shown)) for name, shown in proofs.items()} == (
        dict.fromkeys(proofs, "bad_proof")
    )
    # None of this used the token up: whoever holds it can still join.
    assert isinstance(Applicant(mine).enrol(keyring), Enrolled)


def test_whoever_lacks_the_secret_learns_nothing_of_expiry_or_addresses(keyring: Keyring) -> None:
    stranger = Applicant(replace(make_token(keyring), secret=bytes(32)), ip="192.0.2.1")
    assert code(stranger.enrol(keyring, now=NOW + timedelta(days=9))) == "bad_proof"


@pytest.mark.parametrize("name", ["", "0" * 16, "../sites/site-a", "../ca", "a/b", "\0", "x" * 5000, ".", "..", "é"])
def test_a_token_that_was_never_issued_is_unknown(keyring: Keyring, name: str) -> None:
    token = make_token(keyring)
    Applicant(token).enrol(keyring)
    assert code(Applicant(token).enrol(keyring, token_id=name)) == "unknown_token"


@pytest.mark.parametrize("site", ["", "Site-A", "../tokens/x", "a/b", "a|b", "a b", "site-a\n", "x" * 65, "*"])
def test_a_site_name_is_a_plain_word(keyring: Keyring, site: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        make_token(keyring, site)


# ------------------------------------------------------------------ greedy requests


def request(*extensions: x509.ExtensionType, name: str = "site-b") -> bytes:
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "orchestrator")]
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256()).public_bytes(Encoding.PEM)


def test_a_request_gets_its_tokens_site_whatever_it_asks_for(keyring: Keyring) -> None:
    csr = request(
        x509.SubjectAlternativeName(
            [
                x509.UniformResourceIdentifier(f"{SITE_URI}site-b"),
                x509.DNSName("localhost"),
                x509.DNSName("fl.example.org"),
            ]
        ),
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
        x509.KeyUsage(True, True, True, True, True, True, True, False, False),
    )
    answer = Applicant(make_token(keyring)).enrol(keyring, csr=csr)
    assert isinstance(answer, Enrolled)
    issued = x509.load_pem_x509_certificate(answer.certificate_pem)
    assert issued.subject.rfc4514_string() == "CN=site-a"
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("msfl://site/site-a")]
    assert issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usage = issued.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert not usage.crl_sign
    purposes = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def _by(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site-a")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm).public_bytes(Encoding.PEM)


def _forged() -> bytes:
    """A request for somebody else's public key: the signature is not its own."""
    victim = x509.load_pem_x509_csr(make_csr("site-a")[1]).public_bytes(Encoding.DER)
    forged = victim[:-4] + bytes(b ^ 0xFF for b in victim[-4:])
    return b"-----BEGIN CERTIFICATE REQUEST-----\n%s-----END CERTIFICATE REQUEST-----\n" % base64.encodebytes(forged)


@pytest.mark.parametrize(
    "csr",
    [
        lambda: b"",
        lambda: b"not a request",
        lambda: make_csr("site-a")[0],
        lambda: make_csr("site-a")[1][:200],
        lambda: _by(rsa.generate_private_key(65537, 1024)),
        lambda: _by(ec.generate_private_key(ec.SECP192R1())),
        lambda: _by(ed25519.Ed25519PrivateKey.generate()),
        _forged,
    ],
    ids=["empty", "text", "private key", "cut", "rsa", "weak curve", "ed25519", "forged signature"],
)
def test_a_request_that_is_none_is_refused_and_the_token_still_good(keyring: Keyring, csr: Callable[[], bytes]) -> None:
    token = make_token(keyring)
    assert code(Applicant(token).enrol(keyring, csr=csr())) == "bad_csr"
    assert isinstance(Applicant(token).enrol(keyring), Enrolled)
