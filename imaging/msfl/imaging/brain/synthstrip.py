"""SynthStrip (FreeSurfer's `mri_synthstrip`), where the site has it. Hoopes et al., NeuroImage 2022;260:119474."""

from __future__ import annotations

from msfl.imaging.brain.command import extract_by, on_path
from msfl.imaging.checks import Volume
from msfl.imaging.volume import Mask


class SynthStrip:
    name = "mri_synthstrip"

    def ready(self) -> None:
        on_path("mri_synthstrip")

    def extract(self, head: Volume, what: str) -> Mask:
        return extract_by(
            ("mri_synthstrip", "-i", "{head}", "-m", "{folder}/mask.nii.gz"), head, what, mask_name="mask.nii.gz"
        )
