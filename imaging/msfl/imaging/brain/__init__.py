"""brain: where in a head the brain is.

`BrainExtractor` is the seam. deepbet is what runs anywhere: its wheel carries its weights. SynthStrip and HD-BET are
run as the site's own commands where it has them. A mask holds everything inside the skull that belongs to the brain,
fluid around it included; it lies on the grid of the head, in whatever orientation that is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from msfl.imaging.workspace import Unusable
from msfl.policies.refusals import CannotProceed

if TYPE_CHECKING:
    from msfl.imaging.checks import Volume
    from msfl.imaging.volume import Mask

NO_BRAIN = "no_brain"


class BrainExtractor(Protocol):
    @property
    def name(self) -> str:
        """With its version: it goes into the record of what was done."""

    def ready(self) -> None:
        """Raises CannotProceed where the tool is not on this machine. Asked before anything is done to a case."""

    def extract(self, head: Volume, what: str) -> Mask:
        """T1w or FLAIR, any orientation. `what` is how people call the image. Raises Unusable (`no_brain`) where none
        is found, CannotProceed where the tool itself does not work."""


def no_brain(what: str) -> Unusable:
    return Unusable(
        NO_BRAIN, f"No brain was found in the {what} image. Look at it: is it a head, and the right way up?"
    )


def extractor(name: str) -> BrainExtractor:
    """By the name in the settings. Raises CannotProceed."""
    from msfl.imaging.brain.deepbet import Deepbet
    from msfl.imaging.brain.hd_bet import HdBet
    from msfl.imaging.brain.synthstrip import SynthStrip

    made: Mapping[str, type[Deepbet] | type[HdBet] | type[SynthStrip]] = {
        "deepbet": Deepbet,
        "hd-bet": HdBet,
        "synthstrip": SynthStrip,
    }
    if name not in made:
        raise CannotProceed(f"There is no brain extraction called {name!r}; there are {', '.join(made)}.")
    return made[name]()
