"""The site's secret, and what is made with it.

Everything that replaces an identifier is HMAC-SHA-256 of it under a key that never leaves the site: the same patient is
the same pseudonym at every import, nobody without the key can test a guess, and two datasets share no pseudonym.

    site key (32 random bytes, <home>/secrets/data.key, 0600)
       └─ HMAC(dataset id) = dataset's key
              ├─ patient, visit    → letters and digits for the name of a case
              ├─ UID               → 2.25.<128 bits> (PS3.5 B.2), the same for the same UID everywhere
              └─ patient           → days by which all of a patient's dates move; intervals stay
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from msfl.policies.refusals import CannotProceed

KEY_BYTES: Final = 32
_MOST_DAYS: Final = 3650
_LEAST_DAYS: Final = 30  # closer than a month, a known date of examination would give the patient away


@dataclass(frozen=True, repr=False)
class Pseudonyms:
    """`key` is the dataset's. Every method is pure."""

    key: bytes

    @classmethod
    def of(cls, site_key: bytes, dataset: str) -> Pseudonyms:
        return cls(hmac.digest(site_key, f"dataset\0{dataset}".encode(), "sha256"))

    def patient(self, identifier: str) -> str:
        """12 letters and digits, 60 bits: `p` and eleven of base 32."""
        return f"p{self._letters('patient', identifier, 11)}"

    def visit(self, patient: str, identifier: str) -> str:
        """Of one visit of this patient: `s` and five letters or digits."""
        return f"s{self._letters('visit', '|'.join((patient, identifier)), 5)}"

    def scanner(self, *identifiers: str) -> str:
        """The same device is the same word; which device it is, it does not say."""
        return f"d{self._letters('scanner', '|'.join(identifiers), 7)}"

    def uid(self, uid: str) -> str:
        return f"2.25.{int.from_bytes(self._digest('uid', uid)[:16])}"

    def content(self, sha256: str) -> str:
        """Tells equal files apart from different ones, without being a fingerprint that others could look up."""
        return f"hmac:{self._digest('content', sha256).hex()}"

    def shifted(self, patient: str, day: date) -> date:
        """Dates of one patient all move by the same number of days into the past."""
        span = _MOST_DAYS - _LEAST_DAYS + 1
        days = _LEAST_DAYS + int.from_bytes(self._digest("days", patient)[:8]) % span
        return max(date(1, 1, 1) + timedelta(_MOST_DAYS), day) - timedelta(days)

    def _letters(self, kind: str, text: str, count: int) -> str:
        return base64.b32encode(self._digest(kind, text)).decode().lower()[:count]

    def _digest(self, kind: str, text: str) -> bytes:
        return hmac.digest(self.key, f"{kind}\0{text}".encode(), "sha256")


def site_key(home: Path) -> bytes:
    """The site's key, made at its first use. Raises CannotProceed where the file is not a key, or is open to others."""
    file = home / "secrets" / "data.key"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        # O_EXCL: two imports that begin together agree on one key.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(file)
    with open(descriptor, "wb") as target:
        target.write(secrets.token_bytes(KEY_BYTES))
        target.flush()
        os.fsync(target.fileno())
    return _read(file)


def _read(file: Path) -> bytes:
    key = file.read_bytes()
    if len(key) != KEY_BYTES:
        raise CannotProceed(
            f"{file} is not the site's key ({len(key)} bytes instead of {KEY_BYTES}). Restore it from your copy: "
            "with another key every patient would get another pseudonym."
        )
    if file.stat().st_mode & 0o077:
        raise CannotProceed(f"{file} is the key to all pseudonyms and others may read it. Run: chmod 600 {file}")
    return key
