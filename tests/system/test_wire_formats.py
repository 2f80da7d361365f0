"""A run whose weights travel as 16-bit differences learns the same model, but for what sixteen bits hold of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.federations import LiveFederation
from msfl.evaluation.findings import wire_cost
from msfl.learning import weights as weight_files
from msfl.learning.contract import Weights
from msfl.sdk.reporting import report_document

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.parametrize("wire", ["bf16", "fp16"])
def test_half_the_bits_and_the_same_model(live: LiveFederation, tmp_path: Path, wire: str) -> None:
    def run(wire: str) -> tuple[Weights, dict[str, Any]]:
        config = {"batches_per_epoch": 2, "wire": wire}
        run = live.client.submit(live.job(rounds=5, seed=3, config=config))
        state = run.wait()
        assert state["phase"] == "finished", state["reason"]
        assert [set(r["sites"]) for r in state["rounds"]] == [{"site-a", "site-b", "site-c"}] * 5
        file = live.client.fetch(run.run_id, "weights", tmp_path / f"{wire}.safetensors")
        return weight_files.load(file), state

    whole, _ = run("float32")
    halves, state = run(wire)
    report = report_document(state)
    assert report["wire"]["format"] == wire
    assert set(report["evaluation"]) == {"federated"}
    cost = wire_cost(report)
    assert cost is not None
    assert set(cost.differences) == {"site-a", "site-b", "site-c"}
    assert abs(cost.held - cost.unrounded) < 0.01
    for name, values in whole.items():
        assert not np.array_equal(values, halves[name])
        assert np.abs(values - halves[name]).max() <= 1e-2 * np.abs(values).max()
