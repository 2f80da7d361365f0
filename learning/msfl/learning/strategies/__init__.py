"""How the updates of a round become the next model: one small protocol, one file per strategy, one explicit table.

    begin(weights)                 a round with these sites, in site order, and how much each counts
    look(current, updates)         `surveys` times, block by block: for strategies that must see all before they mix
    mix(current, updates)          block by block: the same values of the next model

A block is a flat piece of at most 1 MiB of the model as float32; `current` is the model the sites started from, and
`updates` holds the same piece of each update. The aggregator reads all updates in step from their sealed files, so a
strategy needs memory for a block of each and never for a whole update. It has checked every value handed to `mix`, and
calls in sorted site order, so a strategy need not think about either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from msfl.learning.contract import JsonObject
from msfl.learning.strategies.fedavg import FedAvg
from msfl.learning.strategies.krum import Krum
from msfl.learning.strategies.median import Median

Block: TypeAlias = NDArray[np.float32]


class Strategy(Protocol):
    surveys: int
    """How many passes over all updates come before the one that mixes."""

    def begin(self, weights: Sequence[float]) -> None: ...

    def look(self, current: Block, updates: Sequence[Block]) -> None: ...

    def mix(self, current: Block, updates: Sequence[Block]) -> Block:
        """A fresh array: the caller keeps it while the next one is made."""
        ...


STRATEGIES: Mapping[str, Callable[[JsonObject], Strategy]] = {
    "fedavg": lambda config: FedAvg(),
    "krum": lambda config: Krum(),
    "median": lambda config: Median(),
}
"""From the name in a job to what makes one of the job's configuration. A name that is not here does not exist."""

WEIGHTINGS: Mapping[str, Callable[[int], float]] = {"cases": float, "equal": lambda n_train: 1.0}
"""How much a site's update counts, by its number of training cases."""
