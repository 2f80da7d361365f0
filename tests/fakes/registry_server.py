"""A real OCI distribution registry on loopback, for as long as a test needs it: Debian's `docker-registry`."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSTALLED = shutil.which("docker-registry") is not None
MISSING = "docker-registry is not installed (Debian: apt-get install docker-registry)"


# User and password of a guarded server, and the latter's bcrypt hash, which is all that it takes.
GUARD = ("ada", "correct horse")
_HASH = "$2b$04$Snqilj3lGCv9H7mi60cE9OTIOITLIJTU9aRt74IMenhuh6D/h9oOq"


class Server:
    """`docker-registry` on one port of loopback, over one folder; it may be stopped and started again. `guarded`: it
    wants to know who asks (HTTP basic)."""

    def __init__(self, folder: Path, *, guarded: bool = False) -> None:
        self.data = folder / "data"
        self._config = folder / "config.yml"
        self._log = folder / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._config.write_text(
            "version: 0.1\n"
            "log: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.data}}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '127.0.0.1:{self._port}'}}\n"
        )
        if guarded:
            (folder / "htpasswd").write_text(f"{GUARD[0]}:{_HASH}\n")
            with self._config.open("a") as config:
                config.write(f"auth: {{htpasswd: {{realm: tests, path: {folder / 'htpasswd'}}}}}\n")

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        with self._log.open("ab") as log:
            command = ["docker-registry", "serve", str(self._config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        _wait(self._process, self._port)

    def stop(self) -> None:
        """Also once it has been stopped."""
        self._process.terminate()
        self._process.wait()


@contextmanager
def registry_server(folder: Path, *, guarded: bool = False) -> Iterator[Server]:
    server = Server(folder, guarded=guarded)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    give_up = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert server.poll() is None, "the registry ended at its start"
            assert time.monotonic() < give_up, "the registry does not come up"
            time.sleep(0.05)
        else:
            return
