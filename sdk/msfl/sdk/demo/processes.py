"""The demo's processes: start, wait, measure, and end every one of them whatever happens.

Every child is in a session of its own, so that Ctrl-C reaches the demo alone and it can close the federation in order;
and every child asks the kernel to be ended when the demo dies, so that not even `kill -9` leaves one behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from msfl.policies.refusals import CannotProceed
from msfl.sdk.parent import END_WITH


class CommandFailed(CannotProceed):
    """A command of the demo ended badly. The message ends with its last words."""


def msfl(*arguments: str | Path) -> list[str]:
    """The command line of `msfl …` in this very environment."""
    return [sys.executable, "-m", "msfl.sdk.main", *map(str, arguments)]


class Processes:
    """All children of one demo."""

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._peaks: dict[str, float] = {}
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="spawner")
        self._stop = threading.Event()
        self._closing = threading.Lock()
        self._meter = threading.Thread(target=self._measure, name="memory", daemon=True)
        self._meter.start()

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self._logs / f"{name}.log", "ab") as log:
            return self._spawn(name, command, log.fileno(), log.fileno())

    def kill(self, name: str) -> None:
        """SIGKILL, as a machine that loses power would; `start` with the same name starts it again."""
        child = self._children[name]
        child.kill()
        child.wait()

    def run(self, name: str, *commands: list[str]) -> str:
        """Run commands one after the other to their ends; the last one's output. Raises CommandFailed."""
        output = b""
        for command in commands:
            child = self._spawn(f"{name} {len(self._children)}", command, subprocess.PIPE, subprocess.PIPE)
            output, errors = child.communicate()
            with open(self._logs / f"{name}.log", "ab") as log:
                log.write(output + errors)
            if child.returncode != 0:
                said = (errors or output).decode(errors="replace").strip()
                raise CommandFailed(said or f"{name} ended with status {child.returncode}")
        return output.decode()

    def _spawn(self, name: str, command: list[str], out: int, errors: int) -> subprocess.Popen[bytes]:
        def spawn() -> subprocess.Popen[bytes]:
            if self._stop.is_set():
                raise CommandFailed("everything is being stopped")
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                start_new_session=True,
                env={**os.environ, "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": "1", END_WITH: str(os.getpid())},
            )

        # The kernel ends a child when the *thread* that made it ends, so one thread that stays makes them all.
        child = self._spawner.submit(spawn).result()
        self._children[name] = child
        return child

    def ended(self) -> str | None:
        """The name of a long-running part that is not running any more."""
        return next((n for n, c in self._children.items() if " " not in n and c.poll() not in (None, 0)), None)

    def last_words(self, name: str) -> str:
        return (self._logs / f"{name}.log").read_text(errors="replace")[-1500:]

    def peaks(self) -> dict[str, float]:
        """Peak resident memory by process name, and of all together under `all processes`, in MiB."""
        return {name: round(mib, 1) for name, mib in self._peaks.items()}

    def close(self) -> None:
        """End everything, gateways before the centre, politely and then surely."""
        with self._closing:
            self._close()

    def _close(self) -> None:
        self._stop.set()
        family = self._family()
        for name in sorted(self._children, key=lambda n: not n.startswith("gateway")):
            child = self._children[name]
            if child.poll() is None:
                child.send_signal(signal.SIGINT)  # As by hand: a gateway takes its workers with it.
        give_up = time.monotonic() + 8.0
        for child in self._children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.1, give_up - time.monotonic()))
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    process.kill()
        for child in self._children.values():
            child.wait()

    # ---------------------------------------------------------------- memory

    def _family(self) -> list[psutil.Process]:
        """Our children and theirs; of others that this process may have, none."""
        found: list[psutil.Process] = []
        for child in list(self._children.values()):
            if child.returncode is not None:
                continue  # Reaped: its number may be another's by now.
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(child.pid)
                found += [process, *process.children(recursive=True)]
        return found

    def _measure(self) -> None:
        while not self._stop.wait(1.0):
            total = psutil.Process().memory_info().rss
            now: dict[str, float] = {"demo": total / 2**20}
            named = {child.pid: name for name, child in list(self._children.items())}
            for process in self._family():
                try:
                    rss = process.memory_info().rss
                    name = named.get(process.pid) or _contained(process.cmdline())
                except psutil.Error:
                    continue
                total += rss
                if name is not None and " " not in name:
                    now[name] = now.get(name, 0.0) + rss / 2**20
            now["all processes"] = total / 2**20
            for name, mib in now.items():
                self._peaks[name] = max(mib, self._peaks.get(name, 0.0))


def _contained(command: list[str]) -> str | None:
    """`worker:site-a` or `aggregator`, from the command line that the runtime gave it."""
    if "--role" not in command or "bwrap" in command[0]:
        return None
    role = command[command.index("--role") + 1]
    return f"{role}:{command[command.index('--site') + 1]}" if "--site" in command else role
