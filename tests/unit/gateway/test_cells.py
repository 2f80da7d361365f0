"""What a fingerprint counts of few cases leaves in company."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msfl.gateway.cells import Uncounted, grouped, without_small_cells

ROWS = st.dictionaries(
    st.tuples(st.integers(1, 9), st.integers(1, 300)), st.integers(1, 7), min_size=1, max_size=30
).map(lambda cells: [[*key, count] for key, count in cells.items()])


def values(rows: list[list[int]]) -> list[tuple[int, ...]]:
    """One key for each case, in order."""
    return sorted(chain.from_iterable(repeat(tuple(key), count) for *key, count in rows))


def test_neighbours_share_the_value_of_the_one_in_the_middle() -> None:
    shapes = [[96, 1], [90, 1], [93, 1], [120, 1], [121, 1]]
    assert grouped(shapes, 3) == [[96, 5]]
    assert grouped([*shapes, [122, 1]], 3) == [[93, 3], [121, 3]]


def test_what_many_cases_share_stays_as_it_is() -> None:
    assert grouped([[90, 20], [96, 11]], 5) == [[90, 20], [96, 11]]


@given(ROWS, st.integers(1, 9))
def test_no_cell_is_small_and_no_case_is_lost(rows: list[list[int]], fewest: int) -> None:
    left = grouped(rows, fewest)
    total = sum(row[-1] for row in rows)
    assert sum(row[-1] for row in left) == total
    assert min(row[-1] for row in left) >= min(fewest, total)
    assert {tuple(row[:-1]) for row in left} <= {tuple(row[:-1]) for row in rows}
    assert grouped(left, fewest) == left
    assert grouped(list(reversed(rows)), fewest) == left


@given(ROWS, st.integers(1, 9))
def test_a_median_moves_within_its_group(rows: list[list[int]], fewest: int) -> None:
    """No case passes another one that was `2 * fewest` plus the largest cell away from it in the order."""
    before, after = values(rows), values(grouped(rows, fewest))
    reach = 2 * fewest + max(row[-1] for row in rows)
    for rank, value in enumerate(after):
        assert before[max(0, rank - reach)] <= value <= before[min(len(before) - 1, rank + reach)]


def fingerprint(**more: Any) -> dict[str, Any]:
    return {"version": 1, "n_cases": 5, "labels": {"background": 0, "lesion": 1}, "channel_names": ["FLAIR"], **more}


def test_a_fingerprint_of_both_kinds_of_histogram() -> None:
    left = without_small_cells(
        fingerprint(
            axes=[[[5000, 96, 5]], [[5000, 90, 2], [5000, 91, 3]], [[5000, 77, 4], [5000, 80, 1]]],
            intensity=[[0, 1, 2, 3, 4000, 17]],
        ),
        3,
    )
    assert left == fingerprint(
        axes=[[[5000, 96, 5]], [[5000, 91, 5]], [[5000, 77, 5]]],
        intensity=[[0, 0, 0, 3, 4000, 17]],
    )


@pytest.mark.parametrize(
    "hidden",
    [
        {"axes": [[[96, 1], [90, 1], [93, 1]]]},  # two of the five are kept back, so that three stand alone
        {"axes": [[[96, 5], [90, 5]]]},  # each counted for all
        {"axes": {"z": [[96.0, 1.0], [90.0, 1.0]]}},
    ],
)
def test_rows_that_do_not_count_every_case_once_do_not_leave(hidden: dict[str, Any]) -> None:
    with pytest.raises(Uncounted):
        without_small_cells(fingerprint(**hidden), 3)


def test_small_cells_are_found_in_names_and_as_fractions_too() -> None:
    left = without_small_cells(fingerprint(axes={"z": [[96.0, 1.0], [90.0, 4.0]]}), 3)
    assert left["axes"] == {"z": [[90, 5]]}
