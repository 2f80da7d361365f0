"""The oracle threshold: exact, and honest about ties and empty labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msfl.imaging.oracle import oracle_threshold_dice


def test_lesions_brighter_than_everything_are_found_whole() -> None:
    assert oracle_threshold_dice(np.array([3, 1, 9, 8]), np.array([0, 0, 1, 1])) == 1.0


def test_a_threshold_takes_all_voxels_of_one_value() -> None:
    # taking only the first of the two 5s would be perfect, and no threshold does it
    assert oracle_threshold_dice(np.array([5, 5, 1]), np.array([1, 0, 0])) == pytest.approx(2 / 3)


def test_an_empty_label_is_met_by_choosing_nothing() -> None:
    assert oracle_threshold_dice(np.array([5, 5, 1]), np.zeros(3, np.uint8)) == 1.0


def test_nothing_outside_the_brain_is_chosen() -> None:
    assert oracle_threshold_dice(np.zeros(4), np.array([1, 0, 0, 0])) == 0.0


def test_image_and_label_must_have_one_shape() -> None:
    with pytest.raises(ValueError, match="shape"):
        oracle_threshold_dice(np.zeros((2, 2)), np.zeros(4))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=12))
def test_it_equals_the_best_of_trying_every_threshold(voxels: list[tuple[int, bool]]) -> None:
    flair = np.array([value for value, _ in voxels])
    label = np.array([inside for _, inside in voxels]).astype(np.uint8)
    tried = [
        1.0 if chosen.sum() + label.sum() == 0 else 2 * (chosen & (label > 0)).sum() / (chosen.sum() + label.sum())
        for chosen in (flair >= t for t in range(1, 8))
    ]
    assert oracle_threshold_dice(flair, label) == pytest.approx(max(tried))
