"""A member, or the centre itself, asks the keyring for a certificate that is not its own. Renewal has its own door,
so it has its own attacks; enrolment's are in `test_registration_token_reuse`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from fakes.keyrings import NOW, Applicant, make_keyring, make_token
from msfl.orchestrator.keyring.keyring import Enrolled, EnrolmentRefusal, Keyring
from msfl.protos.certificates import Identity, certificate_facts, sign_renewal
from msfl.protos.channel import make_csr

SOON = NOW + timedelta(days=25)


@dataclass
class Member:
    keyring: Keyring
    identity: Identity

    @classmethod
    def join(cls, keyring: Keyring, site: str) -> Member:
        key, csr = make_csr(site)
        answer = Applicant(make_token(keyring, site)).enrol(keyring, csr=csr)
        assert isinstance(answer, Enrolled)
        return cls(keyring, Identity(key, answer.certificate_pem))

    def renew(
        self, csr: bytes, *, shows: bytes | None = None, proof: bytes | None = None, now: datetime = SOON
    ) -> Enrolled | EnrolmentRefusal:
        return self.keyring.renew(
            certificate_pem=self.identity.certificate_pem if shows is None else shows,
            csr_pem=csr,
            proof=sign_renewal(self.identity, csr) if proof is None else proof,
            now=now,
        )


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return make_keyring(tmp_path)


@pytest.fixture
def mallory(keyring: Keyring) -> Member:
    return Member.join(keyring, "site-m")


@pytest.fixture
def victim(keyring: Keyring) -> Member:
    return Member.join(keyring, "site-a")


def why(answer: Enrolled | EnrolmentRefusal) -> str:
    assert isinstance(answer, EnrolmentRefusal)
    return f"{answer.code}: {answer.message}"


def test_who_asks_for_itself_gets_a_certificate_for_itself(keyring: Keyring, mallory: Member) -> None:
    key, csr = make_csr("site-m")
    answer = mallory.renew(csr)
    assert isinstance(answer, Enrolled)
    facts = certificate_facts(answer.certificate_pem, keyring.ca_pem, key)
    assert facts.names == ("msfl://site/site-m",)
    assert facts.fits_key
    assert facts.not_after == SOON + timedelta(days=30)


def test_a_request_in_another_sites_name(mallory: Member, victim: Member) -> None:
    assert "site-m asks for a certificate that is not its own" in why(mallory.renew(make_csr("site-a")[1]))


@pytest.mark.parametrize("uri", ["msfl://site/site-a", "https://anything"])
def test_a_request_with_another_name_hidden_in_it(mallory: Member, victim: Member, uri: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site-m")])
    names = [x509.UniformResourceIdentifier("msfl://site/site-m"), x509.UniformResourceIdentifier(uri)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    csr = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(key, SHA256())
    assert "not its own" in why(mallory.renew(csr.public_bytes(Encoding.PEM)))


def test_another_sites_certificate_shown_without_its_key(mallory: Member, victim: Member) -> None:
    """Certificates are public. This is also a hostile orchestrator, which sees every site's."""
    _, csr = make_csr("site-a")
    assert "not signed with the key" in why(mallory.renew(csr, shows=victim.identity.certificate_pem))
    assert "not signed with the key" in why(mallory.renew(csr, shows=victim.identity.certificate_pem, proof=b""))


def test_the_victims_own_request_played_again_gives_nothing_new(keyring: Keyring, victim: Member) -> None:
    key, csr = make_csr("site-a")
    first, second = victim.renew(csr), victim.renew(csr)
    assert isinstance(first, Enrolled)
    assert isinstance(second, Enrolled)
    # Only whoever made the request has its key.
    assert certificate_facts(second.certificate_pem, keyring.ca_pem, key).fits_key


def test_a_proof_of_one_request_does_not_carry_another(victim: Member) -> None:
    old, new = make_csr("site-a")[1], make_csr("site-a")[1]
    assert "not signed with the key" in why(victim.renew(new, proof=sign_renewal(victim.identity, old)))


def test_a_certificate_that_the_site_made_for_itself(keyring: Keyring, mallory: Member, victim: Member) -> None:
    key = load_pem_private_key(mallory.identity.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    ca = x509.load_pem_x509_certificate(keyring.ca_pem)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("msfl://site/site-a")])
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site-a")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=30))
        .add_extension(names, critical=False)
        .sign(key, SHA256())
    )
    answer = mallory.renew(make_csr("site-a")[1], shows=forged.public_bytes(Encoding.PEM))
    assert "no site's of this federation" in why(answer)


def test_the_orchestrators_own_certificate_renews_nothing(keyring: Keyring, mallory: Member) -> None:
    server = Identity(*keyring.server_certificate(("localhost",), NOW))
    _, csr = make_csr("localhost")
    answer = mallory.renew(csr, shows=server.certificate_pem, proof=sign_renewal(server, csr))
    assert "no site's of this federation" in why(answer)


def test_a_certificate_that_has_expired_renews_nothing(mallory: Member) -> None:
    answer = mallory.renew(make_csr("site-m")[1], now=NOW + timedelta(days=31))
    assert "expired at 2026-12-24 12:00 UTC: the site needs a new registration token" in why(answer)


def test_a_site_that_is_no_member_any_more(mallory: Member, tmp_path: Path) -> None:
    (tmp_path / "keyring/sites/site-m.json").unlink()
    assert "not_enrolled" in why(mallory.renew(make_csr("site-m")[1]))


def test_a_request_that_is_none(mallory: Member) -> None:
    assert "cannot be read" in why(mallory.renew(b"no request"))
    assert "cannot be read" in why(mallory.renew(make_csr("site-m")[1], shows=b"no certificate"))
