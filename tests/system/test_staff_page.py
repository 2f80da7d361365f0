"""A custodian's Friday evening: `msfl gateway page` as a process of its own beside a serving gateway, over loopback.

The account's password is typed at a terminal; the page is asked by HTTP, as a browser does; a run really stops.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import pty
import re
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import pytest

from fakes.federations import PATIENCE_S, STEADY, LiveFederation, until
from msfl.gateway.home import Home
from msfl.policies.refusals import Code
from msfl.sdk.demo.processes import msfl

pytestmark = [pytest.mark.system, pytest.mark.slow]
SITE = "site-b"
PASSWORD = "four green parcels arrive"


def typed(arguments: list[str], *answers: str) -> str:
    """Run a command at a terminal of its own, where somebody types; what stood on the screen."""
    terminal, end = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    child = subprocess.Popen(
        arguments, stdin=end, stdout=end, stderr=end, start_new_session=True, preexec_fn=take_terminal
    )
    os.close(end)
    screen, asked, give_up = b"", 0, time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        try:
            screen += os.read(terminal, 4096)
        except OSError:  # The other end is closed: the command is done.
            break
        if asked < len(answers) and screen.count(b": ") > asked:
            os.write(terminal, answers[asked].encode() + b"\n")
            asked += 1
    os.close(terminal)
    assert child.wait(PATIENCE_S) == 0, screen.decode()
    return screen.decode()


@dataclass
class Page:
    port: int
    cookie: str = ""
    sent: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, **form: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        headers = {"Cookie": self.cookie, "Origin": f"http://127.0.0.1:{self.port}", **self.sent}
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request(method, path, urlencode(form) if method == "POST" else None, headers)
        answer = connection.getresponse()
        if (cookie := answer.getheader("set-cookie")) is not None:
            self.cookie = cookie.partition(";")[0]
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def token(self) -> str:
        found = re.search(r'name="token" value="([0-9a-f]{64})"', self.ask("GET", "/password")[1])
        assert found is not None
        return found.group(1)


@pytest.fixture
def page(live: LiveFederation, tmp_path: Path) -> Iterator[Page]:
    home, custodian = live.home(SITE), sorted(Home(live.home(SITE)).custodians())[0]
    add = msfl("gateway", "account", "add", custodian, "--home", home, "--role", "custodian", "--by", "ida")
    screen = typed(add, PASSWORD, PASSWORD)
    assert PASSWORD not in screen
    said = tmp_path / "page.txt"
    with said.open("wb") as out:
        child = subprocess.Popen(msfl("gateway", "page", "--home", home, "--port", "0"), stdout=out)
    try:
        port = until(lambda: re.search(r"http://127\.0\.0\.1:(\d+)/", said.read_text()), "the page to say where it is")
        yield Page(int(port.group(1)))
    finally:
        child.terminate()
        child.wait(PATIENCE_S)
        live.command("gateway", "account", "remove", custodian, "--home", home, "--by", "ida")


def test_a_custodian_logs_in_sees_what_runs_and_stops_it(live: LiveFederation, page: Page) -> None:
    custodian = sorted(Home(live.home(SITE)).custodians())[0]
    assert page.ask("GET", "/")[0] == 303
    assert page.ask("POST", "/login", name=custodian, password="a wrong password")[0] == 401
    assert page.ask("POST", "/login", name=custodian, password=PASSWORD)[0] == 303
    run = live.client.submit(live.job(min_sites=2, rounds=20, **(STEADY | {"local_epochs": 20})))
    until(lambda: "task begins" in live.actions(SITE, run.run_id), "the run to begin")
    status, text = page.ask("GET", "/")
    assert status == 200
    assert run.run_id in text
    assert f"{SITE}/lesions" in text

    page.sent = {"Origin": "https://evil.example"}
    assert page.ask("POST", f"/runs/{run.run_id}/stop", token=page.token(), sure="yes")[0] == 403
    page.sent = {}
    assert page.ask("POST", f"/runs/{run.run_id}/stop", token=page.token(), sure="yes")[0] == 303
    until(lambda: "custodian stops the run" in live.actions(SITE, run.run_id), "the gateway to hear it")
    until(lambda: not live.workers(SITE), "its worker to end")
    until(lambda: run.state()["sites"][SITE]["standing"] == "out", "the centre to hear it")
    assert run.state()["sites"][SITE]["code"] == Code.CUSTODIAN_STOPPED.value
    run.abort()

    mine = [e for e in live.audit(SITE) if e["actor"] == f"staff {SITE}" and e["action"] != "staff account removed"]
    assert [e["action"] for e in mine] == [
        "staff account added",
        "staff login failed",
        "staff logged in",
        "staff request refused",
        "staff stops run",
    ]
    assert [e["fields"].get("code") for e in mine] == [None, "login_refused", None, "request_forged", None]
    assert live.command("gateway", "audit", "--home", live.home(SITE)).returncode == 0
