"""limits: what quality control warns about and what it fails, read from YAML by the strict loader.

`limits.yaml` beside this module is the default, and the documentation of every figure's limit.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from msfl.imaging.quality.words import FIGURES
from msfl.policies.encoding import load_yaml


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Range(_Strict):
    """What is good; at least one end is given."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _has_an_end(self) -> Range:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max")
        return self

    def holds(self, value: float) -> bool:
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class Limit(_Strict):
    warn: Range | None = None
    fail: Range | None = None


class SitesOwn(_Strict):
    """Comparison with the dataset's other cases, once there are `fewest_cases` of them."""

    warn: float = Field(gt=0)
    fewest_cases: int = Field(ge=4)
    figures: tuple[str, ...] = ()


class QualityLimits(_Strict):
    api_version: Literal["msfl/v1"]
    kind: Literal["QualityLimits"]
    figures: Mapping[str, Limit]
    sites_own: SitesOwn

    @model_validator(mode="after")
    def _names_are_figures(self) -> QualityLimits:
        named = [
            *((name, ("figures", name)) for name in self.figures),
            *((name, ("sites_own", "figures", at)) for at, name in enumerate(self.sites_own.figures)),
        ]
        if wrong := [_no_figure(name, place) for name, place in named if name not in FIGURES]:
            raise ValidationError.from_exception_data("QualityLimits", wrong)
        return self


def _no_figure(name: str, place: tuple[str | int, ...]) -> InitErrorDetails:
    """Each is told where it stands, not where the list of them begins."""
    near = difflib.get_close_matches(name, FIGURES, n=1)
    what = f"there is no figure {name}" + (f"; did you mean {near[0]}?" if near else "")
    return InitErrorDetails(type="value_error", loc=place, input=name, ctx={"error": ValueError(what)})


def text_of(value: float, digits: int, ranges: Iterable[Range]) -> str:
    """With at least so many digits after the point, and with as many more as it takes for what is read to lie on the
    same side of every limit as the value itself."""
    limits = list(ranges)
    for more in range(digits, digits + 12):
        text = f"{value:.{more}f}"
        if all(one.holds(float(text)) == one.holds(value) for one in limits):
            return text
    return repr(value)


def said(name: str, value: float, limits: QualityLimits) -> str:
    """A figure with its unit, as people read it."""
    words, limit = FIGURES[name], limits.figures.get(name)
    ranges = [one for one in (limit.warn, limit.fail) if one is not None] if limit is not None else []
    return f"{text_of(value, words.digits, ranges)} {words.unit}".rstrip()


def default_limits() -> QualityLimits:
    return load_yaml(files("msfl.imaging.quality").joinpath("limits.yaml").read_bytes(), QualityLimits, "limits.yaml")


def read_limits(file: Path | None) -> QualityLimits:
    """Raises Malformed with file, line and key, OSError."""
    return default_limits() if file is None else load_yaml(file.read_bytes(), QualityLimits, file.name)
