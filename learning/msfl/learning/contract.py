"""`FederatedModel`: the one contract between the platform and a model.

A release is a class that fulfils this protocol, and an entry module that says `serve(MyModel())`. The platform knows
nothing else of a model: not its framework, its channels, its labels or its metrics.

    where       verb          in                                  out (leaves the process)
    site        fingerprint   the site's training cases           integers and histograms, as the release declares
    centre      plan          every site's fingerprint            one plan: plain JSON, hashed
    centre      initial       the plan, a seed                    the first weights
    site        prepare       the plan (validated here)           counts of cases
    site        train         weights, a stream, a round          weights, named finite numbers
    site        evaluate      named weights, a split              summaries per model, never per case
    centre      export        the plan, weights                   a folder in the field's own format

One object lives for the whole run in each process, so data loaders, momentum and caches live on between rounds.
Weights are `{name: float32 array}`, each parameter once (never an aliased state dict), in a fixed order.
All randomness comes from `config["seed"]`: the same spec on the same data gives the same numbers on CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

JsonObject: TypeAlias = dict[str, Any]
Weights: TypeAlias = dict[str, NDArray[np.float32]]
Stream: TypeAlias = Literal["federated", "local"]
Split: TypeAlias = Literal["validation", "test"]


class ModelRefusal(Exception):
    """The model will not do this, for a reason the site's staff can act on. `code` may leave the site, `detail` not."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class ReportProgress(Protocol):
    """`done` of `total` steps of the running verb; `metrics` are the latest finite numbers (train_loss, …)."""

    def __call__(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None: ...


@dataclass(frozen=True)
class Site:
    """What a worker may see: its data (read-only), a scratch folder and a folder for pictures that stay here.

    `data` is in nnU-Net raw layout. Cases are named without channel or extension; `train_cases` and `val_cases` share
    `imagesTr`, `test_cases` lie in `imagesTs`. An evaluate-only site has no train and no validation cases.
    """

    site_id: str
    data: Path
    scratch: Path
    figures: Path
    channel_names: tuple[str, ...]
    labels: Mapping[str, int]
    file_ending: str
    train_cases: tuple[str, ...]
    val_cases: tuple[str, ...]
    test_cases: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    n_train: int
    n_val: int
    n_test: int


@dataclass(frozen=True)
class Trained:
    """An update: the weights after local training and how many training cases stand behind them."""

    weights: Weights
    n_train: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Evaluated:
    """`summaries[model]` is `{"n": int, "<metric>": {"mean", "sd", "median", "histogram"}, …}`.

    On the validation split a summary may also carry `loss`, a plain number.
    """

    summaries: dict[str, JsonObject]


@dataclass(frozen=True)
class Candidate:
    """Weights to be evaluated under a name: `federated`, `local:<site>`. `weights=None` means the model that this
    worker itself trained in the stream `local` and still holds."""

    name: str
    weights: Weights | None


class FederatedModel(Protocol):
    def fingerprint(self, site: Site, config: JsonObject) -> JsonObject: ...

    def plan(self, fingerprints: Mapping[str, JsonObject], config: JsonObject) -> JsonObject:
        """The same for every order of the sites. An entry `summary`, if there is one, is what the report shows."""
        ...

    def initial(self, plan: JsonObject, config: JsonObject) -> Weights: ...

    def prepare(self, site: Site, plan: JsonObject, config: JsonObject, progress: ReportProgress) -> Prepared:
        """Validate the plan against an allow-list before anything in it is used. Raises ModelRefusal."""
        ...

    def train(
        self,
        site: Site,
        weights: Weights,
        stream: Stream,
        round: int,
        config: JsonObject,
        progress: ReportProgress,
    ) -> Trained:
        """One round of local training that starts from `weights`. `round` counts from 1.

        The stream `local` is the site's own baseline: its first round starts from the initial weights, later rounds
        are called with the weights of the round before.
        """
        ...

    def evaluate(
        self,
        site: Site,
        candidates: tuple[Candidate, ...],
        split: Split,
        config: JsonObject,
        progress: ReportProgress,
    ) -> Evaluated:
        """On `test` this also draws the site's overlay picture into `site.figures`, which never leaves."""
        ...

    def export(self, plan: JsonObject, weights: Weights, labels: JsonObject, folder: Path) -> None:
        """Write the model in its field's own format, for use without msfl."""
        ...
