"""When a report may say that one model is better, and how it averages."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.reports import example_report
from msfl.evaluation.findings import (
    FEDERATED,
    Ahead,
    Comparison,
    compare,
    measured,
    models,
    pooled,
    validation_dice,
    wire_cost,
    withheld,
)
from msfl.evaluation.metrics import CaseMetrics, summarise_cases


def told(*dice: float) -> dict[str, Any]:
    return summarise_cases([CaseMetrics(value, value, value) for value in dice])


def two_sites(federated: tuple[float, ...], own: tuple[float, ...]) -> dict[str, Any]:
    report = example_report()
    report["evaluation"] = {FEDERATED: {"site-a": told(*federated)}, "local:site-a": {"site-a": told(*own)}}
    return report


def test_a_difference_beyond_the_margin_names_the_one_ahead() -> None:
    close = (0.70, 0.71, 0.72, 0.73, 0.74)
    far = (0.50, 0.51, 0.52, 0.53, 0.54)
    found = compare(two_sites(close, far), ["site-a"])
    assert found is not None
    assert found.ahead is Ahead.FEDERATED
    assert found.difference == pytest.approx(0.2)
    # t(4) = 2.776, both variances 0.00025, n = 5
    assert found.margin == pytest.approx(2.776 * (0.0005 / 5) ** 0.5)
    swapped = compare(two_sites(far, close), ["site-a"])
    assert swapped is not None
    assert swapped.ahead is Ahead.LOCAL


def test_a_difference_within_the_margin_is_left_open() -> None:
    found = compare(two_sites((0.2, 0.5, 0.8, 0.6), (0.3, 0.4, 0.7, 0.5)), ["site-a"])
    assert found is not None
    assert found.ahead is Ahead.OPEN


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_than_four_cases_never_decide(n: int) -> None:
    assert Comparison(n=n, federated=0.9, local=0.1, margin=0.0).ahead is Ahead.OPEN


def test_a_mean_over_sites_weighs_every_case_alike() -> None:
    report = example_report()
    report["evaluation"] = {FEDERATED: {"site-a": told(0.8, 0.8, 0.8), "site-b": told(0.4)}}
    found = pooled(report, [(FEDERATED, "site-a"), (FEDERATED, "site-b"), (FEDERATED, "site-c")])
    assert found is not None
    assert found.mean == pytest.approx(0.7)
    assert (found.n, found.sites) == (4, ("site-a", "site-b"))


def test_what_the_wire_cost_is_measured_on_the_same_cases() -> None:
    report = two_sites((0.70, 0.72), (0.5, 0.5))
    report["evaluation"][FEDERATED]["site-b"] = told(0.6)
    report["wire"] = {"format": "bf16", "unrounded": {"site-a": told(0.71, 0.73), "site-b": told(0.66)}}
    cost = wire_cost(report)
    assert cost is not None
    assert cost.n == 3
    assert cost.held == pytest.approx((0.70 + 0.72 + 0.6) / 3)
    assert cost.unrounded == pytest.approx((0.71 + 0.73 + 0.66) / 3)
    assert cost.differences == pytest.approx({"site-a": -0.01, "site-b": -0.06})


def test_what_the_wire_cost_is_not_known_where_a_site_withholds_or_another_number_of_cases_is_shown() -> None:
    report = two_sites((0.70, 0.72), (0.5, 0.5))
    assert wire_cost(report) is None
    for entry in ({"n": None, "withheld": "too_few_cases"}, told(0.7)):
        report["wire"] = {"format": "bf16", "unrounded": {"site-a": entry}}
        assert wire_cost(report) is None


def test_what_a_policy_withholds_is_no_figure() -> None:
    report = example_report()
    report["evaluation"][FEDERATED]["site-c"] = {"n": None, "withheld": "too_few_cases"}
    assert measured(report, FEDERATED, "site-c") is None
    assert withheld(report, FEDERATED, "site-c") == "too_few_cases"
    assert compare(report, ["site-c"]) is None
    assert pooled(report, [(FEDERATED, "site-c")]) is None


def test_the_federated_model_comes_first() -> None:
    assert models(example_report()) == (FEDERATED, "local:site-a", "local:site-b", "local:site-c")


def test_validation_dice_weighs_by_validation_cases_and_skips_gaps() -> None:
    site = {"train_loss": 0.1, "val_loss": None, "n_train": 5}
    record = {
        "sites": {
            "a": {**site, "val_dice": 0.9, "n_val": 3},
            "b": {**site, "val_dice": 0.5, "n_val": 1},
            "c": {**site, "val_dice": None, "n_val": None},
        }
    }
    assert validation_dice(record) == pytest.approx(0.8)
    assert validation_dice({"sites": {"c": {**site, "val_dice": None}}}) is None
