"""verdict: figures and limits in, pass, warn or fail out, with a finding for each figure that is not good. Pure.

figures ──limits──▶ findings ──the site's other cases──▶ findings ──worst──▶ verdict ──overrule by a person──▶ verdict
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from msfl.imaging.quality.limits import QualityLimits, Range, text_of
from msfl.imaging.quality.words import FIGURES

Figures = Mapping[str, float | None]
"""By name (`words.FIGURES`); None where it cannot be computed."""


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One thing that is not good: the figure, the limit it misses, and a sentence for whoever takes the images."""

    verdict: Verdict
    figure: str
    value: float | None
    limit: str
    sentence: str


@dataclass(frozen=True)
class Overruled:
    """A person decided otherwise, for a reason."""

    verdict: Verdict
    by: str
    at: str
    reason: str


@dataclass(frozen=True)
class Checked:
    """A case as quality control sees it. `findings` are sorted: what fails the case first. `figures` is empty where
    nothing could be measured; `findings` says why."""

    case: str
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    figures: Figures = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    overruled: Overruled | None = None

    @property
    def final(self) -> Verdict:
        """After a person's decision, if there is one."""
        return self.overruled.verdict if self.overruled else self.verdict

    @property
    def said(self) -> tuple[tuple[Finding, ...], ...]:
        """The findings by what is said of them, so that nothing is said twice; what fails the case first."""
        by_sentence: dict[str, tuple[Finding, ...]] = {}
        for finding in self.findings:
            by_sentence[finding.sentence] = (*by_sentence.get(finding.sentence, ()), finding)
        return tuple(by_sentence.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"final": self.final.value}


def judge(case: str, figures: Figures, limits: QualityLimits, scores: Mapping[str, float] | None = None) -> Checked:
    """`scores` are robust scores among the site's own cases (`site_scores`), by figure."""
    findings = [found for name, value in figures.items() if (found := _hold(name, value, limits)) is not None]
    for name, score in (scores or {}).items():
        if abs(score) > limits.sites_own.warn and all(f.figure != name for f in findings):
            findings.append(_unlike_the_others(name, figures[name], score, limits.sites_own.warn))
    return Checked(case, _worst(findings), _sorted(findings), dict(figures), dict(scores or {}))


def unmeasured(case: str, code: str, sentence: str) -> Checked:
    """A case whose images could not be worked on."""
    return Checked(case, Verdict.FAIL, (Finding(Verdict.FAIL, code, None, "", sentence),))


def also(checked: Checked, finding: Finding) -> Checked:
    """With a finding that only the whole dataset shows."""
    findings = _sorted((*checked.findings, finding))
    return replace(checked, findings=findings, verdict=_worst(findings))


def site_scores(cases: Mapping[str, Figures], limits: QualityLimits) -> Mapping[str, Mapping[str, float]]:
    """Per case and figure: distance from the median in robust deviations. Nothing where there are too few cases, or
    where more than half of them have one value."""
    out: dict[str, dict[str, float]] = {case: {} for case in cases}
    for name in limits.sites_own.figures:
        known = {case: value for case, figures in cases.items() if (value := figures.get(name)) is not None}
        if len(known) < limits.sites_own.fewest_cases:
            continue
        middle = statistics.median(known.values())
        deviation = 1.4826 * statistics.median(abs(value - middle) for value in known.values())
        if deviation > 0:
            for case, value in known.items():
                out[case][name] = (value - middle) / deviation
    return out


def _hold(name: str, value: float | None, limits: QualityLimits) -> Finding | None:
    limit = limits.figures.get(name)
    if limit is None or value is None:
        return None
    for verdict, good in ((Verdict.FAIL, limit.fail), (Verdict.WARN, limit.warn)):
        if good is not None and not good.holds(value):
            words = FIGURES[name]
            low = good.min is not None and value < good.min
            sentence = (words.low if low else words.high) or f"{words.title} is unusual."
            return Finding(verdict, name, value, _said(good, name, low), sentence)
    return None


def _said(good: Range, name: str, low: bool) -> str:
    unit = f" {FIGURES[name].unit}".rstrip()
    return f"at least {good.min:g}{unit}" if low else f"at most {good.max:g}{unit}"


def _unlike_the_others(name: str, value: float | None, score: float, limit: float) -> Finding:
    words = FIGURES[name]
    side = "below" if score < 0 else "above"
    away = text_of(abs(score), 1, [Range(max=limit)])
    sentence = (
        f"{words.title} lies far {side} what is usual here ({away} robust deviations from the site's "
        "median). Look at the image: was it taken like the others?"
    )
    return Finding(Verdict.WARN, name, value, f"within {limit:g} robust deviations of the site's median", sentence)


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """What fails first; then in the order of `words.FIGURES`, in which what explains the others comes first."""
    rank, order = list(Verdict), {name: number for number, name in enumerate(FIGURES)}
    return tuple(sorted(findings, key=lambda f: (-rank.index(f.verdict), order.get(f.figure, len(order)))))


def _worst(findings: Sequence[Finding]) -> Verdict:
    rank = list(Verdict)
    return max((f.verdict for f in findings), key=rank.index, default=Verdict.PASS)
