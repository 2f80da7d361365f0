"""A run can be left, held, ended and taken up again; its sites may leave and come back. The weights stay the same."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.federations import SITES, STEADY, LiveFederation, until
from fakes.governance import edit
from msfl.policies.documents import JobSpec
from msfl.sdk.client import NotNow
from msfl.sdk.demo.processes import msfl
from msfl.sdk.reporting import report_document
from msfl.sdk.run import Run, RunEnded

pytestmark = [pytest.mark.system, pytest.mark.slow]
SITE = "site-b"
GATEWAY = f"gateway:{SITE}"
ROUNDS = 4


def spec(live: LiveFederation, **changes: Any) -> JobSpec:
    return live.job(**({"rounds": ROUNDS, "seed": 23, **STEADY} | changes))


@pytest.fixture(scope="module")
def undisturbed(live: LiveFederation) -> dict[str, Any]:
    return finished(live.client.submit(spec(live)))


@pytest.fixture(autouse=True)
def a_whole_federation(live: LiveFederation) -> Iterator[None]:
    until(lambda: not any(live.workers(site) for site in SITES), "earlier workers to end")
    yield
    until(live.all_present, "the gateways to be back")


def finished(run: Run) -> dict[str, Any]:
    """The report of a run that has to finish."""
    state = run.wait()
    assert state["phase"] == "finished", state
    return report_document(state, events=run.events())


def closed(run: Run) -> int:
    return len(run.state()["rounds"])


def same_weights(report: dict[str, Any], other: dict[str, Any]) -> bool:
    of_rounds = [[r["weights_blake3"] for r in told["rounds"]] for told in (report, other)]
    return of_rounds[0] == of_rounds[1] and report["final_weights_sha256"] == other["final_weights_sha256"]


def test_a_paused_run_begins_nothing_and_goes_on_with_the_same_weights(
    live: LiveFederation, undisturbed: dict[str, Any]
) -> None:
    run = live.client.submit(spec(live))
    until(lambda: closed(run) == 1, "the first round")
    shown = run.pause()
    assert shown["paused"]
    time.sleep(4.0)  # what had begun may end
    held = closed(run)
    time.sleep(4.0)
    assert closed(run) == held < ROUNDS
    live.kill("orchestrator")
    live.start_again("orchestrator")
    state = run.state()
    assert (state["phase"], state["paused"], len(state["rounds"])) == ("running", True, held)
    assert run.resume()["paused"] is False
    report = finished(run)
    assert same_weights(report, undisturbed)
    assert [entry["event"] for entry in report["course"]] == ["PauseRequested", "Resumed"]
    with pytest.raises(NotNow, match=r"use run\.extend"):
        run.resume()
    with pytest.raises(NotNow, match="there is nothing to pause"):
        run.pause()


def test_another_process_attaches_by_the_runs_id_and_sees_the_same(live: LiveFederation, tmp_path: Path) -> None:
    run = live.client.submit(spec(live))
    until(lambda: closed(run) == 1, "the first round")
    credentials = {"MSFL_CREDENTIALS": str(live.federation.folder / "client/credentials.json")}
    code = "import sys, msfl.sdk as msfl; msfl.attach(sys.argv[1]).watch()"
    watching = [sys.executable, "-c", code, run.run_id]
    later = subprocess.run(watching, env=credentials, capture_output=True, text=True, timeout=60, check=False)
    assert later.returncode == 0, later.stderr
    rounds = [line.partition(";")[0] for line in later.stdout.splitlines() if "closed" in line]
    assert [line.split()[1] for line in rounds] == [f"{r}/{ROUNDS}" for r in range(1, ROUNDS + 1)]
    command = msfl("job", "watch", run.run_id)
    again = subprocess.run(command, env=credentials, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    assert [line.partition(";")[0] for line in again.stdout.splitlines() if "closed" in line] == rounds
    left = [line.partition("about ")[2] for line in later.stdout.splitlines() if "left" in line]
    assert left == [line.partition("about ")[2] for line in again.stdout.splitlines() if "left" in line]


def test_an_aborted_run_is_taken_up_again_and_ends_with_the_same_weights(
    live: LiveFederation, undisturbed: dict[str, Any]
) -> None:
    run = live.client.submit(spec(live))
    until(lambda: closed(run) == 2, "the second round")
    run.abort()
    with pytest.raises(RunEnded):
        run.wait()
    before = report_document(run.state())
    until(lambda: not any(live.workers(site) for site in SITES), "the workers to end")
    assert run.resume()["generation"] == 2
    report = finished(run)
    kept = [r["weights_blake3"] for r in before["rounds"]]
    assert [r["weights_blake3"] for r in report["rounds"]][: len(kept)] == kept
    assert same_weights(report, undisturbed)
    assert report["generation"] == 2
    assert report["evaluation"] == undisturbed["evaluation"]


def test_a_resumed_run_is_decided_on_by_its_sites_afresh(live: LiveFederation) -> None:
    run = live.client.submit(spec(live))
    until(lambda: closed(run) == 1, "the first round")
    run.abort()
    until(lambda: not any(live.workers(site) for site in SITES), "the workers to end")
    with live.policies_put_back():
        live.remove_policy(SITE)
        run.resume()
        with pytest.raises(RunEnded, match=f"{SITE}: no_policy"):
            run.wait()
    run.resume()
    assert run.wait()["phase"] == "finished", "it is asked again when its custodian has signed again"


def test_a_gateway_that_stays_away_is_missed_and_comes_back(live: LiveFederation) -> None:
    run = live.client.submit(spec(live, rounds=20, min_sites=2))
    until(lambda: closed(run) == 1, "the first round")
    live.kill(GATEWAY)
    gone = time.monotonic()
    try:
        until(lambda: run.state()["sites"][SITE]["absent"], "the site to be missed")
        at_least = closed(run) + 2
        until(lambda: closed(run) >= at_least, "the others to go on")
        until(lambda: time.monotonic() - gone > 16, "a while")
        assert run.state()["phase"] == "running"
    finally:
        live.start_again(GATEWAY)
    until(lambda: not run.state()["sites"][SITE]["absent"], "the site to be back")
    until(lambda: SITE in run.state()["rounds"][-1]["sites"], "the site to take part again")
    without = [r["round"] for r in run.state()["rounds"] if SITE not in r["sites"]]
    assert without
    run.abort()
    course = report_document(run.state(), events=run.events())["course"]
    assert any("is away" in entry["message"] for entry in course)
    assert any("is back" in entry["message"] for entry in course)


@pytest.mark.full
def test_a_run_that_waited_in_vain_for_its_quorum_is_taken_up_again(
    live: LiveFederation, undisturbed: dict[str, Any]
) -> None:
    run = live.client.submit(spec(live, round_deadline="20s"))
    until(lambda: closed(run) == 1, "the first round")
    live.kill(GATEWAY)
    try:
        until(lambda: run.state()["waiting_for_sites"] == [SITE], "the run to say whom it waits for")
        until(lambda: run.state()["phase"] == "failed", "the last deadline")
    finally:
        live.start_again(GATEWAY)
    state = run.state()
    assert state["reason"] == f"quorum_not_reached ({SITE}: silent)"
    until(live.all_present, "the gateway to be back")
    until(lambda: not any(live.workers(site) for site in SITES), "the workers to end")
    run.resume()
    report = finished(run)
    assert all(set(r["sites"]) == set(SITES) for r in report["rounds"])
    assert same_weights(report, undisturbed)


def test_who_answers_late_joins_a_run_that_began_with_a_quorum(live: LiveFederation) -> None:
    with live.policies_put_back():
        live.sign_policy(SITE, edit(live.policy(SITE), "mode: auto", "mode: confirm"))
        asked = spec(live, rounds=20, min_sites=2, start="quorum")
        run = live.client.submit(asked)
        until(lambda: closed(run) == 2, "the quorum to train")
        assert run.state()["sites"][SITE]["standing"] == "needs confirmation"
        said = live.confirm(SITE, run.run_id)
        assert said.returncode == 0, said.stdout + said.stderr
        until(lambda: SITE in run.state()["rounds"][-1]["sites"], "the site to join")
        first = run.state()["rounds"][0]
        assert SITE not in first["sites"]
        run.abort()


def test_pause_and_resume_from_a_terminal(live: LiveFederation) -> None:
    run = live.client.submit(spec(live, rounds=20))
    credentials = {"MSFL_CREDENTIALS": str(live.federation.folder / "client/credentials.json")}

    def job(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = msfl("job", *arguments)
        return subprocess.run(command, env=credentials, capture_output=True, text=True, timeout=60, check=False)

    until(lambda: closed(run) == 1, "the first round")
    assert job("pause", run.run_id).stdout == f"run {run.run_id} is running, paused\n"
    assert json.loads(job("show", run.run_id, "--json").stdout)["pause_reason"].startswith("paused by")
    assert job("resume", run.run_id).returncode == 0
    again = job("resume", run.run_id)
    assert (again.returncode, "not paused" in again.stderr) == (1, True)
    assert job("abort", run.run_id).stdout == f"run {run.run_id} is aborted\n"
    assert job("watch", run.run_id).returncode == 1
