"""The orchestrator's folder.

federation.json          federation id, host, ports, where the registry lies, from where people may call
tls/                     server.pem (key and certificate), ca.pem
trust/issuers/           the newest key set of each identity provider that has stewards
trust/                   federation-root.dsse, revocations.dsse, timestamp.dsse, and roots/<version>.dsse: all roots so
                         far. `msfl federation` writes them; the orchestrator only passes them on
keyring/                 the keyring's own folder and audit log, and keyring.sock, all that is touched from here
runs.sqlite              every run's events
audit/                   the centre's audit log, its key, checkpoints of the sites' logs (`msfl.protos.audit_log`), and
                         revoked.json: all that was ever revoked (`trust`)
artifacts/               sealed streams by run
aggregators/<run>/       the aggregator's box, its models, its log
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from msfl.orchestrator.doors.addresses import LOOPBACK, Callers
from msfl.orchestrator.trust import CentreTrust, Taken
from msfl.protos.certificates import Identity
from msfl.protos.durable_files import write_durably
from msfl.protos.key_sets import KeySets
from msfl.protos.messages import TrustPapers
from msfl.runtime.choice import DEFAULT, RuntimeChoice


@dataclass(frozen=True)
class FederationSettings:
    """`people_from`: address ranges from which people may call; `proxies`: whose forwarded headers count.
    `runtime`: what aggregators run in."""

    federation: str
    host: str
    port: int
    link_port: int
    registry: str
    people_from: tuple[str, ...] = LOOPBACK
    proxies: tuple[str, ...] = ()
    runtime: RuntimeChoice = DEFAULT

    @property
    def callers(self) -> Callers:
        """Raises ValueError: a range in federation.json is none."""
        return Callers.of(self.people_from, self.proxies)


@dataclass(frozen=True)
class CentreHome:
    root: Path

    def settings(self) -> FederationSettings:
        """Raises FileNotFoundError before `msfl orchestrator init`, CannotProceed where `runtime` is none."""
        file = self.root / "federation.json"
        given = dict(json.loads(file.read_text()))
        return FederationSettings(**{**given, "runtime": RuntimeChoice.read(given.get("runtime"), str(file))})

    def write_settings(self, settings: FederationSettings) -> None:
        (self.root / "federation.json").write_text(json.dumps(asdict(settings), indent=1))

    @property
    def registry_access(self) -> Path:
        """What the registry wants to know, where it wants anything; the operator writes it."""
        return self.root / "registry.json"

    @property
    def federation_root(self) -> Path:
        return self.root / "trust" / "federation-root.dsse"

    def trust_papers(self) -> TrustPapers:
        """What sites are told with their heartbeat. Read anew each time: keepers publish while the centre serves."""
        trust = self.root / "trust"
        roots = sorted((f for f in (trust / "roots").glob("*.dsse") if f.stem.isdecimal()), key=lambda f: int(f.stem))
        return TrustPapers(
            roots=tuple(f.read_bytes() for f in roots),
            revocations=_read(trust / "revocations.dsse"),
            timestamp=_read(trust / "timestamp.dsse"),
            issuer_keys=self.key_sets.envelopes(),
        )

    def heeded(self, memory: Path, written: Callable[[Taken], object]) -> CentreTrust:
        """Those papers as the process that keeps `memory` heeds them. Raises MemoryDamaged."""
        return CentreTrust(self.root / "trust", memory, written)

    @property
    def key_sets(self) -> KeySets:
        return KeySets(self.root / "trust" / "issuers")

    @property
    def keyring(self) -> Path:
        return self.root / "keyring"

    @property
    def keyring_socket(self) -> Path:
        return self.keyring / "keyring.sock"

    @property
    def runs(self) -> Path:
        return self.root / "runs.sqlite"

    @property
    def audit(self) -> Path:
        return self.root / "audit"

    # --------------------------------------------------------------------- TLS

    @property
    def server_file(self) -> Path:
        return self.root / "tls" / "server.pem"

    def server(self) -> Identity:
        """Raises FileNotFoundError, ValueError."""
        return Identity.from_pem(self.server_file.read_bytes())

    @property
    def ca_pem(self) -> bytes:
        return (self.root / "tls" / "ca.pem").read_bytes()

    def write_tls(self, server: Identity, ca_pem: bytes) -> None:
        """For this user only; each file whole or not at all."""
        folder = self.server_file.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        for file, data in ((folder / "ca.pem", ca_pem), (self.server_file, server.to_pem())):
            write_durably(file, data)


def _read(file: Path) -> bytes:
    """Empty where there is none yet."""
    return file.read_bytes() if file.exists() else b""
