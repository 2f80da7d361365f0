"""A site's certificate runs out in the middle of a run: it is renewed, or the run ends without; then a token helps.

A federation of its own: these stories stop the keyring and a gateway.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fakes.federations import STEADY, LiveFederation, held, until
from msfl.gateway.home import Home
from msfl.orchestrator.keyring.authority import sign_site
from msfl.protos.certificates import CertificateFacts, Identity, certificate_facts
from msfl.protos.channel import make_csr
from msfl.sdk.demo.processes import msfl
from msfl.sdk.run import Run

pytestmark = [pytest.mark.system, pytest.mark.slow]
SITE = "site-a"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFederation]:
    with LiveFederation.up(tmp_path_factory.mktemp("expiry")) as live:
        yield live


def give_certificate(live: LiveFederation, life: timedelta) -> None:
    """As the keyring would issue it, only shorter; the running gateway finds it in its home."""
    keyring = live.federation.folder / "centre/keyring"
    key, csr = make_csr(SITE)
    ca_key, ca = (keyring / "ca.key").read_bytes(), (keyring / "ca.pem").read_bytes()
    certificate = sign_site(ca_key, ca, csr, SITE, datetime.now(UTC), life)
    Home(live.home(SITE)).write_identity(Identity(key, certificate))


def facts(live: LiveFederation) -> CertificateFacts:
    home = Home(live.home(SITE))
    return certificate_facts(home.identity().certificate_pem, home.ca_pem)


def gateway_log(live: LiveFederation) -> list[dict[str, Any]]:
    text = (live.federation.folder / "logs" / f"gateway:{SITE}.log").read_text()
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def dialled(live: LiveFederation) -> int:
    return sum(line["event"] == "dialling with a new certificate" for line in gateway_log(live))


def is_present(live: LiveFederation) -> bool:
    return any(row["site"] == SITE and row["present"] for row in live.client.datasets())


def training(run: Run) -> bool:
    return len(run.state()["rounds"]) >= 1


def test_it_is_renewed_while_a_run_goes_on(own: LiveFederation) -> None:
    run = own.client.submit(own.job(rounds=12, min_sites=3, **STEADY))
    until(lambda: training(run), "the first round")
    with held(*own.workers("site-b")):  # The round waits for it meanwhile.
        give_certificate(own, timedelta(minutes=1))
        until(lambda: facts(own).not_after - datetime.now(UTC) > timedelta(days=29), "the renewal")
        until(lambda: dialled(own) >= 2, "the gateway to dial with the renewed certificate")
        assert run.state()["phase"] == "running", "the story is about a run that goes on"
    state = run.wait()
    assert state["phase"] == "finished"
    assert [sorted(r["sites"]) for r in state["rounds"]] == [["site-a", "site-b", "site-c"]] * 12
    assert [r["late"] for r in state["rounds"]] == [[]] * 12
    (renewed,) = [e for e in own.audit(SITE) if e["action"] == "certificate renewed"]
    assert renewed["object"] == SITE
    assert is_present(own)


def test_a_run_ends_over_an_open_line_and_after_a_cut_a_token_brings_the_site_back(own: LiveFederation) -> None:
    run = own.client.submit(own.job(rounds=20, min_sites=3, **STEADY))
    until(lambda: training(run), "the first round")
    # Nobody renews: the keyring is down.
    own.end("keyring")
    before = dialled(own)
    with held(*own.workers("site-b")):  # The round waits for it meanwhile.
        give_certificate(own, timedelta(seconds=4))
        until(lambda: dialled(own) > before, "the gateway to dial with it")
        until(lambda: datetime.now(UTC) > facts(own).not_after, "the certificate to expire")
        assert len(run.state()["rounds"]) < 20, "the story is about a run that goes on"
    state = run.wait()
    assert state["phase"] == "finished"
    assert len(state["rounds"]) == 20
    assert [r["late"] for r in state["rounds"]] == [[]] * 20

    # The line is cut: nobody lets the site in, and it says why, once.
    own.end(f"gateway:{SITE}")
    own.processes.start(f"gateway:{SITE}", msfl("gateway", "serve", "--home", own.home(SITE)))
    until(lambda: any("has expired" in line["event"] for line in gateway_log(own)), "the gateway to say it")
    until(lambda: not is_present(own), "the site to be missed")
    said = [line for line in gateway_log(own) if "has expired" in line["event"]]
    assert len(said) == 1
    assert f"msfl orchestrator token create {SITE}" in said[0]["do"]
    doctor = own.command("gateway", "doctor", "--home", own.home(SITE))
    assert doctor.returncode == 1
    assert "has expired" in doctor.stdout
    assert f"msfl orchestrator token create {SITE}" in doctor.stdout

    # A new token, over the same home, under the running gateway.
    centre = own.federation.folder / "centre"
    own.processes.start("keyring", msfl("orchestrator", "keyring", "--home", centre))
    file = own.federation.folder / "second.token"
    made = own.command("orchestrator", "token", "create", SITE, "--home", centre, "--out", file)
    assert made.returncode == 0, made.stdout + made.stderr
    root = (own.home(SITE) / "trust/site-root.dsse").read_bytes()
    entries = len(own.audit(SITE))
    somebody = ("--custodian", "x", "--custodian-key", centre / "keyring/ca.key")
    refused = own.command("gateway", "enrol", file, "--yes", "--home", own.home(SITE), *somebody)
    assert refused.returncode == 1
    joined = own.command("gateway", "enrol", "--again", file, "--home", own.home(SITE))
    assert joined.returncode == 0, joined.stdout + joined.stderr
    until(lambda: is_present(own), "the site to come back")
    assert (own.home(SITE) / "trust/site-root.dsse").read_bytes() == root
    assert len(own.audit(SITE)) >= entries
    once_more = own.client.submit(own.job(min_sites=3))
    assert once_more.wait()["phase"] == "finished"
