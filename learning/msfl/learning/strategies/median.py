"""Coordinate-wise median (Yin et al., ICML 2018): each value of the next model is the median of the sites' values.

Sites count the same, whatever their number of cases: a median weighted by what a site says of itself could be bought.
For an even number of sites it is the mean of the two in the middle, rounded once to float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Median:
    """Fulfils `msfl.learning.strategies.Strategy`."""

    surveys = 0

    def begin(self, weights: Sequence[float]) -> None:
        """Weights do not count here."""

    def look(self, current: NDArray[np.float32], updates: Sequence[NDArray[np.float32]]) -> None:
        """Not needed."""

    def mix(self, current: NDArray[np.float32], updates: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        # In float64: the mean of two float32 values is exact there, and cannot overflow.
        median: NDArray[np.float64] = np.median(np.stack(updates).astype(np.float64), axis=0, overwrite_input=True)
        return median.astype(np.float32)
