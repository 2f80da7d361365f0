"""Argon2id: hashes of passwords, with their parameters in them. RFC 9106's second option; OWASP asks for less.

A name that is no account costs the same: its password is compared with the hash of a random one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from argon2 import Parameters, PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

from msfl.gateway.staff.accounts import normal


@dataclass(frozen=True)
class Compared:
    right: bool


class Passwords:
    def __init__(self, parameters: Parameters = RFC_9106_LOW_MEMORY) -> None:
        self._hasher = PasswordHasher.from_parameters(parameters)
        self._nobodys = self.hash(secrets.token_hex(16))

    def hash(self, password: str) -> str:
        return self._hasher.hash(normal(password))

    def compare(self, hash: str | None, password: str) -> Compared:
        """`hash`: None for nobody's."""
        try:
            self._hasher.verify(hash or self._nobodys, normal(password))
        except (VerificationError, InvalidHashError):
            return Compared(False)
        return Compared(hash is not None)

    def outdated(self, hash: str) -> bool:
        """Whether it has other parameters than a new one would have."""
        return self._hasher.check_needs_rehash(hash)
