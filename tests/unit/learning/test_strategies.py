"""Each strategy is what its paper says, to the bit, whatever the size of the blocks."""

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from msfl.learning.strategies import STRATEGIES, WEIGHTINGS
from msfl.learning.strategies import fedavg as fedavg_module
from msfl.learning.strategies.fedavg import FedAvg

N = 1000
CURRENT = np.zeros(N, dtype=np.float32)


def values(seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    return (random.standard_normal(N) * 10.0 ** random.integers(-6, 6, N)).astype(np.float32)


def mixed(
    name: str, updates: Mapping[str, NDArray[np.float32]], weights: Mapping[str, float], block: int = N
) -> NDArray[np.float32]:
    """As the aggregator drives a strategy: surveys first, then the blocks in order."""
    strategy = STRATEGIES[name]({})
    ordered = [updates[site] for site in sorted(updates)]
    pieces = [[u[i : i + block] for u in ordered] for i in range(0, N, block)]
    current = [CURRENT[i : i + block] for i in range(0, N, block)]
    strategy.begin([weights[site] for site in sorted(updates)])
    for _ in range(strategy.surveys):
        for now, blocks in zip(current, pieces, strict=True):
            strategy.look(now, blocks)
    return np.concatenate([strategy.mix(now, blocks) for now, blocks in zip(current, pieces, strict=True)])


@pytest.mark.parametrize("block", [N, 64, 7])
def test_fedavg_is_the_direct_mean_bit_for_bit(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedavg_module, "PIECE", 33)  # several pieces per block
    counts = {"a": 17.0, "b": 3.0, "c": 29.0}
    updates = {site: values(i) for i, site in enumerate(counts)}
    total = np.zeros(N)
    for site, n in counts.items():
        total = total + n * updates[site].astype(np.float64)
    expected = (total / sum(counts.values())).astype(np.float32)
    assert mixed("fedavg", updates, counts, block).tobytes() == expected.tobytes()


def test_an_empty_round_is_a_bug() -> None:
    strategy = FedAvg()
    strategy.begin([])
    with pytest.raises(ZeroDivisionError):
        strategy.mix(CURRENT, [])


@pytest.mark.parametrize("block", [N, 64])
def test_one_wild_site_does_not_move_the_median(block: int) -> None:
    honest = {site: values(1) + np.float32(i) for i, site in enumerate("abc")}
    with_wild = {**honest, "m": np.full(N, 1e30, dtype=np.float32), "n": np.full(N, -1e30, dtype=np.float32)}
    weights = dict.fromkeys(with_wild, 1.0)
    assert np.array_equal(mixed("median", with_wild, weights, block), honest["b"])
    even = mixed("median", {s: honest[s] for s in "ab"}, weights, block)
    middle = ((honest["a"].astype(np.float64) + honest["b"]) / 2).astype(np.float32)
    assert np.array_equal(even, middle)


@pytest.mark.parametrize("block", [N, 64])
def test_krum_takes_an_update_from_the_crowd(block: int) -> None:
    """Five honest sites close together, two hostile ones close together elsewhere: the crowd of the many wins."""
    random = np.random.default_rng(5)
    centre = values(1)
    updates = {s: centre + (0.01 * random.standard_normal(N)).astype(np.float32) for s in "abcde"}
    wild = np.full(N, 50, dtype=np.float32)
    updates |= {"m": wild, "n": wild + np.float32(0.001)}
    taken = mixed("krum", updates, dict.fromkeys(updates, 1.0), block)
    assert any(np.array_equal(taken, updates[s]) for s in "abcde")
    assert np.array_equal(taken, mixed("krum", updates, dict.fromkeys(updates, 1.0), N))


def test_krum_of_few_sites_takes_one_of_them() -> None:
    for n in (1, 2, 3):
        updates = {s: values(i) for i, s in enumerate("abc"[:n])}
        taken = mixed("krum", updates, dict.fromkeys(updates, 1.0))
        assert any(np.array_equal(taken, u) for u in updates.values())


def test_weightings() -> None:
    assert WEIGHTINGS["cases"](17) == 17.0
    assert WEIGHTINGS["equal"](17) == 1.0
