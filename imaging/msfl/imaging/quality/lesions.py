"""lesions: is an expert's mask one, and does it lie on something that is bright?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from scipy import ndimage

from msfl.imaging.checks import Volume
from msfl.imaging.volume import Mask

TINY_MM3: Final = 3.0
"""Smaller than what counts as a lesion."""


def lesions(mask: Volume, flair: Volume, brain: Mask, wm: Mask) -> Mapping[str, float | None]:
    """On FLAIR's grid. A lesion is a 26-connected component.

    ==================  ====  =======================================================================
    other_labels              how many values there are that are neither 0 nor 1
    volume              ml
    count                     lesions
    tiny                      of them, how many are smaller than 3 mm³
    outside             part  of the mask's voxels that lie more than a voxel outside the brain
    largest             ml    the largest lesion
    brightness                median of FLAIR in the mask over that in white matter; about 1.4 in MS
    ==================  ====  =======================================================================
    """
    values = np.unique(mask.voxels)
    chosen: Mask = mask.voxels > 0
    voxels = int(np.count_nonzero(chosen))
    parts, count = ndimage.label(chosen, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:] * mask.voxel_ml
    near = ndimage.binary_dilation(brain, np.ones((3, 3, 3)))
    white = float(np.median(flair.voxels[wm])) if wm.any() else 0.0
    return {
        "other_labels": float(len(set(values.tolist()) - {0, 1})),
        "volume": voxels * mask.voxel_ml,
        "count": float(count),
        "tiny": float(np.count_nonzero(sizes * 1000 < TINY_MM3)),
        "outside": float(np.count_nonzero(chosen & ~near)) / voxels if voxels else 0.0,
        "largest": float(sizes.max(initial=0.0)),
        "brightness": float(np.median(flair.voxels[chosen])) / white if voxels and white > 0 else None,
    }
