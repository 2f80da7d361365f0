"""What may go wrong while a site pulls its image from a real registry: it goes away, is slow, the gateway is killed,
the disk is full, a blob rots, the release is revoked. Each run waits and goes on, or is refused with a reason; nothing
counts that is not whole. The last story revokes the release, for good.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.disks import small_disk
from fakes.federations import LiveFederation, until
from fakes.lines import FAIR, Line, Weather
from fakes.registry_server import INSTALLED, MISSING, Server, registry_server
from msfl.gateway.home import Home
from msfl.sdk.run import Run, RunEnded

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason=MISSING)]
SITES = ("site-a", "site-b")
SITE = "site-a"
GATEWAY = f"gateway:{SITE}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registry_server(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def line(server: Server) -> Iterator[Line]:
    """Between the site and its registry."""
    line = Line(int(server.base.rpartition(":")[2]))
    yield line
    line.close()


@pytest.fixture(scope="module")
def live(server: Server, line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFederation]:
    folder = tmp_path_factory.mktemp("federation")
    with LiveFederation.up(folder, names=SITES, registry=f"{server.base}/ms/releases") as live:
        home = Home(live.home(SITE))
        live.end(GATEWAY)
        home.write_settings(replace(home.settings(), registry=f"http://127.0.0.1:{line.port}/ms/releases"))
        live.start_again(GATEWAY)
        until(live.all_present, "the gateways to come on the line")
        yield live


@pytest.fixture
def images(live: LiveFederation, line: Line) -> Path:
    """The site's cache, empty; its line is fair again."""
    until(lambda: not any(live.workers(site) for site in SITES), "earlier workers to end")
    line.weather = FAIR
    images = live.home(SITE) / "images"
    for entry in images.glob("*"):
        shutil.rmtree(entry)
    return images


class Heard:
    """The phases that the site says it is in, as whoever watches the run hears them."""

    def __init__(self, run: Run) -> None:
        self.phases: list[str] = []
        threading.Thread(target=self._listen, args=(run,), daemon=True).start()

    def _listen(self, run: Run) -> None:
        for kind, document in run.events():
            if kind == "Progress" and document["site"] == SITE:
                self.phases.append(document["phase"])


def size_of(live: LiveFederation) -> int:
    """Bytes of the image as it comes."""
    blobs = live.home("site-b") / "images/blobs"
    until(lambda: len(list(blobs.glob("*"))) == 4, "another site to have it")
    return sum(f.stat().st_size for f in blobs.glob("*"))


def begun(live: LiveFederation, images: Path) -> Run:
    run = live.client.submit(live.job(min_sites=2))
    until(lambda: list(images.glob("blobs/*.part")), "the image to come")
    return run


@contextmanager
def slow(live: LiveFederation, line: Line, images: Path, seconds: float) -> Iterator[None]:
    """The line takes so long for the image."""
    line.weather = Weather(bits_per_s=8 * 600_000 / seconds)
    try:
        yield
    finally:
        line.weather = FAIR


def finished(run: Run) -> None:
    state = run.wait()
    assert state["phase"] == "finished", state["reason"]
    assert set(state["rounds"][0]["sites"]) == set(SITES)


def test_a_second_run_asks_the_registry_for_no_part_of_the_image(
    live: LiveFederation, line: Line, images: Path
) -> None:
    finished(live.client.submit(live.job(min_sites=2)))
    before = line.passed["down"]
    finished(live.client.submit(live.job(min_sites=2)))
    assert line.passed["down"] - before < 30_000, "its papers, and no layer"
    facts: Any = live.command("gateway", "doctor", "--home", live.home(SITE), "--json").stdout
    assert '"1 kept, 0 in use' in facts


def test_a_registry_that_goes_away_in_the_middle_is_waited_for(live: LiveFederation, line: Line, images: Path) -> None:
    with slow(live, line, images, 6.0):
        before = line.passed["down"]
        run = begun(live, images)
        heard = Heard(run)
        until(lambda: any(f.stat().st_size for f in images.glob("blobs/*.part")), "some of it to have come")
        with line.refusing():
            until(lambda: "wait for the registry" in heard.phases, "the site to say what it waits for")
            assert run.state()["phase"] == "running"
        finished(run)
    assert any(phase.startswith("pull image") for phase in heard.phases)
    assert line.passed["down"] - before < 1.3 * size_of(live) + 100_000, "what had come was not asked for again"


def test_a_gateway_killed_in_the_middle_goes_on_with_what_had_come(
    live: LiveFederation, line: Line, images: Path
) -> None:
    with slow(live, line, images, 8.0):
        run = begun(live, images)
        until(lambda: any(f.stat().st_size > 30_000 for f in images.glob("blobs/*.part")), "some of it to have come")
        live.kill(GATEWAY)
        (part,) = images.glob("blobs/*.part")
        kept = part.stat().st_size
        before = line.passed["down"]
        live.start_again(GATEWAY)
        finished(run)
    assert not list(images.glob("blobs/*.part"))
    assert line.passed["down"] - before < size_of(live) - kept + 100_000


def test_a_disk_without_room_refuses_the_run_and_the_next_one_runs(live: LiveFederation, images: Path) -> None:
    with small_disk(images, 16):
        with pytest.raises(RunEnded, match="site-a: image_does_not_fit"):
            live.client.submit(live.job(min_sites=2)).wait()
        assert not list(images.glob("blobs/*.part"))
        assert live.all_present(), "the gateway is well"
        log = (live.processes._logs / f"{GATEWAY}.log").read_text()
        assert "are still to come, and the disk leaves room for 0 MiB" in log
    until(lambda: not any(live.workers(site) for site in SITES), "the workers to end")
    finished(live.client.submit(live.job(min_sites=2)))


def test_a_blob_that_rots_between_two_runs_is_pulled_anew(live: LiveFederation, line: Line, images: Path) -> None:
    finished(live.client.submit(live.job(min_sites=2)))
    largest = max(images.glob("blobs/*"), key=lambda f: f.stat().st_size)
    whole = largest.read_bytes()
    largest.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    before = line.passed["down"]
    finished(live.client.submit(live.job(min_sites=2)))
    assert largest.read_bytes() == whole
    assert line.passed["down"] - before > len(whole)


def test_a_release_revoked_while_its_image_comes_starts_nothing(live: LiveFederation, line: Line, images: Path) -> None:
    with slow(live, line, images, 60.0):
        run = begun(live, images)
        asked = time.monotonic()
        statement = live.federation.statement
        assert statement is not None
        words = ("--by", "cleo", "--release", statement.digest)
        assert live.command("gateway", "revoke", "--home", live.home(SITE), *words).returncode == 0
        until(lambda: run.state()["sites"][SITE]["standing"] == "out", "the site to say so")
        assert time.monotonic() - asked < 15, "it does not wait for the image"
    assert run.state()["sites"][SITE]["code"] == "release_revoked"
    actions = live.actions(SITE, run.run_id)
    assert "worker starts" not in actions
    assert not live.workers(SITE)
    until(lambda: not list(images.glob("held/*")), "the run to let go of it")
