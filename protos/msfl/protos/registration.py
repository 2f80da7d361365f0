"""The registration token: one line of text that the operator hands to a site by another way than the network.

    msfl1.<base64url of JSON>.<crc32, 8 hex digits>        single use, at most 72 h

It tells the site whom to trust (CA certificate and hash, the aggregator host's public key, the hash of the federation
root) and lets the site show that it is the one that was meant (`secret`, from which `proof` is made; it never crosses
the wire). `site_key` is the symmetric key that site and central keyring share, mixed into every run key. The checksum
catches a broken copy-and-paste, no attack. Whoever holds the token can join as that site once: treat it as a password.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import zlib
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

from msfl.policies.refusals import CannotProceed

PREFIX = "msfl1"
KEY_BYTES = 32
MAX_CHARS = 1 << 16


class BadToken(CannotProceed, ValueError):
    """`code`: not_a_token, checksum, expired."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class RegistrationToken:
    """`endpoint` and `link_endpoint`: `host:port` of the doors for enrolment and for gateways; `expires`: Unix time."""

    federation: str
    site: str
    endpoint: str
    link_endpoint: str
    registry: str
    ca_certificate: str
    token_id: str
    secret: bytes
    site_key: bytes
    centre_public_key: bytes
    federation_root_sha256: str
    expires: int
    allowed_cidrs: tuple[str, ...]

    def __repr__(self) -> str:
        # A token in a log line would be a token lost.
        return f"RegistrationToken(site={self.site!r}, token_id={self.token_id!r})"

    @property
    def ca_sha256(self) -> str:
        return hashlib.sha256(self.ca_certificate.encode()).hexdigest()

    def encode(self) -> str:
        plain: dict[str, Any] = {k: _text(v) if isinstance(v, bytes) else v for k, v in asdict(self).items()}
        body = _text(json.dumps(plain, sort_keys=True).encode())
        return f"{PREFIX}.{body}.{zlib.crc32(body.encode()):08x}"

    @classmethod
    def decode(cls, text: str) -> RegistrationToken:
        """Raises BadToken."""
        # A mail program may have wrapped the line.
        parts = "".join(text.split()).split(".") if len(text) <= MAX_CHARS else []
        if len(parts) != 3 or parts[0] != PREFIX or not parts[1].isascii():
            raise BadToken("not_a_token", f"a registration token begins with {PREFIX}. and has three parts")
        if f"{zlib.crc32(parts[1].encode()):08x}" != parts[2]:
            raise BadToken("checksum", "the token is damaged: copy it again, whole")
        try:
            raw = json.loads(_bytes(parts[1]))
            token = cls(**{f.name: _field(f.type, raw[f.name]) for f in fields(cls)})
            _check_values(token)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadToken("not_a_token", "the token does not hold what a token of this version holds") from error
        # One token, one spelling: no unknown or repeated field, nothing that base64 would overlook.
        if token.encode() != ".".join(parts):
            raise BadToken("not_a_token", "the token was not written by this version of msfl")
        return token

    def check(self, now: datetime) -> None:
        """Raises BadToken when it is too late to use it."""
        if now.timestamp() >= self.expires:
            when = datetime.fromtimestamp(self.expires, UTC)
            raise BadToken("expired", f"the token expired at {when:%Y-%m-%d %H:%M} UTC: ask the operator for a new one")


def proof(secret: bytes, csr_pem: bytes, ca_sha256: str, nonce: bytes) -> bytes:
    """HMAC-SHA256 that shows the secret without sending it, bound to this request, this CA and this conversation."""
    about = b"msfl/enrol/v1|" + hashlib.sha256(csr_pem).digest() + ca_sha256.encode() + nonce
    return hmac.new(secret, about, hashlib.sha256).digest()


def _field(annotation: object, value: object) -> Any:
    """Raises ValueError when a JSON value is not what the field's type, by name, is written as."""
    match annotation, value:
        case ("str", str()) | ("int", int()) if not isinstance(value, bool):
            return value
        case "bytes", str() if len(data := _bytes(value)) == KEY_BYTES:
            return data
        case "tuple[str, ...]", list() if all(isinstance(v, str) for v in value):
            return tuple(value)
        case _:
            raise ValueError("a field has the wrong type")


def _check_values(token: RegistrationToken) -> None:
    """Raises ValueError."""
    if not 0 < token.expires < 1 << 33:
        raise ValueError("a Unix time, in seconds")
    for endpoint in (token.endpoint, token.link_endpoint):
        host, _, port = endpoint.rpartition(":")
        if not host or not 0 < int(port) < 65536:
            raise ValueError("an endpoint is host:port")
    for cidr in token.allowed_cidrs:
        ip_network(cidr)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
