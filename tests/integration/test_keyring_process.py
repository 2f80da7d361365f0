"""The keyring in a process of its own: it starts, answers, survives being killed, and stops cleanly when asked to."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fakes.keyrings import NONCE
from msfl.orchestrator.home import CentreHome
from msfl.orchestrator.keyring.client import KeyringClient
from msfl.orchestrator.keyring.keyring import Enrolled, EnrolmentRefusal, Keyring
from msfl.protos.channel import make_csr
from msfl.protos.registration import RegistrationToken, proof

pytestmark = [pytest.mark.slow, pytest.mark.system]
PROGRAM = "from msfl.orchestrator.main import app; app()"


@contextmanager
def keyring_process(home: CentreHome) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, "keyring", "--home", str(home.root)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def enrol(client: KeyringClient, token: RegistrationToken) -> Enrolled | EnrolmentRefusal:
    csr = make_csr(token.site)[1]
    shown = proof(token.secret, csr, token.ca_sha256, NONCE)
    return client.enrol(token_id=token.token_id, csr_pem=csr, nonce=NONCE, proof=shown, peer_ip="127.0.0.1")


def test_a_token_is_used_once_over_a_kill_and_a_restart(tmp_path: Path) -> None:
    home = CentreHome(tmp_path)
    Keyring.create(home.keyring, "msfl-01", datetime.now(UTC))
    client = KeyringClient(home.keyring_socket, patience_s=60)
    with keyring_process(home):
        token = RegistrationToken.decode(
            client.token(
                federation="msfl-01",
                site="site-a",
                endpoint="localhost:8443",
                link_endpoint="localhost:8444",
                registry="/srv/registry",
                federation_root_sha256="sha256:" + "ab" * 32,
                hours=1,
                cidrs=("127.0.0.0/8",),
            )
        )
        assert isinstance(enrol(client, token), Enrolled)
    # Killed just now, with its socket left behind.
    assert home.keyring_socket.exists()
    with keyring_process(home) as process:
        again = enrol(client, token)
        assert isinstance(again, EnrolmentRefusal)
        assert again.code == "token_used"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not home.keyring_socket.exists()
