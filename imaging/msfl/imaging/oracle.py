"""oracle: how far a single threshold gets on a case, when it is told the answer.

For each possible threshold t, Dice of {voxels of brightness t or more} against the label; the oracle picks the best t
for this very case. It bounds every method that looks at brightness alone, and so tells whether a data set is trivial
(near 1) or hopeless (near 0).
"""

import numpy as np
from numpy.typing import NDArray


def oracle_threshold_dice(flair: NDArray[np.number], label: NDArray[np.number]) -> float:
    """Best Dice of ``flair >= t`` against ``label != 0`` over all t; exact, in one sort.

    Both are of one shape; voxels of value 0 or less (outside a stripped brain) are never chosen. An empty label gives
    1: the threshold above all voxels is right. Raises ValueError when the shapes differ.
    """
    if flair.shape != label.shape:
        raise ValueError(f"image has shape {flair.shape}, label {label.shape}")
    truth = label != 0
    total = int(np.count_nonzero(truth))
    if total == 0:
        return 1.0
    inside = flair > 0
    order = np.argsort(flair[inside])[::-1]
    values = flair[inside][order]
    if values.size == 0:
        return 0.0
    hits = np.cumsum(truth[inside][order])
    chosen = np.arange(1, values.size + 1)
    # a threshold takes all voxels of one value: only the last of equal ones is a cut
    cut = np.append(values[1:] != values[:-1], True)
    return float((2 * hits[cut] / (chosen[cut] + total)).max())
