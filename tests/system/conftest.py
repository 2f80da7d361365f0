"""One live federation for every system test that does not break it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.federations import LiveFederation


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFederation]:
    with LiveFederation.up(tmp_path_factory.mktemp("federation")) as federation:
        yield federation
