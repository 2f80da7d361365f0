"""The aggregator through its socket: rounds as they go, restarts, and what it says no to. Attacks: tests/attacks."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.hosts import Host
from fakes.models import PLAN, FakeModel, zeros
from fakes.sites import RUN, SealedSites
from msfl.learning import weights as weight_files
from msfl.learning.aggregator import zip_folder
from msfl.learning.contract import Weights
from msfl.learning.files import json_hash, sha256_of_file
from msfl.protos.tasklink import Failed, Result

LABELS = {"background": 0, "lesion": 1}


@pytest.fixture
def sites(tmp_path: Path) -> SealedSites:
    return SealedSites(tmp_path / "sealed", "site-a", "site-b", "site-c")


@pytest.fixture
def host(tmp_path: Path, sites: SealedSites) -> Iterator[Host]:
    with Host.of(FakeModel(), tmp_path / "f", role="aggregator") as host:
        sites.open(host)
        yield host


def plan(host: Host, sites: SealedSites) -> Result | Failed:
    files = {
        site: sites.up(sites.header(site, "fingerprint", 0), {"n_cases": 2 + i, "labels": LABELS})
        for i, site in enumerate(sites.names)
    }
    return host.do("plan", {"recipients": sites.names}, files)


def document(answer: Result | Failed) -> dict[str, Any]:
    assert isinstance(answer, Result), answer
    return {k: v for k, v in answer.document.items() if k != "peak_rss_mib"}


def code(answer: Result | Failed) -> str:
    assert isinstance(answer, Failed), answer
    return answer.code


def plus(value: float) -> Weights:
    return {name: values + np.float32(value) for name, values in zeros().items()}


def test_a_plan_and_the_first_model_for_everybody(host: Host, sites: SealedSites) -> None:
    answer = plan(host, sites)
    whole = {**PLAN, "n_cases": 9}
    assert document(answer) == {
        "plan_hash": json_hash(whole),
        "plan_summary": {"width": 3},
        "n_parameters": 7,
        "weights_sha256": sha256_of_file(host.folder / "scratch/models/round-000.safetensors"),
    }
    assert isinstance(answer, Result)
    assert sorted(answer.files) == sorted(f"{kind}/{site}" for kind in ("plan", "weights") for site in sites.names)
    said, _ = sites.down(host.output(answer, "plan/site-b"), "site-b", "plan", 0, "plan")
    assert said == {"plan": whole, "plan_hash": json_hash(whole)}
    said, tensors = sites.down(host.output(answer, "weights/site-b"), "site-b", "plan", 0, "weights")
    assert said == {}
    assert weight_files.load(tensors).keys() == zeros().keys()


def test_a_round_is_the_weighted_mean_and_goes_to_everybody(host: Host, sites: SealedSites) -> None:
    plan(host, sites)
    files = {"site-b": sites.update("site-b", 1, plus(3), n_train=1), "site-a": sites.update("site-a", 1, plus(1), 3)}
    answer = host.do("aggregate", {"recipients": ["site-a", "site-b"], "late": ["site-c"]}, files, round=1)
    facts = {"train_loss": 0.5, "seconds": 1.0, "incoming": {}}
    kept = host.folder / "scratch/models/round-001.safetensors"
    assert document(answer) == {
        "sites": {"site-a": {"n_train": 3, **facts}, "site-b": {"n_train": 1, **facts}},
        "weights_sha256": sha256_of_file(kept),
    }
    for site in sites.names:
        _, tensors = sites.down(host.output(answer, f"weights/{site}"), site, "aggregate/1", 1, "weights")
        assert tensors.read_bytes() == kept.read_bytes()
    assert np.array_equal(weight_files.load(kept)["drift"], np.full(3, 1.5))


def test_equal_weighting_ignores_the_number_of_cases(host: Host, sites: SealedSites) -> None:
    plan(host, sites)
    files = {"site-b": sites.update("site-b", 1, plus(3), n_train=1), "site-a": sites.update("site-a", 1, plus(1), 3)}
    host.do("aggregate", {"recipients": []}, files, round=1, config={"weighting": "equal"})
    assert np.array_equal(
        weight_files.load(host.folder / "scratch/models/round-001.safetensors")["drift"], np.full(3, 2.0)
    )


def test_the_sum_does_not_depend_on_who_came_first(host: Host, sites: SealedSites) -> None:
    plan(host, sites)
    random = np.random.default_rng(1)
    updates = {
        site: sites.update(site, 1, {n: random.standard_normal(v.shape).astype(np.float32) for n, v in zeros().items()})
        for site in sites.names
    }
    hashes = {
        document(host.do("aggregate", {"recipients": []}, {s: updates[s] for s in order}, round=1))["weights_sha256"]
        for order in (sites.names, sites.names[::-1])
    }
    assert len(hashes) == 1


def test_candidates_and_export(host: Host, sites: SealedSites, tmp_path: Path) -> None:
    plan(host, sites)
    host.do("aggregate", {"recipients": []}, {"site-a": sites.update("site-a", 1, plus(1))}, round=1)
    baselines = {
        "site-a": sites.up(sites.header("site-a", "baseline", 0), {"n_train": 3, "train_loss": 0.1}, plus(10)),
        "site-b": sites.up(sites.header("site-b", "baseline", 0), {"n_train": 1, "train_loss": 0.1}),
    }
    answer = host.do("candidates", {"recipients": sites.names, "federated_round": 1}, baselines, round=1)
    assert isinstance(answer, Result)
    assert sorted(answer.files) == [
        "federated/site-a",
        "federated/site-b",
        "federated/site-c",
        "local:site-a/site-b",
        "local:site-a/site-c",
    ]
    _, tensors = sites.down(host.output(answer, "local:site-a/site-c"), "site-c", "candidates", 1, "local:site-a")
    assert np.array_equal(weight_files.load(tensors)["drift"], np.full(3, 10.0))

    exported = host.do("export", {"federated_round": 1}, round=1)
    best = host.folder / "scratch/models/round-001.safetensors"
    assert document(exported) == {"weights_sha256": sha256_of_file(best)}
    assert host.output(exported, "weights").read_bytes() == best.read_bytes()
    with zipfile.ZipFile(host.output(exported, "model")) as archive:
        assert archive.namelist() == ["about.txt", "inner/weights.txt"]
        assert archive.read("inner/weights.txt") == b"1 1 1"


def test_collect_hands_on_summaries(host: Host, sites: SealedSites) -> None:
    dice = {"mean": 0.5, "sd": 0.1, "median": 0.5, "histogram": [0, 2]}
    summaries = {"federated": {"n": 2, "dice": dice, "loss": None}, "local:site-b": {"n": None, "withheld": "too_few"}}
    files = {"site-a": sites.up(sites.header("site-a", "evaluate/test", 4), {"summaries": summaries})}
    answer = host.do("collect", {"task_id": "evaluate/test"}, files, round=4)
    assert document(answer) == {"sites": {"site-a": {"summaries": summaries}}}


def test_killed_between_rounds_it_goes_on_from_its_own_disk(tmp_path: Path, sites: SealedSites) -> None:
    with Host.of(FakeModel(), tmp_path / "f", role="aggregator") as host:
        sites.open(host)
        plan(host, sites)
        first = host.do("aggregate", {"recipients": []}, {"site-a": sites.update("site-a", 1, plus(1))}, round=1)
        public = host.hello.public_key
    with Host.of(model := FakeModel(), tmp_path / "f", role="aggregator") as host:
        assert host.hello.public_key != public
        sites.open(host)
        # The engine may not have heard of round 1's end: asked again, it answers the same.
        again = host.do("aggregate", {"recipients": []}, {"site-a": sites.update("site-a", 1, plus(1))}, round=1)
        assert document(again) == document(first)
        host.do("aggregate", {"recipients": []}, {"site-a": sites.update("site-a", 2, plus(5))}, round=2)
        assert isinstance(host.do("export", {"federated_round": 2}, round=2), Result)
    assert model.calls == ["export background lesion"]


def test_nothing_private_is_left_behind(host: Host, sites: SealedSites) -> None:
    plan(host, sites)
    host.do("aggregate", {"recipients": []}, {"site-a": sites.update("site-a", 1, plus(1))}, round=1)
    left = sorted(str(p.relative_to(host.folder / "scratch")) for p in (host.folder / "scratch").rglob("*.*"))
    assert left == ["models/round-000.safetensors", "models/round-001.safetensors", "plan.json"]


def test_tasks_that_make_no_sense_are_refused(tmp_path: Path, sites: SealedSites) -> None:
    with Host.of(FakeModel(), tmp_path / "f", role="aggregator") as host:
        assert code(plan(host, sites)) == "not_open"
        assert code(host.do("open", {"run_id": RUN, "sealed_keys": "AAAA"})) == "keys_unreadable"
        assert code(host.do("open", {"run_id": RUN, "sealed_keys": "not base64"})) == "keys_unreadable"
        sites.open(host)
        assert code(host.do("export")) == "no_such_round"
        plan(host, sites)
        assert code(sites.open(host, "run-8")) == "other_run"
        assert code(host.do("aggregate", {"recipients": []}, round=1)) == "no_updates"
        assert code(host.do("aggregate", {"recipients": []}, round=2)) == "no_such_round"
        assert code(host.do("aggregate", {"recipients": ["site-x"]}, round=1)) == "unknown_site"
        update = {"site-a": sites.update("site-a", 1, plus(1))}
        for key in ("strategy", "weighting"):
            refused = host.do("aggregate", {"recipients": []}, update, round=1, config={key: "os.system"})
            assert code(refused) == f"unknown_{key}"


def test_a_zip_of_the_same_files_is_the_same_bytes(tmp_path: Path) -> None:
    for name, order in (("one", ("a", "b/c")), ("two", ("b/c", "a"))):
        for file in order:
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file)
        zip_folder(tmp_path / name, tmp_path / f"{name}.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
