"""One gateway at a time serves a home."""

from __future__ import annotations

from pathlib import Path

import pytest

from msfl.gateway.alone import alone
from msfl.policies.refusals import CannotProceed


def test_a_second_gateway_on_a_home_is_refused_and_the_next_after_it_is_not(tmp_path: Path) -> None:
    with alone(tmp_path):
        with pytest.raises(CannotProceed, match="Another gateway serves"), alone(tmp_path):
            pass
        with pytest.raises(CannotProceed), alone(tmp_path):
            pass
    with alone(tmp_path):
        pass
