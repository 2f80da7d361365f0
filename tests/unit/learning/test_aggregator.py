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
from msfl.learning.files import blake3_of_file, json_hash, sha256_of_file
from msfl.protos.notes import LEFT_OVER
from msfl.protos.sealing import EVERYBODY
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
    answer = host.do("plan", {"recipients": sites.names}, files)
    if isinstance(answer, Result):
        sites.keep(host, answer)
    return answer


def aggregate(
    host: Host, sites: SealedSites, updates: dict[str, Path], said: dict[str, Any] | None = None, **more: Any
) -> Result | Failed:
    """A round, from the model that was kept; what it makes is kept."""
    asked = {"recipients": [], **(said or {})}
    answer = host.do("aggregate", asked, {**updates, **sites.kept}, **({"round": 1} | more))
    return sites.keep(host, answer) if isinstance(answer, Result) else answer


def model(host: Host, sites: SealedSites, answer: Result | Failed, site: str = "site-a", round: int = 1) -> Weights:
    return weight_files.load(sites.model(host, answer, site, f"aggregate/{round}", round, "weights"))


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
        "weights_blake3": blake3_of_file(sites.model(host, answer, "site-a", "plan", 0, "weights")),
    }
    assert isinstance(answer, Result)
    everybody = [*sites.names, EVERYBODY]
    assert sorted(answer.files) == sorted(f"{kind}/{site}" for kind in ("plan", "weights") for site in everybody)
    said = sites.down(host.output(answer, "plan/site-b"), "site-b", "plan", 0, "plan")
    assert said == {"plan": whole, "plan_hash": json_hash(whole)}
    tensors = sites.model(host, answer, "site-b", "plan", 0, "weights")
    assert weight_files.load(tensors).keys() == zeros().keys()


def test_a_round_is_the_weighted_mean_and_goes_to_everybody(host: Host, sites: SealedSites) -> None:
    plan(host, sites)
    files = {"site-b": sites.update("site-b", 1, plus(3), n_train=1), "site-a": sites.update("site-a", 1, plus(1), 3)}
    answer = aggregate(host, sites, files, {"recipients": ["site-a", "site-b"], "late": ["site-c"]})
    facts = {"train_loss": 0.5, "seconds": 1.0, "incoming": {}}
    norm = pytest.approx(7**0.5)
    assert document(answer) == {
        "sites": {
            "site-a": {"n_train": 3, **facts, "update_norm": norm},
            "site-b": {"n_train": 1, **facts, "update_norm": pytest.approx(3 * 7**0.5)},
        },
        "refused": {},
        "weights_blake3": blake3_of_file(sites.model(host, answer, "site-c", "aggregate/1", 1, "weights")),
    }
    for site in sites.names:
        assert np.array_equal(model(host, sites, answer, site)["drift"], np.full(3, 1.5))


def test_equal_weighting_ignores_the_number_of_cases(host: Host, sites: SealedSites) -> None:
    plan(host, sites)
    files = {"site-b": sites.update("site-b", 1, plus(3), n_train=1), "site-a": sites.update("site-a", 1, plus(1), 3)}
    answer = aggregate(host, sites, files, {"recipients": ["site-a"]}, config={"weighting": "equal"})
    assert np.array_equal(model(host, sites, answer)["drift"], np.full(3, 2.0))


def test_the_sum_does_not_depend_on_who_came_first(host: Host, sites: SealedSites) -> None:
    plan(host, sites)
    random = np.random.default_rng(1)
    updates = {
        site: sites.update(site, 1, {n: random.standard_normal(v.shape).astype(np.float32) for n, v in zeros().items()})
        for site in sites.names
    }
    first = dict(sites.kept)
    hashes = set()
    for order in (sites.names, sites.names[::-1]):
        sites.kept = dict(first)
        hashes.add(document(aggregate(host, sites, {s: updates[s] for s in order}))["weights_blake3"])
    assert len(hashes) == 1


def test_candidates_and_export(host: Host, sites: SealedSites, tmp_path: Path) -> None:
    plan(host, sites)
    aggregate(host, sites, {"site-a": sites.update("site-a", 1, plus(1))})
    baselines = {
        "site-a": sites.up(sites.header("site-a", "baseline", 0), {"n_train": 3, "train_loss": 0.1}, plus(10)),
        "site-b": sites.up(sites.header("site-b", "baseline", 0), {"n_train": 1, "train_loss": 0.1}),
    }
    asked = {"recipients": sites.names, "federated_round": 1}
    answer = host.do("candidates", asked, {**baselines, **sites.kept}, round=1)
    assert isinstance(answer, Result)
    assert sorted(answer.files) == [
        "federated/site-a",
        "federated/site-b",
        "federated/site-c",
        f"local:site-a/{EVERYBODY}",
        "local:site-a/site-b",
        "local:site-a/site-c",
    ]
    tensors = sites.model(host, answer, "site-c", "candidates", 1, "local:site-a")
    assert np.array_equal(weight_files.load(tensors)["drift"], np.full(3, 10.0))
    best = sites.model(host, answer, "site-b", "candidates", 1, "federated").read_bytes()

    exported = host.do("export", {"federated_round": 1}, dict(sites.kept), round=1)
    assert host.output(exported, "weights").read_bytes() == best
    weights = host.output(exported, "weights")
    assert document(exported) == {"weights_sha256": sha256_of_file(weights), "weights_blake3": blake3_of_file(weights)}
    with zipfile.ZipFile(host.output(exported, "model")) as archive:
        assert archive.namelist() == ["about.txt", "inner/weights.txt"]
        assert archive.read("inner/weights.txt") == b"1 1 1"


def test_collect_hands_on_summaries(host: Host, sites: SealedSites) -> None:
    dice = {"mean": 0.5, "sd": 0.1, "median": 0.5, "histogram": [0, 2]}
    summaries = {"federated": {"n": 2, "dice": dice, "loss": None}, "local:site-b": {"n": None, "withheld": "too_few"}}
    files = {"site-a": sites.up(sites.header("site-a", "evaluate/test", 4), {"summaries": summaries})}
    answer = host.do("collect", {"task_id": "evaluate/test"}, files, round=4)
    assert document(answer) == {"sites": {"site-a": {"summaries": summaries}}, "refused": {}}


def test_a_site_that_comes_later_is_issued_the_plan_and_the_present_model(host: Host, sites: SealedSites) -> None:
    plan(host, sites)
    aggregate(host, sites, {"site-a": sites.update("site-a", 1, plus(1))})
    answer = host.do("issue", {"recipients": ["site-c"], "round": 1}, dict(sites.kept), round=1)
    assert isinstance(answer, Result)
    assert sorted(answer.files) == ["plan/site-c", "weights/site-c"]
    said = sites.down(host.output(answer, "plan/site-c"), "site-c", "issue/1", 1, "plan")
    assert said["plan"]["n_cases"] == 9
    tensors = sites.model(host, answer, "site-c", "issue/1", 1, "weights")
    assert np.array_equal(weight_files.load(tensors)["drift"], np.full(3, 1.0))


def test_killed_between_rounds_another_process_goes_on(tmp_path: Path, sites: SealedSites) -> None:
    with Host.of(FakeModel(), tmp_path / "f", role="aggregator") as host:
        sites.open(host)
        plan(host, sites)
        before = dict(sites.kept)
        first = aggregate(host, sites, {"site-a": sites.update("site-a", 1, plus(1))})
        public = host.hello.public_key
    with Host.of(fake := FakeModel(), tmp_path / "g", role="aggregator") as host:
        assert host.hello.public_key != public
        sites.open(host)
        # The engine may not have heard of round 1's end: asked again, from what it kept, it answers the same.
        sites.kept = before
        again = aggregate(host, sites, {"site-a": sites.update("site-a", 1, plus(1))})
        assert document(again) == document(first)
        aggregate(host, sites, {"site-a": sites.update("site-a", 2, plus(5))}, round=2)
        assert isinstance(host.do("export", {"federated_round": 2}, dict(sites.kept), round=2), Result)
    assert fake.calls == ["export background lesion"]


def test_nothing_is_left_in_clear(host: Host, sites: SealedSites) -> None:
    plan(host, sites)
    aggregate(host, sites, {"site-a": sites.update("site-a", 1, plus(1))})
    assert list((host.folder / "scratch").iterdir()) == []
    for file in (host.folder / "outbox").iterdir():
        assert b"data_offsets" not in file.read_bytes()
        assert b"n_cases" not in file.read_bytes()


@pytest.mark.parametrize("strategy", ["median", "krum"])
def test_strategies_that_see_all_updates_run_from_the_same_files(host: Host, sites: SealedSites, strategy: str) -> None:
    plan(host, sites)
    updates = {s: sites.update(s, 1, plus(v)) for s, v in (("site-a", 1), ("site-b", 1.25), ("site-c", 900))}
    answer = aggregate(host, sites, updates, {"recipients": ["site-a"]}, config={"strategy": strategy})
    expected = {"median": 1.25, "krum": 1.0}[strategy]
    assert np.array_equal(model(host, sites, answer)["drift"], np.full(3, expected))


def test_tasks_that_make_no_sense_are_refused(tmp_path: Path, sites: SealedSites) -> None:
    with Host.of(FakeModel(), tmp_path / "f", role="aggregator") as host:
        assert code(plan(host, sites)) == "not_open"
        assert code(host.do("open", {"run_id": RUN, "sealed_keys": "AAAA"})) == "keys_unreadable"
        assert code(host.do("open", {"run_id": RUN, "sealed_keys": "not base64"})) == "keys_unreadable"
        sites.open(host)
        assert code(host.do("export")) == "input_missing"
        plan(host, sites)
        assert code(sites.open(host, "run-8")) == "other_run"
        assert code(aggregate(host, sites, {})) == "no_updates"
        assert code(aggregate(host, sites, {}, {"recipients": ["site-x"]})) == "unknown_site"
        assert code(aggregate(host, sites, {}, {"recipients": [EVERYBODY]})) == "unknown_site"
        update = {"site-a": sites.update("site-a", 1, plus(1))}
        for key in ("strategy", "weighting"):
            refused = aggregate(host, sites, update, config={key: "os.system"})
            assert code(refused) == f"unknown_{key}"
        # The model of another round than the one that the task is about.
        later = {"site-a": sites.update("site-a", 3, plus(1))}
        assert code(aggregate(host, sites, later, round=3)) == "model_broken"


def test_a_zip_of_the_same_files_is_the_same_bytes(tmp_path: Path) -> None:
    for name, order in (("one", ("a", "b/c")), ("two", ("b/c", "a"))):
        for file in order:
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file)
        zip_folder(tmp_path / name, tmp_path / f"{name}.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


@pytest.mark.parametrize("wire", ["bf16", "fp16"])
def test_rounds_by_difference_give_every_site_the_same_model(host: Host, sites: SealedSites, wire: str) -> None:
    """Both ways in 16 bits, with a value that no 16 bits hold: after ten rounds it is where float32 would be."""
    answer = plan(host, sites)
    config = {"wire": wire}
    held = {name: values.copy() for name, values in zeros().items()}
    left = {s: {name: np.zeros_like(v) for name, v in held.items()} for s in ("site-a", "site-b")}
    exact = 0.0
    for r in range(1, 11):
        exact += (0.1001 * 3 + 0.2003) / 4
        updates = {}
        for site, step, n in (("site-a", 0.1001, 3), ("site-b", 0.2003, 1)):
            trained = {name: values + np.float32(step) for name, values in held.items()}
            updates[site], left[site] = sites.difference(site, r, trained, held, left[site], wire, n)
        answer = aggregate(host, sites, updates, {"recipients": ["site-a"]}, round=r, config=config)
        now = model(host, sites, answer, round=r)
        patched = sites.patched(host, answer, "site-a", r, held, wire)
        assert {n: v.tobytes() for n, v in patched.items()} == {n: v.tobytes() for n, v in now.items()}
        held = now
    assert np.abs(held["drift"] - exact).max() < 1e-3

    # The last model as it was before it was rounded: what the sites hold, and what rounding left over.
    kept = {**sites.kept, f"{EVERYBODY}/{LEFT_OVER}": host.output(answer, f"{LEFT_OVER}/{EVERYBODY}")}
    answer = host.do("candidates", {"recipients": ["site-a"], "federated_round": 10}, kept, round=10)
    before = weight_files.load(sites.model(host, answer, "site-a", "candidates", 10, "unrounded"))
    assert not np.array_equal(before["drift"], held["drift"])
    assert np.abs(before["drift"] - exact).max() < np.abs(held["drift"] - exact).max()
    whole = {"site-a": sites.update("site-a", 11, plus(1))}
    assert code(aggregate(host, sites, whole, round=11, config={"wire": "x"})) == "unknown_wire"
    # Whole weights where differences were agreed on, and a difference to more tensors than there are.
    refused = aggregate(host, sites, whole, round=11, config=config)
    assert isinstance(refused, Result)
    assert refused.document["refused"] == {"site-a": "update_layout"}


def test_a_run_starts_from_the_plan_and_the_model_of_an_earlier_one(
    host: Host, sites: SealedSites, tmp_path: Path
) -> None:
    plan(host, sites)
    aggregate(host, sites, {"site-a": sites.update("site-a", 1, plus(2))})
    earlier = {f"ALL/earlier-{name.partition('/')[2]}": path for name, path in sites.kept.items()}
    asked = {"recipients": ["site-b"], "start_from": {"run": RUN, "round": 1}}
    # The later run has other keys, and that of what the earlier one kept.
    later = SealedSites(tmp_path / "later", "site-b", run="run-8")
    with Host.of(fake := FakeModel(), tmp_path / "g", role="aggregator") as second:
        later.open(second)
        assert code(second.do("plan", asked, earlier)) == "unknown_run"
        later.keys[f"{EVERYBODY}@{RUN}"] = sites.keys[EVERYBODY]
        later.open(second)
        answer = second.do("plan", asked, earlier)
        said = document(answer)
        model = later.model(second, answer, "site-b", "plan", 0, "weights")
        assert np.array_equal(weight_files.load(model)["drift"], np.full(3, 2.0))
        told = later.down(second.output(answer, "plan/site-b"), "site-b", "plan", 0, "plan")
        assert told["plan_hash"] == said["plan_hash"]
        assert fake.calls == []  # Nothing was planned or drawn anew.
        wrong = {**asked, "start_from": {"run": RUN, "round": 0}}
        assert code(second.do("plan", wrong, earlier)) == "model_broken"
