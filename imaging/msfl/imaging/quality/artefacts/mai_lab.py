"""mai_lab: the artefact detection of MAI-Lab, West China Hospital, where a site has it with its weights.

github.com/MAI-Lab-West-China-Hospital/Brain-MRI-data-sorting-and-artifacts-detection (J. Med. Syst. 2023;47:120). Its
`MRI_sort.py --input FOLDER --output FOLDER` copies every image into a folder named after what it takes it for; three of
those names are artefacts: motion, alias, metal. Of these, motion is one of ours; an image that was taken for a healthy
sequence has none.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from msfl.imaging.checks import Volume
from msfl.imaging.deidentify.nifti import write_volume
from msfl.imaging.quality.artefacts import Artefact
from msfl.imaging.volume import Mask
from msfl.policies.refusals import CannotProceed

TIME_LIMIT_S = 600


class MaiLab:
    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        """`folder` holds MRI_sort.py and pretrained_model/; `python` is the interpreter its requirements are in."""
        self._folder, self._python = folder, python

    @property
    def name(self) -> str:
        return "MAI-Lab MRI_sort"

    def ready(self) -> None:
        if not (self._folder / "MRI_sort.py").is_file():
            raise CannotProceed(
                f"{self._folder} does not hold the MAI-Lab tool (MRI_sort.py). Give its folder, or leave --mai-lab out."
            )

    def detect(self, image: Volume, brain: Mask) -> Mapping[Artefact, float]:
        with tempfile.TemporaryDirectory(prefix="msfl-mai-lab-") as place:
            given, sorted_into = Path(place, "in"), Path(place, "out")
            given.mkdir()
            write_volume(image, given / "image.nii.gz")
            words = [self._python, "MRI_sort.py", "--input", str(given), "--output", str(sorted_into)]
            try:
                done = subprocess.run(
                    words,
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=TIME_LIMIT_S,
                    check=False,
                )
            except (FileNotFoundError, subprocess.TimeoutExpired) as error:
                raise CannotProceed(
                    f"The MAI-Lab tool in {self._folder} cannot be run ({type(error).__name__})."
                ) from error
            found = sorted(sorted_into.glob("*/image.nii.gz")) if sorted_into.is_dir() else []
            if done.returncode != 0 or len(found) != 1:
                said = done.stderr.decode(errors="replace").strip().splitlines()
                raise CannotProceed(f"The MAI-Lab tool in {self._folder} failed: {said[-1] if said else 'no word'}")
            return {Artefact.MOTION: float("motion" in found[0].parent.name.lower())}
