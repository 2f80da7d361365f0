"""The second release as a whole: its recipe, its image, and a federation of two sites with the real verbs."""

import subprocess
import sys
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from fakes.hosts import Host
from fakes.sites import SealedSites
from fakes.tiny_data import tiny_dataset
from msfl.learning.contract import JsonObject
from msfl.learning.files import sha256_of_file
from msfl.learning.logistic.fingerprint import N_BINS, histogram, merge, quantile
from msfl.learning.logistic.model import VoxelLogistic
from msfl.learning.weights import load
from msfl.policies.encoding import load_yaml
from msfl.protos.tasklink import Result
from msfl.registry.build import Recipe

RECIPE = load_yaml((files("msfl.learning.logistic") / "release.yaml").read_bytes(), Recipe, "release.yaml")


@pytest.mark.parametrize("profile", ["full", "demo"])
def test_a_profile_sets_every_key_within_its_bounds(profile: str) -> None:
    values = RECIPE.profiles[profile]
    assert set(values) == set(RECIPE.config)
    for key, bound in RECIPE.config.items():
        value: Any = values[key]
        low, high = bound.min, bound.max
        assert low is None or value >= low, key
        assert high is None or value <= high, key
        assert bound.enum is None or value in bound.enum, key


def test_the_declared_outputs_are_closed_schemas() -> None:
    assert set(RECIPE.outputs) == set(RECIPE.tasks)
    for output in RECIPE.outputs.values():
        jsonschema.Draft202012Validator.check_schema(_plain(output["document"]))
        assert output["document"]["additionalProperties"] is False


def test_the_image_holds_every_module_that_a_worker_imports() -> None:
    program = "import sys, msfl.learning.logistic.__main__, msfl.evaluation.overlay; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for module in (m for m in done.stdout.split() if m.startswith("msfl.") and m.count(".") > 1):
        path = module.replace(".", "/")
        assert any(path == code.removesuffix(".py") or f"{path}/".startswith(f"{code}/") for code in RECIPE.code), (
            module
        )


# ------------------------------------------------------------------ the model


def test_bins_and_quantiles_agree_with_the_values() -> None:
    values = np.random.default_rng(0).lognormal(0, 0.5, 20000).astype(np.float32)
    counts = histogram(np.concatenate([values, [0, -1, 1e-9, 1e9]]).astype(np.float32))
    assert (len(counts), counts.sum(), counts[0], counts[-1]) == (N_BINS, 20002, 1, 1)
    for q in (0.16, 0.5, 0.84):
        assert quantile(counts, q) == pytest.approx(np.quantile(values, q), rel=0.06)


def test_merging_sites_is_pooling_their_cases() -> None:
    def site(n: int, spacing: int) -> JsonObject:
        return {
            "n_cases": n,
            "n_inside": 10 * n,
            "n_foreground": n,
            "channel_names": ["FLAIR"],
            "labels": {"background": 0, "lesion": 1},
            "intensity": [[n] * N_BINS],
            "spacing": [[[spacing, n]]] * 3,
            "shape": [[[64, n]]] * 3,
        }

    merged = merge({"a": site(2, 100), "b": site(3, 200), "c": site(1, 100)})
    assert (merged["n_cases"], merged["n_inside"]) == (6, 60)
    assert merged["intensity"] == [[6] * N_BINS]
    assert merged["spacing"][0] == [[100, 3], [200, 3]]


# -------------------------------------------------------------- a federation


def _plain(value: Any) -> Any:
    """Recipes hold arrays as tuples; JSON Schema wants lists."""
    match value:
        case dict():
            return {k: _plain(v) for k, v in value.items()}
        case tuple():
            return [_plain(v) for v in value]
        case _:
            return value


def _declared(verb: str, document: JsonObject) -> JsonObject:
    """What a gateway does with a result: take out what is its own, then hold it to the release's word."""
    document = {k: v for k, v in document.items() if k != "peak_rss_mib"}
    jsonschema.validate(document, _plain(RECIPE.outputs[verb]["document"]))
    return document


def federation(root: Path) -> tuple[str, dict[str, JsonObject]]:
    """Two training sites and one that only evaluates; returns the model's hash and the summaries of each site."""
    sizes = {"site-a": (4, 2), "site-b": (3, 1), "site-c": (0, 2)}
    trains = ["site-a", "site-b"]
    config = {**RECIPE.profiles["demo"], "rounds": 2}
    sealed = SealedSites(root / "sealed", *sizes)
    with ExitStack() as stack:
        workers: dict[str, Host] = {}
        for i, (site, (n_train, n_test)) in enumerate(sizes.items()):
            data = tiny_dataset(root / site / "data", n_train=n_train, n_test=n_test, seed=i, gain=1.0 + i)
            host = Host.of(VoxelLogistic(), root / site / "f", role="worker", data=data, site=site)
            workers[site] = stack.enter_context(host)
        centre = stack.enter_context(Host.of(VoxelLogistic(), root / "centre", role="aggregator"))
        sealed.open(centre)

        def at_site(
            site: str, task_id: str, verb: str, document: JsonObject, inputs: dict[str, Path], round: int
        ) -> Path:
            answer = workers[site].do(verb, document, inputs, round=round, config=config)
            assert isinstance(answer, Result), answer
            tensors = workers[site].output(answer, "weights").read_bytes() if answer.files else None
            header = sealed.header(site, task_id, round)
            return sealed.up(header, _declared(verb, answer.document), tensors)

        def at_centre(verb: str, document: JsonObject, inputs: dict[str, Path], round: int) -> Result:
            return sealed.keep(centre, centre.do(verb, document, inputs, round=round, config=config))

        results = {site: at_site(site, "fingerprint", "fingerprint", {}, {}, 0) for site in trains}
        answer = at_centre("plan", {"recipients": sorted(sizes)}, results, 0)
        initial, weights = {}, {}
        for site in sizes:
            said = sealed.down(centre.output(answer, f"plan/{site}"), site, "plan", 0, "plan")
            at_site(site, "prepare", "prepare", said, {}, 0)
            initial[site] = weights[site] = sealed.model(centre, answer, site, "plan", 0, "weights")
        for r in (1, 2):
            results = {
                site: at_site(site, f"train/{r}", "train", {"stream": "federated"}, {"weights": weights[site]}, r)
                for site in trains
            }
            answer = at_centre("aggregate", {"recipients": trains}, {**results, **sealed.kept}, r)
            for site in trains:
                weights[site] = sealed.model(centre, answer, site, f"aggregate/{r}", r, "weights")

        local = {"stream": "local", "rounds": 2, "send_weights": True}
        results = {s: at_site(s, "baseline", "train", local, {"weights": initial[s]}, 0) for s in trains}
        asked = {"recipients": sorted(sizes), "federated_round": 2}
        answer = at_centre("candidates", asked, {**results, **sealed.kept}, 2)

        def test(site: str) -> Path:
            received = {}
            for name in answer.files:
                artifact, _, recipient = name.rpartition("/")
                if recipient == site:
                    received[artifact] = sealed.model(centre, answer, site, "candidates", 2, artifact)
            names = [*received, *([f"local:{site}"] if site in trains else [])]
            document = {"split": "test", "candidates": names}
            return at_site(site, "evaluate/test", "evaluate", document, received, 2)

        results = {site: test(site) for site in sizes}
        collected = at_centre("collect", {"task_id": "evaluate/test"}, results, 2).document["sites"]
        exported = centre.output(at_centre("export", {"federated_round": 2}, dict(sealed.kept), 2), "weights")
        assert load(exported).keys() == {"coefficients", "intercepts"}
        return sha256_of_file(exported), {site: document["summaries"] for site, document in collected.items()}


def test_a_federation_learns(tmp_path: Path) -> None:
    _, summaries = federation(tmp_path)
    assert {site: sorted(models) for site, models in summaries.items()} == {
        site: ["federated", "local:site-a", "local:site-b"] for site in ("site-a", "site-b", "site-c")
    }
    for site in summaries:
        assert summaries[site]["federated"]["dice"]["mean"] > 0.6, summaries
        assert (tmp_path / site / "f" / "figures" / "overlay.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_federation_repeats_to_the_bit(tmp_path: Path) -> None:
    assert federation(tmp_path / "one") == federation(tmp_path / "two")
