"""`msfl gateway doctor` and `msfl orchestrator doctor` beside a live federation, well and not.

A federation of its own: these stories take its parts away.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fakes.federations import LiveFederation, until
from msfl.gateway.home import Home
from msfl.orchestrator.keyring.authority import sign_site
from msfl.policies.documents import Isolation
from msfl.protos.certificates import Identity
from msfl.protos.channel import make_csr
from msfl.runtime.process import ProcessRuntime
from msfl.sdk.demo.processes import msfl

pytestmark = [pytest.mark.system, pytest.mark.slow]
SITE = "site-a"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFederation]:
    with LiveFederation.up(tmp_path_factory.mktemp("doctor")) as live:
        yield live


def centre(live: LiveFederation) -> Path:
    return live.federation.folder / "centre"


def gateway_doctor(live: LiveFederation, *before: str) -> tuple[int, list[dict[str, Any]]]:
    return _doctor([*before, *msfl("gateway", "doctor", "--json", "--home", live.home(SITE))])


def orchestrator_doctor(live: LiveFederation) -> tuple[int, list[dict[str, Any]]]:
    return _doctor(msfl("orchestrator", "doctor", "--json", "--home", centre(live)))


def _doctor(command: list[str]) -> tuple[int, list[dict[str, Any]]]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def bad(findings: list[dict[str, Any]]) -> list[str]:
    return [f["check"] for f in findings if f["status"] == "bad"]


def test_a_federation_that_is_well(own: LiveFederation) -> None:
    run = own.client.submit(own.job())
    assert run.wait()["phase"] == "finished"
    code, findings = gateway_doctor(own)
    assert (code, bad(findings)) == (0, [])
    assert {"dns", "tcp", "tls", "rpc", "clock", "certificate", "disk", "version"} <= {f["check"] for f in findings}
    code, findings = orchestrator_doctor(own)
    assert (code, bad(findings)) == (0, [])
    sites = [f for f in findings if f["check"] == "sites"]
    assert [f["where"] for f in sites] == ["site-a", "site-b", "site-c"]
    assert all("last spoke in a run" in f["what"] for f in sites)
    shown = own.command("orchestrator", "doctor", "--home", centre(own))
    assert shown.stdout.splitlines()[-1].startswith("0 bad, 0 to look at")


def test_a_run_that_waits_is_named_on_both_sides(own: LiveFederation) -> None:
    with own.policies_put_back():
        own.sign_policy(SITE, own.policy(SITE).replace("mode: auto", "mode: confirm"))
        run = own.client.submit(own.job())
        until(lambda: Home(own.home(SITE)).pending(), "the run to wait for the custodian")
        until(lambda: run.state()["sites"][SITE]["standing"] == "needs confirmation", "the centre to hear of it")
        code, findings = gateway_doctor(own)
        assert code == 0
        assert any(f"{run.run_id} waits for the custodian" in f["what"] for f in findings if f["status"] == "warn")
        code, findings = orchestrator_doctor(own)
        assert code == 0
        assert any(f"the custodians of {SITE}" in f["what"] for f in findings if f["check"] == "runs")
        run.abort()


def test_an_expired_certificate(own: LiveFederation) -> None:
    home = Home(own.home(SITE))
    good = home.identity()
    key, csr = make_csr(SITE)
    ca_key, ca = (centre(own) / "keyring/ca.key").read_bytes(), (centre(own) / "keyring/ca.pem").read_bytes()
    past = datetime.now(UTC) - timedelta(days=40)
    try:
        home.write_identity(Identity(key, sign_site(ca_key, ca, csr, SITE, past)))
        code, findings = gateway_doctor(own)
    finally:
        home.write_identity(good)
    assert (code, bad(findings)) == (1, ["certificate", "tls"])
    assert "has expired" in findings[0]["what"]
    assert f"msfl orchestrator token create {SITE}" in findings[0]["do"]
    assert "enrol --again" in findings[0]["do"]
    assert findings[1]["what"] == "fails: our_certificate"


def test_a_home_that_can_only_be_read(own: LiveFederation) -> None:
    if ProcessRuntime().protections().isolation is Isolation.NONE:
        pytest.skip("needs bubblewrap to mount a folder read-only")
    bwrap = shutil.which("bwrap")
    assert bwrap is not None
    home = str(own.home(SITE))
    code, findings = gateway_doctor(own, bwrap, "--dev-bind", "/", "/", "--ro-bind", home, home, "--")
    assert (code, bad(findings)) == (1, ["disk"])
    assert "Read-only file system" in findings[0]["what"]


def test_a_stopped_orchestrator_and_a_stopped_keyring(own: LiveFederation) -> None:
    own.end("orchestrator")
    code, findings = gateway_doctor(own)
    assert (code, bad(findings)) == (1, ["tcp"])
    assert "nothing listens on this port" in findings[0]["why"]
    own.end("keyring")
    code, findings = orchestrator_doctor(own)
    assert (code, bad(findings)) == (1, ["port for people and enrolment", "port for gateways", "keyring"])
    assert any(f["check"] == "store" and "sound" in f["what"] for f in findings)


def test_a_new_server_certificate_is_served_after_a_restart(own: LiveFederation) -> None:
    own.processes.start("keyring", msfl("orchestrator", "keyring", "--home", centre(own)))
    own.processes.start("orchestrator", msfl("orchestrator", "serve", "--home", centre(own)))
    until(lambda: orchestrator_doctor(own)[0] == 0, "the centre to come back")
    made = own.command("orchestrator", "certificate", "--home", centre(own))
    assert "for localhost, 127.0.0.1" in made.stdout
    code, findings = orchestrator_doctor(own)
    assert code == 0
    assert [f["check"] for f in findings if f["status"] == "warn"] == [
        "port for people and enrolment",
        "port for gateways",
    ]
    own.end("orchestrator")
    own.processes.start("orchestrator", msfl("orchestrator", "serve", "--home", centre(own)))
    until(lambda: all(f["status"] == "ok" for f in orchestrator_doctor(own)[1]), "the new certificate to be served")
    until(own.all_present, "the gateways to come back")
