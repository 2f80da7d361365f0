"""deepbet: brain extraction by a small U-Net whose weights lie in its wheel, so that it works without any network.

Fisch et al., Computers in Biology and Medicine 2024 (deepbet). Two passes: a coarse one finds the box around the brain,
a fine one segments inside it at 256³. About 5 s of CPU per head and 1.2 GiB at its peak.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import nibabel as nib
import numpy as np

from msfl.imaging.brain import no_brain
from msfl.imaging.checks import Volume
from msfl.imaging.volume import Mask
from msfl.policies.refusals import CannotProceed


class Deepbet:
    @property
    def name(self) -> str:
        try:
            return f"deepbet {version('deepbet')}"
        except PackageNotFoundError:
            raise CannotProceed("Brain extraction needs deepbet. Install msfl with its extra 'data'.") from None

    def ready(self) -> None:
        _ = self.name  # says what to install

    def extract(self, head: Volume, what: str) -> Mask:
        # deepbet takes floats and finds nothing in a constant image by an assertion of its own
        values = head.voxels.astype(np.float32)
        if not np.ptp(values):
            raise no_brain(what)
        image = nib.Nifti1Image(values, head.affine)
        try:
            _, mask, _ = self._network.run(image)
        except (AssertionError, ValueError) as error:  # no foreground, or none that is connected
            raise no_brain(what) from error
        found: Mask = np.asarray(mask.dataobj) > 0
        if not found.any():
            raise no_brain(what)
        return found

    @cached_property
    def _network(self) -> Any:
        self.ready()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.load: deepbet's weights are TorchScript
            from deepbet import BrainExtraction

            return BrainExtraction(no_gpu=True)
