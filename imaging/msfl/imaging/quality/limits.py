"""limits: what quality control warns about and what it fails, read from YAML by the strict loader.

`limits.yaml` beside this module is the default, and the documentation of every figure's limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
        unknown = sorted({*self.figures, *self.sites_own.figures} - FIGURES.keys())
        if unknown:
            raise ValueError(f"no figure {', '.join(unknown)}; there are {', '.join(FIGURES)}")
        return self


def default_limits() -> QualityLimits:
    return load_yaml(files("msfl.imaging.quality").joinpath("limits.yaml").read_bytes(), QualityLimits, "limits.yaml")


def read_limits(file: Path | None) -> QualityLimits:
    """Raises Malformed with file, line and key, OSError."""
    return default_limits() if file is None else load_yaml(file.read_bytes(), QualityLimits, file.name)
