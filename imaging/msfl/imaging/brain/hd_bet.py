"""HD-BET (version 2, command `hd-bet`), where the site has it. Isensee et al., Hum. Brain Mapp. 2019;40:4952-4964."""

from __future__ import annotations

from msfl.imaging.brain.command import extract_by, on_path
from msfl.imaging.checks import Volume
from msfl.imaging.volume import Mask


class HdBet:
    name = "hd-bet"

    def ready(self) -> None:
        on_path("hd-bet")

    def extract(self, head: Volume, what: str) -> Mask:
        words = ("hd-bet", "-i", "{head}", "-o", "{folder}/brain.nii.gz", "-device", "cpu", "--disable_tta")
        return extract_by((*words, "--save_bet_mask", "--no_bet_image"), head, what, mask_name="brain_bet.nii.gz")
