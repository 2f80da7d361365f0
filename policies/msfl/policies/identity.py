"""Who asks: a user's token, and the proof that the holder of the token made this very job.

    token   JWT, typ at+jwt, EdDSA only: iss, aud, sub, iat, exp required; cnf.jkt names the user's own key
    proof   compact JWS, typ msfl-job+jws, EdDSA only: payload = "sha256:<hex>" of the JobSpec's exact bytes,
            header jwk = the public key whose RFC 7638 thumbprint must equal cnf.jkt

Each gateway verifies both by itself, against issuer keys pinned in the federation root, so neither the centre nor
another gateway can invent a user, change a job, or use the token for a job of its own. The header never chooses the
algorithm or the key: the algorithm list is fixed, `jwk`, `jku`, `x5u` and `crit` in a token are refused, and the key in
a proof counts only for its thumbprint. PyJWT checks signatures; times are checked here, against the caller's `now`.

`mint_token` is the embedded issuer: for one machine only. A federation of several machines uses an OIDC provider.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jwt.api_jws import PyJWS

from msfl.policies.documents import IssuerKeys
from msfl.policies.encoding import Malformed, read_json, sha256_of
from msfl.policies.keys import KeyPair, decode_public, thumbprint
from msfl.policies.refusals import Code, JsonObject, Refusal, refuse

EMBEDDED_ISSUER = "https://msfl.invalid/for-one-machine-only"
TOKEN_TYPE = "at+jwt"  # noqa: S105 - a media type
PROOF_TYPE = "msfl-job+jws"
MAX_TOKEN_BYTES = 16 * 1024
MAX_LIFETIME = timedelta(hours=24)
LEEWAY = timedelta(seconds=60)
_ALGORITHMS = ("EdDSA",)
_JWS = PyJWS(algorithms=_ALGORITHMS)


@dataclass(frozen=True)
class User:
    """Verified claims. `email` and `organisation` are empty when the token has none."""

    subject: str
    email: str
    organisation: str
    issuer: str
    key_thumbprint: str | None
    expires: datetime

    @property
    def name(self) -> str:
        return self.email or self.subject


def mint_token(
    key: KeyPair,
    issuer: str,
    audience: str,
    subject: str,
    email: str,
    organisation: str,
    jkt: str | None,
    now: datetime,
    ttl: timedelta = timedelta(hours=8),
    organisation_claim: str = "organisation",
) -> str:
    """A token of the embedded issuer, for one machine only: whoever holds `key` can be any user."""
    claims: JsonObject = {
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "email": email,
        organisation_claim: organisation,
        "iat": int(now.timestamp()),
        "exp": int((now + ttl).timestamp()),
    }
    if jkt is not None:
        claims["cnf"] = {"jkt": jkt}
    return _JWS.encode(json.dumps(claims).encode(), key.private, "EdDSA", {"typ": TOKEN_TYPE})


def verify_token(token: str, issuers: tuple[IssuerKeys, ...], now: datetime) -> User | Refusal:
    """The signature is verified first, under every pinned key; nothing in the token selects one."""
    header = _header(token)
    if header is None or set(header) - {"alg", "typ", "kid"}:
        return _invalid("it is not a compact JWS with the header fields alg, typ and kid")
    if header.get("alg") not in _ALGORITHMS:
        return _invalid(f"its algorithm is {header.get('alg')!r}, not EdDSA")
    if header.get("typ") != TOKEN_TYPE:
        return _invalid(f"its type is {header.get('typ')!r}, not {TOKEN_TYPE!r}")
    for issuer in issuers:
        for key in issuer.keys:
            payload = _verified(token, decode_public(key))
            if payload is not None:
                return _user(payload, issuer, now)
    what = "No identity provider of the federation root signed the user's token."
    return refuse(Code.TOKEN_UNKNOWN_ISSUER, what)


def sign_job(spec: bytes, key: KeyPair) -> str:
    """The proof for `spec`, made with the key that the user's token is bound to."""
    x = base64.urlsafe_b64encode(key.public).rstrip(b"=").decode()
    headers = {"typ": PROOF_TYPE, "jwk": {"kty": "OKP", "crv": "Ed25519", "x": x}}
    return _JWS.encode(sha256_of(spec).encode(), key.private, "EdDSA", headers)


def verify_job(spec: bytes, proof: str, user: User, proof_required: bool) -> Refusal | None:
    """None: the job is the user's own. An empty proof passes only where none is required; a wrong one never."""
    if not proof:
        if not proof_required:
            return None
        return refuse(Code.PROOF_REQUIRED, f"The job of {user.name} is not signed by a key bound to the token.")
    header = _header(proof)
    if header is None or set(header) != {"alg", "typ", "jwk"} or header["typ"] != PROOF_TYPE:
        return _proof_invalid(user, "it is not a compact JWS of type msfl-job+jws")
    public = _jwk_public(header["jwk"])
    if header["alg"] not in _ALGORITHMS or public is None:
        return _proof_invalid(user, "its algorithm is not EdDSA over an Ed25519 key")
    if user.key_thumbprint is None or thumbprint(public) != user.key_thumbprint:
        what = f"The job was signed with the key {thumbprint(public)}, which the token of {user.name} is not bound to."
        return refuse(Code.PROOF_OTHER_KEY, what, user=user.name)
    payload = _verified(proof, public)
    if payload is None:
        return _proof_invalid(user, "its signature is wrong")
    if payload != sha256_of(spec).encode():
        return _proof_invalid(user, "it was made for another job")
    return None


def _user(payload: bytes, issuer: IssuerKeys, now: datetime) -> User | Refusal:
    try:
        claims = read_json(payload, "token", max_bytes=MAX_TOKEN_BYTES)
    except Malformed as error:
        return _invalid(str(error))
    if not isinstance(claims, dict):
        return _invalid("its payload is not a JSON object")
    if claims.get("iss") != issuer.issuer:
        what = f"The token says it is from {claims.get('iss')!r}, but {issuer.issuer} signed it."
        return refuse(Code.TOKEN_UNKNOWN_ISSUER, what)
    # A list with further audiences would let one of those services pass the token on as its own.
    if claims.get("aud") not in (issuer.audience, (issuer.audience,)):
        what = f"The user's token is meant for {claims.get('aud')!r}, not for {issuer.audience!r}."
        return refuse(Code.TOKEN_WRONG_AUDIENCE, what)
    if refusal := _times(claims, now):
        return refusal
    subject, email = claims.get("sub"), claims.get("email", "")
    organisation = claims.get(issuer.organisation_claim, "")
    if not isinstance(subject, str) or not subject or not isinstance(email, str) or not isinstance(organisation, str):
        return _invalid("sub is missing, or sub, e-mail or organisation is not text")
    if claims.get("email_verified", True) is not True:
        email = ""
    cnf = claims.get("cnf", {})
    jkt = cnf.get("jkt") if isinstance(cnf, dict) else ""
    if not isinstance(cnf, dict) or not (jkt is None or isinstance(jkt, str)):
        return _invalid("cnf.jkt is not text")
    return User(subject, email, organisation, issuer.issuer, jkt, datetime.fromtimestamp(claims["exp"], UTC))


def _times(claims: Mapping[str, Any], now: datetime) -> Refusal | None:
    iat, exp, nbf = claims.get("iat"), claims.get("exp"), claims.get("nbf", 0)
    for value in (iat, exp, nbf):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**33:
            return _invalid("iat and exp (and nbf, if given) must be whole seconds since 1970")
    assert isinstance(iat, int)
    assert isinstance(exp, int)
    moment, leeway = now.timestamp(), LEEWAY.total_seconds()
    if exp <= moment:
        when = datetime.fromtimestamp(exp, UTC).isoformat()
        return refuse(Code.TOKEN_EXPIRED, f"The user's token expired at {when}.", expired=when)
    if iat > moment + leeway or nbf > moment + leeway:
        return _invalid("it is from the future")
    if exp - iat > MAX_LIFETIME.total_seconds():
        return _invalid(f"it lives longer than {MAX_LIFETIME}")
    return None


def _header(token: str) -> JsonObject | None:
    """The header of a compact JWS in canonical base64url, or None."""
    parts = token.split(".")
    if len(token) > MAX_TOKEN_BYTES or len(parts) != 3:
        return None
    decoded = [_base64url(part) for part in parts]
    if decoded[0] is None or decoded[1] is None or decoded[2] is None:
        return None
    try:
        header = read_json(decoded[0], "header", max_bytes=MAX_TOKEN_BYTES)
    except Malformed:
        return None
    return header if isinstance(header, dict) else None


def _verified(token: str, public: bytes) -> bytes | None:
    """The payload, if `public` signed it."""
    try:
        payload = _JWS.decode(token, Ed25519PublicKey.from_public_bytes(public), list(_ALGORITHMS))
    except jwt.InvalidTokenError:
        return None
    assert isinstance(payload, bytes)
    return payload


def _jwk_public(jwk: object) -> bytes | None:
    if not isinstance(jwk, dict) or set(jwk) != {"kty", "crv", "x"}:
        return None
    if jwk["kty"] != "OKP" or jwk["crv"] != "Ed25519" or not isinstance(jwk["x"], str):
        return None
    public = _base64url(jwk["x"])
    return public if public is not None and len(public) == 32 else None


def _base64url(text: str) -> bytes | None:
    """Only the canonical unpadded form, so that a token has one spelling."""
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == text else None


def _invalid(why: str) -> Refusal:
    return refuse(Code.TOKEN_INVALID, f"The user's token is refused: {why}.")


def _proof_invalid(user: User, why: str) -> Refusal:
    return refuse(Code.PROOF_INVALID, f"The signature of the job of {user.name} is refused: {why}.", user=user.name)
