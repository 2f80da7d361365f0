"""How the updates of a round become the next model: one small protocol, one file per strategy, one explicit table.

    begin(current)                 the model the sites started from: names, shapes, values
    add(site, weight, update)      once per site, in site order; `update` is read block by block
    finish() → Weights             the next model, float32

The aggregator has checked every update (names, shapes, finite) before the first `add`, and it calls in sorted site
order, so a strategy need not think about either. A strategy lives for a whole run: what it must remember from round to
round (momentum of a server optimiser) it keeps between `finish` and the next `begin`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from msfl.learning.contract import JsonObject, Weights
from msfl.learning.strategies.fedavg import FedAvg
from msfl.protos.tensors import TensorTable


class Tensors(Protocol):
    """A model whose values stay on disk; `msfl.learning.weights.TensorFile` is one."""

    @property
    def table(self) -> TensorTable: ...

    def blocks(self, name: str) -> Iterator[tuple[int, NDArray[np.float32]]]: ...


class Strategy(Protocol):
    def begin(self, current: Tensors) -> None: ...

    def add(self, site: str, weight: float, update: Tensors) -> None: ...

    def finish(self) -> Weights: ...


STRATEGIES: Mapping[str, Callable[[JsonObject], Strategy]] = {"fedavg": lambda config: FedAvg()}
"""From the name in a job to what makes one of the job's configuration. A name that is not here does not exist."""

WEIGHTINGS: Mapping[str, Callable[[int], float]] = {"cases": float, "equal": lambda n_train: 1.0}
"""How much a site's update counts, by its number of training cases."""
