"""Figures draw every report that passes its check: gaps, withheld figures, one site or ten, hostile names."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure

from fakes.reports import example_report, made_up_entry, refused_report, troubled_report
from msfl.evaluation.figures import metric_distributions, model_site_matrix, plain, round_curves, site_styles

FIGURES = (round_curves, metric_distributions, model_site_matrix)
Draw = Callable[[dict[str, Any]], Figure]


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.set_layout_engine("none")  # arranging takes half the time and is seen to by the slow tests of the report
    figure.savefig(out, format="png", dpi=30)
    return out.getvalue()


def texts(figure: Figure) -> str:
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    said += [text.get_text() for axes in figure.axes for text in axes.get_yticklabels() + axes.get_xticklabels()]
    return "\n".join(said + [text.get_text() for text in figure.texts])


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize("report", [example_report(), example_report(rounds=1), refused_report(), troubled_report()])
def test_every_figure_is_drawn_without_a_warning(draw: Draw, report: dict[str, Any]) -> None:
    assert png(draw(report)).startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", FIGURES)
def test_a_name_is_text_and_never_mathematics(draw: Draw) -> None:
    report = example_report(rounds=2)
    name = "$\\frac{$ \u533b\u9662 \x07"
    report["sites"][name] = report["sites"].pop("site-b")
    for record in report["rounds"]:
        record["sites"][name] = record["sites"].pop("site-b")
    for sites in report["evaluation"].values():
        sites[name] = sites.pop("site-b")
    report["evaluation"][f"local:{name}"] = report["evaluation"].pop("local:site-b")
    assert png(draw(report)).startswith(b"\x89PNG")


def test_a_long_name_is_cut_and_a_dollar_is_a_dollar() -> None:
    assert len(plain("x" * 100)) == 24
    assert plain("a$b") == r"a\$b"


def test_what_was_amiss_in_a_round_is_marked_and_explained() -> None:
    legend = [text.get_text() for text in round_curves(troubled_report()).legends[0].get_texts()]
    assert {"update refused", "away or late", "conspicuous"} <= set(legend)
    calm = [text.get_text() for text in round_curves(example_report()).legends[0].get_texts()]
    assert "update refused" not in calm


def test_withheld_figures_say_so() -> None:
    report = example_report()
    report["evaluation"]["local:site-c"]["site-c"] = {"n": None, "withheld": "too_few_cases"}
    assert "withheld\ntoo_few_cases" in texts(model_site_matrix(report))
    assert "withheld: too_few_cases" in texts(metric_distributions(report))


def test_the_matrix_outlines_the_cells_of_own_models_only() -> None:
    axes = model_site_matrix(example_report()).axes[0]
    corners = [patch.get_extents().transformed(axes.transData.inverted()).get_points() for patch in axes.patches]
    outlined = {tuple(points.mean(axis=0).round().astype(int).tolist()) for points in corners}
    assert outlined == {(0, 1), (1, 2), (2, 3)}  # column of the site, row of its model


def test_dice_axes_run_from_nought_to_one() -> None:
    assert round_curves(example_report()).axes[1].get_ylim() == (0, 1)
    for axes in metric_distributions(example_report()).axes:
        low, high = axes.get_xlim()
        assert low <= 0 < 1 <= high
        assert high - low < 1.1


def test_the_best_round_is_marked() -> None:
    assert "best round 11" in texts(round_curves(example_report()))


def test_a_site_looks_the_same_everywhere_and_unlike_any_other() -> None:
    report = example_report()
    report["sites"] = {f"site-{i}": report["sites"]["site-a"] for i in range(20)}
    styles = site_styles(report)
    assert len({(style.colour, style.marker) for style in styles.values()}) == 20
    assert site_styles(report) == styles


def test_no_local_models_and_no_validation_are_drawn_too() -> None:
    report = example_report(rounds=3)
    report["evaluation"] = {"federated": report["evaluation"]["federated"]}
    for record in report["rounds"]:
        for site in record["sites"].values():
            site |= {"val_loss": None, "val_dice": None}
    report["best_round"] = None
    for draw in FIGURES:
        assert png(draw(report)).startswith(b"\x89PNG")
    assert "own model" not in texts(metric_distributions(report))


def test_many_cases_become_bars() -> None:
    import random

    report = example_report(rounds=1)
    report["evaluation"] = {"federated": {"site-a": made_up_entry(0.6, 200, random.Random(0))}}
    figure = metric_distributions(report)
    assert figure.axes[0].patches
    assert png(figure).startswith(b"\x89PNG")
