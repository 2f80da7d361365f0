"""A run from `run_federated` to the report, over real processes, and what may be seen of it from outside."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.federations import SITES, STEADY, LiveFederation, alive, until
from msfl.evaluation.report import check_report
from msfl.policies.documents import JobSpec
from msfl.protos.audit_log import read_entries
from msfl.sdk.client import BadJob
from msfl.sdk.reporting import report_document
from msfl.sdk.run import Run

pytestmark = [pytest.mark.system, pytest.mark.slow]


def spec(live: LiveFederation, **changes: Any) -> JobSpec:
    return live.job(**({"rounds": 2, "baseline": "local", "seed": 7} | changes))


@pytest.fixture(scope="module")
def finished(live: LiveFederation) -> Run:
    run = live.client.submit(spec(live))
    assert run.wait()["phase"] == "finished"
    return run


@pytest.fixture(scope="module")
def report(finished: Run) -> dict[str, Any]:
    return report_document(finished.state())


def test_the_report_follows_its_schema_and_is_written_whole(finished: Run, tmp_path: Path) -> None:
    written = finished.report(tmp_path)
    check_report(written.document)
    assert {p.name for p in tmp_path.iterdir()} >= {"report.html", "report.json", "figures"}
    assert written.document["status"] == "finished"
    assert set(written.document["policy_hashes"]) == set(SITES)
    assert set(written.document["isolation"]) == set(SITES)


def test_every_site_tests_every_model(report: dict[str, Any]) -> None:
    assert set(report["evaluation"]) == {"federated", *(f"local:{site}" for site in SITES)}
    for model, by_site in report["evaluation"].items():
        assert set(by_site) == set(SITES), model
        for summary in by_site.values():
            assert summary["n"] == 2
            assert 0 <= summary["dice"]["mean"] <= 1


def test_every_round_has_every_site_and_its_validation(report: dict[str, Any]) -> None:
    assert [r["round"] for r in report["rounds"]] == [1, 2]
    for r in report["rounds"]:
        assert set(r["sites"]) == set(SITES)
        assert r["late"] == []
        assert r["bytes_up"] > 0
        assert r["bytes_down"] > 0
        for values in r["sites"].values():
            assert values["n_train"] >= 4
            assert values["train_loss"] > 0


def test_the_same_job_on_the_same_data_gives_the_same_bits(
    live: LiveFederation, finished: Run, report: dict[str, Any]
) -> None:
    again = live.client.submit(spec(live))
    again.wait()
    second = report_document(again.state())
    assert again.run_id != finished.run_id
    assert second["final_weights_sha256"] == report["final_weights_sha256"]
    evaluated = report["rounds"][report["evaluated_round"] - 1]
    assert report["final_weights_blake3"] == evaluated["weights_blake3"]
    assert [r["weights_blake3"] for r in second["rounds"]] == [r["weights_blake3"] for r in report["rounds"]]
    assert second["evaluation"] == report["evaluation"]
    other = live.client.submit(spec(live, seed=8, baseline=None))
    other.wait()
    assert report_document(other.state())["final_weights_sha256"] != report["final_weights_sha256"]


def test_the_audit_says_what_was_done_before_it_was_done(live: LiveFederation, finished: Run) -> None:
    for site in SITES:
        actions = live.actions(site, finished.run_id)
        assert actions[:2] == ["run decided", "worker starts"]
        assert actions[-1] == "run stopped"
        tasks = [e["fields"]["task"] for e in live.audit(site, finished.run_id) if e["action"] == "task begins"]
        assert tasks == ["fingerprint", "prepare", "train/1", "train/2", "validate", "baseline", "evaluate/test"]
        left = [e["fields"]["task"] for e in live.audit(site, finished.run_id) if e["action"] == "result leaves"]
        assert left == tasks
        shown = live.command("gateway", "audit", "--home", live.home(site))
        assert shown.returncode == 0
        assert "is whole" in shown.stdout


def test_centre_and_sites_vouch_for_each_others_logs_round_by_round(
    live: LiveFederation, finished: Run, tmp_path: Path
) -> None:
    def newest(site: str) -> int:
        """How many entries of the site's log the centre has a checkpoint of."""
        kept = (live.federation.folder / "centre/audit/checkpoints.jsonl").read_bytes().splitlines()
        said = [json.loads(base64.b64decode(json.loads(line)["payload"])) for line in kept]
        return int(max(c["size"] for c in said if c["log"] == f"site:{site}"))

    for site in SITES:
        until(lambda s=site: newest(s) == len(live.audit(s)), "the log's end to be shown")  # type: ignore[misc]  # bound at once
    homes = [live.federation.folder / "centre", *(live.home(site) for site in SITES)]
    files = [tmp_path / f"{n}.audit" for n in range(len(homes))]
    for home, file in zip(homes, files, strict=True):
        assert live.command("audit", "export", "--home", home, "--out", file).returncode == 0
    fine = live.command("audit", "verify", *files, "--json")
    assert fine.returncode == 0, fine.stdout
    said = json.loads(fine.stdout)
    assert set(said["entries"]) == {"centre:demo", *(f"site:{s}" for s in SITES)}
    assert all(said["vouched"][f"site:{s}"] == said["entries"][f"site:{s}"] for s in SITES)
    events = [e.action for e in read_entries(homes[0] / "audit/log.jsonl") if e.object == finished.run_id]
    assert events[0] == "submitted"
    assert events.count("task done") >= 2 * len(SITES)
    text = files[1].read_bytes()
    files[1].write_bytes(text.replace(b'"verdict":"allow"', b'"verdict":"allov"', 1))
    assert live.command("audit", "verify", *files).returncode == 3


def test_a_custodian_can_read_what_left(live: LiveFederation, finished: Run) -> None:
    shown = live.command("gateway", "audit", "sent", finished.run_id, "--home", live.home("site-a"))
    assert shown.returncode == 0
    assert "7 sealed results" in shown.stdout
    assert "train/2: the weights of the model after this site's training" in shown.stdout
    as_json = live.command("gateway", "audit", "sent", finished.run_id, "--home", live.home("site-a"), "--json")
    (round_two,) = [one for one in json.loads(as_json.stdout) if one["what"].startswith("train/2") and one["bytes"]]
    assert round_two["blake3"].startswith("blake3:")
    assert round_two["fields"]
    unknown = live.command("gateway", "audit", "sent", "no-such-run", "--home", live.home("site-a"))
    assert unknown.returncode == 1


def test_the_centre_keeps_no_weights_that_it_can_read(live: LiveFederation, finished: Run) -> None:
    """A safetensors file names its tensors in plain text; only the exported model, which is meant to be read, does."""
    artifacts = live.federation.folder / "centre/artifacts" / finished.run_id
    files = [f for f in artifacts.rglob("*") if f.is_file()]
    exported = {f for f in files if f.name.startswith("export~")}
    assert any(b"data_offsets" in f.read_bytes() for f in exported)
    sealed = set(files) - exported
    assert len(sealed) > len(SITES)
    for file in sealed:
        data = file.read_bytes()
        assert b"data_offsets" not in data, file
        assert b"spacing" not in data, file


def test_a_finished_run_leaves_no_patient_data_and_no_key_in_the_gateways_folder(
    live: LiveFederation, finished: Run
) -> None:
    for site in SITES:
        folder = live.home(site) / "runs" / finished.run_id
        until(lambda f=folder: not (f / "run.secret").exists(), "the gateway to tidy")  # type: ignore[misc]  # bound at once
        assert {f.name for f in folder.iterdir()} <= {"worker.log", "state.json"}
        pictures = live.home(site) / "figures" / finished.run_id
        assert (pictures / "overlay.png").exists()


def test_gateways_listen_on_no_port_and_the_centre_on_two_of_this_machine(live: LiveFederation) -> None:
    def listening(process: psutil.Process) -> set[tuple[str, int]]:
        family = [process, *process.children(recursive=True)]
        found = [c for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        return {(c.laddr.ip.removeprefix("::ffff:"), c.laddr.port) for c in found}

    for site in SITES:
        assert listening(live.process(f"gateway:{site}")) == set()
    assert listening(live.process("keyring")) == set()
    ports = {live.federation.port, live.federation.link_port}
    assert listening(live.process("orchestrator")) == {("127.0.0.1", port) for port in ports}


def test_an_abort_stops_every_worker(live: LiveFederation) -> None:
    run = live.client.submit(spec(live, rounds=20, **STEADY))
    until(lambda: run.state()["rounds"], "the first round")
    run.abort()
    assert run.state()["phase"] == "aborted"
    until(lambda: not any(live.workers(site) for site in SITES), "the workers to end")
    until(lambda: not _aggregators(live), "the aggregator to end")


def test_an_abort_while_workers_are_being_started_leaves_none_behind(live: LiveFederation) -> None:
    run = live.client.submit(spec(live))
    until(lambda: "worker starts" in live.actions("site-b", run.run_id), "a worker to be started")
    run.abort()
    for site in SITES:
        until(lambda s=site: "run stopped" in live.actions(s, run.run_id), "the site to hear of it")  # type: ignore[misc]  # bound at once
    # By the time another run has come to its end, a worker that was left behind would be up.
    live.client.submit(live.job()).wait()
    until(lambda: not any(live.workers(site) for site in SITES), "the workers to end")


def _aggregators(live: LiveFederation) -> list[psutil.Process]:
    return alive(live.process("orchestrator").children(recursive=True))


def test_an_extended_run_begins_where_the_earlier_one_was_best(live: LiveFederation, finished: Run) -> None:
    before = finished.state()
    again = finished.extend(1, baseline=None)
    state = again.wait()
    assert state["phase"] == "finished"
    plan, first = state["documents"]["plan"], before["documents"]["plan"]
    assert plan["plan_hash"] == first["plan_hash"]
    assert plan["weights_blake3"] == before["rounds"][before["best_round"] - 1]["weights_blake3"]
    assert len(state["rounds"]) == 1
    assert "fingerprint" not in state["step_seconds"]
    with pytest.raises(BadJob, match="no model of round 17"):
        finished.extend(1, round=17)
    with pytest.raises(BadJob, match="you have no run"):
        live.client.submit(live.job(start_from={"run": "20260101-000000-00000000"}))


def test_what_is_published_beside_a_serving_gateway_is_shown_at_once(live: LiveFederation, tmp_path: Path) -> None:
    def shown() -> bool:
        return any(row["ref"] == "site-b/second" and row["present"] for row in live.client.datasets())

    data, record = live.federation.folder / "data/site-b", tmp_path / "record.json"
    said = live.command("data", "import", data, "--dataset", "second", "--site", "site-b", "--out", record)
    assert said.returncode == 0, said.stderr
    home = live.home("site-b")
    said = live.command("data", "publish", "--record", record, "--data", data, "--home", home)
    assert said.returncode == 0, said.stderr
    until(shown, "the dataset to be shown")
    for file in (home / "datasets").glob("second.*"):
        file.unlink()
    until(lambda: not shown() and live.all_present(), "it to be withdrawn")
