"""How deep a document may be nested."""

from __future__ import annotations

from typing import Any

import pytest

from msfl.protos.nesting import DEEPEST, too_deep


def nested(levels: int, *, lists: bool) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if lists else {"a": value, "b": 0}
    return value


@pytest.mark.parametrize("lists", [True, False])
def test_so_deep_and_no_deeper(lists: bool) -> None:
    assert not too_deep(1)
    assert not too_deep(nested(DEEPEST, lists=lists))
    assert too_deep(nested(DEEPEST + 1, lists=lists))
    assert too_deep(nested(100_000, lists=True))


def test_a_wide_document_is_not_a_deep_one() -> None:
    assert not too_deep({"intensity": [[*range(10_000)]] * 16, "labels": {str(i): i for i in range(10_000)}})
