"""`VoxelLogistic`: a lesion's probability at a voxel as a logistic function of the intensities in and around it.

    logit(label k at voxel v) = coefficients[k] · features(v) + intercepts[k]        one row per label above 0

Trained by mini-batch gradient descent on the mean binary cross-entropy, with L2 weight decay on the coefficients and
the learning rate of nnU-Net, initial_lr · (1 − (r − 1) / rounds)^0.9 in round r. A third of each batch is foreground.
A voxel gets the label with the highest logit when that exceeds `THRESHOLD`: the batches hold far more foreground than
a brain does, so an even chance in a batch is none in a brain.

Both streams are plain functions of (weights, seed, stream, round): nothing is remembered between rounds but the drawn
voxels and the last local weights, so a restarted worker gives the same numbers as one that never stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msfl.evaluation.metrics import CaseMetrics, case_metrics, summarise_cases
from msfl.learning import weights as weight_files
from msfl.learning.contract import (
    Candidate,
    Evaluated,
    JsonObject,
    ModelRefusal,
    Prepared,
    ReportProgress,
    Site,
    Split,
    Stream,
    Trained,
    Weights,
)
from msfl.learning.files import canonical_json, write_whole
from msfl.learning.logistic.cases import Case, Samples, draw_samples, features_of, read_case
from msfl.learning.logistic.fingerprint import Plan, checked_plan, fingerprint_of, merge, plan_of

BATCH = 512
FOREGROUND_SHARE = 1 / 3
MOST_PER_KIND = 4000
THRESHOLD = 2.0


@dataclass(frozen=True)
class _Prepared:
    plan: Plan
    train: Samples
    validation: Samples


class VoxelLogistic:
    """Fulfils `msfl.learning.contract.FederatedModel`."""

    def __init__(self) -> None:
        self._prepared: _Prepared | None = None
        self._local: Weights | None = None

    # ------------------------------------------------------------ at the centre

    def plan(self, fingerprints: Mapping[str, JsonObject], config: JsonObject) -> JsonObject:
        return plan_of(merge(fingerprints))

    def initial(self, plan: JsonObject, config: JsonObject) -> Weights:
        """All zeros: a convex loss needs no luck."""
        checked = checked_plan(plan, None)
        n_labels = len(checked.foreground)
        return {
            "coefficients": np.zeros((n_labels, checked.n_features), dtype=np.float32),
            "intercepts": np.zeros(n_labels, dtype=np.float32),
        }

    def export(self, plan: JsonObject, weights: Weights, labels: JsonObject, folder: Path) -> None:
        """`plan.json` and `weights.safetensors`: the formula above is all one needs to use them."""
        write_whole(folder / "plan.json", [canonical_json(plan)])
        weight_files.save(folder / "weights.safetensors", weights)

    # ---------------------------------------------------------------- at a site

    def fingerprint(self, site: Site, config: JsonObject) -> JsonObject:
        return fingerprint_of(site)

    def prepare(self, site: Site, plan: JsonObject, config: JsonObject, progress: ReportProgress) -> Prepared:
        checked = checked_plan(plan, site)
        cases = (*site.train_cases, *site.val_cases)
        drawn: dict[str, Samples] = {}
        for done, name in enumerate(cases):
            progress(done, len(cases))
            case = read_case(site, name)
            features = features_of(case, checked.normalisation, checked.sigmas_mm)
            drawn[name] = draw_samples(case, features, MOST_PER_KIND, _random(config["seed"], "draw", name))
        self._prepared = _Prepared(
            plan=checked,
            train=_joined((drawn[name] for name in site.train_cases), checked),
            validation=_joined((drawn[name] for name in site.val_cases), checked),
        )
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
        prepared = self._ready()
        if not site.train_cases:
            raise ModelRefusal("no_training_cases", "an evaluate-only site cannot train")
        coefficients, intercepts = _parameters(weights, prepared.plan)
        samples = prepared.train
        foreground, background = np.flatnonzero(samples.labels > 0), np.flatnonzero(samples.labels == 0)
        # One seed for both streams: the same site sees the same batches, so that they differ in their start alone.
        random = _random(config["seed"], "batches", site.site_id, str(round))
        rate = config["initial_lr"] * (1 - (round - 1) / max(config["rounds"], round)) ** 0.9
        steps = config["local_epochs"] * config["batches_per_epoch"]
        losses = np.zeros(steps)
        for step in range(steps):
            batch = np.concatenate(
                [
                    _draw(foreground, int(BATCH * FOREGROUND_SHARE), random),
                    _draw(background, BATCH - int(BATCH * FOREGROUND_SHARE), random),
                ]
            )
            x = samples.features[batch].astype(np.float64)
            y = _one_hot(samples.labels[batch], prepared.plan)
            logits = x @ coefficients.T + intercepts
            losses[step] = _cross_entropy(logits, y)
            slope = (_sigmoid(logits) - y) / len(batch)
            coefficients -= rate * (slope.T @ x + config["weight_decay"] * coefficients)
            intercepts -= rate * slope.sum(axis=0)
            progress(step + 1, steps, {"train_loss": float(losses[step])})
        trained: Weights = {
            "coefficients": coefficients.astype(np.float32),
            "intercepts": intercepts.astype(np.float32),
        }
        if stream == "local":
            self._local = trained
        return Trained(trained, len(site.train_cases), {"train_loss": float(losses.mean())})

    def evaluate(
        self,
        site: Site,
        candidates: tuple[Candidate, ...],
        split: Split,
        config: JsonObject,
        progress: ReportProgress,
    ) -> Evaluated:
        prepared = self._ready()
        models = {c.name: _parameters(self._weights_of(c), prepared.plan) for c in candidates}
        names = site.test_cases if split == "test" else site.val_cases
        measured: dict[str, list[CaseMetrics]] = {name: [] for name in models}
        shown: tuple[int, Case, NDArray[np.bool_], dict[str, NDArray[np.bool_]]] | None = None
        for done, name in enumerate(names):
            progress(done, len(names))
            case = read_case(site, name)
            features = features_of(case, prepared.plan.normalisation, prepared.plan.sigmas_mm)
            truth = case.labels > 0
            marked = {m: _predicted(case, features, *models[m], prepared.plan) > 0 for m in models}
            for model, mask in marked.items():
                measured[model].append(case_metrics(truth, mask))
            if shown is None or int(truth.sum()) > shown[0]:
                shown = (int(truth.sum()), case, truth, marked)
        if split == "test" and shown is not None:
            _draw_overlay(site, *shown[1:])
        summaries = {model: summarise_cases(cases) for model, cases in measured.items()}
        if split == "validation":
            y = _one_hot(prepared.validation.labels, prepared.plan)
            for model, (coefficients, intercepts) in models.items():
                logits = prepared.validation.features.astype(np.float64) @ coefficients.T + intercepts
                summaries[model]["loss"] = _cross_entropy(logits, y)
        return Evaluated(summaries)

    def _ready(self) -> _Prepared:
        if self._prepared is None:
            raise ModelRefusal("not_prepared", "prepare comes before train and evaluate")
        return self._prepared

    def _weights_of(self, candidate: Candidate) -> Weights:
        weights = candidate.weights if candidate.weights is not None else self._local
        if weights is None:
            raise ModelRefusal("no_local_model", "no local model has been trained in this process")
        return weights


# ------------------------------------------------------------------------ arithmetic


def _parameters(weights: Weights, plan: Plan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients (label, feature) and intercepts (label,). Raises ModelRefusal for weights of another model."""
    n_labels = len(plan.foreground)
    wanted = {"coefficients": (n_labels, plan.n_features), "intercepts": (n_labels,)}
    if weight_files.shapes_of(weights) != wanted:
        raise ModelRefusal("weights_refused", f"the weights are not those of the plan: {sorted(weights)}")
    return weights["coefficients"].astype(np.float64), weights["intercepts"].astype(np.float64)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(logits / 2))  # the same function; this form cannot overflow


def _cross_entropy(logits: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float((np.logaddexp(0, logits) - y * logits).mean())


def _one_hot(labels: NDArray[np.int16], plan: Plan) -> NDArray[np.float64]:
    matches: NDArray[np.bool_] = labels[:, None] == np.array(plan.foreground)
    return matches.astype(np.float64)


def _predicted(
    case: Case,
    features: NDArray[np.float32],
    coefficients: NDArray[np.float64],
    intercepts: NDArray[np.float64],
    plan: Plan,
) -> NDArray[np.int16]:
    """Label values on the case's grid (x, y, z)."""
    inside = case.inside
    logits = features[:, inside].T @ coefficients.T.astype(np.float32) + intercepts.astype(np.float32)
    best = logits.argmax(axis=1)
    values = np.array(plan.foreground, dtype=np.int16)[best]
    predicted = np.zeros(inside.shape, dtype=np.int16)
    predicted[inside] = np.where(logits[np.arange(len(best)), best] > THRESHOLD, values, 0)
    return predicted


def _draw(where: NDArray[np.int64], n: int, random: np.random.Generator) -> NDArray[np.int64]:
    drawn: NDArray[np.int64] = random.choice(where, n) if where.size else where
    return drawn


def _joined(drawn: Iterable[Samples], plan: Plan) -> Samples:
    parts = list(drawn)
    if not parts:
        return Samples(np.zeros((0, plan.n_features), dtype=np.float32), np.zeros(0, dtype=np.int16))
    return Samples(np.concatenate([p.features for p in parts]), np.concatenate([p.labels for p in parts]))


def _random(seed: int, *words: str) -> np.random.Generator:
    """A generator of its own for each purpose, the same in every process and on every machine."""
    digest = hashlib.sha256("|".join((str(seed), *words)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype="<u4").tolist())


def _draw_overlay(site: Site, case: Case, truth: NDArray[np.bool_], marked: Mapping[str, NDArray[np.bool_]]) -> None:
    """The site's own picture: its own models on one test case. Its title names the site, never the case."""
    from msfl.evaluation.overlay import overlay  # Here, because matplotlib is slow to import and tests alone draw.

    own = {name: mask for name, mask in marked.items() if name in ("federated", f"local:{site.site_id}")}
    second = min(1, len(case.images) - 1)
    figure = overlay(
        case.images[0],
        case.images[1] if second else None,
        truth,
        own or dict(marked),
        case.spacing,
        site.site_id,
        (site.channel_names[0], site.channel_names[second]),
    )
    figure.savefig(site.figures / "overlay.png", dpi=60)
