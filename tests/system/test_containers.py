"""A release in containers, from a real registry: pushed, reviewed, pulled by digest and run by three sites and the
centre; the same release as sandboxed processes; and what happens when a gateway or the engine's containers die."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest

from fakes.federations import SITES, STEADY, LiveFederation, until
from fakes.os_image import saved_base
from fakes.registry_server import INSTALLED, MISSING, Server, registry_server
from msfl.gateway.home import Home
from msfl.runtime.choice import RuntimeChoice, RuntimeKind
from msfl.sdk.demo.processes import msfl
from msfl.sdk.reporting import report_document
from msfl.sdk.run import Run

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason=MISSING)]
NEEDS = ("numpy", "scipy", "nibabel", "matplotlib", "cryptography", "blake3")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registry_server(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with the packages of small releases, as `docker save` would write it."""
    return saved_base(tmp_path_factory.mktemp("saved"), NEEDS)


@pytest.fixture(scope="module")
def live(
    engine: str, server: Server, saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveFederation]:
    folder = tmp_path_factory.mktemp("containers")
    where = f"{server.base}/ms/releases"
    with LiveFederation.up(folder / "f", registry=where, base=str(saved), engine=engine) as live:
        yield live


@pytest.fixture(scope="module")
def client(engine: str) -> Iterator[docker.APIClient]:
    client = docker.APIClient(base_url=engine)
    yield client
    client.close()


def spec(live: LiveFederation) -> Any:
    return live.job(rounds=3, seed=11, **STEADY)


@pytest.fixture(scope="module")
def undisturbed(live: LiveFederation) -> Run:
    run = live.client.submit(spec(live))
    state = run.wait()
    assert state["phase"] == "finished", state["reason"]
    return run


def containers(client: docker.APIClient, run: Run) -> list[dict[str, Any]]:
    return list(client.containers(all=True, filters={"label": f"msfl.run={run.run_id}"}))


def test_three_sites_and_the_centre_run_it_in_containers(live: LiveFederation, undisturbed: Run) -> None:
    state = undisturbed.state()
    assert [set(r["sites"]) for r in state["rounds"]] == [set(SITES)] * 3
    for site in SITES:
        started = next(e for e in live.audit(site, undisturbed.run_id) if e["action"] == "worker starts")
        assert started["fields"]["isolation"] == "container"
        assert "no capabilities" in started["fields"]["protections"]


def test_while_it_runs_there_is_a_container_for_each_and_afterwards_none(
    live: LiveFederation, client: docker.APIClient
) -> None:
    run = live.client.submit(spec(live))
    until(lambda: len(containers(client, run)) == 4, "three workers and an aggregator")
    found = containers(client, run)
    assert sorted(c["Labels"]["msfl.role"] for c in found) == ["aggregator", "worker", "worker", "worker"]
    assert len({c["ImageID"] for c in found}) == 1
    assert run.wait()["phase"] == "finished"
    until(lambda: containers(client, run) == [], "the containers to be removed")


def test_the_same_release_as_processes_gives_the_same_weights(live: LiveFederation, undisturbed: Run) -> None:
    """One digest, two runtimes: the environment of the image is that of this machine, file by file."""
    with live.policies_put_back():
        for site in SITES:
            live.sign_policy(site, live.policy(site).replace("isolation: container", "isolation: none"))
            chosen(live, site, RuntimeChoice())
        until(live.all_present, "the gateways to be back")
        try:
            run = live.client.submit(spec(live))
            state = run.wait()
        finally:
            for site in SITES:
                chosen(live, site, live_choice(live))
            until(live.all_present, "the gateways to be back")
    assert state["phase"] == "finished", state["reason"]
    one, other = report_document(undisturbed.state()), report_document(state)
    assert [r["weights_blake3"] for r in one["rounds"]] == [r["weights_blake3"] for r in other["rounds"]]
    assert one["final_weights_sha256"] == other["final_weights_sha256"]
    assert one["evaluation"] == other["evaluation"]


def live_choice(live: LiveFederation) -> RuntimeChoice:
    """What the sites were enrolled with."""
    _, kind, _, engine = live.federation.runtime
    return RuntimeChoice.read({"kind": kind, "engine": engine}, "the tests")


def chosen(live: LiveFederation, site: str, runtime: RuntimeChoice) -> None:
    home = Home(live.home(site))
    live.end(f"gateway:{site}")
    home.write_settings(replace(home.settings(), runtime=runtime))
    live.start_again(f"gateway:{site}")


def test_a_killed_container_costs_an_attempt_and_changes_nothing(
    live: LiveFederation, client: docker.APIClient, undisturbed: Run
) -> None:
    run = live.client.submit(spec(live))
    until(lambda: begun(live, run, "train/2"), "the second round")
    client.kill(at_site(live, client, run, "site-b")["Id"])
    state = run.wait()
    assert state["phase"] == "finished", state["reason"]
    assert "worker lost" in live.actions("site-b", run.run_id)
    same_weights(undisturbed, run)


def test_doctor_says_what_workers_run_in(live: LiveFederation) -> None:
    isolation = isolation_of(live)
    assert (isolation["status"], isolation["what"]) == ("ok", "container")
    assert isolation["where"].startswith("docker unix://")
    home = Home(live.home("site-a"))
    before = home.settings()
    home.write_settings(replace(before, runtime=RuntimeChoice(RuntimeKind.DOCKER, "unix:///nowhere.sock")))
    try:
        isolation = isolation_of(live)
    finally:
        home.write_settings(before)
    assert isolation["status"] != "ok"
    assert "does not answer" in isolation["why"]


def isolation_of(live: LiveFederation) -> dict[str, Any]:
    found = live.command("gateway", "doctor", "--home", live.home("site-a"), "--json")
    return dict(next(f for f in json.loads(found.stdout) if f["check"] == "isolation"))


def begun(live: LiveFederation, run: Run, task: str) -> int:
    entries = live.said("site-b", run.run_id)
    return sum(e["action"] == "task begins" and e["fields"]["task"] == task for e in entries)


def same_weights(one: Run, other: Run) -> None:
    documents = [report_document(run.state()) for run in (one, other)]
    assert documents[0]["final_weights_sha256"] == documents[1]["final_weights_sha256"]


def test_training_goes_on_while_its_gateway_is_away(
    live: LiveFederation, client: docker.APIClient, undisturbed: Run
) -> None:
    """Killed in the middle of a round; the next gateway takes the container back, and its answer."""
    run = live.client.submit(spec(live))
    until(lambda: begun(live, run, "train/2"), "the second round")
    worker = at_site(live, client, run, "site-b")
    live.kill("gateway:site-b")
    time.sleep(0.5)
    assert at_site(live, client, run, "site-b")["Id"] == worker["Id"]
    live.start_again("gateway:site-b")
    state = run.wait()
    assert state["phase"] == "finished", state["reason"]
    assert live.actions("site-b", run.run_id).count("worker starts") == 1
    back = [e["fields"]["worker"] for e in live.audit("site-b", run.run_id) if e["action"] == "gateway is back"]
    assert back == ["works on"]
    same_weights(undisturbed, run)
    until(lambda: containers(client, run) == [], "the containers to be removed")


def at_site(live: LiveFederation, client: docker.APIClient, run: Run, site: str) -> dict[str, Any]:
    (found,) = [c for c in containers(client, run) if c["Labels"]["msfl.folder"].startswith(str(live.home(site)))]
    assert found["State"] == "running"
    return found


def test_a_release_of_ones_own_is_tried_in_containers(engine: str, saved: Path, tmp_path: Path) -> None:
    new = subprocess.run(msfl("registry", "new", tmp_path / "mine"), capture_output=True, text=True, check=False)
    assert new.returncode == 0, new.stderr
    words = msfl("registry", "try", tmp_path / "mine", "--base", saved, "--engine", engine)
    tried = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert tried.returncode == 0, tried.stderr
    assert "Container: Docker" in tried.stdout
    assert "weights: 2 tensors, 7 float32 numbers" in tried.stdout
    assert "Nothing was blocked." in tried.stdout
