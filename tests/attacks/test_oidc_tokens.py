"""Tokens of an OpenID provider that are not what they seem: another algorithm, key, application, audience or kind."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fakes.governance import NOW, World, key
from fakes.oidc import (
    ACCESS,
    AUDIENCE,
    CLAIM,
    CLIENT,
    ID,
    SECONDS,
    Provider,
    access_claims,
    b64,
    ec_jwk,
    id_claims,
    jws,
    rsa,
    rsa_jwk,
)
from msfl.policies.encoding import encode
from msfl.policies.identity import User, nonce_for, sign_job, verify_job
from msfl.policies.jwk import public_key, signature_keys
from msfl.policies.keys import BadKey
from msfl.policies.refusals import Code, Refusal

PROVIDER = Provider()


def code(token: str, provider: Provider = PROVIDER) -> Code:
    result = provider.verify(token)
    assert isinstance(result, Refusal), result
    return result.code


def user(token: str, provider: Provider = PROVIDER) -> User:
    result = provider.verify(token)
    assert isinstance(result, User), result
    return result


def pair(access: dict[str, Any] | None = None, id_header: dict[str, Any] = ID, **changes: Any) -> str:
    """An access token and the ID token of the same login, the latter changed."""
    first = jws(ACCESS, access or access_claims())
    return f"{first}~{jws(id_header, id_claims(first, **changes))}"


# ------------------------------------------------------------------------------------ what is honest passes


@pytest.mark.parametrize(("jwk", "alg"), [(rsa_jwk(), "RS256"), (rsa_jwk(alg="PS256"), "PS256"), (ec_jwk(), "ES256")])
def test_each_algorithm_a_provider_may_use(jwk: dict[str, str], alg: str) -> None:
    found = user(jws(ACCESS | {"alg": alg}, access_claims(email="ada@uni.example")), Provider((jwk,)))
    assert (found.name, found.organisation) == ("ada@uni.example", "uni.example")
    assert found.key_thumbprint == key("ada").thumbprint


def test_an_address_that_stands_in_the_id_token_only() -> None:
    assert user(jws(ACCESS, access_claims())).email == ""
    assert user(pair()).email == "ada@uni.example"
    assert user(pair(email_verified=False)).email == ""
    assert user(pair(access_claims(email_verified=True), email_verified=False)).email == ""


def test_an_id_token_binds_a_token_that_is_bound_to_nothing() -> None:
    bare = access_claims(cnf=None)
    assert user(jws(ACCESS, bare)).key_thumbprint is None
    bound = user(pair(bare))
    assert bound.key_thumbprint == key("ada").thumbprint
    spec = encode(World().job)
    assert verify_job(spec, sign_job(spec, key("ada")), bound, proof_required=True) is None
    assert user(pair(bare, nonce="of-another-kind")).key_thumbprint is None
    # The access token's own word comes first.
    assert user(pair(nonce=nonce_for(key("mallory").thumbprint, "r"))).key_thumbprint == key("ada").thumbprint


# ---------------------------------------------------------------------------------------- algorithm and key


def test_alg_none_in_every_spelling() -> None:
    for alg in ("none", "None", "NONE", "", None, 0):
        body = f"{b64(json.dumps({**ACCESS, 'alg': alg}).encode())}.{b64(json.dumps(access_claims()).encode())}"
        assert code(body + ".") is Code.TOKEN_INVALID
        assert code(f"{body}.{b64(b'x' * 256)}") is Code.TOKEN_INVALID


def test_the_providers_public_key_as_an_hmac_secret() -> None:
    body = f"{b64(json.dumps({**ACCESS, 'alg': 'HS256'}).encode())}.{b64(json.dumps(access_claims()).encode())}"
    public = rsa("idp").public_key()
    for secret in (
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(rsa_jwk()).encode(),
    ):
        mac = hmac.new(secret, body.encode(), hashlib.sha256).digest()
        assert code(f"{body}.{b64(mac)}") is Code.TOKEN_INVALID


def test_a_key_serves_the_one_algorithm_it_is_pinned_for() -> None:
    assert code(jws(ACCESS | {"alg": "PS256"}, access_claims())) is Code.TOKEN_UNKNOWN_ISSUER
    assert code(jws(ACCESS, access_claims()), Provider((rsa_jwk(alg="PS256"),))) is Code.TOKEN_UNKNOWN_ISSUER


@pytest.mark.parametrize(
    "extra",
    [
        {"jwk": rsa_jwk("mallory")},
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://evil.example/cert"},
        {"x5c": ["AAAA"]},
        {"x5t": "AAAA"},
        {"crit": ["b64"], "b64": False},
        {"zip": "DEF"},
    ],
)
def test_a_key_that_a_token_brings_itself(extra: dict[str, Any]) -> None:
    assert code(jws(ACCESS | extra, access_claims(), "mallory")) is Code.TOKEN_INVALID
    assert code(jws(ACCESS | extra, access_claims())) is Code.TOKEN_INVALID, "not even where the signature is right"


@pytest.mark.parametrize(
    "kid", ["../../../../dev/null", "' OR 1=1 --", "/proc/self/environ", "https://evil.example", ""]
)
def test_a_kid_leads_nowhere(kid: str) -> None:
    assert code(jws(ACCESS | {"kid": kid}, access_claims(), "mallory")) is Code.TOKEN_UNKNOWN_ISSUER
    assert user(jws(ACCESS | {"kid": kid}, access_claims())).subject == "ada-1", "and takes nothing away"


def test_a_token_has_one_spelling() -> None:
    honest = jws(ACCESS, access_claims())
    head, body, signature = honest.split(".")
    twin = signature[:-1] + chr(ord(signature[-1]) + 1)  # bits that a lax decoder does not look at
    for other in (
        honest + "=", f"{head}.{body}.{signature}==", honest + "\n", " " + honest, honest + ".", honest + "~",
        f"{head}.{body}.{twin}", f"{head}.{body}. {signature}", honest + "~~", honest + "~a.b.c",
    ):  # fmt: skip
        assert code(other) in (Code.TOKEN_INVALID, Code.TOKEN_UNKNOWN_ISSUER)


def test_a_doubled_claim() -> None:
    doubled = json.dumps(access_claims()).encode()[:-1] + b', "sub": "root"}'
    assert code(jws(ACCESS, doubled)) is Code.TOKEN_INVALID


# ------------------------------------------------------------------------------------ for whom, from whom, when


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"iss": "https://evil.example"}, Code.TOKEN_UNKNOWN_ISSUER),
        ({"iss": "https://idp.uni.example/realm/"}, Code.TOKEN_UNKNOWN_ISSUER),
        ({"iss": "https://login.uni.example"}, Code.TOKEN_UNKNOWN_ISSUER),  # the other issuer of this root
        ({"aud": CLIENT}, Code.TOKEN_WRONG_AUDIENCE),
        ({"aud": [AUDIENCE, "https://other.example"]}, Code.TOKEN_WRONG_AUDIENCE),
        ({"aud": [AUDIENCE, AUDIENCE]}, Code.TOKEN_WRONG_AUDIENCE),
        ({"aud": []}, Code.TOKEN_WRONG_AUDIENCE),
        ({"aud": None}, Code.TOKEN_WRONG_AUDIENCE),
        ({"aud": "msfl-test"}, Code.TOKEN_WRONG_AUDIENCE),  # that of the other issuer
        ({"client_id": "another-app"}, Code.TOKEN_WRONG_CLIENT),
        ({"client_id": None}, Code.TOKEN_WRONG_CLIENT),
        ({"azp": "another-app"}, Code.TOKEN_WRONG_CLIENT),  # two that differ
        ({"azp": "another-app", "client_id": None}, Code.TOKEN_WRONG_CLIENT),
        ({"client_id": [CLIENT]}, Code.TOKEN_WRONG_CLIENT),
        ({"exp": SECONDS}, Code.TOKEN_EXPIRED),
        ({"exp": SECONDS + 90_000}, Code.TOKEN_INVALID),
        ({"exp": None}, Code.TOKEN_INVALID),
        ({"exp": True}, Code.TOKEN_INVALID),
        ({"exp": str(SECONDS + 60)}, Code.TOKEN_INVALID),
        ({"iat": None}, Code.TOKEN_INVALID),
        ({"iat": SECONDS + 120}, Code.TOKEN_INVALID),
        ({"nbf": SECONDS + 120}, Code.TOKEN_INVALID),
        ({"sub": ""}, Code.TOKEN_INVALID),
        ({"cnf": {"x5t#S256": "AAAA"}}, Code.TOKEN_INVALID),  # bound to something that nobody here checks
        ({"cnf": {"jkt": "AAAA", "jwk": {}}}, Code.TOKEN_INVALID),
        ({CLAIM: ["uni.example", "other.example"]}, Code.TOKEN_INVALID),
        ({CLAIM: {"name": "uni.example"}}, Code.TOKEN_INVALID),
    ],
)
def test_a_claim_that_does_not_fit(changes: dict[str, Any], expected: Code) -> None:
    assert code(jws(ACCESS, access_claims(**changes))) is expected


def test_an_azp_that_says_the_same() -> None:
    assert user(jws(ACCESS, access_claims(azp=CLIENT))).subject == "ada-1"
    assert user(jws(ACCESS, access_claims(azp=CLIENT, client_id=None))).subject == "ada-1"


@pytest.mark.parametrize("typ", ["JWT", None, "AT+JWT", "jwt", "dpop+jwt", "logout+jwt", "secevent+jwt"])
def test_a_token_of_another_kind_used_as_an_access_token(typ: str | None) -> None:
    header = {k: v for k, v in {**ACCESS, "typ": typ}.items() if v is not None}
    assert code(jws(header, access_claims())) is Code.TOKEN_INVALID


def test_an_id_token_used_as_an_access_token() -> None:
    alone = jws(ID, id_claims("x", aud=AUDIENCE, client_id=CLIENT))
    assert code(alone) is Code.TOKEN_INVALID
    assert code(f"{alone}~{alone}") is Code.TOKEN_INVALID
    access = jws(ACCESS, access_claims())
    assert code(f"{access}~{access}") is Code.TOKEN_INVALID, "nor the reverse"


# ------------------------------------------------------------------------------------------- the ID token beside it


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sub": "eve-1"}, Code.TOKEN_INVALID),
        ({"sub": None}, Code.TOKEN_INVALID),
        ({"aud": "another-app"}, Code.TOKEN_WRONG_AUDIENCE),
        ({"aud": [CLIENT, "another-app"]}, Code.TOKEN_WRONG_AUDIENCE),
        ({"azp": "another-app"}, Code.TOKEN_WRONG_AUDIENCE),
        ({"iss": "https://evil.example"}, Code.TOKEN_UNKNOWN_ISSUER),
        ({"exp": SECONDS - 1}, Code.TOKEN_EXPIRED),
        ({"at_hash": b64(b"another token...")}, Code.TOKEN_INVALID),
        ({"at_hash": 7}, Code.TOKEN_INVALID),
    ],
)
def test_an_id_token_of_another_login(changes: dict[str, Any], expected: Code) -> None:
    """It would lend its address, or its key, to somebody else's access token."""
    assert code(pair(**changes)) is expected


def test_an_id_token_that_another_issuer_of_the_root_signed() -> None:
    access = jws(ACCESS, access_claims())
    body = f"{b64(json.dumps({'alg': 'EdDSA', 'typ': 'JWT'}).encode())}.{b64(json.dumps(id_claims(access)).encode())}"
    stolen = f"{body}.{b64(key('issuer').private.sign(body.encode()))}"
    assert code(f"{access}~{stolen}") is Code.TOKEN_UNKNOWN_ISSUER


# ------------------------------------------------------------------------------------------ what may be pinned


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def test_only_keys_that_sign_are_pinned() -> None:
    """PyJWT looks at neither `use` nor `key_ops`; so such a key never gets there."""
    assert [k["alg"] for k in signature_keys(jwks(rsa_jwk(), ec_jwk()))] == ["RS256", "ES256"]
    bare = {k: v for k, v in rsa_jwk().items() if k != "alg"}
    assert signature_keys(jwks({**bare, "use": "sig", "key_ops": ["verify"], "kid": "1", "x5c": []})) == (rsa_jwk(),)
    for other in (
        {**rsa_jwk(), "use": "enc"},
        {**rsa_jwk(), "key_ops": ["encrypt"]},
        {**rsa_jwk(), "alg": "RSA-OAEP"},
        {**rsa_jwk(), "alg": "RS1"},
        {**ec_jwk(), "crv": "P-521"},
        {"kty": "unknown"},
    ):
        with pytest.raises(BadKey):
            signature_keys(jwks(other))
        assert signature_keys(jwks(other, ec_jwk())) == (ec_jwk(),)


@pytest.mark.parametrize("secret", [{"kty": "oct", "k": "AAAA"}, {**rsa_jwk(), "d": "AAAA"}])
def test_a_jwks_with_a_secret_in_it_is_given_up(secret: dict[str, Any]) -> None:
    with pytest.raises(BadKey, match="private or secret"):
        signature_keys(jwks(rsa_jwk(), secret))


@pytest.mark.parametrize(
    "changes",
    [
        {"alg": "HS256"},
        {"alg": "none"},
        {"alg": "ES256"},
        {"kty": "oct"},
        {"e": "Aw"},  # 3
        {"e": "AAEAAQ=="},
        {"n": "AAAA"},
        {"n": rsa_jwk()["n"] + "="},
        {"n": None},
    ],
)
def test_a_weak_or_twisted_key_is_no_key(changes: dict[str, Any]) -> None:
    with pytest.raises(BadKey):
        public_key({**rsa_jwk(), **changes})


def test_a_point_off_the_curve_is_no_key() -> None:
    with pytest.raises(BadKey):
        public_key({**ec_jwk(), "y": b64(b"\1" * 32)})


def test_a_token_is_looked_at_once_more_at_the_moment_of_the_decision() -> None:
    token = jws(ACCESS, access_claims())
    late = PROVIDER.verify(token, now=NOW + timedelta(hours=1))
    assert isinstance(late, Refusal)
    assert late.code is Code.TOKEN_EXPIRED
