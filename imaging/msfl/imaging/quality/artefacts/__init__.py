"""artefacts: did something go wrong while the image was taken?

`ArtefactDetector` is the seam. `trained` is what runs anywhere: four small logistic regressions over what artefacts
leave in k-space (`features`). `mai_lab` runs the MAI-Lab tool of West China Hospital where a site has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from msfl.imaging.checks import Volume
    from msfl.imaging.volume import Mask


class Artefact(StrEnum):
    MOTION = "motion"
    GHOSTING = "ghosting"
    SPIKE = "spike"
    NOISE = "noise"


class ArtefactDetector(Protocol):
    @property
    def name(self) -> str:
        """With its version."""

    def ready(self) -> None:
        """Raises CannotProceed where the tool is not on this machine. Asked before anything is done to a case."""

    def detect(self, image: Volume, brain: Mask) -> Mapping[Artefact, float]:
        """Between 0 and 1, where 0.5 is the detector's own border between clean and not, for the artefacts it knows.
        The image as the scanner made it: resampling hides what is looked for. Raises CannotProceed where the tool
        itself does not work."""


def detector(mai_lab: Path | None = None) -> ArtefactDetector:
    """`mai_lab` is the folder of the MAI-Lab tool."""
    from msfl.imaging.quality.artefacts.mai_lab import MaiLab
    from msfl.imaging.quality.artefacts.trained import Trained

    return Trained() if mai_lab is None else MaiLab(mai_lab)
