"""The overlay shows the right slice, the right way round, and never fails on an empty mask."""

from __future__ import annotations

import io

import numpy as np
import pytest

from msfl.evaluation.overlay import chosen_slice, overlay

SHAPE = (20, 24, 10)
SPACING = (1.0, 1.0, 2.0)


def image() -> np.ndarray:
    grid = np.indices(SHAPE).astype(np.float32)
    middle = np.array(SHAPE).reshape(3, 1, 1, 1) / 2
    inside: np.ndarray = (((grid - middle) / middle) ** 2).sum(axis=0) < 0.8
    return inside.astype(np.float32) * 100


def box(x: slice, y: slice, z: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[x, y, z] = True
    return mask


NOTHING = np.zeros(SHAPE, dtype=bool)


def test_the_slice_has_the_largest_area_of_truth() -> None:
    truth = box(slice(5, 7), slice(5, 7), slice(2, 3)) | box(slice(5, 12), slice(5, 9), slice(6, 7))
    assert chosen_slice(truth, {"federated": box(slice(0, 19), slice(0, 19), slice(8, 9))}) == 6


def test_without_truth_the_prediction_chooses_and_without_both_the_middle() -> None:
    assert chosen_slice(NOTHING, {"federated": box(slice(4, 6), slice(4, 6), slice(8, 9))}) == 8
    assert chosen_slice(NOTHING, {"federated": NOTHING}) == 5
    assert chosen_slice(NOTHING, {}) == 5


def test_the_patients_right_is_on_the_left_of_every_panel() -> None:
    figure = overlay(image(), image(), box(slice(15, 17), slice(8, 9), slice(5, 6)), {}, SPACING, "case")
    for axes in figure.axes:
        left, right = axes.get_xlim()
        assert left > right  # x, which grows to the patient's right, is drawn from right to left
        bottom, top = axes.get_ylim()
        assert bottom < top  # y grows to the front, which is up
    assert any("radiological" in text.get_text() for text in figure.texts)


def test_panels_are_images_truth_and_each_model_with_volumes_in_millilitres() -> None:
    truth = box(slice(5, 15), slice(5, 15), slice(3, 8))  # 500 voxels of 2 mm3
    figure = overlay(image(), image(), truth, {"local": NOTHING, "federated": truth}, SPACING, "case")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["FLAIR", "T1w", "truth  1.0 ml", "local  0.0 ml", "federated  1.0 ml"]


@pytest.mark.parametrize("flair", [np.zeros(SHAPE), image(), np.full(SHAPE, 7.0)])
def test_empty_masks_and_flat_images_are_drawn_without_a_warning(flair: np.ndarray) -> None:
    figure = overlay(flair, None, NOTHING, {"$\\bad{": NOTHING}, SPACING, "a$b\\frac{ \u6f22")
    out = io.BytesIO()
    figure.savefig(out, dpi=40)
    assert out.getvalue().startswith(b"\x89PNG")


def test_a_lesion_at_the_border_is_drawn() -> None:
    truth = box(slice(0, 2), slice(0, 2), slice(0, 1))
    overlay(image(), None, truth, {"federated": truth}, SPACING, "case").savefig(io.BytesIO(), dpi=40)


@pytest.mark.parametrize(
    ("truth", "spacing"),
    [(NOTHING[:-1], SPACING), (NOTHING.astype(np.uint8), SPACING), (NOTHING, (1.0, 0.0, 1.0))],
)
def test_what_does_not_fit_is_refused(truth: np.ndarray, spacing: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"needed|spacing"):
        overlay(image(), None, truth, {}, spacing, "case")
