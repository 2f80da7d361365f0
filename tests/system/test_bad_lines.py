"""A bad line between one site and the centre: slow, lossy, cut, refused, silent. The weights are the same, bit for bit.

Learning stories run on the small release. Stories of long uploads and downloads run on the release of the benchmark,
whose model is as large as one likes: 8 MB here, and the line's own count of bytes shows that nothing was sent twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from fakes.federations import STEADY, LiveFederation, held, until
from fakes.lines import FAIR, FAR_AND_LOSSY, Line, Way, Weather
from msfl.policies.documents import JobSpec
from msfl.sdk.reporting import report_document
from msfl.sdk.run import Run

pytestmark = [pytest.mark.system, pytest.mark.slow]
SITE, OTHER = "site-b", "site-c"
SILENT_S = 15.0
AGAIN_S = 60.0  # 30 s until the gateway knows, then a round


# ------------------------------------------------------------------------------------------ learning


def spec(live: LiveFederation, **changes: Any) -> JobSpec:
    given: dict[str, Any] = {"rounds": 3, "seed": 11, **STEADY}
    return live.job(**(given | changes))


def finished(run: Run) -> dict[str, Any]:
    state = run.wait()
    assert state["phase"] == "finished", state
    assert all(member["standing"] == "accepted" for member in state["sites"].values())
    return report_document(state)


def hashes(report: dict[str, Any]) -> list[str]:
    return [*(r["weights_blake3"] for r in report["rounds"]), report["final_weights_sha256"]]


@pytest.fixture(scope="module")
def undisturbed(live: LiveFederation) -> list[str]:
    return hashes(finished(live.client.submit(spec(live))))


@contextmanager
def line_of(live: LiveFederation, site: str, weather: Weather = FAIR) -> Iterator[Line]:
    line = Line(live.federation.link_port, weather)
    try:
        with live.over(line, site):
            yield line
    finally:
        line.close()


def begun(live: LiveFederation, run: Run, task: str, site: str = SITE) -> bool:
    entries = live.said(site, run.run_id)
    return any(e["action"] == "task begins" and e["fields"]["task"] == task for e in entries)


def computes(live: LiveFederation, run: Run) -> None:
    until(lambda: begun(live, run, "train/2"), f"{SITE} to train")


def waits(live: LiveFederation, run: Run) -> None:
    """The site has reported; another, whose worker was held until then, has not. Which round that is depends on when
    the other's worker was met: it is held from the first on, at work or between two tasks."""

    def waiting() -> bool:
        step = run.state()["step"] or {"task_id": "", "waiting": []}
        return bool(step["task_id"].startswith("train/") and step["waiting"] == [OTHER])

    until(lambda: begun(live, run, "train/1", OTHER), f"{OTHER} to train")
    with held(*live.workers(OTHER)):
        until(waiting, f"{SITE} to be done before {OTHER}")


def test_a_far_slow_and_lossy_line_changes_no_bit(live: LiveFederation, undisturbed: list[str]) -> None:
    with line_of(live, SITE, FAR_AND_LOSSY) as line:
        assert hashes(finished(live.client.submit(spec(live)))) == undisturbed
        assert line.connections == 1, "keepalive takes no slow line for a dead one"


@pytest.mark.parametrize("moment", [computes, waits])
def test_a_line_that_is_cut_and_refuses_for_a_while(
    live: LiveFederation, undisturbed: list[str], moment: Callable[[LiveFederation, Run], None]
) -> None:
    with line_of(live, SITE) as line:
        run = live.client.submit(spec(live))
        moment(live, run)
        with line.refusing():
            time.sleep(2.0)
        assert hashes(finished(run)) == undisturbed
        assert line.connections >= 2


def test_a_short_hole_is_waited_through(live: LiveFederation, undisturbed: list[str]) -> None:
    with line_of(live, SITE) as line:
        run = live.client.submit(spec(live))
        computes(live, run)
        with line.hole():
            time.sleep(5.0)
        assert hashes(finished(run)) == undisturbed
        assert line.connections == 1


LONG: dict[str, Any] = {"rounds": 20, "min_sites": 2, "local_epochs": 50}


@pytest.mark.full
@pytest.mark.parametrize("hole_s", [0.0, 25.0])
def test_a_line_that_dies_silently_is_noticed_at_both_ends(live: LiveFederation, hole_s: float) -> None:
    """No FIN, no reset. The gateway sees that nobody answers it, dials anew, and takes part again. When it cannot do so
    at once, the centre sees the site silent, and goes on with the quorum meanwhile."""
    with line_of(live, SITE) as line:
        run = live.client.submit(spec(live, **LONG))
        computes(live, run)
        line.forget()
        at = time.time()
        with line.hole() if hole_s else nullcontext():
            time.sleep(hole_s)
        since = len(run.state()["rounds"])
        until(lambda: any(SITE in r["sites"] for r in run.state()["rounds"][since:]), f"{SITE} to take part again")
        run.abort()
        assert line.connections >= 2
    events = [doc for _, doc in run.events()]
    told = [d["at"] for d in events if d.get("event") == "TaskDone" and d["site"] == SITE and d["at"] > at]
    assert told[0] - at < hole_s + AGAIN_S
    rounds = run.state()["rounds"]
    assert all(len(r["sites"]) >= 2 for r in rounds)
    if hole_s:
        assert next(d["at"] for d in events if d.get("event") == "SiteSilent") - at < SILENT_S
        assert not all(SITE in r["sites"] for r in rounds), "the others did not wait for it"


# ----------------------------------------------------------------------------- long uploads and downloads

MODEL_MB = 8.0
MB = 1e6
FAST_ENOUGH_TO_STRIKE = Weather(bits_per_s=48e6, latency_s=0.02)
FAR_SITE = "site-2"


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFederation]:
    release = Path(__file__).parents[2] / "benchmarks/round/echo_release"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(release)
        names = ("site-1", FAR_SITE, "site-3")
        with LiveFederation.up(tmp_path_factory.mktemp("echo"), str(release), names) as federation:
            yield federation


def big(echo: LiveFederation) -> JobSpec:
    return echo.job(rounds=2, profile="full", config={"model_mb": MODEL_MB}, keep="last", seed=3)


@pytest.fixture(scope="module")
def plain(echo: LiveFederation) -> tuple[list[str], dict[Way, int]]:
    """The weights of an undisturbed run over the same line, and the bytes that it took."""
    with line_of(echo, FAR_SITE, FAST_ENOUGH_TO_STRIKE) as line:
        before = dict(line.passed)
        report = finished(echo.client.submit(big(echo)))
        return hashes(report), {way: line.passed[way] - before[way] for way in ("up", "down")}


@pytest.mark.parametrize("way", ["up", "down"])
def test_what_was_cut_goes_on_where_it_was_cut(
    echo: LiveFederation, plain: tuple[list[str], dict[Way, int]], way: Way
) -> None:
    """`up`: in the middle of an upload, `down`: of a download. From the beginning again it would be 6 MB more."""
    with line_of(echo, FAR_SITE, FAST_ENOUGH_TO_STRIKE) as line:
        before = dict(line.passed)
        line.cut_after(way, 6 * MB)
        report = finished(echo.client.submit(big(echo)))
        assert not line.to_be_cut
        took = {w: line.passed[w] - before[w] for w in ("up", "down")}
        assert line.connections >= 2
    weights, usual = plain
    assert hashes(report) == weights
    assert took[way] < usual[way] + 3 * MB


def more_passed(line: Line, n: float, run: Run) -> None:
    start = sum(line.passed.values())
    until(lambda: sum(line.passed.values()) > start + n or run.state()["ended_at"], f"{n:.0f} bytes to pass")


@pytest.mark.full
def test_a_line_that_is_cut_again_and_again_gets_there(
    echo: LiveFederation, plain: tuple[list[str], dict[Way, int]]
) -> None:
    with line_of(echo, FAR_SITE, FAST_ENOUGH_TO_STRIKE) as line:
        run = echo.client.submit(big(echo))
        for _ in range(6):
            more_passed(line, 3 * MB, run)
            line.cut()
        assert hashes(finished(run)) == plain[0]
