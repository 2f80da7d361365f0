"""Tokens of an OpenID provider, made by hand so that each part can be wrong; and key sets that its stewards sign."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from fakes.governance import NOW, World, key, member, trusted
from msfl.policies.documents import FederationRoot, IssuerKeys, IssuerKeySet, Jwk
from msfl.policies.encoding import encode, sha256_of
from msfl.policies.envelope import FEDERATION_ROOT, sign
from msfl.policies.identity import User, nonce_for, verify_token
from msfl.policies.issuers import ISSUER_KEY_SET, TrustedKeySet, trust_key_set
from msfl.policies.refusals import Refusal
from msfl.policies.trust import TrustedFederationRoot, trust_federation_root

ISSUER, AUDIENCE, CLIENT = "https://idp.uni.example/realm", "https://fl.example/msfl", "msfl"
CLAIM = "https://uni.example/organisation"
SECONDS = int(NOW.timestamp())


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@cache
def rsa(name: str) -> RSAPrivateKey:
    return generate_rsa(65537, 2048)


@cache
def ec(name: str) -> EllipticCurvePrivateKey:
    return generate_private_key(SECP256R1())


def rsa_jwk(name: str = "idp", alg: str = "RS256") -> dict[str, str]:
    numbers = rsa(name).public_key().public_numbers()
    return {"kty": "RSA", "alg": alg, "n": b64(numbers.n.to_bytes(256, "big")), "e": "AQAB"}


def ec_jwk(name: str = "idp") -> dict[str, str]:
    numbers = ec(name).public_key().public_numbers()
    return {"kty": "EC", "alg": "ES256", "crv": "P-256"} | {
        part: b64(value.to_bytes(32, "big")) for part, value in (("x", numbers.x), ("y", numbers.y))
    }


def jws(header: dict[str, Any], claims: dict[str, Any] | bytes, name: str = "idp") -> str:
    """Signed as the header says, by the provider's key of that kind."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    body = f"{b64(json.dumps(header).encode())}.{b64(payload)}"
    match header["alg"]:
        case "ES256":
            r, s = decode_dss_signature(ec(name).sign(body.encode(), ECDSA(SHA256())))
            signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        case "PS256":
            signature = rsa(name).sign(body.encode(), padding.PSS(padding.MGF1(SHA256()), 32), SHA256())
        case _:
            signature = rsa(name).sign(body.encode(), padding.PKCS1v15(), SHA256())
    return f"{body}.{b64(signature)}"


ACCESS = {"alg": "RS256", "typ": "at+jwt", "kid": "1"}
ID = {"alg": "RS256", "typ": "JWT", "kid": "1"}


def access_claims(**changes: Any) -> dict[str, Any]:
    """Bound to ada's key by DPoP; without an e-mail address. A change to None takes the claim out."""
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ada-1",
        "client_id": CLIENT,
        "iat": SECONDS,
        "exp": SECONDS + 3600,
        "cnf": {"jkt": key("ada").thumbprint},
        CLAIM: "uni.example",
    }
    return {k: v for k, v in (claims | changes).items() if v is not None}


def id_claims(access: str, **changes: Any) -> dict[str, Any]:
    claims = {
        "iss": ISSUER,
        "aud": CLIENT,
        "sub": "ada-1",
        "iat": SECONDS,
        "exp": SECONDS + 3600,
        "nonce": nonce_for(key("ada").thumbprint, "random"),
        "at_hash": b64(hashlib.sha256(access.encode()).digest()[:16]),
        "email": "ada@uni.example",
        "email_verified": True,
    }
    return {k: v for k, v in (claims | changes).items() if v is not None}


@dataclass(frozen=True)
class Provider:
    """A federation root with one OpenID provider: keys pinned there, or signed by stewards."""

    jwks: tuple[dict[str, str], ...] = ()
    stewards: tuple[str, ...] = ()
    threshold: int = 1

    @property
    def issuer(self) -> IssuerKeys:
        return IssuerKeys(
            issuer=ISSUER,
            audience=AUDIENCE,
            jwks=() if self.stewards else tuple(Jwk.model_validate(k) for k in self.jwks or (rsa_jwk(),)),
            stewards=tuple(member(s) for s in self.stewards),
            steward_threshold=self.threshold,
            clients=(CLIENT,),
            organisation_claim=CLAIM,
        )

    @property
    def root(self) -> TrustedFederationRoot:
        base = World().federation_root.document
        # Commands look at it at the present time, so it lasts.
        changes = {"issuers": (*base.issuers, self.issuer), "expires": NOW + timedelta(days=36500)}
        document = FederationRoot.model_validate(dict(base) | changes)
        envelope = sign(encode(document), FEDERATION_ROOT, [key("otto")])
        result: TrustedFederationRoot = trusted(trust_federation_root(envelope, sha256_of(envelope), NOW))
        return result

    def key_set(
        self,
        version: int = 1,
        jwks: tuple[dict[str, str], ...] = (),
        signers: tuple[str, ...] = ("stella",),
        issued: datetime = NOW - timedelta(days=1),
        days: int = 30,
        **changes: Any,
    ) -> bytes:
        """The envelope."""
        document = IssuerKeySet(
            **{
                "federation": self.root.document.federation,
                "issuer": ISSUER,
                "version": version,
                "jwks": tuple(Jwk.model_validate(k) for k in jwks or (rsa_jwk(),)),
                "issued": issued,
                "expires": issued + timedelta(days=days),
                **changes,
            }
        )
        return sign(encode(document), ISSUER_KEY_SET, [key(s) for s in signers])

    def trusted(self, *envelopes: bytes) -> tuple[TrustedKeySet, ...]:
        return tuple(trusted(trust_key_set(e, self.root)) for e in envelopes)

    def verify(self, token: str, *envelopes: bytes, now: datetime = NOW) -> User | Refusal:
        return verify_token(token, self.root.document.issuers, now, self.trusted(*envelopes))
