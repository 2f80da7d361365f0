"""An operator writes a registration token, a site reads it; a damaged, late or home-made one says so."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from msfl.protos.registration import BadToken, RegistrationToken, proof

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
TOKEN = RegistrationToken(
    federation="msfl-01",
    site="site-a",
    endpoint="fl.example.org:8443",
    link_endpoint="fl.example.org:8444",
    registry="/srv/registry",
    ca_certificate="-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    token_id="0011223344556677",
    secret=bytes([1]) * 32,
    site_key=bytes([2]) * 32,
    centre_public_key=bytes([3]) * 32,
    federation_root_sha256="sha256:" + "ab" * 32,
    expires=int((NOW + timedelta(hours=24)).timestamp()),
    allowed_cidrs=("10.1.0.0/16", "2001:db8::/32"),
)


def written(body: bytes) -> str:
    text = base64.urlsafe_b64encode(body).decode().rstrip("=")
    return f"msfl1.{text}.{zlib.crc32(text.encode()):08x}"


def content() -> dict[str, Any]:
    text = TOKEN.encode().split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return found


def code(text: str) -> str:
    with pytest.raises(BadToken) as error:
        RegistrationToken.decode(text)
    return error.value.code


def test_a_token_is_one_line_and_reads_back() -> None:
    text = TOKEN.encode()
    assert text.startswith("msfl1.")
    assert text.split() == [text]
    assert RegistrationToken.decode(text) == TOKEN


def test_a_mail_program_may_wrap_it() -> None:
    text = TOKEN.encode()
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    assert RegistrationToken.decode(f"  {wrapped}\r\n") == TOKEN


def test_a_slip_in_copying_is_seen() -> None:
    text = TOKEN.encode()
    assert code(text[:40] + ("A" if text[40] != "A" else "B") + text[41:]) == "checksum"
    assert code(text[:50] + text[51:]) == "checksum"
    assert code(text[:-1]) == "checksum"


@pytest.mark.parametrize("text", ["", "msfl1", "msfl1..", "hello", "msfl2.A.00", "msfl1.é.00000000", "x" * 99_999])
def test_something_else_is_not_a_token(text: str) -> None:
    assert code(text) in {"not_a_token", "checksum"}


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"site": 5},
        {"expires": "tomorrow"},
        {"expires": True},
        {"expires": 1.5},
        {"expires": 10**30},
        {"secret": "AAAA"},
        {"secret": ""},
        {"secret": 7},
        {"site_key": "*" * 43},
        {"centre_public_key": None},
        {"allowed_cidrs": "0.0.0.0/0"},
        {"allowed_cidrs": [1]},
        {"allowed_cidrs": ["10.0.0.1/8"]},
        {"allowed_cidrs": ["everywhere"]},
        {"endpoint": "fl.example.org"},
        {"endpoint": ":8443"},
        {"link_endpoint": "fl.example.org:http"},
        {"link_endpoint": "fl.example.org:70000"},
    ],
    ids=str,
)
def test_a_token_holds_exactly_what_a_token_holds(change: dict[str, object]) -> None:
    assert code(written(json.dumps(content() | change, sort_keys=True).encode())) == "not_a_token"


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 20_000])
def test_what_is_not_even_an_object_is_refused(body: bytes) -> None:
    assert code(written(body)) == "not_a_token"


def test_a_token_without_one_of_its_fields_is_refused() -> None:
    for name in content():
        less = {k: v for k, v in content().items() if k != name}
        assert code(written(json.dumps(less, sort_keys=True).encode())) == "not_a_token"


def test_a_token_has_one_spelling() -> None:
    assert code(written(json.dumps(content()).encode() + b" ")) == "not_a_token"
    twice = json.dumps(content(), sort_keys=True)[:-1] + ', "site": "site-b"}'
    assert code(written(twice.encode())) == "not_a_token"


def test_it_is_usable_until_the_second_it_expires() -> None:
    TOKEN.check(NOW)
    TOKEN.check(NOW + timedelta(hours=24, seconds=-1))
    with pytest.raises(BadToken, match=r"expired at 2026-11-25 12:00 UTC") as error:
        TOKEN.check(NOW + timedelta(hours=24))
    assert error.value.code == "expired"


def test_a_token_in_a_log_shows_no_secret() -> None:
    assert repr(TOKEN) == "RegistrationToken(site='site-a', token_id='0011223344556677')"


def test_a_proof_is_bound_to_the_request_the_ca_and_the_conversation() -> None:
    mine = proof(TOKEN.secret, b"csr", TOKEN.ca_sha256, b"nonce")
    other_ca = replace(TOKEN, ca_certificate="another").ca_sha256
    others = {
        proof(TOKEN.site_key, b"csr", TOKEN.ca_sha256, b"nonce"),
        proof(TOKEN.secret, b"another csr", TOKEN.ca_sha256, b"nonce"),
        proof(TOKEN.secret, b"csr", other_ca, b"nonce"),
        proof(TOKEN.secret, b"csr", TOKEN.ca_sha256, b"another nonce"),
    }
    assert len(mine) == 32
    assert len(others) == 4
    assert mine not in others
