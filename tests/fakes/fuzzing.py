"""What every fuzz target must hold to, whatever comes: an answer, soon, and the same one twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SLOWEST_S = 2.0  # of processor time; the largest inputs take a tenth of it


def fuzz(inputs: st.SearchStrategy[bytes], outcome: Callable[[bytes], tuple[str, Any]], examples: int) -> None:
    """`outcome` is what was read, or a refusal; what it raises is a bug."""

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def one(data: bytes) -> None:
        before = time.process_time()
        first = outcome(data)
        assert time.process_time() - before < SLOWEST_S
        assert outcome(data) == first

    one()
