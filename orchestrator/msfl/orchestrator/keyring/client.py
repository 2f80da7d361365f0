"""How the orchestrator asks the keyring: one connection, one line, one answer."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msfl.orchestrator.keyring.keyring import Enrolled, EnrolmentRefusal, Freeze, SiteStanding
from msfl.policies.refusals import CannotProceed, Refusal, Refused
from msfl.protos import unix_sockets
from msfl.protos.certificates import Identity
from msfl.protos.notary import Shown


class KeyringDown(CannotProceed):
    """The keyring does not answer: is its process running?"""


class KeyringFull(KeyringDown):
    """The keyring's disk takes nothing, so it does nothing. Whoever waits for a keyring waits for this, too."""


class BadRunSecret(Exception):
    """A site's run secret does not open, or the site was never enrolled: `site` cannot take part in this run."""

    def __init__(self, site: str) -> None:
        super().__init__(f"the run secret of {site} does not open")
        self.site = site


class KeyringClient:
    """`patience_s`: how long to wait for a keyring that is just being started."""

    def __init__(self, socket_file: Path, *, patience_s: float = 15.0) -> None:
        self._socket_file = socket_file
        self._patience_s = patience_s

    def enrol(
        self, *, token_id: str, csr_pem: bytes, nonce: bytes, proof: bytes, peer_ip: str, again: bool = False
    ) -> Enrolled | EnrolmentRefusal:
        answer = self._ask(
            do="enrol",
            token_id=token_id,
            csr=_text(csr_pem),
            nonce=_text(nonce),
            proof=_text(proof),
            peer_ip=peer_ip,
            again=again,
        )
        return _certificate(answer)

    def renew(self, *, certificate_pem: bytes, csr_pem: bytes, proof: bytes) -> Enrolled | EnrolmentRefusal:
        answer = self._ask(do="renew", certificate=_text(certificate_pem), csr=_text(csr_pem), proof=_text(proof))
        return _certificate(answer)

    def sites(self) -> dict[str, int]:
        """Members, and when each got its latest certificate, Unix time. Raises KeyringDown."""
        return dict(self._ask(do="sites")["sites"])

    def standings(self) -> dict[str, SiteStanding]:
        """Raises KeyringDown."""
        said = self._ask(do="standings")["standings"].items()
        return {
            site: SiteStanding(
                cidrs=tuple(kept["cidrs"]),
                revoked=frozenset(kept["revoked"]),
                frozen=None if kept["frozen"] is None else Freeze(**kept["frozen"]),
            )
            for site, kept in said
        }

    def freeze(self, site: str, why: str, by: str) -> bool:
        """False when there is no such site. Raises KeyringDown."""
        return bool(self._ask(do="freeze", site=site, why=why, by=by)["done"])

    def unfreeze(self, site: str, by: str) -> bool:
        """False when it was not frozen. Raises KeyringDown."""
        return bool(self._ask(do="unfreeze", site=site, by=by)["done"])

    def hand_over(
        self,
        run_id: str,
        wrapped: Mapping[str, bytes],
        aggregator_public: bytes,
        earlier: str = "",
        min_sites: int = 0,
    ) -> bytes:
        """Raises BadRunSecret, KeyringDown."""
        boxes = {site: _text(box) for site, box in wrapped.items()}
        public = _text(aggregator_public)
        more = {"earlier": earlier, "min_sites": min_sites}
        answer = self._ask(do="hand_over", run_id=run_id, wrapped=boxes, public=public, **more)
        if "bad_secret" in answer:
            raise BadRunSecret(answer["bad_secret"])
        return base64.b64decode(answer["sealed"])

    def token(
        self,
        *,
        federation: str,
        site: str,
        endpoint: str,
        link_endpoint: str,
        registry: str,
        federation_root_sha256: str,
        hours: float,
        cidrs: tuple[str, ...],
    ) -> str:
        """Raises Refused for a site that is revoked, KeyringDown."""
        answer = self._ask(
            do="token",
            federation=federation,
            site=site,
            endpoint=endpoint,
            link_endpoint=link_endpoint,
            registry=registry,
            federation_root_sha256=federation_root_sha256,
            hours=hours,
            cidrs=list(cidrs),
        )
        return str(answer["token"])

    def server_certificate(self, names: tuple[str, ...]) -> Identity:
        """A new key and certificate of the orchestrator. Raises KeyringDown."""
        answer = self._ask(do="server_certificate", names=list(names))
        return Identity(base64.b64decode(answer["key"]), base64.b64decode(answer["certificate"]))

    def show(self) -> Shown:
        """How the keyring's audit log stands. Raises KeyringDown."""
        answer = self._ask(do="show")
        return Shown(base64.b64decode(answer["envelope"]), str(answer["public_key"]))

    def _ask(self, **request: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(30)
            try:
                self._connect(connection)
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("rb") as answers:
                    line = answers.readline()
            except OSError as error:
                raise KeyringDown(f"the keyring at {self._socket_file} does not answer ({error})") from error
        if not line:
            raise KeyringDown(f"the keyring would not do {request['do']}; its log says why")
        answer = dict(json.loads(line))
        if "disk_full" in answer:
            what = f"the keyring at {self._socket_file.parent} cannot write into its audit log ({answer['disk_full']})"
            raise KeyringFull(f"disk_full: {what}, and has not done it: free its disk, then ask again")
        if "refusal" in answer:
            raise Refused(Refusal.from_json(answer["refusal"]))
        return answer

    def _connect(self, connection: socket.socket) -> None:
        give_up = time.monotonic() + self._patience_s
        while True:
            try:
                return unix_sockets.connect(connection, self._socket_file)
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):  # The last: its queue is full.
                if time.monotonic() > give_up:
                    raise
            time.sleep(0.1)


def _certificate(answer: dict[str, Any]) -> Enrolled | EnrolmentRefusal:
    if "refused" in answer:
        return EnrolmentRefusal(answer["refused"], answer["message"])
    return Enrolled(base64.b64decode(answer["certificate"]))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
