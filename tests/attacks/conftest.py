"""One governed site per story; it has heard fresh papers from its federation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.governed_sites import GovernedSite


@pytest.fixture
def site(tmp_path: Path) -> Iterator[GovernedSite]:
    with GovernedSite.up(tmp_path) as site:
        yield site
