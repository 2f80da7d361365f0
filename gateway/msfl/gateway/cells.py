"""No cell of a fingerprint counts fewer cases than the policy's minimum: small ones leave in company, or not at all.

    rows    [[key…, cases], …]  a histogram over cases: in the order of their keys, neighbours are put together until
                                each group counts `fewest`, and all of a group take the key of its middle case
    counts  [n, n, …]           a histogram over voxels: a cell of fewer than `fewest` is 0
    alone   n                   as it is

The first is microaggregation (Hansen and Mukherjee, IEEE TKDE 2003;15:1043-1044): each value that leaves is shared by
`fewest` cases, nothing is left out, medians move by less than a group, and histograms of sites still merge by addition.
A histogram over cases counts every case once, so that a release cannot make a small cell look large.
"""

from __future__ import annotations

from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
LONGEST_ROW = 4  # A longer list of numbers is a histogram over voxels.


class Uncounted(ValueError):
    """A histogram over cases that does not count every case once."""


def without_small_cells(fingerprint: JsonObject, fewest: int) -> JsonObject:
    """Raises Uncounted. `fingerprint` holds whole numbers, lists of them at any depth, names and texts."""
    cases = fingerprint.get("n_cases")
    return {key: _within(_whole(value), cases, fewest) for key, value in fingerprint.items()}


def _whole(value: Any) -> Any:
    """`2.0` is a count as `2` is, and is looked at in the same way."""
    match value:
        case float():
            return int(value)
        case dict():
            return {key: _whole(part) for key, part in value.items()}
        case list() | tuple():
            return [_whole(part) for part in value]
        case _:
            return value


def _within(value: Any, cases: object, fewest: int) -> Any:
    match value:
        case dict():
            return {key: _within(part, cases, fewest) for key, part in value.items()}
        case list() if _is_rows(value):
            if sum(row[-1] for row in value) != cases:
                raise Uncounted("its rows do not count every case once")
            return grouped(value, fewest)
        case list() if all(type(n) is int for n in value):
            return [n if n >= fewest else 0 for n in value]
        case list():
            return [_within(part, cases, fewest) for part in value]
        case _:
            return value


def _is_rows(value: list[Any]) -> bool:
    return bool(value) and all(
        isinstance(row, list) and 2 <= len(row) <= LONGEST_ROW and all(type(n) is int for n in row) for row in value
    )


def grouped(rows: list[list[int]], fewest: int) -> list[list[int]]:
    """The same number of cases, in rows of at least `fewest`; one row where there are fewer cases in all."""
    groups: list[list[list[int]]] = []
    open_group: list[list[int]] = []
    for row in sorted(rows):
        open_group.append(row)
        if sum(r[-1] for r in open_group) >= fewest:
            groups.append(open_group)
            open_group = []
    if open_group:
        if not groups:
            groups.append([])
        groups[-1] += open_group
    counts: dict[tuple[int, ...], int] = {}
    for group in groups:
        key = _middle(group)
        counts[key] = counts.get(key, 0) + sum(row[-1] for row in group)
    return [[*key, count] for key, count in sorted(counts.items())]


def _middle(group: list[list[int]]) -> tuple[int, ...]:
    """The key of the group's lower median case."""
    before, half = 0, (sum(row[-1] for row in group) + 1) // 2
    for *key, count in group:
        before += count
        if before >= half:
            return tuple(key)
    raise AssertionError("a group has cases")
