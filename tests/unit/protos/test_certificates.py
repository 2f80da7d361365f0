"""When a certificate is renewed, and which new one a site takes for its own."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from fakes.keyrings import NOW, Applicant, make_keyring, make_token
from msfl.orchestrator.keyring.authority import SITE_LIFE
from msfl.orchestrator.keyring.keyring import Enrolled, Keyring
from msfl.protos.certificates import Identity, certificate_facts, renewal_due, unfit
from msfl.protos.channel import make_csr

BEGIN, END = NOW, NOW + timedelta(days=30)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("left", "due"),
    [
        (timedelta(days=31), False),  # a clock set back
        (timedelta(days=30), False),
        (timedelta(days=10), False),
        (timedelta(days=10) - timedelta(seconds=1), True),
        (timedelta(seconds=1), True),
        (timedelta(0), False),
        (-timedelta(days=1), False),
    ],
)
def test_it_is_renewed_in_the_last_third_of_its_life(left: timedelta, due: bool) -> None:
    assert renewal_due(BEGIN, END, END - left) is due


@pytest.mark.parametrize(
    ("left", "since", "due"),
    [
        (timedelta(days=9), timedelta(minutes=59), False),
        (timedelta(days=9), HOUR, True),
        (timedelta(minutes=20), timedelta(seconds=59), False),
        (timedelta(minutes=20), timedelta(minutes=1), True),
    ],
)
def test_after_a_refusal_it_asks_again_ever_sooner(left: timedelta, since: timedelta, due: bool) -> None:
    assert renewal_due(BEGIN, END, END - left, since) is due


def joined(keyring: Keyring, site: str = "site-a") -> Identity:
    key, csr = make_csr(site)
    answer = Applicant(make_token(keyring, site)).enrol(keyring, csr=csr)
    assert isinstance(answer, Enrolled)
    return Identity(key, answer.certificate_pem)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return make_keyring(tmp_path)


def test_key_and_certificate_are_one_file(keyring: Keyring) -> None:
    identity = joined(keyring)
    assert Identity.from_pem(identity.to_pem()) == identity
    assert "PRIVATE" not in repr(identity)
    for torn in (identity.key_pem, identity.certificate_pem, b""):
        with pytest.raises(ValueError, match="private key and then its certificate"):
            Identity.from_pem(torn)


def test_what_a_certificate_says(keyring: Keyring) -> None:
    identity = joined(keyring)
    facts = certificate_facts(identity.certificate_pem, keyring.ca_pem, identity.key_pem)
    assert facts.names == ("msfl://site/site-a",)
    assert facts.not_after == NOW + SITE_LIFE
    assert facts.signed_by_ca
    assert facts.fits_key
    assert certificate_facts(identity.certificate_pem, keyring.ca_pem).fits_key is None
    key, certificate = keyring.server_certificate(("localhost", "127.0.0.1"), NOW)
    assert certificate_facts(certificate, keyring.ca_pem, key).names == ("localhost", "127.0.0.1")


def test_a_site_takes_no_certificate_that_is_not_its_own(keyring: Keyring, tmp_path: Path) -> None:
    mine, other = joined(keyring), joined(keyring, "site-b")
    stranger = joined(make_keyring(tmp_path / "stranger"))

    def why(identity: Identity, days: float = 0) -> str:
        return unfit(identity, "site-a", keyring.ca_pem, NOW + timedelta(days=days)) or ""

    assert why(mine) == ""
    assert "for msfl://site/site-b, not for site-a" in why(other)
    assert "another key" in why(Identity(other.key_pem, mine.certificate_pem))
    assert "CA did not sign" in why(stranger)
    assert "valid from" in why(mine, days=30)
    assert "valid from" in why(mine, days=-1)
    assert "cannot be read" in why(Identity(mine.key_pem, b"-----BEGIN CERTIFICATE-----\n"))
