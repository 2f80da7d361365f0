"""`FakeModel`: the smallest `FederatedModel`, for tests of what surrounds a model. It never opens an image.

Its only tensors are `drift` (3,) and `shift` (2, 2). Training adds the round number to every value, so after r rounds
from zeros a federated model is r (r + 1) / 2 everywhere. `calls` is the story of what was asked of it, and `fail`
makes one verb raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from msfl.learning.contract import (
    Candidate,
    Evaluated,
    JsonObject,
    Prepared,
    ReportProgress,
    Site,
    Split,
    Stream,
    Trained,
    Weights,
)

PLAN: JsonObject = {"model": "fake", "summary": {"width": 3}}


def zeros() -> Weights:
    return {"drift": np.zeros(3, dtype=np.float32), "shift": np.zeros((2, 2), dtype=np.float32)}


class FakeModel:
    def __init__(self, fail: Mapping[str, Exception] | None = None, steps: int = 3) -> None:
        self.calls: list[str] = []
        self.fail = dict(fail or {})
        self.steps = steps
        self.loss = 0.5
        self.spoil: Weights | None = None  # returned by `train` instead of the honest result

    def _called(self, verb: str, *details: object) -> None:
        self.calls.append(" ".join([verb, *map(str, details)]))
        if verb in self.fail:
            raise self.fail[verb]

    def fingerprint(self, site: Site, config: JsonObject) -> JsonObject:
        self._called("fingerprint")
        return {"n_cases": len(site.train_cases), "labels": dict(site.labels)}

    def plan(self, fingerprints: Mapping[str, JsonObject], config: JsonObject) -> JsonObject:
        self._called("plan", *sorted(fingerprints))
        return {**PLAN, "n_cases": sum(f["n_cases"] for f in fingerprints.values())}

    def initial(self, plan: JsonObject, config: JsonObject) -> Weights:
        self._called("initial")
        return zeros()

    def prepare(self, site: Site, plan: JsonObject, config: JsonObject, progress: ReportProgress) -> Prepared:
        self._called("prepare", plan.get("n_cases"))
        return Prepared(len(site.train_cases), len(site.val_cases), len(site.test_cases))

    def train(
        self,
        site: Site,
        weights: Weights,
        stream: Stream,
        round: int,
        config: JsonObject,
        progress: ReportProgress,
    ) -> Trained:
        self._called("train", stream, round, f"from {float(weights['drift'][0]):g}")
        for step in range(self.steps):
            progress(step + 1, self.steps, {"train_loss": self.loss})
        trained = self.spoil or {name: values + np.float32(round) for name, values in weights.items()}
        return Trained(trained, len(site.train_cases), {"train_loss": self.loss})

    def evaluate(
        self,
        site: Site,
        candidates: tuple[Candidate, ...],
        split: Split,
        config: JsonObject,
        progress: ReportProgress,
    ) -> Evaluated:
        held = [f"{c.name}={'held' if c.weights is None else float(c.weights['drift'][0])}" for c in candidates]
        self._called("evaluate", split, *held)
        n = len(site.val_cases if split == "validation" else site.test_cases)
        summary = {"n": n, "loss": 0.25, "dice": {"mean": 0.75, "sd": 0.0, "median": 0.75, "histogram": [n]}}
        return Evaluated({c.name: dict(summary) for c in candidates})

    def export(self, plan: JsonObject, weights: Weights, labels: JsonObject, folder: Path) -> None:
        self._called("export", *sorted(labels))
        (folder / "inner").mkdir()
        (folder / "inner" / "weights.txt").write_text(" ".join(f"{v:g}" for v in weights["drift"]))
        (folder / "about.txt").write_text(str(plan["model"]))


def dataset_folder(folder: Path, *, n_train: int, n_test: int) -> Path:
    """A folder in nnU-Net raw layout whose images are empty files: enough for whatever only lists cases."""
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(
        '{"channel_names": {"0": "FLAIR", "1": "T1w"}, "labels": {"background": 0, "lesion": 1},'
        ' "file_ending": ".nii.gz"}'
    )
    for part, n in (("Tr", n_train), ("Ts", n_test)):
        for i in range(n):
            for kind, ending in (("images", "_0000"), ("images", "_0001"), ("labels", "")):
                path = folder / f"{kind}{part}" / f"case{i:02d}{part}{ending}.nii.gz"
                path.parent.mkdir(exist_ok=True)
                path.touch()
    return folder
