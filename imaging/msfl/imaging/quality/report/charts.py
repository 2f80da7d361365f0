"""charts: one figure over all cases as a strip of dots, with its limits; SVG text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from msfl.imaging.quality.limits import QualityLimits, Range, said
from msfl.imaging.quality.verdict import Checked
from msfl.imaging.quality.words import FIGURES

_WIDTH, _HEIGHT, _EDGE = 300.0, 46.0, 10.0


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    case: str
    said: str
    verdict: str


@dataclass(frozen=True)
class Strip:
    """`bad` are the ranges beyond a limit, in pixels, with the verdict they bring; `middle` is the median."""

    title: str
    dots: tuple[Dot, ...]
    bad: tuple[tuple[float, float, str], ...]
    middle: float
    low: str
    high: str


def strip(name: str, cases: Sequence[Checked], limits: QualityLimits) -> Strip | None:
    """None where no case has the figure."""
    words = FIGURES[name]
    values = {case.case: value for case in cases if (value := case.figures.get(name)) is not None}
    if not values:
        return None
    low, high = min(values.values()), max(values.values())
    ends = [end for one in _ranges(name, limits) for end in (one.min, one.max) if end is not None]
    near = [end for end in ends if low - 2 * (high - low) - 0.1 <= end <= high + 2 * (high - low) + 0.1]
    low, high = min([low, *near]), max([high, *near])
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (0.0 if low >= 0 and low < room else low - room), high + room

    def at(value: float) -> float:
        return round(_EDGE + (_WIDTH - 2 * _EDGE) * (value - low) / (high - low), 1)

    finals = {case.case: case for case in cases}
    dots = tuple(
        Dot(
            at(value),
            14.0 + 18.0 * (number * 7 % 10) / 9,
            case,
            f"{case}: {said(name, value, limits)}",
            next((f.verdict.value for f in finals[case].findings if f.figure == name), "pass"),
        )
        for number, (case, value) in enumerate(values.items())
    )
    bad: list[tuple[float, float, str]] = []
    limit = limits.figures.get(name)
    for verdict in ("warn", "fail"):
        good = getattr(limit, verdict) if limit is not None else None
        if good is not None and good.min is not None and good.min > low:
            bad.append((_EDGE, round(at(min(good.min, high)) - _EDGE, 1), verdict))
        if good is not None and good.max is not None and good.max < high:
            begin = at(max(good.max, low))
            bad.append((begin, round(_WIDTH - _EDGE - begin, 1), verdict))
    digits = next(n for n in range(words.digits, 12) if f"{low:.{n}f}" != f"{high:.{n}f}")
    low_end, high_end = (f"{end:.{digits}f}" for end in (low, high))
    return Strip(words.title, dots, tuple(bad), at(statistics.median(values.values())), low_end, high_end)


def _ranges(name: str, limits: QualityLimits) -> list[Range]:
    limit = limits.figures.get(name)
    return [one for one in (limit.warn, limit.fail) if one is not None] if limit is not None else []
