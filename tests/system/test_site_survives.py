"""Kill, stop and starve what runs at a site: the run finishes with every site, and the same weights, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.disks import filled, small_disk
from fakes.federations import SITES, STEADY, LiveFederation, alive, held, send, until
from msfl.policies.documents import JobSpec
from msfl.sdk.reporting import report_document
from msfl.sdk.run import Run

pytestmark = [pytest.mark.system, pytest.mark.slow]
SITE = "site-b"
GATEWAY = f"gateway:{SITE}"
ROUNDS = 3
Disturb = Callable[[LiveFederation, Run], None]


def spec(live: LiveFederation) -> JobSpec:
    return live.job(rounds=ROUNDS, seed=11, baseline="local", **STEADY)


@pytest.fixture(scope="module")
def undisturbed(live: LiveFederation) -> dict[str, Any]:
    run = live.client.submit(spec(live))
    assert run.wait()["phase"] == "finished"
    return report_document(run.state())


@pytest.fixture(autouse=True)
def a_whole_federation(live: LiveFederation) -> Iterator[None]:
    until(lambda: not any(live.workers(site) for site in SITES), "earlier workers to end")
    yield
    until(live.all_present, "the gateways to be back")


def begun(live: LiveFederation, run: Run, task: str) -> int:
    entries = live.said(SITE, run.run_id)
    return sum(e["action"] == "task begins" and e["fields"]["task"] == task for e in entries)


def when(live: LiveFederation, run: Run, task: str) -> None:
    until(lambda: begun(live, run, task), f"{SITE} to begin {task}")


def stage(live: LiveFederation, run: Run) -> str:
    kept = json.loads((live.home(SITE) / "runs" / run.run_id / "state.json").read_text())
    return str(kept["state"]["stage"])


def kill_worker(live: LiveFederation) -> None:
    send(live.workers(SITE), signal.SIGKILL)


def restart_gateway(live: LiveFederation) -> None:
    live.kill(GATEWAY)
    live.start_again(GATEWAY)


def worker_dies_in_training(live: LiveFederation, run: Run) -> None:
    when(live, run, "train/2")
    kill_worker(live)


def worker_dies_in_preparation(live: LiveFederation, run: Run) -> None:
    when(live, run, "prepare")
    kill_worker(live)


def worker_dies_in_its_local_training(live: LiveFederation, run: Run) -> None:
    when(live, run, "baseline")
    kill_worker(live)


def gateway_dies_in_training(live: LiveFederation, run: Run) -> None:
    when(live, run, "train/2")
    restart_gateway(live)


def gateway_dies_in_its_local_training(live: LiveFederation, run: Run) -> None:
    when(live, run, "baseline")
    restart_gateway(live)


def gateway_dies_while_it_starts_the_worker(live: LiveFederation, run: Run) -> None:
    until(lambda: "worker starts" in live.actions(SITE, run.run_id), "the worker to be started")
    restart_gateway(live)


def gateway_dies_while_it_sends(live: LiveFederation, run: Run) -> None:
    """The centre is held while the site trains, so that its result waits to be sent. Held a moment too soon, the site
    has not got its input yet; then the next round is tried."""
    for round in range(1, ROUNDS):
        when(live, run, f"train/{round}")
        time.sleep(0.05)  # for its input to arrive
        with held(live.process("orchestrator")):
            give_up = time.monotonic() + 4
            while stage(live, run) != "sending" and time.monotonic() < give_up:
                time.sleep(0.02)
            if stage(live, run) != "sending":
                continue
            live.kill(GATEWAY)
        live.start_again(GATEWAY)
        until(lambda r=round: begun(live, run, f"train/{r + 1}"), "the next round")  # type: ignore[misc]  # bound at once
        assert begun(live, run, f"train/{round}") == 1, "a sealed result is sent, not made again"
        return
    raise AssertionError("no round had its result waiting while the centre was held")


def gateway_dies_in_every_round(live: LiveFederation, run: Run) -> None:
    for round in range(1, ROUNDS + 1):
        when(live, run, f"train/{round}")
        restart_gateway(live)


@pytest.mark.parametrize(
    "disturb",
    [
        worker_dies_in_preparation,
        worker_dies_in_training,
        worker_dies_in_its_local_training,
        gateway_dies_while_it_starts_the_worker,
        gateway_dies_in_training,
        gateway_dies_in_its_local_training,
        gateway_dies_while_it_sends,
        gateway_dies_in_every_round,
    ],
)
def test_the_run_finishes_with_the_same_weights(
    live: LiveFederation, undisturbed: dict[str, Any], disturb: Disturb
) -> None:
    run = live.client.submit(spec(live))
    disturb(live, run)
    state = run.wait()
    assert state["phase"] == "finished", state
    report = report_document(state)
    assert all(set(r["sites"]) == set(SITES) for r in report["rounds"])
    assert [r["weights_blake3"] for r in report["rounds"]] == [r["weights_blake3"] for r in undisturbed["rounds"]]
    assert report["final_weights_sha256"] == undisturbed["final_weights_sha256"]
    assert report["evaluation"] == undisturbed["evaluation"]


def itself(live: LiveFederation) -> psutil.Process:
    """The worker, without its keeper and the sandbox around it."""
    (innermost,) = [p for p in live.workers(SITE) if not p.children()]
    return innermost


def back(live: LiveFederation, run: Run) -> list[str]:
    return [e["fields"]["worker"] for e in live.said(SITE, run.run_id) if e["action"] == "gateway is back"]


def finished_by_one_worker(live: LiveFederation, run: Run, undisturbed: dict[str, Any]) -> None:
    """As if nothing had been."""
    state = run.wait()
    assert state["phase"] == "finished", state
    assert live.actions(SITE, run.run_id).count("worker starts") == 1
    report = report_document(state)
    assert [r["weights_blake3"] for r in report["rounds"]] == [r["weights_blake3"] for r in undisturbed["rounds"]]
    assert report["final_weights_sha256"] == undisturbed["final_weights_sha256"]
    assert report["evaluation"] == undisturbed["evaluation"]


def in_the_middle_of(live: LiveFederation, task: str) -> tuple[Run, psutil.Process]:
    """A run, and the worker, stopped while it does the task. Met too late, it is tried again with another run."""
    for _ in range(10):
        run = live.client.submit(spec(live))
        when(live, run, task)
        worker = itself(live)
        time.sleep(0.05)
        worker.send_signal(signal.SIGSTOP)
        time.sleep(0.1)  # What it had just said would be heard by now.
        if stage(live, run) == "working" and begun_last(live, run) == task:
            return run, worker
        worker.send_signal(signal.SIGCONT)
        run.wait()
    raise AssertionError(f"nobody was met doing {task}")


def begun_last(live: LiveFederation, run: Run) -> str:
    entries = live.said(SITE, run.run_id)
    return str([e["fields"]["task"] for e in entries if e["action"] == "task begins"][-1])


@pytest.mark.parametrize(
    ("task", "ends"),
    [
        ("train/2", "killed"),
        *(
            pytest.param(*more, marks=pytest.mark.full)
            for more in [("train/2", "stopped"), ("baseline", "killed"), ("baseline", "stopped")]
        ),
    ],
)
def test_a_worker_works_on_while_its_gateway_is_restarted(
    live: LiveFederation, undisturbed: dict[str, Any], task: str, ends: str
) -> None:
    run, worker = in_the_middle_of(live, task)
    (live.kill if ends == "killed" else live.end)(GATEWAY)
    assert worker.is_running()
    live.start_again(GATEWAY)
    until(lambda: back(live, run), "the gateway to be back")
    worker.send_signal(signal.SIGCONT)
    assert back(live, run) == ["works on"]
    finished_by_one_worker(live, run, undisturbed)
    assert begun(live, run, task) == 1, "begun once"
    assert live.actions(SITE, run.run_id).count("task goes on") == 1


def test_what_a_worker_finished_while_there_was_no_gateway_is_heard(
    live: LiveFederation, undisturbed: dict[str, Any]
) -> None:
    run, worker = in_the_middle_of(live, "train/2")
    live.kill(GATEWAY)
    worker.send_signal(signal.SIGCONT)
    made = live.home(SITE) / "runs" / run.run_id / "box/outbox/weights.safetensors"
    before = made.stat().st_mtime_ns
    until(lambda: made.stat().st_mtime_ns != before, "the worker to have trained")
    time.sleep(0.5)
    live.start_again(GATEWAY)
    finished_by_one_worker(live, run, undisturbed)
    assert begun(live, run, "train/2") == 1


def test_a_worker_has_its_time_and_no_more_also_while_there_is_no_gateway(live: LiveFederation) -> None:
    with live.policies_put_back():
        short = re.sub(r"wall_time: \w+", "wall_time: 12s", live.policy(SITE))
        assert short != live.policy(SITE)
        live.sign_policy(SITE, short)
        run = live.client.submit(live.job(rounds=20, min_sites=2, **(STEADY | {"local_epochs": 20})))
        when(live, run, "train/1")
        workers = live.workers(SITE)
        live.kill(GATEWAY)
        _, left = psutil.wait_procs(workers, timeout=25)
        assert not left, "long before the minute that a gateway may be away"
        live.start_again(GATEWAY)
        until(lambda: run.state()["sites"][SITE]["standing"] == "out", "the site to say so")
        assert run.state()["sites"][SITE]["code"] == "resources_exceeded"
    run.abort()


@pytest.mark.full
def test_a_worker_whose_gateway_does_not_come_back_is_ended(live: LiveFederation, undisturbed: dict[str, Any]) -> None:
    run = live.client.submit(spec(live))
    when(live, run, "train/1")
    workers = live.workers(SITE)
    live.kill(GATEWAY)
    since = time.monotonic()
    try:
        _, left = psutil.wait_procs(workers, timeout=75)
        assert not left
        assert time.monotonic() - since > 55
    finally:
        live.start_again(GATEWAY)
    state = run.wait()
    assert state["phase"] == "finished", state
    assert report_document(state)["final_weights_sha256"] == undisturbed["final_weights_sha256"]
    assert back(live, run) == ["none"]


def test_a_stopped_worker_is_noticed_within_fifteen_seconds(live: LiveFederation, undisturbed: dict[str, Any]) -> None:
    run = live.client.submit(spec(live))
    when(live, run, "train/2")
    stopped = live.workers(SITE)
    send(stopped, signal.SIGSTOP)
    since = time.monotonic()
    until(lambda: "worker lost" in live.actions(SITE, run.run_id), "the silence to be noticed")
    assert time.monotonic() - since < 15
    lost = next(e for e in live.audit(SITE, run.run_id) if e["action"] == "worker lost")
    assert lost["fields"]["code"] == "process_silent"
    state = run.wait()
    assert state["phase"] == "finished"
    assert report_document(state)["final_weights_sha256"] == undisturbed["final_weights_sha256"]
    assert not alive(stopped)


def test_a_registry_that_is_gone_after_the_start_does_not_matter(
    live: LiveFederation, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    registry, away = live.federation.folder / "registry", tmp_path / "registry"
    run = live.client.submit(spec(live))
    when(live, run, "train/1")
    shutil.move(registry, away)
    try:
        kill_worker(live)
        state = run.wait()
    finally:
        shutil.move(away, registry)
    assert state["phase"] == "finished"
    assert report_document(state)["final_weights_sha256"] == undisturbed["final_weights_sha256"]


def test_a_policy_that_is_withdrawn_while_the_gateway_is_down_ends_the_run_there(live: LiveFederation) -> None:
    run = live.client.submit(live.job(rounds=20, min_sites=2, **STEADY))
    when(live, run, "train/1")
    with live.policies_put_back():
        live.kill(GATEWAY)
        live.remove_policy(SITE)
        live.start_again(GATEWAY)
        until(lambda: run.state()["sites"][SITE]["standing"] == "out", "the site to say so")
    assert run.state()["sites"][SITE]["code"] == "no_policy"
    run.abort()
    folder = live.home(SITE) / "runs" / run.run_id
    until(lambda: not (folder / "box").exists(), "the gateway to tidy")
    assert not (folder / "run.secret").exists()


def test_the_custodian_stops_a_run_and_it_goes_on_without_the_site(live: LiveFederation) -> None:
    run = live.client.submit(live.job(rounds=20, min_sites=2, **STEADY))
    when(live, run, "train/1")
    asked = time.monotonic()
    said = live.command("gateway", "stop", run.run_id, "--home", live.home(SITE), "--by", "cleo")
    assert said.returncode == 0, said.stdout
    until(lambda: not live.workers(SITE), "the worker to end")
    assert time.monotonic() - asked < 10
    until(lambda: run.state()["sites"][SITE]["standing"] == "out", "the site to say so")
    assert run.state()["sites"][SITE]["code"] == "custodian_stopped"
    stops = next(e for e in live.audit(SITE, run.run_id) if e["action"] == "custodian stops the run")
    assert stops["fields"] == {"by": "cleo"}
    assert run.state()["phase"] == "running"
    run.abort()
    again = live.command("gateway", "stop", run.run_id, "--home", live.home(SITE), "--by", "cleo")
    assert again.returncode == 1
    assert "no run" in again.stderr


def test_an_aborted_run_keeps_what_a_resumed_one_needs(live: LiveFederation) -> None:
    run = live.client.submit(spec(live))
    when(live, run, "train/2")
    run.abort()
    until(lambda: live.actions(SITE, run.run_id)[-1] == "run stopped", "the site to hear of it")
    folder = live.home(SITE) / "runs" / run.run_id
    until(lambda: not live.workers(SITE), "the worker to end")
    assert (folder / "run.secret").exists()
    assert (folder / "box/scratch/plan.json").exists()


def test_a_full_disk_stops_the_work_until_there_is_room(live: LiveFederation, undisturbed: dict[str, Any]) -> None:
    runs = live.home(SITE) / "runs"
    with small_disk(runs, 16):
        run = live.client.submit(spec(live))
        when(live, run, "train/1")
        with filled(runs):
            log = live.processes._logs / f"{GATEWAY}.log"
            until(lambda: "no room to write" in log.read_text(), "the gateway to say that its disk is full")
            assert run.state()["phase"] == "running"
        state = run.wait()
        assert state["phase"] == "finished", state
    report = report_document(state)
    assert all(set(r["sites"]) == set(SITES) for r in report["rounds"])
    assert report["final_weights_sha256"] == undisturbed["final_weights_sha256"]
