"""Who asks: a user's token, and the proof that the holder of the token made this very job and this very call.

    token   ACCESS or ACCESS~ID, each a JWT; iss, aud, sub, iat, exp required
              access   typ at+jwt (RFC 9068); aud is this federation alone; azp and client_id are clients of the root
              ID       typ JWT or none; same iss, sub and client; at_hash, when there, is the access token's.
                       It brings the e-mail address and organisation that the access token does not have
            the user's own key: cnf.jkt of the access token (DPoP), or else the ID token's nonce `msfl.<jkt>.<random>`
    proof   compact JWS, typ msfl-job+jws, EdDSA only: payload = "sha256:<hex>" of the JobSpec's exact bytes, with
            "explain " before it when sites are only asked, and "resume N " when a run that had ended is taken up again
            as its generation N; header jwk = the public key whose RFC 7638 thumbprint the token is bound to
    call    compact JWS, typ msfl-call+jws, as a proof: payload = method, hash of the token, time and a random name, so
            that a token that was read on its way, or in the centre's store, asks for nothing

Each gateway verifies token and proof by itself, against keys that the federation root names (pinned, or signed by the
stewards it names: `issuers`), so neither the centre nor another gateway can invent a user, change a job, or use the
token for a job of its own. A header never chooses the algorithm or the key: each key has its one algorithm, `jwk`,
`jku`, `x5u` and `crit` in a token are refused, `kid` selects nothing, and the key in a proof counts only for its
thumbprint. PyJWT checks signatures; times are checked here, against the caller's `now`. A token, access or ID, that a
revoked key of the issuer signed is refused; `issuer_key_revoked` asks that again of a user who was verified before.

`mint_token` is the embedded issuer: for one machine only. A federation of several machines uses an OIDC provider.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from jwt.api_jws import PyJWS

from msfl.policies.documents import IssuerKeys
from msfl.policies.encoding import Malformed, read_json, sha256_of
from msfl.policies.issuers import TrustedKeySet, key_set_of
from msfl.policies.jwk import ALGORITHMS, PublicKey, base64url, key_id_of, public_key, to_base64url
from msfl.policies.keys import BadKey, KeyPair, decode_public, ed25519_public, thumbprint
from msfl.policies.refusals import Code, JsonObject, Refusal, refuse
from msfl.policies.trust import NOTHING_REVOKED, Revoked

EMBEDDED_ISSUER = "https://msfl.invalid/for-one-machine-only"
TOKEN_TYPE = "at+jwt"  # noqa: S105 - a media type
TOKEN_TYPES = (TOKEN_TYPE, "application/at+jwt")
ID_TOKEN_TYPES = (None, "JWT")
PROOF_TYPE = "msfl-job+jws"
CALL_TYPE = "msfl-call+jws"
NONCE_PREFIX = "msfl."
MAX_TOKEN_BYTES = 16 * 1024
MAX_LIFETIME = timedelta(hours=24)
LEEWAY = timedelta(seconds=60)
CALL_LIFE = timedelta(seconds=60)
_ISSUER_ALGORITHMS = tuple(algorithm for kind in ALGORITHMS.values() for algorithm in kind)
_USER_ALGORITHM = "EdDSA"
# No account (`issuer#subject`) is one, nor a bare subject without an @.
_ADDRESS = re.compile(r"(?!.*://)[^@\s]+@[^@\s]+")
_JWS = PyJWS(algorithms=_ISSUER_ALGORITHMS)


@dataclass(frozen=True)
class IssuerKey:
    """One key of an issuer, and the one algorithm that it is good for."""

    algorithm: str
    public: PublicKey

    @property
    def id(self) -> str:
        return key_id_of(self.public)


@dataclass(frozen=True)
class User:
    """Verified claims. `email` and `organisation` are empty when the token has none. `signed_by`: the ids of the
    issuer's keys that vouch for them (`jwk.key_id_of`). `only_issuer`: the federation names no other, so that a
    subject alone means one account."""

    subject: str
    email: str
    organisation: str
    issuer: str
    key_thumbprint: str | None
    expires: datetime
    signed_by: tuple[str, ...] = ()
    only_issuer: bool = False

    @property
    def account(self) -> str:
        """Where the user is who. No issuer has a # in its name."""
        return f"{self.issuer}#{self.subject}"

    @property
    def name(self) -> str:
        """The address, or the account: a subject may be spelled like anything, like somebody's address, too."""
        return self.email or self.account


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
    return _JWS.encode(json.dumps(claims).encode(), key.private, _USER_ALGORITHM, {"typ": TOKEN_TYPE})


def verify_token(
    token: str,
    issuers: tuple[IssuerKeys, ...],
    now: datetime,
    key_sets: Iterable[TrustedKeySet] = (),
    revoked: Revoked = NOTHING_REVOKED,
) -> User | Refusal:
    """The signature is verified first, under every key that counts now; nothing in the token selects one."""
    user = _verified_user(token, issuers, now, tuple(key_sets))
    return user if isinstance(user, Refusal) else issuer_key_revoked(user, revoked) or user


def issuer_key_revoked(user: User, revoked: Revoked) -> Refusal | None:
    """Whether a key that vouched for the user when the token was verified does so no more."""
    gone = sorted(revoked.keys.intersection(user.signed_by))
    if not gone:
        return None
    what = f"The token of {user.name} is signed with the key {gone[0][:16]} of {user.issuer}, which is revoked."
    return refuse(Code.ISSUER_KEY_REVOKED, what, issuer=user.issuer, key=gone[0])


def _verified_user(
    token: str, issuers: tuple[IssuerKeys, ...], now: datetime, key_sets: tuple[TrustedKeySet, ...]
) -> User | Refusal:
    access, tilde, identity = token.partition("~")
    issued = _issued(access, TOKEN_TYPES, "access token", issuers, now, key_sets)
    if isinstance(issued, Refusal):
        return issued
    claims, issuer, key = issued
    if refusal := _for_us(claims, issuer):
        return refusal
    signed_by: tuple[str, ...] = (key.id,)
    if tilde:
        facts = _with_id_token(access, claims, identity, issuer, now, key_sets)
        if isinstance(facts, Refusal):
            return facts
        claims, signed_by = facts[0], (key.id, facts[1].id)
    user = _user(claims, issuer, signed_by)
    return user if isinstance(user, Refusal) else replace(user, only_issuer=len({i.issuer for i in issuers}) == 1)


def account_in(token: str) -> tuple[str, str]:
    """Issuer and subject that a token names which was verified before, and has expired since; empty where it is none.
    They come as they are: nothing is verified here."""
    parts = token.partition("~")[0].split(".")
    payload = base64url(parts[1]) if len(parts) == 3 else None
    claims = (payload and _object(payload)) or {}
    issuer, subject = claims.get("iss"), claims.get("sub")
    return (issuer, subject) if isinstance(issuer, str) and isinstance(subject, str) else ("", "")


def nonce_for(jkt: str, random: str) -> str:
    """What a login asks the provider to put into the ID token, so that it is bound to the user's key."""
    return f"{NONCE_PREFIX}{jkt}.{random}"


def sign_job(spec: bytes, key: KeyPair, *, dry_run: bool = False, generation: int = 1) -> str:
    """The proof for `spec`, made with the key that the user's token is bound to. `dry_run`: good for asking only.
    `generation`: counts from 1, the submission; each later one takes up a run that had ended."""
    return _signed_by_user(_job_payload(spec, dry_run, generation), PROOF_TYPE, key)


def verify_job(
    spec: bytes, proof: str, user: User, proof_required: bool, *, dry_run: bool = False, generation: int = 1
) -> Refusal | None:
    """None: the job is the user's own. An empty proof passes only where none is required; a wrong one never. No run is
    taken up again without one: that its user has ended it cannot be undone by somebody else."""
    if not proof:
        if not proof_required and generation == 1:
            return None
        return refuse(Code.PROOF_REQUIRED, f"The job of {user.name} is not signed by a key bound to the token.")
    payload = _users_payload(proof, PROOF_TYPE, user, "job")
    if isinstance(payload, Refusal):
        return payload
    if payload != _job_payload(spec, dry_run, generation):
        what = "it was made for another job, or to ask, to run or to resume where something else of these is done"
        return _proof_invalid(user, "job", what)
    return None


def sign_call(method: str, token: str, key: KeyPair, now: datetime, name: str) -> str:
    """The proof for one call of `method` with `token`; `name` is random and never used again."""
    payload = {"method": method, "ath": _hash_of(token), "iat": int(now.timestamp()), "jti": name}
    return _signed_by_user(json.dumps(payload).encode(), CALL_TYPE, key)


def verify_call(proof: str, method: str, token: str, user: User, now: datetime) -> str | Refusal:
    """The call's name, which the caller lets pass only once within `CALL_LIFE`. A token bound to no key needs none."""
    if user.key_thumbprint is None:
        return ""
    if not proof:
        what = f"The call comes without a signature by the key that the token of {user.name} is bound to."
        return refuse(Code.PROOF_REQUIRED, what)
    payload = _users_payload(proof, CALL_TYPE, user, "call")
    if isinstance(payload, Refusal):
        return payload
    said = _object(payload)
    if said is None or set(said) != {"method", "ath", "iat", "jti"} or not isinstance(said["jti"], str):
        return _proof_invalid(user, "call", "it does not say which call it is for")
    if said["method"] != method or said["ath"] != _hash_of(token):
        return _proof_invalid(user, "call", "it was made for another call or with another token")
    iat = said["iat"]
    if not isinstance(iat, int) or abs(now.timestamp() - iat) > CALL_LIFE.total_seconds():
        return _proof_invalid(user, "call", "it was made at another time; check the clocks")
    return str(said["jti"])


def _issued(
    token: str,
    types: tuple[str | None, ...],
    what: str,
    issuers: tuple[IssuerKeys, ...],
    now: datetime,
    key_sets: tuple[TrustedKeySet, ...],
) -> tuple[JsonObject, IssuerKeys, IssuerKey] | Refusal:
    """Claims that an issuer signed and that are in time, and with which key. For whom they are is not yet looked at."""
    header = _header(token)
    if header is None or set(header) - {"alg", "typ", "kid"}:
        return _invalid(f"the {what} is not a compact JWS with the header fields alg, typ and kid")
    algorithm = header.get("alg")
    if algorithm not in _ISSUER_ALGORITHMS:
        return _invalid(f"the {what}'s algorithm is {algorithm!r}, not one of {', '.join(_ISSUER_ALGORITHMS)}")
    if header.get("typ") not in types:
        return _invalid(f"the {what}'s type is {header.get('typ')!r}, not {types[0] or types[1]!r}")
    stale = ""
    for issuer in issuers:
        keys = _keys(issuer, now, key_sets)
        stale = issuer.issuer if keys is None else stale
        for key in (key for key in keys or () if key.algorithm == algorithm):
            payload = _verified(token, key.public, algorithm)
            if payload is not None:
                claims = _claims(payload, issuer, what, now)
                return claims if isinstance(claims, Refusal) else (claims, issuer, key)
    if stale:
        return refuse(Code.ISSUER_KEYS_STALE, f"There is no key set in force for {stale}.", issuer=stale)
    return refuse(Code.TOKEN_UNKNOWN_ISSUER, f"No identity provider of the federation root signed the {what}.")


def _keys(issuer: IssuerKeys, now: datetime, key_sets: tuple[TrustedKeySet, ...]) -> tuple[IssuerKey, ...] | None:
    """Each key that counts now. None: those that counted have expired, or none ever came."""
    jwks = issuer.jwks
    if issuer.stewards:
        signed = key_set_of(issuer.issuer, key_sets)
        if signed is None or not signed.issued - LEEWAY <= now < signed.expires:
            return None
        jwks = signed.jwks
    embedded = (ed25519_public(decode_public(k)) for k in issuer.keys)
    listed = (IssuerKey(jwk.alg, public_key(jwk.model_dump())) for jwk in jwks)
    return (*(IssuerKey(_USER_ALGORITHM, key) for key in embedded), *listed)


def _claims(payload: bytes, issuer: IssuerKeys, what: str, now: datetime) -> JsonObject | Refusal:
    claims = _object(payload)
    if claims is None:
        return _invalid(f"the {what}'s payload is not a strict JSON object")
    if claims.get("iss") != issuer.issuer:
        said = f"The {what} says it is from {claims.get('iss')!r}, but {issuer.issuer} signed it."
        return refuse(Code.TOKEN_UNKNOWN_ISSUER, said)
    return _times(claims, what, now) or claims


def _for_us(claims: Mapping[str, Any], issuer: IssuerKeys) -> Refusal | None:
    # A list with further audiences would let one of those services pass the token on as its own.
    if claims.get("aud") not in (issuer.audience, (issuer.audience,)):
        what = f"The user's token is meant for {claims.get('aud')!r}, not for {issuer.audience!r}."
        return refuse(Code.TOKEN_WRONG_AUDIENCE, what)
    if issuer.clients and (_client(claims) not in issuer.clients):
        what = f"The user's token was given to the application {_client(claims)!r}, which the root does not name."
        return refuse(Code.TOKEN_WRONG_CLIENT, what)
    return None


def _client(claims: Mapping[str, Any]) -> str | None:
    """The application that a token was given to; None when it says none, or two."""
    said = {repr(claims[c]): claims[c] for c in ("azp", "client_id") if c in claims}
    (client,) = said.values() if len(said) == 1 else (None,)
    return client if isinstance(client, str) else None


def _with_id_token(
    access: str,
    claims: JsonObject,
    identity: str,
    issuer: IssuerKeys,
    now: datetime,
    key_sets: tuple[TrustedKeySet, ...],
) -> tuple[JsonObject, IssuerKey] | Refusal:
    """The access token's claims, those of the ID token of the same login that it lacks, and with which key the latter
    is signed."""
    issued = _issued(identity, ID_TOKEN_TYPES, "ID token", (issuer,), now, key_sets)
    if isinstance(issued, Refusal):
        return issued
    extra, _, key = issued
    client = _client(claims)
    if client is None or extra.get("aud") not in (client, (client,)) or extra.get("azp", client) != client:
        what = (
            f"The ID token is meant for {extra.get('aud')!r}, not for the application {client!r} of the access token."
        )
        return refuse(Code.TOKEN_WRONG_AUDIENCE, what)
    if extra.get("sub") != claims.get("sub"):
        return _invalid("the ID token is of another user than the access token")
    if extra.get("at_hash", half := _at_hash(access, key.algorithm)) != half:
        return _invalid("the ID token was given with another access token")
    facts = dict(claims)
    if "email" not in claims:  # the address and the word on it come from one token
        facts |= {"email_verified": True} | {c: extra[c] for c in ("email", "email_verified") if c in extra}
    facts.setdefault(issuer.organisation_claim, extra.get(issuer.organisation_claim, ""))
    prefix, _, bound = str(extra.get("nonce", "")).partition(NONCE_PREFIX)
    if "cnf" not in claims and not prefix and bound:
        facts["cnf"] = {"jkt": bound.partition(".")[0]}
    return facts, key


def _user(claims: Mapping[str, Any], issuer: IssuerKeys, signed_by: tuple[str, ...]) -> User | Refusal:
    subject, email = claims.get("sub"), claims.get("email", "")
    organisation = claims.get(issuer.organisation_claim, "")
    if isinstance(organisation, tuple) and len(organisation) == 1:
        (organisation,) = organisation
    if not isinstance(subject, str) or not subject or not isinstance(email, str) or not isinstance(organisation, str):
        return _invalid("sub is missing, or sub, e-mail or organisation is not text")
    if claims.get("email_verified", True) is not True or _ADDRESS.fullmatch(email) is None:
        email = ""
    cnf = claims.get("cnf", {})
    # Bound to something that nobody here looks at (a certificate, say) is not a bearer token.
    if not isinstance(cnf, dict) or set(cnf) - {"jkt"} or not isinstance(jkt := cnf.get("jkt"), str | None):
        return _invalid("cnf is something else than a jkt that is text")
    expires = datetime.fromtimestamp(claims["exp"], UTC)
    return User(subject, email, organisation, issuer.issuer, jkt, expires, signed_by)


def _times(claims: Mapping[str, Any], what: str, now: datetime) -> Refusal | None:
    iat, exp, nbf = claims.get("iat"), claims.get("exp"), claims.get("nbf", 0)
    for value in (iat, exp, nbf):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**33:
            return _invalid("iat and exp (and nbf, if given) must be whole seconds since 1970")
    assert isinstance(iat, int)
    assert isinstance(exp, int)
    moment, leeway = now.timestamp(), LEEWAY.total_seconds()
    if exp <= moment:
        when = datetime.fromtimestamp(exp, UTC).isoformat()
        return refuse(Code.TOKEN_EXPIRED, f"The user's {what} expired at {when}.", expired=when)
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
    decoded = [base64url(part) for part in parts]
    if decoded[0] is None or decoded[1] is None or decoded[2] is None:
        return None
    try:
        header = read_json(decoded[0], "header", max_bytes=MAX_TOKEN_BYTES)
    except Malformed:
        return None
    return header if isinstance(header, dict) else None


def _object(payload: bytes) -> JsonObject | None:
    try:
        value = read_json(payload, "payload", max_bytes=MAX_TOKEN_BYTES)
    except Malformed:
        return None
    return value if isinstance(value, dict) else None


def _verified(token: str, public: PublicKey, algorithm: str) -> bytes | None:
    """The payload, if `public` signed it."""
    try:
        payload = _JWS.decode(token, public, [algorithm])
    except jwt.InvalidTokenError:
        return None
    assert isinstance(payload, bytes)
    return payload


def _signed_by_user(payload: bytes, kind: str, key: KeyPair) -> str:
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": to_base64url(key.public)}
    return _JWS.encode(payload, key.private, _USER_ALGORITHM, {"typ": kind, "jwk": jwk})


def _users_payload(proof: str, kind: str, user: User, what: str) -> bytes | Refusal:
    """What the user's own key signed as `kind`."""
    header = _header(proof)
    if header is None or set(header) != {"alg", "typ", "jwk"} or header["typ"] != kind:
        return _proof_invalid(user, what, f"it is not a compact JWS of type {kind}")
    public = _jwk_public(header["jwk"])
    if header["alg"] != _USER_ALGORITHM or public is None:
        return _proof_invalid(user, what, "its algorithm is not EdDSA over an Ed25519 key")
    if user.key_thumbprint is None or thumbprint(public) != user.key_thumbprint:
        said = (
            f"The {what} was signed with the key {thumbprint(public)}, which the token of {user.name} is not bound to."
        )
        return refuse(Code.PROOF_OTHER_KEY, said, user=user.name)
    payload = _verified(proof, ed25519_public(public), _USER_ALGORITHM)
    return payload if payload is not None else _proof_invalid(user, what, "its signature is wrong")


def _job_payload(spec: bytes, dry_run: bool, generation: int) -> bytes:
    resumed = "" if generation == 1 else f"resume {generation} "
    return (("explain " if dry_run else resumed) + sha256_of(spec)).encode()


def _hash_of(token: str) -> str:
    return to_base64url(hashlib.sha256(token.encode()).digest())


def _at_hash(access: str, algorithm: str) -> str:
    """OpenID Connect Core 3.1.3.6: the left half of the hash of the algorithm; Ed25519 has SHA-512."""
    digest = (hashlib.sha512 if algorithm == "EdDSA" else hashlib.sha256)(access.encode()).digest()
    return to_base64url(digest[: len(digest) // 2])


def _jwk_public(jwk: object) -> bytes | None:
    if not isinstance(jwk, dict) or set(jwk) != {"kty", "crv", "x"}:
        return None
    if jwk["kty"] != "OKP" or jwk["crv"] != "Ed25519" or not isinstance(jwk["x"], str):
        return None
    public = base64url(jwk["x"]) or b""
    try:
        ed25519_public(public)
    except BadKey:
        return None
    return public


def _invalid(why: str) -> Refusal:
    return refuse(Code.TOKEN_INVALID, f"The user's token is refused: {why}.")


def _proof_invalid(user: User, what: str, why: str) -> Refusal:
    return refuse(Code.PROOF_INVALID, f"The signature of the {what} of {user.name} is refused: {why}.", user=user.name)
