"""Krum (Blanchard et al., NeurIPS 2017): the next model is the one update that lies closest to its neighbours.

    score(k) = Σ of the n − f − 2 smallest ‖w_k − w_j‖², j ≠ k        f = ⌊(n − 3) / 2⌋ sites may be hostile

The smallest score wins, ties go to the first site in site order. One survey of all blocks sums the squared distances in
float64; the second pass takes the winner's blocks. With fewer than three sites nobody can be told from the others, and
the first site's update is taken: a job for so few sites should not ask for Krum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Krum:
    """Fulfils `msfl.learning.strategies.Strategy`."""

    surveys = 1

    def __init__(self) -> None:
        self._distances = np.zeros((0, 0))

    def begin(self, weights: Sequence[float]) -> None:
        self._distances = np.zeros((len(weights), len(weights)))

    def look(self, current: NDArray[np.float32], updates: Sequence[NDArray[np.float32]]) -> None:
        for a, one in enumerate(updates):
            for b in range(a + 1, len(updates)):
                difference = one.astype(np.float64) - updates[b]
                distance = float(difference @ difference)
                self._distances[a, b] += distance
                self._distances[b, a] += distance

    def mix(self, current: NDArray[np.float32], updates: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return updates[self._winner()].copy()

    def _winner(self) -> int:
        n = len(self._distances)
        neighbours = max(1, n - max(0, (n - 3) // 2) - 2)
        # The smallest distance of each row is the one to itself.
        scores = np.sort(self._distances, axis=1)[:, 1 : 1 + neighbours].sum(axis=1)
        return int(np.argmin(scores))
