"""Federated averaging (McMahan et al., AISTATS 2017): the mean of the sites' weights, weighted by training cases.

    w' = Σ_k n_k w_k / Σ_k n_k

Summed in float64 in the order of the calls, one block of one update at a time, and rounded to float32 once at the end.
A product of a float32 value and a whole number below 2^29 is exact in float64, so the only rounding is that of the sum;
with one fixed order the result is the same to the bit. Memory: one model in float64, plus one block.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msfl.learning.contract import Weights

if TYPE_CHECKING:
    from msfl.learning.strategies import Tensors


class FedAvg:
    """Fulfils `msfl.learning.strategies.Strategy`."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._weight = 0.0

    def begin(self, current: Tensors) -> None:
        self._shapes = dict(current.table.shapes)
        self._sums = {name: np.zeros(math.prod(shape), dtype=np.float64) for name, shape in self._shapes.items()}
        self._weight = 0.0

    def add(self, site: str, weight: float, update: Tensors) -> None:
        for name, total in self._sums.items():
            for position, values in update.blocks(name):
                total[position : position + values.size] += weight * values.astype(np.float64)
        self._weight += weight

    def finish(self) -> Weights:
        """Raises ZeroDivisionError when nothing was added: the aggregator never closes an empty round."""
        if not self._weight:
            raise ZeroDivisionError("an average of no updates")
        averaged: Weights = {}
        while self._sums:  # Free each sum as soon as it is rounded.
            name = next(iter(self._sums))
            averaged[name] = (self._sums.pop(name) / self._weight).astype(np.float32).reshape(self._shapes[name])
        return averaged
