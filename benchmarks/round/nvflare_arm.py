"""NVIDIA FLARE in POC mode: server, clients and one more process of each for the job; mutual TLS, default transport.

Its own FedAvg workflow and client API; arrays are numpy's. It checks and seals nothing and, here, writes no model to
disk. A round lasts from the end of the one before it, when the workflow would save the model, to its own.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from environments import clean_environment, is_free
from measured import CannotMeasure, Measured, Task, from_marks, read_marks, wait_for_app
from meter import Meter

HERE = Path(__file__).parent
SHAPES = HERE / "echo_release/msfl/echo"
REQUIREMENTS = HERE / "nvflare_app/requirements.txt"
PORT = 8002  # POC mode has no other
START_S, ROUND_S = 180.0, 60.0


def measure(task: Task, bin_folder: Path) -> Measured:
    """Raises CannotMeasure."""
    for port in (PORT, PORT + 1):
        if not is_free(port):
            raise CannotMeasure(f"NVIDIA FLARE's POC mode needs port {port}, which is taken")
    marks, checked, log = (task.scratch / name for name in ("marks", "checked", "log"))
    environment = clean_environment(task.scratch / "home", bin_folder)
    environment["NVFLARE_POC_WORKSPACE"] = str(task.scratch / "poc")
    command = [bin_folder / "python", HERE / "nvflare_app/job.py", task.sites, task.rounds, task.model_mb]
    command += [SHAPES, marks, checked]
    with Meter(_name, PORT) as meter:
        with open(log, "wb") as output:
            child = subprocess.Popen(
                [str(word) for word in command], cwd=task.scratch, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        wait_for_app("NVIDIA FLARE", child, checked, log, START_S + ROUND_S * task.rounds)
        time.sleep(0.3)  # One more look of the meter after the last round.
        return from_marks("nvflare", read_marks(marks), meter)


def _name(command: list[str]) -> str | None:
    for module, name in (
        ("server.server_train", "server"),
        ("server.runner_process", "server job"),
        ("client.client_train", "client"),
        ("client.worker_process", "client job"),
    ):
        if f"nvflare.private.fed.app.{module}" in command:
            return name
    return None
