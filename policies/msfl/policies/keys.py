"""Ed25519 keys of people. A key's id is derived from the key, so it cannot be claimed for another one.

    key id = lower-case hex of SHA-256 over the key's DER SubjectPublicKeyInfo (canonical: one encoding per key)

A point of small order, or one that is not in its only spelling (RFC 8032, 5.1.3), is no key: under the former one
signature is good for many messages, and the latter would be one key with two ids.

In documents a public key is the base64 of its 32 raw bytes; the private key is PKCS#8 PEM, encrypted under a
passphrase when one is given. Bytes in, bytes out: whoever keeps the file sets its mode to 0600.
`thumbprint` is the RFC 7638 name of the same key, as tokens carry it in `cnf.jkt`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from msfl.policies.refusals import CannotProceed

_P = 2**255 - 19
# The y of the points whose order divides 8, whatever their sign.
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = frozenset({0, 1, _P - 1, _ORDER_8, _P - _ORDER_8})


# Every command that takes a person's key opens it so; those that ask for a passphrase have the option, too.
KEYS_OPEN_WITH: Final = "MSFL_KEY_PASSPHRASE"
_UNASKED = f"the key has no passphrase: leave out --passphrase, and unset {KEYS_OPEN_WITH}"
_UNOPENED = f"the key has a passphrase: put it into {KEYS_OPEN_WITH}, or say --passphrase where the command has it"


def passphrase_of(typed: str, environ: Mapping[str, str]) -> bytes | None:
    """What was typed; if nothing was, what stands in the environment; None when neither."""
    return (typed or environ.get(KEYS_OPEN_WITH, "")).encode() or None


class BadKey(CannotProceed, ValueError):
    """The bytes are not an Ed25519 key, or the passphrase does not open it."""


def key_id(public: bytes) -> str:
    """`public` is the raw 32-byte key. Raises BadKey."""
    der = ed25519_public(public).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def ed25519_public(raw: bytes) -> Ed25519PublicKey:
    """The library takes any 32 bytes. Raises BadKey."""
    try:
        public = Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise BadKey("not an Ed25519 public key") from error
    y = int.from_bytes(raw, "little") % 2**255
    if y >= _P or y in _SMALL_ORDER:
        raise BadKey("not an Ed25519 public key: a point of small order, or in a second spelling")
    return public


def thumbprint(public: bytes) -> str:
    """RFC 7638 with the required members of RFC 8037 (crv, kty, x), SHA-256, base64url without padding."""
    x = base64.urlsafe_b64encode(public).rstrip(b"=").decode()
    members = f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'
    return base64.urlsafe_b64encode(hashlib.sha256(members.encode()).digest()).rstrip(b"=").decode()


def encode_public(public: bytes) -> str:
    return base64.b64encode(public).decode()


def decode_public(text: str) -> bytes:
    """Only the one canonical base64 of 32 bytes. Raises BadKey."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadKey("a public key is base64") from error
    if len(raw) != 32 or encode_public(raw) != text:
        raise BadKey("a public key is the canonical base64 of 32 bytes")
    return raw


@dataclass(frozen=True)
class KeyPair:
    private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> KeyPair:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> KeyPair:
        """The key of a 32-byte seed, for tests and test vectors."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_pem(cls, pem: bytes, passphrase: bytes | None = None) -> KeyPair:
        """Raises BadKey: not a PEM, not Ed25519, or the wrong passphrase."""
        try:
            private = load_pem_private_key(pem, passphrase)
        except ValueError as error:
            if b"PRIVATE KEY-----" not in pem:
                raise BadKey("this is no private key: give the file that ends with .key.pem") from error
            raise BadKey("the key cannot be opened: the passphrase is wrong, or the file is damaged") from error
        except TypeError as error:
            raise BadKey(_UNASKED if passphrase else _UNOPENED) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise BadKey("the key is not an Ed25519 key")
        return cls(private)

    def to_pem(self, passphrase: bytes | None = None) -> bytes:
        protection: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)

    @property
    def public(self) -> bytes:
        """The raw 32 bytes."""
        return self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def id(self) -> str:
        return key_id(self.public)

    @property
    def thumbprint(self) -> str:
        return thumbprint(self.public)
