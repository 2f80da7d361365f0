"""A container engine for tests: the one that MSFL_TEST_ENGINE names (unix:///…), else a `dockerd` of the tests' own.

Its folder, its containers and images are gone afterwards; it touches no network of the machine. Where none can be had,
tests that need one skip and say why; with MSFL_TESTS_NEED_ENGINE set, as `.ci/run` does, that is a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from msfl.runtime.docker import DockerRuntime
from msfl.runtime.engine import EngineFails

PATIENCE_S = 60.0


@contextmanager
def container_engine() -> Iterator[str]:
    """The address of an engine that answers."""
    if given := os.environ.get("MSFL_TEST_ENGINE"):
        yield given
        return
    if os.getuid() != 0 or shutil.which("dockerd") is None:
        none(
            "dockerd is not installed, or this is not root (Debian: apt-get install docker.io); or set MSFL_TEST_ENGINE"
        )
    folder = Path(tempfile.mkdtemp(prefix="msfl-engine-"))
    address = f"unix://{folder / 'd.sock'}"
    command = [
        "dockerd", "--host", address, "--data-root", str(folder / "data"), "--exec-root",
        str(folder / "exec"), "--pidfile", str(folder / "pid"), "--bridge", "none",
        "--iptables=false", "--ip6tables=false",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        # A PATH of its own: dockerd starts containerd and runc.
        daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(daemon, address, folder / "log")
        yield address
    finally:
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(30)
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
            with suppress(OSError, ValueError):  # It would have ended it itself.
                os.kill(int((folder / "exec/containerd/containerd.pid").read_text()), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def none(why: str) -> None:
    """Raises what pytest skips by, or fails by where an engine must be there."""
    if os.environ.get("MSFL_TESTS_NEED_ENGINE"):
        pytest.fail(f"an engine must be here: {why}", pytrace=False)
    pytest.skip(f"no container engine: {why}")


def _listens(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as there:
        return there.connect_ex(address.removeprefix("unix://")) == 0


def _wait(daemon: subprocess.Popen[bytes], address: str, log: Path) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while True:
        if not _listens(address) and daemon.poll() is None and time.monotonic() < give_up:
            time.sleep(0.1)  # The SDK leaves a socket open for each time that nobody listens.
            continue
        try:
            DockerRuntime(address, keeper="the tests").close()
        except EngineFails:
            if daemon.poll() is not None or time.monotonic() > give_up:
                none(f"dockerd does not start here: {log.read_text().splitlines()[-1:]}")
            time.sleep(0.1)
        else:
            return
