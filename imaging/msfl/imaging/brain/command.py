"""What extractors that are commands have in common: the head goes in as a file, the mask comes out as one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from msfl.imaging.brain import no_brain
from msfl.imaging.checks import Volume, same_grid
from msfl.imaging.deidentify.nifti import read_volume, write_volume
from msfl.imaging.volume import Mask
from msfl.policies.refusals import CannotProceed

TIME_LIMIT_S = 900


def on_path(command: str) -> None:
    """Raises CannotProceed where there is no such command."""
    if shutil.which(command) is None:
        raise CannotProceed(f"The command {command} is not on this machine's PATH.")


def extract_by(command: Sequence[str], head: Volume, what: str, *, mask_name: str) -> Mask:
    """`{head}` and `{folder}` in the command's words are put in; the mask is `mask_name` in the folder. Raises Unusable
    where it is empty, CannotProceed where the command is missing, fails, or leaves no mask on the head's grid."""
    with tempfile.TemporaryDirectory(prefix="msfl-brain-") as place:
        folder = Path(place)
        write_volume(head, folder / "head.nii.gz")
        words = [word.replace("{head}", str(folder / "head.nii.gz")).replace("{folder}", place) for word in command]
        on_path(words[0])
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIME_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise CannotProceed(f"{words[0]} did not end within {TIME_LIMIT_S} s.") from None
        mask_file = folder / mask_name
        if done.returncode != 0 or not mask_file.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise CannotProceed(f"{words[0]} failed (exit code {done.returncode}): {said[-1] if said else 'no word'}")
        mask = read_volume(mask_file)
    if not same_grid(mask, head):
        raise CannotProceed(f"{words[0]} left a mask that does not lie on the grid of the {what} image.")
    found: Mask = mask.voxels > np.float32(0.5)
    if not found.any():
        raise no_brain(what)
    return found
