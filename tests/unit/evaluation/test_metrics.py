"""Overlap metrics of a case, above all of empty ones, and what a site may tell about many."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msfl.evaluation.metrics import BINS, CaseMetrics, Summary, case_metrics, summarise, summarise_cases


def volume(*voxels: int) -> np.ndarray:
    """A 2 x 2 x 2 volume with the named voxels set."""
    mask = np.zeros(8, dtype=bool)
    mask[list(voxels)] = True
    return mask.reshape(2, 2, 2)


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        (volume(0, 1, 2), volume(1, 2, 3, 4), CaseMetrics(dice=4 / 7, sensitivity=2 / 3, precision=1 / 2)),
        (volume(0, 1), volume(0, 1), CaseMetrics(1, 1, 1)),
        (volume(0), volume(7), CaseMetrics(0, 0, 0)),
        (volume(), volume(), CaseMetrics(1, 1, 1)),
        (volume(), volume(5), CaseMetrics(0, 0, 0)),
        (volume(5), volume(), CaseMetrics(0, 0, 0)),
    ],
)
def test_a_case_is_measured_voxel_by_voxel(truth: np.ndarray, predicted: np.ndarray, expected: CaseMetrics) -> None:
    assert case_metrics(truth, predicted) == expected


def test_a_model_that_marks_nothing_earns_no_precision() -> None:
    silent = [case_metrics(volume(0, 1), volume()), case_metrics(volume(3), volume())]
    assert summarise_cases(silent)["precision"]["mean"] == 0


@pytest.mark.parametrize(
    ("truth", "predicted", "complaint"),
    [
        (volume(0).astype(np.uint8), volume(0), "boolean"),
        (volume(0), volume(0).ravel(), "boolean volume"),
        (volume(0), np.zeros((2, 2, 3), dtype=bool), "resample"),
    ],
)
def test_what_is_no_pair_of_masks_is_not_measured(truth: np.ndarray, predicted: np.ndarray, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        case_metrics(truth, predicted)


def test_a_summary_says_mean_sample_sd_median_and_histogram() -> None:
    told = summarise([0.0, 0.5, 1.0])
    assert (told.n, told.mean, told.sd, told.median) == (3, 0.5, 0.5, 0.5)
    assert [i for i, count in enumerate(told.histogram) if count] == [0, 10, 19]


def test_one_case_has_no_spread() -> None:
    assert summarise([0.4]).sd == 0.0


@pytest.mark.parametrize("values", [[], [1.0001], [-0.1], [float("nan")]])
def test_values_that_are_no_metric_are_not_summarised(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"summar"):
        summarise(values)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_a_summary_survives_json_and_knows_its_n(values: list[float]) -> None:
    told = summarise(values)
    again = Summary.from_json(json.loads(json.dumps(told.to_json())))
    assert again == told
    assert again.n == len(values) == sum(told.histogram)
    assert min(values) <= told.median <= max(values)
    assert math.isclose(told.mean, sum(values) / len(values), abs_tol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": float("nan")},
        {"mean": 1.2},
        {"mean": True},
        {"sd": -0.1},
        {"median": "0.5"},
        {"histogram": [0] * BINS},
        {"histogram": [1] * (BINS - 1)},
        {"histogram": [0.5] * BINS},
        {"histogram": [-1, 2] + [0] * (BINS - 2)},
        {"histogram": "1" * BINS},
        {"per_case": [0.5]},
    ],
)
def test_a_summary_from_elsewhere_is_checked(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="summary"):
        Summary.from_json(summarise([0.5, 0.6]).to_json() | change)


def test_the_metrics_travel_with_numpy_alone() -> None:
    import ast
    from pathlib import Path

    import msfl.evaluation.metrics as module

    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported == {"__future__", "collections.abc", "dataclasses", "typing", "math", "numpy", "numpy.typing"}
