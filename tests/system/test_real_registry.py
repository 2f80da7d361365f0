"""A whole run whose release lies in a real OCI distribution registry; and what happens when that registry is gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.federations import SITES, LiveFederation
from fakes.registry_server import INSTALLED, MISSING, Server, registry_server
from msfl.sdk.credentials import NotConnected

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason=MISSING)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registry_server(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def live(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFederation]:
    folder = tmp_path_factory.mktemp("federation")
    with LiveFederation.up(folder, registry=f"{server.base}/ms/releases") as live:
        yield live


def test_a_release_is_pushed_reviewed_pulled_by_digest_and_run(live: LiveFederation) -> None:
    state = live.client.submit(live.job(rounds=2)).wait()
    assert state["phase"] == "finished", state["reason"]
    assert [set(r["sites"]) for r in state["rounds"]] == [set(SITES)] * 2


def test_without_the_registry_no_site_begins_and_each_says_why(live: LiveFederation, server: Server) -> None:
    job = live.job(min_sites=3)
    server.stop()
    try:
        with pytest.raises(NotConnected, match="cannot be asked"):
            live.client.releases()
        state = live.client.submit(job).wait(raise_if_refused=False)
        assert state["phase"] == "refused"
        # One refusal ends it; who had not answered yet says nothing more.
        assert {m["code"] for m in state["sites"].values()} - {""} == {"registry_unreachable"}
    finally:
        server.start()
    state = live.client.submit(live.job(min_sites=3)).wait()
    assert state["phase"] == "finished", state["reason"]
