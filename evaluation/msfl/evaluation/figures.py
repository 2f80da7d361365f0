"""The three figures of a run, drawn from nothing but its report.

    round_curves          how training went: loss and validation Dice per round and site, the best round marked
    metric_distributions  what was reached: every test case as a dot, federated above the site's own model
    model_site_matrix     what carries over: every model at every site, a site's own model outlined

A site has one colour and one marker everywhere, by its place in the report (Okabe & Ito's palette, which colour-blind
readers can tell apart; the marker says it a second time). Dice, sensitivity and precision are always drawn from 0 to 1.
Distributions come from histograms of 20 bins, so a dot stands at the middle of its bin, at most 0.025 off.

Figures are matplotlib `Figure` objects with an Agg canvas, made without pyplot: no global state, no window, safe in a
server. Names from a report are drawn as text, never as mathematics; characters the font lacks become "?".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from msfl.evaluation import findings
from msfl.evaluation.findings import FEDERATED, Report, local_model
from msfl.evaluation.metrics import BINS, METRICS, Summary

INK = "#222222"
QUIET = "#6B6B6B"
GRID = "#E4E4E4"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_DOTS = 8  # a fuller bin no longer reads as dots; the lane is then drawn as bars


@dataclass(frozen=True)
class SiteStyle:
    """How one site looks in every figure and in the page."""

    colour: str
    marker: str

    @property
    def ink(self) -> str:
        """The colour darkened, for text: the palette's lighter colours are too pale for letters on white."""
        return to_hex([0.7 * part for part in to_rgb(self.colour)])


def site_styles(report: Report) -> dict[str, SiteStyle]:
    """Colour and marker of each site by its place in the report; the eighth site starts over with other markers."""
    return {
        site: SiteStyle(_COLOURS[i % len(_COLOURS)], _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)])
        for i, site in enumerate(report["sites"])
    }


def plain(text: str, longest: int = 24) -> str:
    """Text as matplotlib draws it literally: no mathematics, no missing glyphs, at most `longest` characters."""
    kept = "".join(c if c.isprintable() and ord(c) < 0x0530 else "?" for c in text)
    return (kept if len(kept) <= longest else kept[: longest - 1] + "…").replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _empty(message: str) -> Figure:
    figure = _figure(8, 1.6)
    figure.text(0.5, 0.5, message, ha="center", va="center", color=QUIET, fontsize=12)
    return figure


def _tidy(axes: Any, grid: str) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)
    axes.tick_params(colors=INK, labelsize=10)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


# ------------------------------------------------------------------- rounds


def round_curves(report: Report) -> Figure:
    """Loss (training solid, validation dashed) and validation Dice of the averaged model, per round and site."""
    rounds = report["rounds"]
    if not rounds:
        return _empty("No round was trained.")
    figure = _figure(10.5, 3.9)
    loss_axes, dice_axes = figure.subplots(1, 2)
    styles = site_styles(report)
    seen = [site for site in styles if any(site in record["sites"] for record in rounds)]
    numbers = [record["round"] for record in rounds]
    every = max(1, len(rounds) // 12)

    def draw(axes: Any, site: str, field: str, line: str) -> bool:
        values = [record["sites"].get(site, {}).get(field) for record in rounds]
        if all(value is None for value in values):
            return False
        style = styles[site]
        gaps = [float("nan") if value is None else value for value in values]
        axes.plot(
            numbers, gaps, line, color=style.colour, marker=style.marker, markersize=4.5, markevery=every, linewidth=1.6
        )
        return True

    for site in seen:
        draw(loss_axes, site, "train_loss", "-")
    with_validation_loss = [draw(loss_axes, site, "val_loss", "--") for site in seen]
    with_dice = [draw(dice_axes, site, "val_dice", "-") for site in seen]
    mean = [findings.validation_dice(record) for record in rounds]
    if any(value is not None for value in mean):
        gaps = [float("nan") if value is None else value for value in mean]
        dice_axes.plot(numbers, gaps, color=INK, linewidth=2.6, alpha=0.85, zorder=5)
    if not any(with_dice):
        dice_axes.text(
            0.5, 0.5, "no site measured validation cases", transform=dice_axes.transAxes, ha="center", color=QUIET
        )

    amiss = [remark for remark in _REMARKS if _mark(loss_axes, report, remark, styles)]

    best = report["best_round"]
    for axes, title in ((loss_axes, "Loss"), (dice_axes, "Validation Dice of the averaged model")):
        _tidy(axes, "y")
        axes.set_title(title, fontsize=12, color=INK, loc="left", weight="bold", pad=20 if amiss else 6)
        axes.set_xlabel("round", fontsize=10.5, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        if len(rounds) == 1:
            axes.set_xlim(numbers[0] - 1, numbers[0] + 1)
        if best in numbers:
            axes.axvline(best, color=QUIET, linewidth=1.2, linestyle=":", zorder=0)
    dice_axes.set_ylim(0, 1)
    if best in numbers:
        right = numbers.index(best) > len(numbers) / 2
        dice_axes.annotate(
            f"best round {best}", (best, 0.03), xytext=(-5 if right else 5, 0), textcoords="offset points",
            ha="right" if right else "left", fontsize=10, color=QUIET,
        )  # fmt: skip

    handles = [
        Line2D([], [], color=styles[s].colour, marker=styles[s].marker, markersize=5, label=plain(s)) for s in seen
    ]
    if any(with_dice):
        handles.append(Line2D([], [], color=INK, linewidth=2.6, label="all sites, by validation cases"))
    if any(with_validation_loss):
        handles.append(Line2D([], [], color=QUIET, label="training"))
        handles.append(Line2D([], [], color=QUIET, linestyle="--", label="validation"))
    for remark in amiss:
        marker, label, _ = _REMARKS[remark]
        handles.append(Line2D([], [], linestyle="", marker=marker, color=QUIET, markerfacecolor="none", label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False, fontsize=10)
    return figure


# What may be amiss with a site in a round: its marker above the losses, its name, its height there (1: the top edge).
_REMARKS = {
    "refused": ("x", "update refused", 1.05),
    "late": ("o", "away or late", 1.02),
    "flags": ("^", "conspicuous", 1.08),
}


def _mark(axes: Any, report: Report, remark: str, styles: dict[str, SiteStyle]) -> bool:
    """A mark in the site's colour over each round in which something was amiss; False: there was none."""
    marker, _, height = _REMARKS[remark]
    anything = False
    for record in report["rounds"]:
        for i, site in enumerate(findings.amiss(record, remark)):
            # Several sites of one round stand side by side, seven points apart.
            place = offset_copy(axes.get_xaxis_transform(), axes.figure, x=7 * i, units="points")
            axes.plot(
                record["round"], height, marker=marker, color=styles[site].colour, markerfacecolor="none",
                markersize=6, markeredgewidth=1.6, clip_on=False, transform=place,
            )  # fmt: skip
            anything = True
    return anything


# ------------------------------------------------------------------- distributions


def metric_distributions(report: Report) -> Figure:
    """Dice, sensitivity and precision of every test case: filled the federated model, hollow the site's own model.

    A diamond marks the mean, a bar the median. A site that withholds its figures keeps an empty, labelled lane.
    """
    lanes: list[tuple[str, str, str]] = []  # site, model, label
    for site in report["sites"]:
        for model, label in ((FEDERATED, "federated"), (local_model(site), "own model")):
            if site in report["evaluation"].get(model, {}):
                lanes.append((site, model, label))
    if not lanes:
        return _empty("Nothing was evaluated.")

    places: list[float] = []
    for i, (site, _, _) in enumerate(lanes):
        step = 0.0 if i == 0 else (1.0 if lanes[i - 1][0] == site else 1.45)
        places.append((places[-1] if places else 0.0) + step)
    figure = _figure(11, 1.4 + 0.56 * (places[-1] + 1))
    panels = figure.subplots(1, len(METRICS), sharey=True)
    styles = site_styles(report)
    for axes, metric in zip(panels, METRICS, strict=True):
        _tidy(axes, "x")
        axes.set_title(metric.capitalize(), fontsize=12, color=INK, loc="left", weight="bold")
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
        axes.set_ylim(places[-1] + 0.4, -0.85)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        for place, (site, model, _) in zip(places, lanes, strict=True):
            axes.axhline(place, color="#BDBDBD", linewidth=0.9, zorder=0)
            summary = findings.measured(report, model, site, metric)
            if summary is None:
                reason = plain(findings.withheld(report, model, site) or "not measured", 30)
                said = f"withheld: {reason}"
                axes.text(0.5, place - 0.25, said, ha="center", va="center", fontsize=9, color=QUIET, style="italic")
            else:
                _lane(axes, place, summary, styles[site], filled=model == FEDERATED)
    labels = []
    for site, model, label in lanes:
        summary = findings.measured(report, model, site)
        first = model == FEDERATED or FEDERATED not in report["evaluation"]
        n = f" (n={summary.n})" if summary is not None else ""
        labels.append(f"{plain(site)}{n}\n{label}" if first else label)
    panels[0].set_yticks(places, labels, fontsize=10)
    for tick, (site, _, _) in zip(panels[0].get_yticklabels(), lanes, strict=True):
        tick.set_color(styles[site].ink)

    handles = [
        Line2D([], [], linestyle="", marker="o", color=INK, label=f"{label}, one case", markerfacecolor=face)
        for label, face in (("federated", INK), ("own model", "white"))
        if any(lane[2] == label for lane in lanes)
    ] + [
        Line2D([], [], linestyle="", marker="D", color=INK, markersize=6, label="mean"),
        Line2D([], [], linestyle="", marker="|", color=INK, markersize=9, markeredgewidth=2, label="median"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    return figure


def _lane(axes: Any, place: float, summary: Summary, style: SiteStyle, *, filled: bool) -> None:
    """Cases stand on the lane's line, mean and median hang below it, so that neither hides the other."""
    tallest = max(summary.histogram)
    face = style.colour if filled else "white"
    for i, count in enumerate(summary.histogram):
        if count and tallest > _MOST_DOTS:
            axes.add_patch(
                Rectangle(
                    (i / BINS + 0.004, place), 1 / BINS - 0.008, -0.62 * count / tallest, facecolor=face,
                    edgecolor=style.colour, linewidth=1.2, alpha=0.75 if filled else 1,
                )
            )  # fmt: skip
        elif count:
            apart = min(0.19, 0.62 / tallest)
            heights = [place - 0.1 - k * apart for k in range(count)]
            axes.plot(
                [(i + 0.5) / BINS] * count, heights, linestyle="", marker="o", markersize=5.5 if apart > 0.15 else 4.0,
                markerfacecolor=face, markeredgecolor=style.colour, markeredgewidth=1.2,
            )  # fmt: skip
    axes.plot(summary.median, place + 0.13, marker="|", color=INK, markersize=9, markeredgewidth=2, zorder=6)
    axes.plot(summary.mean, place + 0.13, marker="D", color=INK, markersize=5, zorder=7, markeredgecolor="white")


# ------------------------------------------------------------------- matrix


def model_site_matrix(report: Report) -> Figure:
    """Mean Dice of every model (rows) on every site's test cases (columns), with standard deviation and n."""
    models = findings.models(report)
    sites = [site for site in report["sites"] if any(site in report["evaluation"][model] for model in models)]
    if not sites:
        return _empty("Nothing was evaluated.")
    figure = _figure(3.6 + 1.45 * len(sites), 1.5 + 0.78 * len(models))
    axes = figure.subplots()
    styles = site_styles(report)
    # The same map for every report, so that two reports can be laid side by side.
    cells = [[findings.measured(report, model, site) for site in sites] for model in models]
    values = [[float("nan") if cell is None else cell.mean for cell in row] for row in cells]
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, model in enumerate(models):
        for column, site in enumerate(sites):
            cell = cells[row][column]
            if cell is None:
                code = findings.withheld(report, model, site)
                axes.add_patch(
                    Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="#F3F3F3", edgecolor="white", hatch="///")
                )
                text = "not\nevaluated" if code is None else f"withheld\n{plain(code, 16)}"
                axes.text(column, row, text, ha="center", va="center", fontsize=9, color=INK)
            else:
                ink = "white" if cell.mean > 0.55 else INK
                axes.text(
                    column, row - 0.1, f"{cell.mean:.2f}", ha="center", va="center", fontsize=14, color=ink,
                    weight="bold",
                )  # fmt: skip
                axes.text(
                    column, row + 0.27, f"± {cell.sd:.2f}, n={cell.n}", ha="center", va="center", fontsize=9, color=ink
                )
    axes.set_xticks([c + 0.5 for c in range(len(sites) - 1)], minor=True)
    axes.set_yticks([r + 0.5 for r in range(len(models) - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=3)
    axes.tick_params(which="both", length=0)
    for row, model in enumerate(models):  # after the grid, so that the outline lies on top of it
        if (own := _owner(model)) in sites:
            column = sites.index(own)
            axes.add_patch(
                Rectangle(
                    (column - 0.475, row - 0.47), 0.95, 0.94, fill=False, edgecolor="black", linewidth=2.8, zorder=4
                )
            )
    axes.set_xticks(range(len(sites)), [plain(site) for site in sites], fontsize=10.5)
    axes.set_yticks(
        range(len(models)),
        ["federated" if model == FEDERATED else f"trained at {plain(_owner(model))}" for model in models],
        fontsize=10.5,
    )
    for tick, site in zip(axes.get_xticklabels(), sites, strict=True):
        tick.set_color(styles[site].ink)
    for tick, model in zip(axes.get_yticklabels(), models, strict=True):
        tick.set_color(styles[_owner(model)].ink if _owner(model) in styles else INK)
    axes.set_xlabel("tested at", fontsize=10.5, color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.06, pad=0.03)
    bar.set_label("mean Dice", fontsize=10)
    bar.outline.set_visible(False)
    return figure


def _owner(model: str) -> str:
    """The site that trained a local model; empty for the federated one."""
    return model.removeprefix("local:") if model.startswith("local:") else ""
