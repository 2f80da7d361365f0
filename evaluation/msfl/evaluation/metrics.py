"""Voxel-wise lesion metrics of one case, and the summary of many cases that may leave a site.

A case is a pair of boolean volumes of one shape: what the annotator marked (truth) and what a model marked
(predicted). With TP, FP, FN the voxels marked by both, by the model alone and by the annotator alone:

    dice        = 2 TP / (2 TP + FP + FN)      Dice, Ecology 1945;26:297-302
    sensitivity = TP / (TP + FN)               share of the truth that was found
    precision   = TP / (TP + FP)               share of what was marked that is true

Some quotients are 0/0. One rule decides them all: agreement on "nothing here" is perfect, anything else is the worst.

    truth   predicted   dice  sensitivity  precision
    empty   empty        1         1           1
    empty   marked       0         0           0        sensitivity undefined: counted as worst
    marked  empty        0         0           0        precision undefined: counted as worst

The rule never flatters: a model that stays silent earns no precision by it, and no case drops out of a mean, so every
model is averaged over the same cases. (nnU-Net's own `summary.json` leaves such cases out as NaN instead.)

Per-case values stay at the site. What leaves is a `Summary`: mean, sample standard deviation, median and a histogram
of 20 equal bins over [0, 1]. This module is part of every release's image: numpy and the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 20
METRICS = ("dice", "sensitivity", "precision")


@dataclass(frozen=True)
class CaseMetrics:
    """The three overlap metrics of one case, each in [0, 1]."""

    dice: float
    sensitivity: float
    precision: float


def case_metrics(truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> CaseMetrics:
    """Compare two boolean volumes of one shape (x, y, z) voxel by voxel; the table above decides empty ones.

    Raises ValueError when an array is not boolean, not three-dimensional, or the shapes differ.
    """
    for name, array in (("truth", truth), ("predicted", predicted)):
        if array.dtype != np.bool_ or array.ndim != 3:
            raise ValueError(f"{name} is {array.ndim}-dimensional {array.dtype}; a boolean volume (x, y, z) is needed")
    if truth.shape != predicted.shape:
        raise ValueError(f"truth has shape {truth.shape}, predicted {predicted.shape}; resample to the truth's grid")
    marked, claimed = int(truth.sum()), int(predicted.sum())
    if marked == 0 and claimed == 0:
        return CaseMetrics(1.0, 1.0, 1.0)
    both = int(np.logical_and(truth, predicted).sum())
    return CaseMetrics(
        dice=2 * both / (marked + claimed),
        sensitivity=both / marked if marked else 0.0,
        precision=both / claimed if claimed else 0.0,
    )


@dataclass(frozen=True)
class Summary:
    """What is told about `n` values in [0, 1]; bin i of the histogram counts the values in [i/20, (i+1)/20).

    The value 1 is counted in the last bin. `sd` is the sample standard deviation (n - 1), 0 when n is 1.
    """

    n: int
    mean: float
    sd: float
    median: float
    histogram: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """`{mean, sd, median, histogram}`; n is the histogram's sum and stands once per site beside the metrics."""
        return {"mean": self.mean, "sd": self.sd, "median": self.median, "histogram": list(self.histogram)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Summary:
        """Read what `to_json` wrote. Raises ValueError on other keys, other types, values out of range or an empty
        histogram: the document may come from another site."""
        if set(document) != {"mean", "sd", "median", "histogram"}:
            raise ValueError(f"a summary has mean, sd, median and histogram, not {sorted(map(str, document))}")
        histogram = document["histogram"]
        if not isinstance(histogram, list) or len(histogram) != BINS:
            raise ValueError(f"a summary's histogram is a list of {BINS} counts")
        if any(type(count) is not int or count < 0 for count in histogram) or sum(histogram) == 0:
            raise ValueError("a summary's histogram holds whole numbers of cases, at least one in all")
        numbers: list[float] = []
        for name in ("mean", "sd", "median"):
            number = document[name]
            if type(number) not in (int, float) or not 0 <= number <= 1:  # NaN fails the comparison too
                raise ValueError(f"a summary's {name} lies between 0 and 1, not {number!r:.40}")
            numbers.append(float(number))
        mean, sd, median = numbers
        return cls(n=sum(histogram), mean=mean, sd=sd, median=median, histogram=tuple(histogram))


def summarise(values: Iterable[float]) -> Summary:
    """Summarise per-case values in [0, 1]. Raises ValueError when there are none or one is out of range or NaN."""
    given = [float(value) for value in values]
    if not given:
        raise ValueError("there are no values to summarise; a site without test cases has no summary")
    if any(not 0 <= value <= 1 for value in given):
        raise ValueError("a metric outside [0, 1] cannot be summarised; it is a bug in whatever computed it")
    array = np.asarray(given, dtype=np.float64)
    counts = [0] * BINS
    for value in given:
        counts[min(int(value * BINS), BINS - 1)] += 1
    return Summary(
        n=len(given),
        mean=min(1.0, math.fsum(given) / len(given)),
        sd=float(array.std(ddof=1)) if len(given) > 1 else 0.0,
        median=float(np.median(array)),
        histogram=tuple(counts),
    )


def summarise_cases(cases: Sequence[CaseMetrics]) -> dict[str, Any]:
    """`{n, dice: {...}, sensitivity: {...}, precision: {...}}`: one entry of a report's `evaluation`, as JSON.

    Raises ValueError when `cases` is empty.
    """
    return {"n": len(cases)} | {name: summarise(getattr(case, name) for case in cases).to_json() for name in METRICS}
