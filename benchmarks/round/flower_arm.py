"""Flower: SuperLink, ServerApp, a SuperNode per site, a ClientApp process per round and site. Server-side HTTPS.

Its default deployment with its own TLS: the SuperLink has a certificate, the nodes have none. Its own FedAvg strategy,
no evaluation, no database. It seals nothing. A round lasts from the end of the one before it, when the strategy would
evaluate the model, to its own. Its connections are too short-lived for the kernel's counters: no bytes on the wire.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from pathlib import Path

from certificates import write_certificates
from environments import clean_environment, is_free
from measured import CannotMeasure, Measured, Task, from_marks, read_marks, wait_for_app
from meter import Meter

HERE = Path(__file__).parent
SHAPES = HERE / "echo_release/msfl/echo"
REQUIREMENTS = HERE / "flower_app/requirements.txt"
LISTENS_S, START_S, ROUND_S = 60.0, 120.0, 180.0


def measure(task: Task, bin_folder: Path) -> Measured:
    """Raises CannotMeasure."""
    marks, checked = task.scratch / "marks", task.scratch / "checked"
    home, keys = task.scratch / "home", task.scratch / "certificates"
    write_certificates(keys)
    environment = clean_environment(home, bin_folder)
    environment |= {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "PYTHONPATH": str(SHAPES)}
    port, *node_ports = _free_ports(1 + task.sites)
    address = f"127.0.0.1:{port}"
    connection = f'address = "{address}"\nroot-certificates = "{keys / "ca.pem"}"\n'
    (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n\n[superlink.here]\n{connection}')

    def start(name: str, *command: object) -> subprocess.Popen[bytes]:
        with open(task.scratch / f"{name}.log", "wb") as output:
            return subprocess.Popen(
                [str(word) for word in (bin_folder / command[0], *command[1:])], cwd=task.scratch, env=environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    with Meter(_name) as meter:
        link = start(
            "superlink", "flower-superlink", "--port", port, "--disable-runtime-dependency-installation",
            "--ssl-certfile", keys / "server.pem", "--ssl-keyfile", keys / "server.key",
            "--ssl-ca-certfile", keys / "ca.pem",
        )  # fmt: skip
        _until_listening(port, link)
        for site, node_port in enumerate(node_ports, 1):
            start(
                f"supernode-{site}", "flower-supernode", "--superlink", address, "--root-certificates",
                keys / "ca.pem", "--port", node_port, "--node-config", f"site={site}",
            )  # fmt: skip
        settings = f"rounds={task.rounds} sites={task.sites} model-mb={task.model_mb}"
        settings += f' marks="{marks}" checked="{checked}"'
        submitted = start("run", "flwr", "run", HERE / "flower_app", "here", "--run-config", settings)
        wait_for_app("Flower", submitted, checked, task.scratch / "superlink.log", START_S + ROUND_S * task.rounds)
        time.sleep(0.3)  # One more look of the meter after the last round.
        return from_marks("flower", read_marks(marks), meter)


def _until_listening(port: int, link: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + LISTENS_S
    while is_free(port):
        if link.poll() is not None or time.monotonic() > give_up:
            raise CannotMeasure(f"Flower's SuperLink does not listen on port {port}")
        time.sleep(0.1)


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _name(command: list[str]) -> str | None:
    programs = {Path(word).name for word in command[:2]}
    for program in ("flower-superlink", "flower-supernode", "flwr-serverapp", "flwr-clientapp"):
        if program in programs:
            return program.partition("-")[2]
    return None
