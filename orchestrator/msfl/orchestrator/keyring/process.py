"""The keyring as a process, until SIGTERM or SIGINT.

It holds every key of the centre, so it imports little: no engine, no store, no registry, and it opens no port.
"""

from __future__ import annotations

import signal
import threading
from datetime import UTC, datetime

import structlog

from msfl.orchestrator.home import CentreHome
from msfl.orchestrator.keyring.keyring import Keyring
from msfl.orchestrator.keyring.service import KeyringServer

log = structlog.get_logger()


def serve_keyring(home: CentreHome) -> None:
    """Raises PermissionError when others may enter the keyring's folder, RuntimeError when it is served already,
    AuditBroken when its log was changed."""
    trust = home.heeded(home.keyring / "revoked.json", lambda taken: taken.into(keyring.audit, datetime.now(UTC)))
    keyring = Keyring(home.keyring, lambda: trust.revoked())
    server = KeyringServer(home.keyring_socket, keyring)
    for number in (signal.SIGTERM, signal.SIGINT):
        # shutdown() waits for the loop that this very thread runs.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    log.info("the keyring serves", socket=str(home.keyring_socket), audit_entries=keyring.audit.size)
    server.serve_forever(poll_interval=0.2)
    server.server_close()
