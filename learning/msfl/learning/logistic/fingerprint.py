"""What the site tells about its data before training, how the sites' words are merged, and the plan made of them.

A fingerprint is whole numbers on data-independent bins; merging is addition, so the order of sites does not matter and
the merged fingerprint is that of the pooled data:

    n_cases, n_inside, n_foreground        training cases; voxels inside; voxels inside with a label above 0
    intensity[channel][bin]                positive voxels by multiple of the image's median, on 256 bins
                                           whose edges are the powers of one ratio from 1e-3 to 1e3
    spacing[axis] = [[hundredths of a mm, cases], …]      shape[axis] = [[voxels, cases], …]

Bins with fewer than `FEWEST_IN_BIN` voxels are sent as 0: the outermost bins would otherwise tell single voxels.
The plan: for each channel centre = median and scale = half the distance from the 16th to the 84th percentile of the
merged histogram, each taken at the bin's geometric middle (1 bin = 5.5 %).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msfl.learning.contract import JsonObject, ModelRefusal, Site
from msfl.learning.logistic.cases import Normalisation, read_case

N_BINS = 256
LOWEST, HIGHEST = 1e-3, 1e3
FEWEST_IN_BIN = 10
SIGMAS_MM = (2.0, 5.0)
FORMAT = "voxel-logistic/1"
_RATIO = (HIGHEST / LOWEST) ** (1 / N_BINS)
_FIELDS = {"n_cases", "n_inside", "n_foreground", "channel_names", "labels", "intensity", "spacing", "shape"}
_PLAN_FIELDS = {"format", "channel_names", "labels", "n_train", "normalisation", "sigmas_mm", "summary"}


def fingerprint_of(site: Site) -> JsonObject:
    """Of the site's training cases. Raises ModelRefusal when there are none."""
    if not site.train_cases:
        raise ModelRefusal("no_training_cases", "an evaluate-only site has no fingerprint")
    intensity = np.zeros((len(site.channel_names), N_BINS), dtype=np.int64)
    spacing: list[Counter[int]] = [Counter(), Counter(), Counter()]
    shape: list[Counter[int]] = [Counter(), Counter(), Counter()]
    n_inside = n_foreground = 0
    for name in site.train_cases:
        case = read_case(site, name)
        inside = case.inside
        n_inside += int(inside.sum())
        n_foreground += int((inside & (case.labels > 0)).sum())
        for channel, image in enumerate(case.images):
            intensity[channel] += histogram(image[inside])
        for axis in range(3):
            spacing[axis][round(100 * case.spacing[axis])] += 1
            shape[axis][case.labels.shape[axis]] += 1
    intensity[intensity < FEWEST_IN_BIN] = 0
    return {
        "n_cases": len(site.train_cases),
        "n_inside": n_inside,
        "n_foreground": n_foreground,
        "channel_names": list(site.channel_names),
        "labels": dict(site.labels),
        "intensity": intensity.tolist(),
        "spacing": [_pairs(counts) for counts in spacing],
        "shape": [_pairs(counts) for counts in shape],
    }


def histogram(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Counts of the positive values on the fixed bins; values beyond the ends count in the outermost bins."""
    positive = values[values > 0].astype(np.float64)
    bins = np.clip(np.floor(np.log(positive / LOWEST) / np.log(_RATIO)), 0, N_BINS - 1).astype(np.int64)
    return np.bincount(bins, minlength=N_BINS)


def quantile(counts: NDArray[np.int64], q: float) -> float:
    """The geometric middle of the bin in which the `q`-quantile of the counted values lies."""
    cumulative = np.cumsum(counts)
    index = int(np.searchsorted(cumulative, q * cumulative[-1]))
    return float(LOWEST * _RATIO ** (index + 0.5))


def _pairs(counts: Counter[int]) -> list[list[int]]:
    return [[value, counts[value]] for value in sorted(counts)]


def merge(fingerprints: Mapping[str, JsonObject]) -> JsonObject:
    """The fingerprint of all sites together, whatever their order.

    Raises ModelRefusal when a site's fingerprint is malformed, or when sites differ in channels or labels.
    """
    if not fingerprints:
        raise ModelRefusal("no_fingerprints", "there is no fingerprint to plan from")
    for site, document in fingerprints.items():
        _check(site, document)
    first_site = min(fingerprints)
    first = fingerprints[first_site]
    for site, document in sorted(fingerprints.items()):
        for key in ("channel_names", "labels"):
            if document[key] != first[key]:
                raise ModelRefusal("fingerprints_differ", f"{key} of {site} are not those of {first_site}")
    documents = [fingerprints[site] for site in sorted(fingerprints)]
    merged: JsonObject = {key: sum(d[key] for d in documents) for key in ("n_cases", "n_inside", "n_foreground")}
    merged |= {"channel_names": first["channel_names"], "labels": first["labels"]}
    merged["intensity"] = np.sum([d["intensity"] for d in documents], axis=0, dtype=np.int64).tolist()
    for key in ("spacing", "shape"):
        axes: list[Counter[int]] = [Counter(), Counter(), Counter()]
        for document in documents:
            for axis, pairs in enumerate(document[key]):
                for value, count in pairs:
                    axes[axis][value] += count
        merged[key] = [_pairs(counts) for counts in axes]
    return merged


def plan_of(merged: JsonObject) -> JsonObject:
    """Raises ModelRefusal when a channel is empty everywhere."""
    normalisation: list[JsonObject] = []
    for name, counts in zip(merged["channel_names"], merged["intensity"], strict=True):
        array = np.array(counts, dtype=np.int64)
        if not array.sum():
            raise ModelRefusal("empty_channel", f"no site has a voxel above 0 in channel {name}")
        low, middle, high = (quantile(array, q) for q in (0.16, 0.5, 0.84))
        normalisation.append({"centre": middle, "scale": max((high - low) / 2, 0.01 * middle)})
    return {
        "format": FORMAT,
        "channel_names": merged["channel_names"],
        "labels": merged["labels"],
        "n_train": merged["n_cases"],
        "normalisation": normalisation,
        "sigmas_mm": list(SIGMAS_MM),
        "summary": {
            "model": "voxel-wise logistic regression",
            "n_features": len(normalisation) * (1 + len(SIGMAS_MM)),
            "foreground_share": merged["n_foreground"] / max(merged["n_inside"], 1),
        },
    }


@dataclass(frozen=True)
class Plan:
    """The plan after it has been checked; `foreground` holds the label values above 0 in ascending order."""

    normalisation: tuple[Normalisation, ...]
    sigmas_mm: tuple[float, ...]
    foreground: tuple[int, ...]

    @property
    def n_features(self) -> int:
        return len(self.normalisation) * (1 + len(self.sigmas_mm))


def checked_plan(plan: JsonObject, site: Site | None) -> Plan:
    """Accept nothing but what `plan_of` makes, and at a site only what fits its data. Raises ModelRefusal."""

    def refuse(why: str) -> ModelRefusal:
        return ModelRefusal("plan_refused", f"the plan is not one for this model and this data: {why}")

    if set(plan) != _PLAN_FIELDS or plan["format"] != FORMAT:
        raise refuse(f"it must have exactly {', '.join(sorted(_PLAN_FIELDS))}, and the format {FORMAT}")
    labels = plan["labels"]
    if site is not None and (plan["channel_names"], labels) != (list(site.channel_names), dict(site.labels)):
        raise refuse("its channels or labels are not those of the dataset")
    if not isinstance(labels, dict) or not all(type(v) is int and 0 <= v < 1 << 15 for v in labels.values()):
        raise refuse("its labels are no whole numbers")
    foreground = tuple(sorted(value for value in labels.values() if value > 0))
    entries = plan["normalisation"]
    if not isinstance(entries, list) or len(entries) != len(plan["channel_names"]) or not foreground:
        raise refuse("it has not one normalisation per channel, or no label above 0")
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != {"centre", "scale"} or not all(map(_positive, entry.values())):
            raise refuse("a normalisation must be a centre and a scale above 0")
    sigmas = plan["sigmas_mm"]
    if not isinstance(sigmas, list) or len(sigmas) > 4 or not all(_positive(s) and s <= 50 for s in sigmas):
        raise refuse("its widths of smoothing must be at most four numbers in (0, 50] mm")
    return Plan(tuple(Normalisation(e["centre"], e["scale"]) for e in entries), tuple(sigmas), foreground)


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 1e-6 <= value <= HIGHEST


def _check(site: str, document: JsonObject) -> None:
    def is_counts(value: object) -> bool:
        return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in value)

    def is_axes(value: object) -> bool:
        return (
            isinstance(value, list)
            and len(value) == 3
            and all(isinstance(axis, list) and all(is_counts(p) and len(p) == 2 for p in axis) for axis in value)
        )

    good = (
        set(document) == _FIELDS
        and is_counts([document[key] for key in ("n_cases", "n_inside", "n_foreground")])
        and isinstance(document["channel_names"], list)
        and isinstance(document["labels"], dict)
        and isinstance(document["intensity"], list)
        and len(document["intensity"]) == len(document["channel_names"])
        and all(is_counts(counts) and len(counts) == N_BINS for counts in document["intensity"])
        and is_axes(document["spacing"])
        and is_axes(document["shape"])
    )
    if not good:
        raise ModelRefusal("fingerprint_malformed", f"the fingerprint of {site} is not one of this model")
