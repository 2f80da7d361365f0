"""Federated averaging (McMahan et al., AISTATS 2017): the mean of the sites' weights, weighted by training cases.

    w' = Σ_k n_k w_k / Σ_k n_k

Summed in float64 in site order and rounded to float32 once at the end. A product of a float32 value and a whole number
below 2^29 is exact in float64, so the only rounding is that of the sum; with one fixed order the result is the same to
the bit. Memory: one accumulator of `PIECE` values, small enough to stay in a processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 15  # values: 256 KiB of float64


class FedAvg:
    """Fulfils `msfl.learning.strategies.Strategy`."""

    surveys = 0

    def __init__(self) -> None:
        self._weights: Sequence[float] = ()
        self._sum = np.empty(PIECE, dtype=np.float64)
        self._product = np.empty(PIECE, dtype=np.float64)

    def begin(self, weights: Sequence[float]) -> None:
        self._weights = weights

    def look(self, current: NDArray[np.float32], updates: Sequence[NDArray[np.float32]]) -> None:
        """Not needed."""

    def mix(self, current: NDArray[np.float32], updates: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Raises ZeroDivisionError when nothing counts: the aggregator never closes an empty round."""
        total = sum(self._weights)
        if not total:
            raise ZeroDivisionError("an average of no updates")
        mixed = np.empty_like(current)
        for begin in range(0, current.size, PIECE):
            n = min(PIECE, current.size - begin)
            summed, product = self._sum[:n], self._product[:n]
            summed[:] = 0.0
            for weight, update in zip(self._weights, updates, strict=True):
                np.multiply(update[begin : begin + n], weight, out=product, dtype=np.float64)
                summed += product
            np.divide(summed, total, out=product)
            mixed[begin : begin + n] = product
        return mixed
