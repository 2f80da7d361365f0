"""A real OpenID provider on loopback (npm's oidc-provider), and a person with a browser who logs in there.

    with OidcServer.up(folder, audience) as server:
        server.log_in("http://…/device?user_code=…", "ada")

`make oidc` installs it; where it is not installed, `reason_to_skip` says so.
"""

from __future__ import annotations

import http.cookiejar
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "system" / "oidc"
ROBOT_SECRET = "robot-secret-of-the-tests-0123456789"


def reason_to_skip() -> str:
    """Empty: the provider can be started."""
    if shutil.which("node") is None:
        return "no OpenID provider to test against: node is not installed"
    if not (FOLDER / "node_modules" / "oidc-provider").is_dir():
        return "no OpenID provider to test against: run `make oidc`"
    return ""


@dataclass
class OidcServer:
    port: int
    audience: str
    dpop: bool
    log: Path
    child: subprocess.Popen[str] | None = None

    @classmethod
    @contextmanager
    def up(cls, log: Path, audience: str, *, dpop: bool) -> Iterator[OidcServer]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        server = cls(port, audience, dpop, log)
        server.start()
        try:
            yield server
        finally:
            server.stop()

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """With new signing keys each time."""
        kind = "dpop" if self.dpop else "plain"
        command = ["node", str(FOLDER / "server.mjs"), str(self.port), self.audience, kind]
        with self.log.open("a") as errors:
            self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=FOLDER)
        assert self.child.stdout is not None
        lines = iter(self.child.stdout.readline, "")
        assert any(line == "ready\n" for line in lines), self.log.read_text()

    def stop(self) -> None:
        if self.child is not None:
            assert self.child.stdout is not None
            self.child.terminate()
            self.child.wait(20)
            self.child.stdout.close()
            self.child = None

    def log_in(self, address: str, name: str) -> str:
        """Fill in every form until there is none: code, confirmation, name, consent. The last page's text."""
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        with opener.open(address, timeout=20) as page:
            where, text = page.url, page.read().decode()
        for _ in range(10):
            form = re.search(r'<form[^>]*action="([^"]*)"[^>]*>(.*?)</form>', text, re.DOTALL)
            if form is None:
                return str(text)
            fields = dict(re.findall(r'<input[^>]*name="([^"]*)"[^>]*value="([^"]*)"', form[2]))
            fields |= {field: name for field in ("login", "password") if f'name="{field}"' in form[2]}
            target = urllib.parse.urljoin(where, form[1])
            with opener.open(target, urllib.parse.urlencode(fields).encode(), timeout=20) as page:
                where, text = page.url, page.read().decode()
        raise AssertionError(f"the login at {where} does not end")
