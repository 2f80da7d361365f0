"""recipe: every parameter of standardising, and their digest."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from msfl.imaging.standard.bias import BiasCorrection
from msfl.imaging.standard.register import Registration
from msfl.policies.encoding import canonical_json, sha256_of


class Recipe(BaseModel):
    """What is done to every case of a dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    brain: Literal["deepbet", "synthstrip", "hd-bet"] = "deepbet"
    registration: Registration = Field(default_factory=Registration)
    interpolation: Literal["linear", "bspline"] = "bspline"
    bias: BiasCorrection | None = None
    """N4, after everything else; nnU-Net does without."""

    @property
    def sha256(self) -> str:
        return sha256_of(canonical_json(self.model_dump(mode="json")))
