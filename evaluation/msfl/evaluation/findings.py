"""What the numbers of a report say, and how sure one may be of it: pure functions over a checked report.

Sites tell means, standard deviations and n, not the values per case. So the difference federated - local is judged as
if the two models had been tested on different cases, by the 95 % half-width of a difference of two means:

    margin = t(n - 1) * sqrt((sd_f^2 + sd_l^2) / n)       t: Student's 97.5 % quantile; 3.18 for 4 cases, 2.26 for 10

    |difference| > margin and n >= 4      the one ahead is named
    otherwise                             open: these cases do not decide it

Both models in fact saw the same cases, and their values rise and fall together, so the true margin is usually
smaller: the rule errs towards "open". It is an orientation, not a test; several comparisons are not corrected for.

Means over sites weigh every test case alike: sum(n_i * mean_i) / N with N = sum(n_i). The margin of such a difference
is t(N - number of sites) * sqrt(sum(n_i * (sd_f^2 + sd_l^2))) / N.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from msfl.evaluation.metrics import Summary

Report: TypeAlias = Mapping[str, Any]
FEDERATED = "federated"
FEWEST_CASES = 4  # below this no comparison is decided, whatever the numbers
# 97.5 % quantiles of Student's t for 1, 2, ... 30 degrees of freedom; the last serves all beyond, on the safe side.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def local_model(site: str) -> str:
    """The name under which a site's own model stands in `evaluation`."""
    return f"local:{site}"


class Ahead(StrEnum):
    """Who was better on one set of test cases."""

    FEDERATED = "federated"
    LOCAL = "local"
    OPEN = "open"


@dataclass(frozen=True)
class Comparison:
    """Mean Dice of the federated and the local model on the same `n` test cases; difference is federated - local."""

    n: int
    federated: float
    local: float
    margin: float

    @property
    def difference(self) -> float:
        return self.federated - self.local

    @property
    def ahead(self) -> Ahead:
        if self.n < FEWEST_CASES or abs(self.difference) <= self.margin:
            return Ahead.OPEN
        return Ahead.FEDERATED if self.difference > 0 else Ahead.LOCAL


@dataclass(frozen=True)
class Pooled:
    """Mean Dice over all test cases of `sites`."""

    n: int
    mean: float
    sites: tuple[str, ...]


def measured(report: Report, model: str, site: str, metric: str = "dice") -> Summary | None:
    """The summary of one model at one site; None when it was not evaluated there or the site's policy withholds it."""
    entry = report["evaluation"].get(model, {}).get(site)
    if entry is None or entry["n"] is None:
        return None
    return Summary.from_json(entry[metric])


def withheld(report: Report, model: str, site: str) -> str | None:
    """The code under which a site withholds a model's figures; None when it does not."""
    entry = report["evaluation"].get(model, {}).get(site)
    return None if entry is None else entry.get("withheld")


def models(report: Report) -> tuple[str, ...]:
    """Every model of the report: the federated first, then the local ones in the order of the sites."""
    order = [FEDERATED, *(local_model(site) for site in report["sites"])]
    known = [model for model in order if model in report["evaluation"]]
    return tuple(known + sorted(set(report["evaluation"]) - set(known)))


def trained_sites(report: Report) -> tuple[str, ...]:
    """Sites that took part in at least one round, in the report's order: a role alone trains nothing."""
    took_part = {site for record in report["rounds"] for site in record["sites"]}
    return tuple(site for site in report["sites"] if site in took_part)


def pooled(report: Report, pairs: Iterable[tuple[str, str]]) -> Pooled | None:
    """Case-weighted mean Dice over (model, site) pairs; pairs without figures are left out; None when none is left."""
    found = [(site, dice) for model, site in pairs if (dice := measured(report, model, site)) is not None]
    n = sum(dice.n for _, dice in found)
    if n == 0:
        return None
    sites = tuple(dict.fromkeys(site for site, _ in found))
    return Pooled(n=n, mean=math.fsum(dice.n * dice.mean for _, dice in found) / n, sites=sites)


@dataclass(frozen=True)
class WireCost:
    """Mean Dice of the model that the sites hold and of the same before it was rounded for the wire, on the same `n`
    test cases. It is the cost of the last rounding; what earlier ones lost was sent later (error feedback)."""

    n: int
    held: float
    unrounded: float
    differences: Mapping[str, float]  # site -> held - unrounded


def wire_cost(report: Report) -> WireCost | None:
    """None where weights travelled as they are, or no site shows both figures."""
    pairs = {}
    for site, entry in report["wire"]["unrounded"].items():
        held = measured(report, FEDERATED, site)
        if held is not None and entry["n"] == held.n:
            pairs[site] = (held, Summary.from_json(entry["dice"]))
    n = sum(held.n for held, _ in pairs.values())
    if not n:
        return None
    return WireCost(
        n,
        math.fsum(held.n * held.mean for held, _ in pairs.values()) / n,
        math.fsum(before.n * before.mean for _, before in pairs.values()) / n,
        {site: held.mean - before.mean for site, (held, before) in pairs.items()},
    )


def compare(report: Report, sites: Iterable[str]) -> Comparison | None:
    """Federated against each site's own model on that site's cases, over all of `sites` where both were measured."""
    pairs = [(measured(report, FEDERATED, site), measured(report, local_model(site), site)) for site in sites]
    both = [(f, own) for f, own in pairs if f is not None and own is not None and f.n == own.n]
    n = sum(f.n for f, _ in both)
    if n == 0:
        return None
    freedom = max(1, n - len(both))
    student = _STUDENT[min(freedom, len(_STUDENT)) - 1]
    return Comparison(
        n=n,
        federated=math.fsum(f.n * f.mean for f, _ in both) / n,
        local=math.fsum(own.n * own.mean for _, own in both) / n,
        margin=student * math.sqrt(math.fsum(f.n * (f.sd**2 + own.sd**2) for f, own in both)) / n,
    )


def amiss(round_record: Mapping[str, Any], remark: str) -> tuple[str, ...]:
    """The sites of a round under `late`, `refused` or `flags`, each once."""
    sites = (entry if isinstance(entry, str) else entry["site"] for entry in round_record.get(remark, ()))
    return tuple(dict.fromkeys(sites))


def validation_dice(round_record: Mapping[str, Any]) -> float | None:
    """Mean validation Dice of a round's global model, weighted by validation cases; None when nobody measured it.

    It is what the best round is chosen by. Sites whose `n_val` is missing count as one case each.
    """
    pairs = [
        (site.get("n_val") or 1, site["val_dice"])
        for site in round_record["sites"].values()
        if site["val_dice"] is not None
    ]
    total = sum(n for n, _ in pairs)
    return math.fsum(n * dice for n, dice in pairs) / total if total else None
