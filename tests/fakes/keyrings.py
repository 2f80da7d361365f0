"""A keyring in a folder, and `Applicant`, a site that enrols with it; with the knobs that an attacker would turn."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from msfl.orchestrator.keyring.keyring import Enrolled, EnrolmentRefusal, Keyring
from msfl.protos.channel import make_csr
from msfl.protos.registration import RegistrationToken, proof

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NONCE = bytes(32)


def make_keyring(folder: Path) -> Keyring:
    return Keyring.create(folder / "keyring", "msfl-01", NOW)


def make_token(
    keyring: Keyring,
    site: str = "site-a",
    *,
    life: timedelta = timedelta(hours=24),
    cidrs: tuple[str, ...] = ("10.1.0.0/16",),
    now: datetime = NOW,
) -> RegistrationToken:
    return keyring.issue_token(
        federation="msfl-01",
        site=site,
        endpoint="localhost:8443",
        link_endpoint="localhost:8444",
        registry="/srv/registry",
        federation_root_sha256="sha256:" + "ab" * 32,
        life=life,
        cidrs=cidrs,
        now=now,
    )


@dataclass
class Applicant:
    token: RegistrationToken
    ip: str = "10.1.2.3"

    def enrol(
        self,
        keyring: Keyring,
        *,
        csr: bytes | None = None,
        shown: bytes | None = None,
        token_id: str | None = None,
        now: datetime = NOW,
        again: bool = False,
    ) -> Enrolled | EnrolmentRefusal:
        csr = make_csr(self.token.site)[1] if csr is None else csr
        if shown is None:
            shown = proof(self.token.secret, csr, self.token.ca_sha256, NONCE)
        return keyring.enrol(
            token_id=self.token.token_id if token_id is None else token_id,
            csr_pem=csr,
            nonce=NONCE,
            proof_=shown,
            peer_ip=self.ip,
            now=now,
            again=again,
        )
