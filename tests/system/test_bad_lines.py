"""A bad line between one site and the centre: slow, lossy, cut, refused, silent. The weights are the same, bit for bit.

Learning stories run on the small release. Stories of long uploads and downloads run on the release of the benchmark,
whose model is as large as one likes: 8 MB here, and the line's own count of bytes shows that nothing was sent twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.federations import DATASET, LiveFederation, until
from fakes.lines import FAIR, FAR_AND_LOSSY, Line, Way, Weather
from msfl.policies.documents import JobSpec
from msfl.sdk.reporting import report_document
from msfl.sdk.run import Run

pytestmark = [pytest.mark.system, pytest.mark.slow]
ECHO = Path(__file__).parents[2] / "benchmarks/round/echo_release"
MODEL_MB = 8.0
MB = 1e6
SITE = "site-b"
SILENT_S = 15.0
BATCHES = 250


# ------------------------------------------------------------------------------------------ learning


def spec(live: LiveFederation, **changes: Any) -> JobSpec:
    given: dict[str, Any] = {"rounds": 3, "seed": 11, "config": {"batches_per_epoch": BATCHES}}
    return live.job(**(given | changes))


def finished(run: Run) -> dict[str, Any]:
    state = run.wait()
    assert state["phase"] == "finished", state
    assert all(member["standing"] == "accepted" for member in state["sites"].values())
    return report_document(state)


def hashes(report: dict[str, Any]) -> list[str]:
    return [*(r["weights_sha256"] for r in report["rounds"]), report["final_weights_sha256"]]


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
    entries = live.audit(site, run.run_id)
    return any(e["action"] == "task begins" and e["fields"]["task"] == task for e in entries)


def computes(live: LiveFederation, run: Run) -> None:
    until(lambda: begun(live, run, "train/2"), f"{SITE} to train")


def waits(live: LiveFederation, run: Run) -> None:
    """The site has reported; the others have not."""

    def waiting() -> bool:
        step = run.state()["step"] or {"task_id": "", "waiting": []}
        return step["task_id"] == "train/2" and bool(step["waiting"]) and SITE not in step["waiting"]

    until(waiting, f"{SITE} to be done before the others")


def test_a_far_slow_and_lossy_line_changes_no_bit(live: LiveFederation, undisturbed: list[str]) -> None:
    with line_of(live, SITE, FAR_AND_LOSSY) as line:
        assert hashes(finished(live.client.submit(spec(live)))) == undisturbed
        assert line.connections == 1, "keepalive takes no slow line for a dead one"


@pytest.mark.parametrize("moment", [computes, waits])
def test_a_line_that_is_cut_and_refuses_for_a_while(
    live: LiveFederation, undisturbed: list[str], moment: Callable[[LiveFederation, Run], None]
) -> None:
    with line_of(live, SITE) as line:
        # The one who is done first waits longest: the others have the more work.
        run = live.client.submit(spec(live))
        moment(live, run)
        with line.refusing():
            time.sleep(2.0)
        assert hashes(finished(run)) == undisturbed
        assert line.connections >= 2
