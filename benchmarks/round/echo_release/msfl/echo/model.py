"""`Echo`: every site returns the model it was sent, each value moved by a little of the site's own. No data is read.

Sites are called `site-<number>`; site n adds `epsilon(n)`, so after r rounds of equal weights every value has moved by
`drift(sites, r)`, which the benchmark checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msfl.echo.shapes import epsilon, first_model
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
from msfl.learning.files import canonical_json, write_whole


class Echo:
    """Fulfils `msfl.learning.contract.FederatedModel`."""

    # ------------------------------------------------------------ at the centre

    def plan(self, fingerprints: Mapping[str, JsonObject], config: JsonObject) -> JsonObject:
        return {"model_mb": config["model_mb"]}

    def initial(self, plan: JsonObject, config: JsonObject) -> Weights:
        return first_model(config["model_mb"], config["seed"])

    def export(self, plan: JsonObject, weights: Weights, labels: JsonObject, folder: Path) -> None:
        """The plan alone; the weights can be fetched beside it."""
        write_whole(folder / "plan.json", [canonical_json(plan)])

    # ---------------------------------------------------------------- at a site

    def fingerprint(self, site: Site, config: JsonObject) -> JsonObject:
        return {"n_cases": len(site.train_cases), "labels": dict(site.labels)}

    def prepare(self, site: Site, plan: JsonObject, config: JsonObject, progress: ReportProgress) -> Prepared:
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
        little = epsilon(int(site.site_id.rpartition("-")[2]))
        for values in weights.values():
            values += little
        return Trained(weights, len(site.train_cases), {"train_loss": 0.0})

    def evaluate(
        self,
        site: Site,
        candidates: tuple[Candidate, ...],
        split: Split,
        config: JsonObject,
        progress: ReportProgress,
    ) -> Evaluated:
        return Evaluated({candidate.name: {"n": 0} for candidate in candidates})
