"""What the federation's keepers and a site's custodian revoke, by their commands, in a federation of real processes.

A revocation is for good, so these stories have a federation of their own, and come one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from fakes.federations import SITES, STEADY, LiveFederation, until
from msfl.sdk.demo.federation import KEEPER, TIMEKEEPER
from msfl.sdk.run import Run, RunEnded, SiteRefusal

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFederation]:
    with LiveFederation.up(tmp_path_factory.mktemp("federation")) as federation:
        yield federation


def keepers_say(own: LiveFederation, command: str, who: str, *more: str) -> None:
    trust, key = own.federation.folder / "centre/trust", own.federation.folder / f"keys/{who}.pem"
    said = own.command("federation", command, "--trust", trust, "--key", key, *more)
    assert said.returncode == 0, said.stdout + said.stderr


def running(own: LiveFederation, *datasets: str) -> Run:
    """It lasts minutes: whatever befalls it does so before its end."""
    job = own.job(rounds=20, min_sites=2, **(STEADY | {"local_epochs": 20}))
    if datasets:
        job = job.model_copy(update={"datasets": datasets})
    run = own.client.submit(job)
    until(lambda: all("task begins" in own.actions(site, run.run_id) for site in job.sites), "all sites to begin")
    return run


def ended_at(own: LiveFederation, run: Run, site: str, since: float) -> str:
    """The code; within ten seconds of `since` no worker is left."""
    until(lambda: not own.workers(site), "the worker to end")
    assert time.monotonic() - since < 10
    until(lambda: run.state()["sites"][site]["standing"] == "out", "the site to say so")
    return str(run.state()["sites"][site]["code"])


def refusals(own: LiveFederation) -> dict[str, str]:
    """What each refusing site says to a job of today; nothing starts."""
    answers = own.client.explain(own.job())
    return {site: said["refusal"]["code"] for site, said in answers.items() if said.get("refusal")}


def test_without_a_fresh_timestamp_no_run_begins_and_with_one_it_does(own: LiveFederation) -> None:
    keepers_say(own, "timestamp", TIMEKEEPER, "--hours", "0.0003")
    until(lambda: all(_timestamps(own, site) == ["1", "2"] for site in SITES), "the sites to hear of it")
    time.sleep(1.2)  # Until it has expired.
    assert refusals(own) == dict.fromkeys(SITES, "trust_stale")
    with pytest.raises(SiteRefusal, match="timestamp"):
        own.client.submit(own.job()).wait()
    assert all(not own.workers(site) for site in SITES)
    keepers_say(own, "timestamp", TIMEKEEPER)
    until(lambda: all(len(_timestamps(own, site)) == 3 for site in SITES), "the sites to hear of the new one")
    assert own.client.submit(own.job()).wait()["phase"] == "finished"


def test_a_custodian_revokes_what_runs_and_the_run_goes_on_without_the_site(own: LiveFederation) -> None:
    run = running(own)
    assert own.federation.statement is not None
    digest = own.federation.statement.digest
    asked = time.monotonic()
    said = own.command("gateway", "revoke", "--home", own.home("site-b"), "--by", "cleo", "--release", digest)
    assert said.returncode == 0, said.stdout + said.stderr
    assert ended_at(own, run, "site-b", asked) == "release_revoked"
    assert run.state()["phase"] == "running"
    assert own.workers("site-a")
    (entry,) = (e for e in own.audit("site-b") if e["action"] == "revoked here")
    assert (entry["object"], entry["fields"]) == (f"release {digest}", {"by": "cleo"})
    run.abort()
    until(lambda: not any(own.workers(site) for site in SITES), "the workers to end")


def test_a_restarted_gateway_has_not_forgotten(own: LiveFederation) -> None:
    own.kill("gateway:site-b")
    own.start_again("gateway:site-b")
    until(own.all_present, "the gateway to be back")
    assert refusals(own) == {"site-b": "release_revoked"}


def test_the_federation_revokes_a_site(own: LiveFederation) -> None:
    datasets = [f"{site}/lesions" for site in ("site-a", "site-c")]
    run = running(own, *datasets)
    asked = time.monotonic()
    keepers_say(own, "revoke", KEEPER, "--site", "site-c")
    assert ended_at(own, run, "site-c", asked) == "site_revoked"
    with pytest.raises(RunEnded, match="quorum_not_reached"):  # Two sites were in it, and one is not enough.
        run.wait()


def _timestamps(own: LiveFederation, site: str) -> list[str]:
    taken = [e for e in own.audit(site) if e["action"] == "document taken" and e["object"] == "timestamp demo"]
    return [e["fields"]["version"] for e in taken]
