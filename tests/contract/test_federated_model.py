"""What every `FederatedModel` must keep, run against each model we have.

A new model: subclass `FederatedModelContract`, say how it is made and configured, and it is tested. The sites are tiny
real datasets; `site-b` has another scanner's intensities.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fakes.tiny_data import LABELS, tiny_dataset
from msfl.learning import weights as weight_files
from msfl.learning.contract import Candidate, FederatedModel, JsonObject, ModelRefusal, Site, Trained, Weights
from msfl.learning.files import canonical_json
from msfl.learning.tasks import Workplace
from msfl.learning.worker import find_site

N_TRAIN, N_VAL, N_TEST = 3, 1, 2


def no_progress(done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
    assert 0 <= done <= total


def assert_equal(one: Weights, other: Weights) -> None:
    assert list(one) == list(other)
    for name in one:
        assert np.array_equal(one[name], other[name]), name


class FederatedModelContract:
    config: ClassVar[JsonObject]
    edge: ClassVar[int] = 16

    @classmethod
    def make(cls) -> FederatedModel:
        raise NotImplementedError

    def bad_plans(self, plan: JsonObject) -> list[JsonObject]:
        """Plans that must be refused at a site, besides those that are bad for every model."""
        return []

    # ---------------------------------------------------------------- stage

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        root = tmp_path_factory.mktemp("data")
        n = N_TRAIN + N_VAL
        return {
            "site-a": tiny_dataset(root / "a", n_train=n, n_test=N_TEST, seed=1, prefix="SECRET", edge=cls.edge),
            "site-b": tiny_dataset(root / "b", n_train=n, n_test=N_TEST, seed=2, gain=3.0, edge=cls.edge),
        }

    @classmethod
    def site(cls, folder: Path, data: dict[str, Path], name: str = "site-a") -> Site:
        folder.mkdir(exist_ok=True)
        return find_site(name, data[name], Workplace(folder), seed=cls.config["seed"], validation_fraction=0.2)

    @pytest.fixture(scope="class")
    @classmethod
    def fingerprints(cls, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, JsonObject]:
        folder = tmp_path_factory.mktemp("fingerprints")
        return {name: cls.make().fingerprint(cls.site(folder / name, data, name), cls.config) for name in sorted(data)}

    @pytest.fixture(scope="class")
    @classmethod
    def plan(cls, fingerprints: dict[str, JsonObject]) -> JsonObject:
        plan: JsonObject = json.loads(canonical_json(cls.make().plan(fingerprints, cls.config)))
        return plan

    @pytest.fixture(scope="class")
    @classmethod
    def initial(cls, plan: JsonObject) -> Weights:
        return cls.make().initial(plan, cls.config)

    def prepared(self, site: Site, plan: JsonObject) -> FederatedModel:
        model = self.make()
        prepared = model.prepare(site, plan, self.config, no_progress)
        assert (prepared.n_train, prepared.n_val, prepared.n_test) == (N_TRAIN, N_VAL, N_TEST)
        return model

    def train(self, model: FederatedModel, site: Site, weights: Weights, **changes: Any) -> Trained:
        return model.train(site, weights, "federated", 1, {**self.config, **changes}, no_progress)

    # ----------------------------------------------------------- the centre

    def test_a_fingerprint_is_json_that_names_no_case(self, fingerprints: dict[str, JsonObject]) -> None:
        for fingerprint in fingerprints.values():
            text = canonical_json(fingerprint)
            assert json.loads(text) == fingerprint
            assert b"SECRET" not in text

    def test_a_fingerprint_depends_on_the_data_alone(
        self, data: dict[str, Path], fingerprints: dict[str, JsonObject], tmp_path: Path
    ) -> None:
        again = self.make().fingerprint(self.site(tmp_path / "f", data), self.config)
        assert again == fingerprints["site-a"]

    def test_the_plan_does_not_depend_on_the_order_of_the_sites(
        self, fingerprints: dict[str, JsonObject], plan: JsonObject
    ) -> None:
        for order in (sorted(fingerprints), sorted(fingerprints, reverse=True)):
            made = self.make().plan({site: fingerprints[site] for site in order}, self.config)
            assert canonical_json(made) == canonical_json(plan)

    def test_sites_with_other_labels_are_not_planned_together(self, fingerprints: dict[str, JsonObject]) -> None:
        other = {**fingerprints["site-b"], "labels": {"background": 0, "tumour": 1}}
        with pytest.raises(ModelRefusal):
            self.make().plan({"site-a": fingerprints["site-a"], "site-b": other}, self.config)

    def test_a_fingerprint_of_another_kind_is_refused(self, fingerprints: dict[str, JsonObject]) -> None:
        for bad in ({}, {**fingerprints["site-b"], "case_ids": ["A"]}):
            with pytest.raises(ModelRefusal):
                self.make().plan({"site-a": fingerprints["site-a"], "site-b": bad}, self.config)

    def test_first_weights_are_finite_float32_and_survive_the_disk(
        self, plan: JsonObject, initial: Weights, tmp_path: Path
    ) -> None:
        assert initial
        weight_files.save(tmp_path / "w", initial)
        assert_equal(weight_files.load(tmp_path / "w"), initial)
        assert_equal(self.make().initial(plan, self.config), initial)

    def test_an_export_is_a_folder_of_files(self, plan: JsonObject, initial: Weights, tmp_path: Path) -> None:
        self.make().export(plan, initial, dict(LABELS), tmp_path)
        assert [p for p in tmp_path.rglob("*") if p.is_file()]

    # -------------------------------------------------------------- a site

    def test_the_same_seed_trains_the_same_weights_and_another_seed_others(
        self, data: dict[str, Path], plan: JsonObject, initial: Weights, tmp_path: Path
    ) -> None:
        trained = []
        for run, seed in (("one", 1), ("two", 1), ("three", 2)):
            site = self.site(tmp_path / run, data)
            model = self.make()
            config = {**self.config, "seed": seed}
            model.prepare(site, plan, config, no_progress)
            trained.append(model.train(site, initial, "federated", 1, config, no_progress))
        assert_equal(trained[0].weights, trained[1].weights)
        assert trained[0].metrics["train_loss"] == trained[1].metrics["train_loss"]
        assert any(not np.array_equal(trained[0].weights[k], trained[2].weights[k]) for k in initial)

    def test_training_changes_weights_but_not_those_it_was_given(
        self, data: dict[str, Path], plan: JsonObject, initial: Weights, tmp_path: Path
    ) -> None:
        site = self.site(tmp_path / "f", data)
        given = {name: values.copy() for name, values in initial.items()}
        trained = self.train(self.prepared(site, plan), site, given)
        assert_equal(given, initial)
        assert weight_files.shapes_of(trained.weights) == weight_files.shapes_of(initial)
        assert all(values.dtype == np.float32 for values in trained.weights.values())
        assert any(not np.array_equal(trained.weights[k], initial[k]) for k in initial)
        assert trained.n_train == N_TRAIN
        assert np.isfinite(trained.metrics["train_loss"])

    def test_evaluation_summarises_every_candidate(
        self, data: dict[str, Path], plan: JsonObject, initial: Weights, tmp_path: Path
    ) -> None:
        site = self.site(tmp_path / "f", data)
        model = self.prepared(site, plan)
        local = model.train(site, initial, "local", 1, self.config, no_progress).weights
        candidates = (
            Candidate("federated", local),
            Candidate("local:site-a", None),
            Candidate("local:site-b", initial),
        )
        test = model.evaluate(site, candidates, "test", self.config, no_progress).summaries
        assert list(test) == ["federated", "local:site-a", "local:site-b"]
        assert test["federated"] == test["local:site-a"]  # None is the model trained here
        for summary in test.values():
            assert summary["n"] == N_TEST
            for metric in ("dice", "sensitivity", "precision"):
                assert set(summary[metric]) == {"mean", "sd", "median", "histogram"}
        assert b"SECRET" not in canonical_json(test)
        assert list(site.figures.glob("*.png"))

        validation = model.evaluate(site, candidates[:1], "validation", self.config, no_progress).summaries
        assert validation["federated"]["n"] == N_VAL
        assert np.isfinite(validation["federated"]["loss"])

    def test_the_data_folder_is_not_written_to(
        self, data: dict[str, Path], plan: JsonObject, initial: Weights, tmp_path: Path
    ) -> None:
        before = sorted((p, p.stat().st_mtime_ns) for p in data["site-a"].rglob("*"))
        site = self.site(tmp_path / "f", data)
        self.train(self.prepared(site, plan), site, initial)
        assert sorted((p, p.stat().st_mtime_ns) for p in data["site-a"].rglob("*")) == before

    # ------------------------------------------------------------- refusals

    def test_bad_plans_are_refused(self, data: dict[str, Path], plan: JsonObject, tmp_path: Path) -> None:
        site = self.site(tmp_path / "f", data)
        bad = [{}, {**plan, "run_this": "os.system"}, {k: v for k, v in list(plan.items())[1:]}, *self.bad_plans(plan)]
        for spoiled in bad:
            with pytest.raises(ModelRefusal):
                self.make().prepare(site, spoiled, self.config, no_progress)

    def test_a_plan_for_other_channels_is_refused(
        self, data: dict[str, Path], plan: JsonObject, tmp_path: Path
    ) -> None:
        site = self.site(tmp_path / "f", data)
        other = Site(**{**vars(site), "channel_names": ("T2", "PD")})
        with pytest.raises(ModelRefusal):
            self.make().prepare(other, plan, self.config, no_progress)

    def test_nothing_is_trained_before_prepare(self, data: dict[str, Path], initial: Weights, tmp_path: Path) -> None:
        site = self.site(tmp_path / "f", data)
        with pytest.raises(ModelRefusal):
            self.train(self.make(), site, initial)

    def test_an_evaluate_only_site_does_not_train(self, plan: JsonObject, initial: Weights, tmp_path: Path) -> None:
        only = {"site-a": tiny_dataset(tmp_path / "only", n_train=0, n_test=1, edge=self.edge)}
        site = self.site(tmp_path / "f", only)
        model = self.make()
        prepared = model.prepare(site, plan, self.config, no_progress)
        assert (prepared.n_train, prepared.n_val, prepared.n_test) == (0, 0, 1)
        with pytest.raises(ModelRefusal):
            self.train(model, site, initial)
        evaluated = model.evaluate(site, (Candidate("federated", initial),), "test", self.config, no_progress)
        assert evaluated.summaries["federated"]["n"] == 1


class TestVoxelLogistic(FederatedModelContract):
    config: ClassVar[JsonObject] = {
        "seed": 1,
        "rounds": 2,
        "local_epochs": 1,
        "batches_per_epoch": 5,
        "initial_lr": 0.5,
        "weight_decay": 1e-4,
    }

    @classmethod
    def make(cls) -> FederatedModel:
        from msfl.learning.logistic.model import VoxelLogistic

        return VoxelLogistic()

    def bad_plans(self, plan: JsonObject) -> list[JsonObject]:
        entry = plan["normalisation"][0]
        return [
            {**plan, "format": "voxel-logistic/2"},
            {**plan, "labels": {"background": 0, "tumour": 1}},
            {**plan, "normalisation": [entry]},
            {**plan, "normalisation": [{**entry, "scale": 0}, entry]},
            {**plan, "normalisation": [{**entry, "scale": "1"}, entry]},
            {**plan, "normalisation": [{**entry, "shell": 1}, entry]},
            {**plan, "sigmas_mm": [1.0] * 5},
            {**plan, "sigmas_mm": [1e9]},
        ]


@pytest.mark.slow
class TestNnUNet(FederatedModelContract):
    edge: ClassVar[int] = 24
    config: ClassVar[JsonObject] = {
        "profile": "demo",
        "seed": 1,
        "rounds": 2,
        "local_epochs": 1,
        "batches_per_epoch": 1,
        "initial_lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 3e-5,
        "oversample_foreground": 0.33,
        "validation_fraction": 0.2,
        "strategy": "fedavg",
        "weighting": "cases",
        "patch_size": 16,
        "base_features": 4,
        "convs_per_stage": 1,
        "batch_size": 2,
        "inference_tile": 32,
        "inference_step": 1.0,
        "inference_mirroring": False,
        "threads": 1,
        "device": "cpu",
    }

    @classmethod
    def make(cls) -> FederatedModel:
        from msfl.learning.nnunet.model import NnUNet

        return NnUNet()
