"""A site's staff and their browsers, in process: `StaffedSite` is a home with accounts and its page, `Browser`
sends to the page what a browser would, or what an attacker has it send.

    site = StaffedSite(folder)
    cleo = site.browser()
    assert cleo.log_in("cleo").status == 303
    assert cleo.post("/runs/run-1/stop", sure="yes").status == 303      with the token of the form, as browsers do
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

from argon2 import Parameters, Type
from starlette.types import ASGIApp, Message

from fakes.governance import NOW
from msfl.gateway.home import Home
from msfl.gateway.page.app import Page
from msfl.gateway.staff.accounts import Role
from msfl.gateway.staff.book import Book
from msfl.gateway.staff.desk import Desk
from msfl.gateway.staff.passwords import Passwords
from msfl.policies.audit import Entry
from msfl.protos.audit_log import LOG_NAME, AuditLog, read_entries

ORIGIN = "http://127.0.0.1:8780"
CHEAP = Parameters(Type.ID, 19, 16, 32, 1, 8, 1)
PASSWORDS = {"cleo": "blue kettle sings at noon", "vera": "nine quiet otters in tweed"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: str

    def header(self, name: str) -> str:
        """All values, joined; empty where there is none."""
        return ", ".join(value for key, value in self.headers if key == name)

    @property
    def token(self) -> str:
        found = re.search(r'name="token" value="([0-9a-f]*)"', self.body)
        return found.group(1) if found else ""


class Browser:
    """`cookies` is its jar. `headers` are sent with each request; None takes one away."""

    def __init__(self, app: ASGIApp, address: str, origin: str = ORIGIN) -> None:
        self._app = app
        self._address = address
        self._origin = origin
        self.cookies: dict[str, str] = {}

    def get(self, path: str, headers: Mapping[str, str | None] | None = None) -> Answer:
        return self.send("GET", path, headers)

    def log_in(self, name: str, password: str | None = None) -> Answer:
        return self.post("/login", name=name, password=PASSWORDS[name] if password is None else password, token=None)

    def post(self, path: str, headers: Mapping[str, str | None] | None = None, **fields: str | None) -> Answer:
        """A form with the session's token, unless `token` says otherwise; None leaves a field out."""
        if "token" not in fields:
            fields["token"] = self.get("/password").token
        body = urlencode({name: value for name, value in fields.items() if value is not None}).encode()
        return self.send("POST", path, headers, body)

    def send(
        self, method: str, path: str, headers: Mapping[str, str | None] | None = None, body: bytes = b""
    ) -> Answer:
        host = self._origin.partition("://")[2]
        sent: dict[str, str | None] = {"host": host}
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if method == "POST":
            sent |= {"origin": self._origin, "sec-fetch-site": "same-origin"}
            sent["content-type"] = "application/x-www-form-urlencoded"
        sent |= headers or {}
        pairs = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in sent.items() if v is not None]
        answer = asyncio.run(self._exchange(method, path, pairs, body))
        self._keep(value for name, value in answer.headers if name == "set-cookie")
        return answer

    async def _exchange(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Answer:
        said: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            said.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": self._origin.partition("://")[0],
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": (self._address, 40000),
            "server": ("127.0.0.1", 8780),
        }
        await self._app(scope, receive, send)
        got = tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in said[0]["headers"])
        return Answer(said[0]["status"], got, b"".join(m.get("body", b"") for m in said[1:]).decode())

    def _keep(self, set_cookies: Iterable[str]) -> None:
        for line in set_cookies:
            name, _, value = line.partition(";")[0].partition("=")
            if "Max-Age=0" in line:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value


class StaffedSite:
    """Accounts: cleo, custodian, and vera, viewer. `home` must have its settings and its site root."""

    def __init__(self, home: Home, origins: tuple[str, ...] = (ORIGIN,), now: datetime = NOW) -> None:
        self.home = home
        self.now = now
        self.origins = origins
        self.open()
        for name, role in (("cleo", Role.CUSTODIAN), ("vera", Role.VIEWER)):
            if name not in [a.name for a in self.desk.accounts()]:
                self.desk.add(name, role, PASSWORDS[name], "ida")

    def open(self) -> None:
        """As `msfl gateway page` puts it together, but for what a hash costs."""
        site = self.home.settings().site
        self.audit = AuditLog(self.home.audit / LOG_NAME, f"staff {site}")
        self.book = Book(self.home.staff)
        self.desk = Desk(self.book, self.audit, Passwords(CHEAP), site, lambda: self.now, os.urandom)
        self.app = Page(self.home, self.desk, self.audit, self.origins, lambda: self.now).app()

    def close(self) -> None:
        self.audit.close()
        self.book.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def browser(self, address: str = "127.0.0.1") -> Browser:
        return Browser(self.app, address, self.origins[0])

    def later(self, **by: float) -> None:
        self.now += timedelta(**by)

    # -------------------------------------------------------------- what can be seen

    def entries(self, action: str = "") -> list[Entry]:
        log = read_entries(self.home.audit / LOG_NAME)
        return [e for e in log if e.action.startswith(action or "staff")]

    def codes(self, action: str) -> list[str]:
        return [str(e.fields.get("code", "")) for e in self.entries(action)]

    def everything_written(self) -> bytes:
        """Every byte in the home."""
        return b"".join(f.read_bytes() for f in sorted(Path(self.home.root).rglob("*")) if f.is_file())
