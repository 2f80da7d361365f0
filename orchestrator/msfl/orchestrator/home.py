"""The orchestrator's folder.

federation.json          federation id, host, ports, where the registry lies
tls/                     server.key, server.pem, ca.pem
trust/federation-root.dsse
keyring/                 the keyring's own folder, and keyring.sock; the orchestrator reads nothing else in it
runs.sqlite              every run's events
artifacts/               sealed streams by run
aggregators/<run>/       the aggregator's box, its models, its log
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class FederationSettings:
    federation: str
    host: str
    port: int
    link_port: int
    registry: str


@dataclass(frozen=True)
class CentreHome:
    root: Path

    def settings(self) -> FederationSettings:
        """Raises FileNotFoundError before `msfl orchestrator init`."""
        return FederationSettings(**json.loads((self.root / "federation.json").read_text()))

    def write_settings(self, settings: FederationSettings) -> None:
        (self.root / "federation.json").write_text(json.dumps(asdict(settings), indent=1))

    @property
    def federation_root(self) -> Path:
        return self.root / "trust" / "federation-root.dsse"

    @property
    def keyring(self) -> Path:
        return self.root / "keyring"

    @property
    def keyring_socket(self) -> Path:
        return self.keyring / "keyring.sock"

    @property
    def tls(self) -> Path:
        return self.root / "tls"
