"""One axial slice of one test case: the images, what the annotator drew, what each model drew.

Drawn at the site, inside the worker, and kept in the site's own folder: it shows a patient. The page of a run shows
it only where the reader is the owner of all sites (the demo).

Volumes are arrays (x, y, z) in RAS orientation: x grows to the patient's right, y to the front, z to the head. The
figure follows the radiological convention, and says so: one looks from the feet, the patient's right is on the left
of the picture, the nose is on top. The slice is the one with the largest area of truth; without any truth the one with
the largest predicted area; without that the middle one.

Outlines follow voxel borders, so that a lesion of one voxel looks like one voxel. Panel titles give volumes of the
whole case, not of the slice, in millilitres.

This module is part of the releases' images: numpy and matplotlib only, and no pyplot (it keeps global state).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Volume = npt.NDArray[np.floating] | npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]

# Okabe & Ito's colours: told apart by colour-blind readers, and bright enough on black.
TRUTH_COLOUR = "#F0E442"
MODEL_COLOURS = ("#D55E00", "#56B4E9", "#CC79A7", "#009E73")
_FEDERATED_COLOUR = "#56B4E9"
_FINE = 8  # each voxel is drawn as 8 x 8 points, so that an outline keeps the voxel's corners


def chosen_slice(truth: Mask, predictions: Mapping[str, Mask]) -> int:
    """The z index to show: most truth, else most prediction, else the middle."""
    area = truth.sum(axis=(0, 1))
    if not area.any():
        area = sum((mask.sum(axis=(0, 1)) for mask in predictions.values()), np.zeros(truth.shape[2], dtype=np.int64))
    return int(area.argmax()) if area.any() else truth.shape[2] // 2


def overlay(
    flair: Volume,
    t1w: Volume | None,
    truth: Mask,
    predictions: Mapping[str, Mask],
    spacing: tuple[float, float, float],
    title: str,
    names: tuple[str, str] = ("FLAIR", "T1w"),
) -> Figure:
    """Draw the panels: both images bare, the truth, and one panel per prediction with the truth's outline beside it.

    `spacing` is the size of a voxel in mm along x, y, z; `names` label the two images. `t1w` may be None.
    The figure has an Agg canvas: `figure.savefig(path)` writes a PNG.
    Raises ValueError when a shape differs from `flair`'s, a mask is not boolean, or a voxel has no size.
    """
    masks = {"truth": truth, **predictions}
    for name, mask in masks.items():
        if mask.shape != flair.shape or mask.dtype != np.bool_:
            raise ValueError(f"{name} is {mask.dtype} {mask.shape}; a boolean volume of {flair.shape} is needed")
    if flair.ndim != 3 or (t1w is not None and t1w.shape != flair.shape):
        raise ValueError("both images must be volumes (x, y, z) on one grid")
    if not all(np.isfinite(size) and size > 0 for size in spacing):
        raise ValueError(f"spacing {spacing} must be three sizes in mm above 0")

    z = chosen_slice(truth, predictions)
    millilitres = float(np.prod(spacing)) / 1000
    colours = _colours(tuple(predictions))
    x_box, y_box = _box(flair, z, truth, predictions)
    images = [(names[0], flair)] + ([(names[1], t1w)] if t1w is not None else [])
    panels: list[tuple[str, Volume, list[tuple[str, Mask, str]]]] = [(name, image, []) for name, image in images]
    drawn_truth = ("truth", truth, TRUTH_COLOUR)
    panels.append((f"truth  {truth.sum() * millilitres:.1f} ml", flair, [drawn_truth]))
    for name, mask in predictions.items():
        heading = f"{_plain(name)}  {mask.sum() * millilitres:.1f} ml"
        panels.append((heading, flair, [drawn_truth, (name, mask, colours[name])]))

    height_mm = (y_box.stop - y_box.start) * spacing[1]
    width_mm = (x_box.stop - x_box.start) * spacing[0]
    panel_width = 2.6
    panel_height = panel_width * height_mm / width_mm
    figure = Figure(figsize=(panel_width * len(panels), panel_height + 0.75), facecolor="black")
    FigureCanvasAgg(figure)
    top = 1 - 0.47 / (panel_height + 0.75)
    bottom = 0.25 / (panel_height + 0.75)
    for i, (heading, image, outlines) in enumerate(panels):
        axes = figure.add_axes((i / len(panels) + 0.003, bottom, 1 / len(panels) - 0.006, top - bottom))
        low, high = _window(image)
        extent = (0.0, width_mm, 0.0, height_mm)
        shown = image[x_box, y_box, z].T
        axes.imshow(shown, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent, interpolation="bilinear")
        for _, mask, colour in outlines:
            # The truth lies as a broad pale band under a model's thin line, so that both are seen where they agree.
            under = len(outlines) > 1 and colour == TRUTH_COLOUR
            _outline(
                axes, mask[x_box, y_box, z], width_mm, height_mm, colour, 3.2 if under else 1.2, 0.55 if under else 1
            )
        axes.invert_xaxis()  # x grows to the right of the patient, who is seen from the feet
        axes.set_axis_off()
        axes.set_title(heading, color="white", fontsize=10, pad=3)
        for letter, place in (("R", 0.03), ("L", 0.97)):
            axes.text(
                place, 0.5, letter, transform=axes.transAxes, color="#BBBBBB", fontsize=9, ha="center", va="center"
            )
    figure.text(0.006, 0.985, _plain(title), color="white", fontsize=11, weight="bold", va="top")
    figure.text(
        0.006,
        0.02,
        f"axial slice {z + 1} of {flair.shape[2]}; radiological convention: patient's right (R) on the left",
        color="#BBBBBB",
        fontsize=8.5,
    )
    handles = [Line2D([], [], color=TRUTH_COLOUR, label="truth")]
    handles += [Line2D([], [], color=colours[name], label=_plain(name)) for name in predictions]
    figure.legend(
        handles=handles, loc="lower right", ncols=len(handles), frameon=False, labelcolor="white", fontsize=8.5,
        bbox_to_anchor=(1, -0.01), borderaxespad=0.2,
    )  # fmt: skip
    return figure


def _colours(names: tuple[str, ...]) -> dict[str, str]:
    """The federated model is always sky blue; the others take what is left, in order."""
    others = [colour for colour in MODEL_COLOURS if colour != _FEDERATED_COLOUR]
    rest = [name for name in names if name != "federated"]
    return {name: _FEDERATED_COLOUR for name in names if name == "federated"} | {
        name: others[i % len(others)] for i, name in enumerate(rest)
    }


def _box(image: Volume, z: int, truth: Mask, predictions: Mapping[str, Mask]) -> tuple[slice, slice]:
    """The part of the slice worth showing: everything above the background, with a margin of four voxels."""
    plane = image[:, :, z]
    content = plane > np.percentile(image, 50) if image.min() == image.max() else plane > _background(image)
    for mask in (truth, *predictions.values()):
        content = content | mask[:, :, z]
    if not content.any():
        return slice(0, plane.shape[0]), slice(0, plane.shape[1])
    bounds = []
    for axis in (0, 1):
        where = np.flatnonzero(content.any(axis=1 - axis))
        bounds.append(slice(max(0, int(where[0]) - 4), min(plane.shape[axis], int(where[-1]) + 5)))
    return bounds[0], bounds[1]


def _background(image: Volume) -> float:
    """A level just above air: a tenth of the way from the darkest voxel to the 99th percentile."""
    low, high = float(image.min()), float(np.percentile(image, 99))
    return low + 0.1 * (high - low)


def _window(image: Volume) -> tuple[float, float]:
    """Grey levels: from the darkest voxel to the 99.9th percentile of what is not background."""
    inside = image[image > _background(image)]
    if inside.size == 0:
        return 0.0, 1.0
    return float(image.min()), float(np.percentile(inside, 99.9)) or 1.0


def _outline(
    axes: object, mask: Mask, width_mm: float, height_mm: float, colour: str, line: float, alpha: float
) -> None:
    if not mask.any():
        return  # matplotlib warns about a contour that does not exist
    fine = np.kron(mask.T, np.ones((_FINE, _FINE)))
    fine = np.pad(fine, 1)  # a lesion at the border is closed, too
    step_x, step_y = width_mm / (mask.shape[0] * _FINE), height_mm / (mask.shape[1] * _FINE)
    x = (np.arange(fine.shape[1]) - 0.5) * step_x
    y = (np.arange(fine.shape[0]) - 0.5) * step_y
    axes.contour(x, y, fine, levels=[0.5], colors=[colour], linewidths=line, alpha=alpha)  # type: ignore[attr-defined]


def _plain(text: str) -> str:
    """Text as text: without it matplotlib would read what stands between two dollar signs as mathematics."""
    kept = "".join(c if c.isprintable() and ord(c) < 0x0530 else "?" for c in text)
    return (kept if len(kept) <= 60 else kept[:59] + "…").replace("$", r"\$")
