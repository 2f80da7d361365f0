"""Flower, at the server: its own FedAvg, with the benchmark's first model and one mark per round."""

from __future__ import annotations

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from shapes import drift, first_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    rounds, sites, model_mb = int(config["rounds"]), int(config["sites"]), float(config["model-mb"])
    first = first_model(model_mb)

    def over(round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Called by the strategy before the first round (0) and at the end of each."""
        if round:
            with open(str(config["marks"]), "a") as file:
                file.write(f"{time.time()!r}\n")
        return None

    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites, weighted_by_key="num-examples"
    )
    start = ArrayRecord({name: Array(values) for name, values in first.items()})
    result = strategy.start(grid, start, num_rounds=rounds, evaluate_fn=over)
    by = np.float32(drift(sites, rounds))
    worst = max(float(np.abs(result.arrays[name].numpy() - values - by).max()) for name, values in first.items())
    with open(str(config["checked"]), "w") as file:
        file.write(f"{len(result.arrays)} {worst!r}\n")
