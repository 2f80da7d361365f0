"""Tokens that another made, for another, of another time or kind, and jobs signed with another key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from fakes.governance import AUDIENCE, ISSUER, NOW, World, key
from msfl.policies.encoding import encode
from msfl.policies.identity import User, mint_token, sign_job, verify_job, verify_token
from msfl.policies.refusals import Code, Refusal

SPEC = encode(World().job)
CLAIMS = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "user-1",
    "email": "ada@uni.example",
    "organisation": "uni.example",
    "iat": int(NOW.timestamp()),
    "exp": int(NOW.timestamp()) + 3600,
    "cnf": {"jkt": key("ada").thumbprint},
}
HEADER = {"alg": "EdDSA", "typ": "at+jwt"}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(claims: dict[str, Any] | bytes, header: dict[str, Any] | bytes = HEADER, signer: str = "issuer") -> str:
    parts = [p if isinstance(p, bytes) else json.dumps(p).encode() for p in (header, claims)]
    body = ".".join(b64(p) for p in parts)
    return f"{body}.{b64(key(signer).private.sign(body.encode()))}"


def verdict(text: str) -> Code:
    result = verify_token(text, World().federation_root.document.issuers, NOW)
    assert isinstance(result, Refusal), result
    return result.code


def test_an_honest_token_names_its_user() -> None:
    user = verify_token(token(CLAIMS), World().federation_root.document.issuers, NOW)
    assert isinstance(user, User)
    assert (user.subject, user.email, user.organisation) == ("user-1", "ada@uni.example", "uni.example")
    assert user.key_thumbprint == key("ada").thumbprint
    assert user.expires == NOW + timedelta(hours=1)


def test_alg_none_is_refused() -> None:
    body = f"{b64(json.dumps({**HEADER, 'alg': 'none'}).encode())}.{b64(json.dumps(CLAIMS).encode())}"
    assert verdict(body + ".") is Code.TOKEN_INVALID
    assert verdict(token(CLAIMS, {**HEADER, "alg": "none"})) is Code.TOKEN_INVALID


def test_the_public_key_as_hmac_secret_is_refused() -> None:
    body = f"{b64(json.dumps({**HEADER, 'alg': 'HS256'}).encode())}.{b64(json.dumps(CLAIMS).encode())}"
    mac = hmac.new(key("issuer").public, body.encode(), hashlib.sha256).digest()
    assert verdict(f"{body}.{b64(mac)}") is Code.TOKEN_INVALID


def test_another_algorithm_is_refused() -> None:
    """ES256 is known, but no key of this issuer is for it; what is not known at all is not even tried."""
    for algorithm, code in (("ES256", Code.TOKEN_UNKNOWN_ISSUER), ("ES384", Code.TOKEN_INVALID)):
        body = f"{b64(json.dumps({**HEADER, 'alg': algorithm}).encode())}.{b64(json.dumps(CLAIMS).encode())}"
        signature = ec.generate_private_key(ec.SECP256R1()).sign(body.encode(), ec.ECDSA(SHA256()))
        assert verdict(f"{body}.{b64(signature)}") is code


def test_a_stranger_cannot_issue() -> None:
    assert verdict(token(CLAIMS, signer="mallory")) is Code.TOKEN_UNKNOWN_ISSUER


def test_a_key_in_the_header_is_not_believed() -> None:
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(key("mallory").public)}
    for extra in ({"jwk": jwk}, {"jku": "https://evil.example"}, {"x5u": "https://evil.example"}, {"crit": ["exp"]}):
        assert verdict(token(CLAIMS, {**HEADER, **extra}, signer="mallory")) is Code.TOKEN_INVALID
        assert verdict(token(CLAIMS, {**HEADER, **extra})) is Code.TOKEN_INVALID


def test_a_kid_selects_nothing() -> None:
    assert verdict(token(CLAIMS, {**HEADER, "kid": "../../etc/passwd"}, signer="mallory")) is Code.TOKEN_UNKNOWN_ISSUER


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"iss": "https://evil.example"}, Code.TOKEN_UNKNOWN_ISSUER),
        ({"aud": "another-federation"}, Code.TOKEN_WRONG_AUDIENCE),
        ({"aud": [AUDIENCE, "another-federation"]}, Code.TOKEN_WRONG_AUDIENCE),
        ({"aud": None}, Code.TOKEN_WRONG_AUDIENCE),
        ({"exp": int(NOW.timestamp())}, Code.TOKEN_EXPIRED),
        ({"exp": int(NOW.timestamp()) - 1}, Code.TOKEN_EXPIRED),
        ({"exp": int(NOW.timestamp()) + 90000}, Code.TOKEN_INVALID),
        ({"exp": "never"}, Code.TOKEN_INVALID),
        ({"exp": 1e11}, Code.TOKEN_INVALID),
        ({"exp": True}, Code.TOKEN_INVALID),
        ({"exp": None}, Code.TOKEN_INVALID),
        ({"iat": int(NOW.timestamp()) + 120}, Code.TOKEN_INVALID),
        ({"iat": None}, Code.TOKEN_INVALID),
        ({"nbf": int(NOW.timestamp()) + 120}, Code.TOKEN_INVALID),
        ({"sub": ""}, Code.TOKEN_INVALID),
        ({"sub": None}, Code.TOKEN_INVALID),
        ({"sub": 7}, Code.TOKEN_INVALID),
        ({"email": ["ada@uni.example"]}, Code.TOKEN_INVALID),
        ({"cnf": "x"}, Code.TOKEN_INVALID),
        ({"cnf": {"jkt": 1}}, Code.TOKEN_INVALID),
    ],
)
def test_a_claim_that_does_not_fit_is_refused(changes: dict[str, Any], code: Code) -> None:
    assert verdict(token({**CLAIMS, **changes})) is code


@pytest.mark.parametrize("missing", ["iss", "aud", "sub", "iat", "exp"])
def test_every_required_claim_is_required(missing: str) -> None:
    assert verdict(token({k: v for k, v in CLAIMS.items() if k != missing}))


def test_a_token_of_another_kind_is_refused() -> None:
    assert verdict(token(CLAIMS, {"alg": "EdDSA", "typ": "JWT"})) is Code.TOKEN_INVALID
    assert verdict(token(CLAIMS, {"alg": "EdDSA"})) is Code.TOKEN_INVALID
    assert verdict(sign_job(SPEC, key("issuer"))) is Code.TOKEN_INVALID


def test_a_doubled_claim_is_refused() -> None:
    doubled = json.dumps(CLAIMS).encode()[:-1] + b', "sub": "root"}'
    assert verdict(token(doubled)) is Code.TOKEN_INVALID
    assert verdict(token(CLAIMS, b'{"alg": "none", "alg": "EdDSA", "typ": "at+jwt"}')) is Code.TOKEN_INVALID


def test_a_token_has_one_spelling() -> None:
    honest = token(CLAIMS)
    for other in (honest + "=", honest + "\n", " " + honest, honest[:-1] + chr(ord(honest[-1]) + 1), honest + ".x", ""):
        assert verdict(other) in (Code.TOKEN_INVALID, Code.TOKEN_UNKNOWN_ISSUER)
    assert verdict("a" * 100_000) is Code.TOKEN_INVALID
    assert verdict("ä.ö.ü") is Code.TOKEN_INVALID


def test_an_unverified_address_is_not_used() -> None:
    user = verify_token(token({**CLAIMS, "email_verified": False}), World().federation_root.document.issuers, NOW)
    assert isinstance(user, User)
    assert user.email == ""


@pytest.mark.parametrize("address", ["ada", "https://login.uni.example#a@b", "a b@uni.example", "a@b@c"])
def test_what_is_no_address_is_not_used(address: str) -> None:
    user = verify_token(token({**CLAIMS, "email": address}), World().federation_root.document.issuers, NOW)
    assert isinstance(user, User)
    assert user.email == ""


def test_the_embedded_issuer_makes_tokens_that_pass() -> None:
    assert World().user.email == "ada@uni.example"
    unbound = mint_token(key("issuer"), ISSUER, AUDIENCE, "user-1", "ada@uni.example", "uni.example", None, NOW)
    user = verify_token(unbound, World().federation_root.document.issuers, NOW)
    assert isinstance(user, User)
    assert user.key_thumbprint is None


# ------------------------------------------------------------------------------------ the job's proof


def proof_code(
    proof: str, *, spec: bytes = SPEC, user: User | None = None, required: bool = True, generation: int = 1
) -> Code | None:
    refusal = verify_job(spec, proof, user or World().user, required, generation=generation)
    return None if refusal is None else refusal.code


def test_the_users_own_job_passes() -> None:
    assert proof_code(sign_job(SPEC, key("ada"))) is None


def test_a_job_signed_with_another_key_is_refused() -> None:
    assert proof_code(sign_job(SPEC, key("mallory"))) is Code.PROOF_OTHER_KEY
    assert proof_code(sign_job(SPEC, key("mallory")), required=False) is Code.PROOF_OTHER_KEY


def test_a_proof_serves_one_job_only_to_the_last_byte() -> None:
    assert proof_code(sign_job(SPEC, key("ada")), spec=SPEC + b" ") is Code.PROOF_INVALID


def test_a_proof_serves_one_generation_only() -> None:
    for signed in (1, 2, 12):
        proof = sign_job(SPEC, key("ada"), generation=signed)
        for asked in (1, 2, 12):
            assert proof_code(proof, generation=asked) is (None if asked == signed else Code.PROOF_INVALID)
    asked_only = sign_job(SPEC, key("ada"), dry_run=True, generation=2)
    assert proof_code(asked_only, generation=2) is Code.PROOF_INVALID


def test_without_a_proof_no_run_is_taken_up_again() -> None:
    assert proof_code("", required=False, generation=2) is Code.PROOF_REQUIRED


def test_a_bare_token_passes_only_where_no_proof_is_required() -> None:
    assert proof_code("") is Code.PROOF_REQUIRED
    assert proof_code("", required=False) is None


def test_a_proof_under_a_token_that_is_bound_to_no_key_is_refused() -> None:
    user = World().user
    unbound = User(user.subject, user.email, user.organisation, user.issuer, None, user.expires)
    assert proof_code(sign_job(SPEC, key("ada")), user=unbound) is Code.PROOF_OTHER_KEY


def test_the_right_key_shown_beside_another_signature_is_refused() -> None:
    header, payload, _ = sign_job(SPEC, key("ada")).split(".")
    forged = b64(key("mallory").private.sign(f"{header}.{payload}".encode()))
    assert proof_code(f"{header}.{payload}.{forged}") is Code.PROOF_INVALID


@pytest.mark.parametrize(
    "changes",
    [
        {"typ": "at+jwt"},
        {"alg": "none"},
        {"alg": "HS256"},
        {"jwk": None},
        {"jwk": {"kty": "OKP", "crv": "Ed25519"}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes([1, *bytes(31)]))}},  # a point of small order
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"kid": "x"},
    ],
)
def test_a_proof_with_another_header_is_refused(changes: dict[str, Any]) -> None:
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(key("ada").public)}
    header = {"alg": "EdDSA", "typ": "msfl-job+jws", "jwk": jwk, **changes}
    payload = "sha256:" + hashlib.sha256(SPEC).hexdigest()
    assert proof_code(token(payload.encode(), header, signer="ada")) is Code.PROOF_INVALID


def test_a_users_token_is_not_a_proof() -> None:
    assert proof_code(token(CLAIMS)) is Code.PROOF_INVALID
