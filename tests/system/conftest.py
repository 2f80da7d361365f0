"""One live federation for every system test that does not break it, and a story that fails is ended before the next."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from fakes.federations import LiveFederation

FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFederation]:
    with LiveFederation.up(tmp_path_factory.mktemp("federation")) as federation:
        yield federation


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def _ended(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a failed story left going in the federation that others use is ended, so that only the one fails."""
    yield
    if request.node.stash.get(FAILED, False) and "live" in request.fixturenames:
        live: LiveFederation = request.getfixturevalue("live")
        live.abandon_runs()
