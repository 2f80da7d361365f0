"""`Party`: somebody with a folder, a Python of their own and a network namespace; and the wire between all of them.

A party's process sees its own folder. Those of the others, and this repository, are empty to it; what somebody hands
over, the test copies, as a person with a USB stick would. The wire is a bridge in a namespace that has no way out.
Only root can make this.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_HIDE = 'while [ "$1" != -- ]; do mount -t tmpfs none "$1" || exit 99; shift; done; shift; exec "$@"'
_REPOSITORY = Path(__file__).resolve().parents[2]


def why_not() -> str | None:
    """Why this machine cannot make namespaces; None when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [tool for tool in ("ip", "unshare", "mount") if shutil.which(tool) is None]:
        return f"there is no {', '.join(missing)}"
    name = f"msfl{os.getpid()}t"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no network namespace can be made: {tried.stderr.strip()}"
    made = ["ip", "-n", name, "link", "add", "br0", "type", "bridge"]
    tried = subprocess.run(made, capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], check=True)
    return f"no bridge can be made: {tried.stderr.strip()}" if tried.returncode else None


@dataclass
class Party:
    name: str
    folder: Path
    address: str
    namespace: str
    hidden: list[Path]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def install(self, wheel: Path, extras: str, *more: str) -> None:
        """A virtual environment with this package's extras and nothing of anybody else."""
        subprocess.run([sys.executable, "-m", "venv", self.folder / "venv"], check=True)
        pip = [str(self.folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"msfl[{extras}] @ {wheel.as_uri()}" if extras else str(wheel), *more], check=True)

    def _inside(self, *command: str | Path) -> list[str]:
        python = self.folder / "venv/bin/python"
        enter = ["ip", "netns", "exec", self.namespace, "unshare", "-m", "sh", "-c", _HIDE, "sh"]
        return [*enter, *map(str, self.hidden), "--", str(python), *map(str, command)]

    @property
    def _environment(self) -> dict[str, str]:
        mine = {"HOME": str(self.folder), "MSFL_CREDENTIALS": str(self.folder / "credentials.json")}
        return {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", **mine}

    def python(self, program: str) -> str:
        return self._run(self._inside("-c", program))

    def msfl(self, *arguments: str | Path) -> str:
        """What the command prints. Raises AssertionError with what it said when it fails."""
        return self._run(self._inside("-m", "msfl.sdk.main", *arguments))

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, f"{self.name}: {command[-6:]}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *arguments: str | Path) -> None:
        with open(self.folder / "log", "ab") as log:
            command = self._inside("-m", "msfl.sdk.main", *arguments)
            self.running.append(
                subprocess.Popen(command, cwd=self.folder, env=self._environment, stdout=log, stderr=log)
            )

    def stop(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def parties(folder: Path, *names: str) -> Iterator[list[Party]]:
    """Each with an address of its own, 10.77.0.1 and up; all on one wire."""
    tag = f"m{os.getpid()}"
    hub, made = f"{tag}hub", []
    folders = {name: folder / name for name in names}
    for own in folders.values():
        own.mkdir(mode=0o700)
    all_of_them = []
    try:
        _ip("netns", "add", hub)
        made.append(hub)
        _ip("-n", hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", hub, "link", "set", "br0", "up")
        for i, name in enumerate(names, 1):
            space, address = f"{tag}n{i}", f"10.77.0.{i}"
            _ip("netns", "add", space)
            made.append(space)
            _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{i}", "netns", hub)
            _ip("-n", hub, "link", "set", f"port{i}", "master", "br0", "up")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", space, "link", "set", device, "up")
            hidden = [*(f for n, f in folders.items() if n != name), _REPOSITORY]
            all_of_them.append(Party(name, folders[name], address, space, hidden))
        yield all_of_them
    finally:
        for party in reversed(all_of_them):
            party.stop()
        for space in reversed(made):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", space)
