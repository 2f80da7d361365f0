"""NVIDIA FLARE, at the server: its own FedAvg workflow, with the benchmark's first model and one mark per round.

No model is written to disk between rounds: that would be added to its time and to nobody else's but the product's.
"""

from __future__ import annotations

import time

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.workflows.fedavg import FedAvg


class EchoFedAvg(FedAvg):
    def __init__(self, num_clients: int, num_rounds: int, model_mb: float, shapes: str, marks: str, checked: str):
        super().__init__(num_clients=num_clients, num_rounds=num_rounds)
        self.model_mb = model_mb
        self.shapes = shapes
        self.marks = marks
        self.checked = checked
        self._saved = 0

    def load_model(self) -> FLModel:
        return FLModel(params_type=ParamsType.FULL, params=self._module().first_model(self.model_mb))

    def save_model(self, model: FLModel) -> None:
        """Called by the workflow at the end of each round."""
        with open(self.marks, "a") as file:
            file.write(f"{time.time()!r}\n")
        self._saved += 1
        if self._saved == self.num_rounds:
            by = np.float32(self._module().drift(self.num_clients, self.num_rounds))
            first = self._module().first_model(self.model_mb)
            worst = max(float(np.abs(model.params[name] - values - by).max()) for name, values in first.items())
            with open(self.checked, "w") as file:
                file.write(f"{len(model.params)} {worst!r}\n")

    def _module(self):
        import sys

        sys.path[:] = [self.shapes, *(p for p in sys.path if p != self.shapes)]
        import shapes

        return shapes
