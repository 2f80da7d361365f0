"""Public keys as identity providers publish them (RFC 7517), each good for exactly one algorithm.

    OKP Ed25519 ▸ EdDSA        EC P-256 ▸ ES256        RSA, 2048 to 8192 bits ▸ RS256 or PS256

The pinned key decides the algorithm, never a token's header, so a public key is never used as an HMAC secret. A key
that is marked for another use than checking signatures (`use`, `key_ops`), that holds a private or secret part, or
whose numbers are not in the one canonical base64url form is refused here, because PyJWT looks at none of this.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from msfl.policies.encoding import canonical_json, read_json
from msfl.policies.keys import BadKey, ed25519_public

ALGORITHMS: Mapping[str, tuple[str, ...]] = {"OKP": ("EdDSA",), "EC": ("ES256",), "RSA": ("RS256", "PS256")}
MAX_JWKS_BYTES = 256 * 1024
_PARTS: Mapping[str, tuple[str, ...]] = {"OKP": ("crv", "x"), "EC": ("crv", "x", "y"), "RSA": ("n", "e")}
_CURVES: Mapping[str, str] = {"OKP": "Ed25519", "EC": "P-256"}
_RSA_BITS = range(2048, 8193)
_SECRETS = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))
PublicKey: TypeAlias = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey


def base64url(text: str) -> bytes | None:
    """The bytes of the canonical unpadded form, so that a token and a key have one spelling each; else None."""
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if to_base64url(raw) == text else None


def to_base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def key_id_of(public: PublicKey) -> str:
    """By which a revocation list names a key of any kind: `keys.key_id`, which is the same for Ed25519."""
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def public_key(jwk: Mapping[str, Any]) -> PublicKey:
    """`jwk` holds `kty`, `alg` and the parts of its kind; what else it holds is not looked at. Raises BadKey."""
    kty, alg = jwk.get("kty"), jwk.get("alg")
    if not isinstance(kty, str) or alg not in ALGORITHMS.get(kty, ()):
        raise BadKey(f"a key of kind {kty!r} for {alg!r}; known are {_known()}")
    if kty in _CURVES and jwk.get("crv") != _CURVES[kty]:
        raise BadKey(f"a key on the curve {jwk.get('crv')!r}, not {_CURVES[kty]}")
    numbers = [_bytes(jwk, part) for part in _PARTS[kty] if part != "crv"]
    try:
        match kty:
            case "OKP":
                return ed25519_public(numbers[0])
            case "EC":
                if any(len(n) != 32 for n in numbers):
                    raise BadKey("a coordinate on P-256 has 32 bytes")
                x, y = (int.from_bytes(n, "big") for n in numbers)
                return EllipticCurvePublicNumbers(x, y, SECP256R1()).public_key()
            case _:
                modulus, exponent = (int.from_bytes(n, "big") for n in numbers)
                if modulus.bit_length() not in _RSA_BITS or exponent != 65537:
                    raise BadKey("an RSA key has 2048 to 8192 bits and the exponent 65537")
                return RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise BadKey(f"the key's numbers are no {kty} key: {error}") from error


def thumbprint_of(jwk: Mapping[str, Any]) -> str:
    """The key's RFC 7638 name: the same for the same key, whatever it is said to be for."""
    members = {part: jwk[part] for part in ("kty", *_PARTS[jwk["kty"]])}
    return to_base64url(hashlib.sha256(canonical_json(members)).digest())


def signature_keys(jwks: bytes) -> tuple[dict[str, str], ...]:
    """The keys of a provider's JWKS document that can sign tokens here, in the strict form that documents pin.

    A key without `alg` gets the one of its kind (RSA: RS256). Keys for encryption and of unknown kinds are left out.
    Raises Malformed, BadKey: not a JWKS, a private part, or no usable key.
    """
    document = read_json(jwks, "JWKS", max_bytes=MAX_JWKS_BYTES)
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, tuple) or not all(isinstance(key, dict) for key in listed):
        raise BadKey("a JWKS is an object with a list `keys`")
    usable = []
    for key in listed:
        if _SECRETS & set(key):
            raise BadKey("the JWKS holds a private or secret key: whoever published it has lost it")
        kty, operations = key.get("kty"), key.get("key_ops", ("verify",))
        if not isinstance(kty, str) or kty not in ALGORITHMS or key.get("use", "sig") != "sig":
            continue
        if not isinstance(operations, tuple) or "verify" not in operations:
            continue
        alg = key.get("alg", ALGORITHMS[kty][0])
        if alg not in ALGORITHMS[kty] or key.get("crv") != _CURVES.get(kty):
            continue
        pinned = {"kty": kty, "alg": alg} | {part: key.get(part) for part in _PARTS[kty]}
        public_key(pinned)
        usable.append(pinned)
    if not usable:
        raise BadKey(f"the JWKS holds no key that can sign tokens here; known are {_known()}")
    return tuple(usable)


def _bytes(jwk: Mapping[str, Any], part: str) -> bytes:
    raw = base64url(jwk[part]) if isinstance(jwk.get(part), str) else None
    if not raw:
        raise BadKey(f"{part} is not canonical base64url")
    return raw


def _known() -> str:
    return ", ".join(f"{kty} with {' or '.join(algorithms)}" for kty, algorithms in ALGORITHMS.items())
