"""nnU-Net's dataset fingerprint as integer histograms that merge exactly.

nnU-Net plans from per-case lists of shape and spacing. Such lists must not leave a site: they follow the file order and
link one patient's head size to one scanner. What the planner really takes from them are medians and percentiles of each
axis alone, so a site sends, for each axis, how often each pair (spacing, voxels after cropping) occurs; nothing links
the axes of one case, and addition of histograms is all that merging needs. Cells of few cases are put together before
they leave, by the gateway and not here, under the policy's minimum (`msfl.gateway.cells`):

    site     cases ──read, crop to nonzero──▶ axes[z,y,x]: {(spacing, voxels): count}, relative_size: {percent: count}
    centre   merge = sum of counts           (any order, any grouping; bit for bit the histogram of the pooled cases)
    centre   to_nnunet = sorted pseudo-cases (every median and percentile the planner takes is the pooled one)

Spacing is counted in units of 0.1 µm, so that 0.9375 mm stays what it is. Intensities are not sent at all: MR channels
are normalised image by image (z-score), and nnU-Net uses pooled intensities for CT only, which `plan` refuses here.
Axes are in nnU-Net's order (z, y, x).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from msfl.learning.contract import JsonObject, ModelRefusal, Site

UNITS_PER_MM = 10_000
"""Spacing is an integer number of 0.1 µm."""
VERSION = 1
_MAX_CASES = 1_000_000
_MAX_SPACING = 1_000 * UNITS_PER_MM
_MAX_VOXELS = 10_000

AxisHistogram: TypeAlias = Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class Fingerprint:
    """`axes[a][(spacing, voxels)]` counts cases, a = 0, 1, 2 for z, y, x; `relative_size[p]` counts cases whose cropped
    volume is p percent of the whole, rounded down."""

    channel_names: tuple[str, ...]
    labels: tuple[tuple[str, int], ...]
    file_ending: str
    n_cases: int
    axes: tuple[AxisHistogram, AxisHistogram, AxisHistogram]
    relative_size: Mapping[int, int]

    def to_json(self) -> JsonObject:
        return {
            "version": VERSION,
            "channel_names": list(self.channel_names),
            "labels": dict(self.labels),
            "file_ending": self.file_ending,
            "n_cases": self.n_cases,
            "axes": [[[*key, count] for key, count in sorted(axis.items())] for axis in self.axes],
            "relative_size": [[key, count] for key, count in sorted(self.relative_size.items())],
        }

    @classmethod
    def from_json(cls, document: JsonObject) -> Fingerprint:
        """Strict: the centre reads this from sites. Raises ModelRefusal `fingerprint_invalid`."""
        expected = {"version", "channel_names", "labels", "file_ending", "n_cases", "axes", "relative_size"}
        if set(document) != expected or document["version"] != VERSION:
            raise ModelRefusal("fingerprint_invalid", f"expected version {VERSION} with keys {sorted(expected)}")
        names, labels = document["channel_names"], document["labels"]
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise ModelRefusal("fingerprint_invalid", "channel_names must be a list of names")
        if not (isinstance(labels, dict) and all(isinstance(k, str) and _is_count(v) for k, v in labels.items())):
            raise ModelRefusal("fingerprint_invalid", "labels must map names to numbers")
        if not isinstance(document["file_ending"], str):
            raise ModelRefusal("fingerprint_invalid", "file_ending must be text")
        n_cases = document["n_cases"]
        if not _is_count(n_cases) or n_cases > _MAX_CASES:
            raise ModelRefusal("fingerprint_invalid", "n_cases must be a count")
        if not (isinstance(document["axes"], list) and len(document["axes"]) == 3):
            raise ModelRefusal("fingerprint_invalid", "axes must be three histograms")
        z, y, x = (
            {(row[0], row[1]): row[2] for row in _rows(axis, (_MAX_SPACING, _MAX_VOXELS), n_cases)}
            for axis in document["axes"]
        )
        relative = {row[0]: row[1] for row in _rows(document["relative_size"], (100,), n_cases)}
        return cls(tuple(names), tuple(sorted(labels.items())), document["file_ending"], n_cases, (z, y, x), relative)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _rows(histogram: object, limits: tuple[int, ...], total: int) -> list[list[int]]:
    """Rows of a sparse histogram: key numbers within `limits` and a count; all counts together are `total`."""
    if not isinstance(histogram, list):
        raise ModelRefusal("fingerprint_invalid", "a histogram must be a list of rows")
    seen: set[tuple[int, ...]] = set()
    for row in histogram:
        if not (isinstance(row, list) and len(row) == len(limits) + 1 and all(_is_count(value) for value in row)):
            raise ModelRefusal("fingerprint_invalid", f"a histogram row must be {len(limits) + 1} counts")
        key = tuple(row[:-1])
        if key in seen or any(value > limit for value, limit in zip(key, limits, strict=True)) or row[-1] == 0:
            raise ModelRefusal("fingerprint_invalid", "a histogram row is repeated, empty or out of range")
        if len(limits) == 2 and 0 in key:
            raise ModelRefusal("fingerprint_invalid", "spacing and voxels must be positive")
        seen.add(key)
    if sum(row[-1] for row in histogram) != total:
        raise ModelRefusal("fingerprint_invalid", "a histogram does not count every case once")
    return histogram


@dataclass(frozen=True)
class Geometry:
    """One case after nnU-Net's crop: `spacing` in mm, `shape` in voxels along z, y, x; `share` of the volume kept."""

    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    share: float


def count(site: Site, cases: Iterable[Geometry]) -> Fingerprint:
    """The histograms of a site's training cases."""
    axes: tuple[Counter[tuple[int, int]], ...] = (Counter(), Counter(), Counter())
    relative: Counter[int] = Counter()
    n_cases = 0
    for case in cases:
        for axis, mm, voxels in zip(axes, case.spacing, case.shape, strict=True):
            axis[(round(mm * UNITS_PER_MM), voxels)] += 1
        relative[min(100, int(case.share * 100))] += 1
        n_cases += 1
    return Fingerprint(
        channel_names=site.channel_names,
        labels=tuple(sorted(site.labels.items())),
        file_ending=site.file_ending,
        n_cases=n_cases,
        axes=(axes[0], axes[1], axes[2]),
        relative_size=relative,
    )


def merge(fingerprints: Mapping[str, Fingerprint]) -> Fingerprint:
    """The fingerprint of all sites' cases together. Raises ModelRefusal `sites_differ` when channels or labels do."""
    if not fingerprints:
        raise ModelRefusal("no_training_cases", "no site sent a fingerprint; nothing to plan from")
    first_site, first = next(iter(sorted(fingerprints.items())))
    axes: tuple[Counter[tuple[int, int]], ...] = (Counter(), Counter(), Counter())
    relative: Counter[int] = Counter()
    for site, fingerprint in sorted(fingerprints.items()):
        for what in ("channel_names", "labels", "file_ending"):
            if getattr(fingerprint, what) != getattr(first, what):
                raise ModelRefusal(
                    "sites_differ",
                    f"{what} of {site} is {getattr(fingerprint, what)}, of {first_site} {getattr(first, what)}; "
                    "import both datasets with the same channels and labels",
                )
        for total, axis in zip(axes, fingerprint.axes, strict=True):
            total.update(axis)
        relative.update(fingerprint.relative_size)
    return Fingerprint(
        channel_names=first.channel_names,
        labels=first.labels,
        file_ending=first.file_ending,
        n_cases=sum(fingerprint.n_cases for fingerprint in fingerprints.values()),
        axes=(axes[0], axes[1], axes[2]),
        relative_size=relative,
    )


def to_nnunet(fingerprint: Fingerprint) -> JsonObject:
    """`dataset_fingerprint.json` as nnU-Net's planner reads it: sorted pseudo-cases, not anybody's cases."""
    if fingerprint.n_cases == 0:
        raise ModelRefusal("no_training_cases", "the sites together have no training case; nothing to plan from")
    columns = [sorted(Counter(axis).elements()) for axis in fingerprint.axes]
    cases = list(zip(*columns, strict=True))
    relative = sorted(Counter(fingerprint.relative_size).elements())
    return {
        "spacings": [[spacing / UNITS_PER_MM for spacing, _ in case] for case in cases],
        "shapes_after_crop": [[voxels for _, voxels in case] for case in cases],
        # The keys must be there and the values are read for CT only.
        "foreground_intensity_properties_per_channel": {str(c): {} for c in range(len(fingerprint.channel_names))},
        # The middle of each one-percent bin; the planner compares with 0.75, which is an edge.
        "median_relative_size_after_cropping": float((np.median(relative) + 0.5) / 100),
    }
