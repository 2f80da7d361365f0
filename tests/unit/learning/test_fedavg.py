"""The average is that of the formula, to the bit, and does not depend on who was first."""

from pathlib import Path

import numpy as np
import pytest

from msfl.learning import weights as weight_files
from msfl.learning.contract import Weights
from msfl.learning.strategies import STRATEGIES, WEIGHTINGS, Strategy
from msfl.learning.strategies.fedavg import FedAvg
from msfl.learning.weights import TensorFile


def model(seed: int) -> Weights:
    random = np.random.default_rng(seed)
    return {
        "kernel": (random.standard_normal((7, 5, 3)) * 10.0 ** random.integers(-6, 6, (7, 5, 3))).astype(np.float32),
        "bias": random.standard_normal(11).astype(np.float32),
        "scalar": np.array(random.standard_normal(), dtype=np.float32),
    }


def on_disk(folder: Path, name: str, weights: Weights) -> TensorFile:
    weight_files.save(folder / name, weights)
    return TensorFile(folder / name)


def test_equal_to_the_direct_mean_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "BLOCK", 16)  # several blocks per tensor
    counts = {"a": 17, "b": 3, "c": 29}
    models = {site: model(i) for i, site in enumerate(counts)}
    strategy: Strategy = FedAvg()
    strategy.begin(on_disk(tmp_path, "current", model(9)))
    for site, n in counts.items():
        strategy.add(site, float(n), on_disk(tmp_path, site, models[site]))
    averaged = strategy.finish()
    for name in models["a"]:
        total = np.zeros(models["a"][name].shape, dtype=np.float64)
        for site, n in counts.items():
            total = total + n * models[site][name].astype(np.float64)
        expected = (total / sum(counts.values())).astype(np.float32)
        assert averaged[name].tobytes() == expected.tobytes()
        assert averaged[name].shape == expected.shape


def test_a_strategy_is_used_again_every_round(tmp_path: Path) -> None:
    strategy = STRATEGIES["fedavg"]({})
    for seed in (1, 2):
        strategy.begin(on_disk(tmp_path, "current", model(0)))
        strategy.add("a", 5.0, on_disk(tmp_path, "a", model(seed)))
        averaged = strategy.finish()
        assert all(np.array_equal(averaged[name], values) for name, values in model(seed).items())


def test_an_empty_round_is_a_bug(tmp_path: Path) -> None:
    strategy = FedAvg()
    strategy.begin(on_disk(tmp_path, "current", model(0)))
    with pytest.raises(ZeroDivisionError):
        strategy.finish()


def test_weightings() -> None:
    assert WEIGHTINGS["cases"](17) == 17.0
    assert WEIGHTINGS["equal"](17) == 1.0
