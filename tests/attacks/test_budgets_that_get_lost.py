"""Budgets of a policy that somebody wants back: the ledger alone is put back, a run is resumed for new time or under
another policy."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from fakes.governance import key
from fakes.governed_sites import PATIENCE_S, GovernedSite
from msfl.gateway.egress import Allowance
from msfl.policies.envelope import ASSET_POLICY, sign
from msfl.policies.identity import sign_job
from msfl.policies.refusals import Code
from msfl.protos.messages import Offer, StopOrder

POLICY = "ms-trial-lesion-segmentation"
HOUR = timedelta(hours=1)


def start(site: GovernedSite) -> str:
    site.order()
    return site.failure()


# ------------------------------------------------------------------------------------------------- the ledger


def lose(site: GovernedSite) -> Callable[[], None]:
    return (site.home.root / "ledger.sqlite").unlink


def put_back(site: GovernedSite) -> Callable[[], None]:
    file = site.home.root / "ledger.sqlite"
    copy = file.read_bytes()

    def write() -> None:
        file.write_bytes(copy)

    return write


@pytest.mark.parametrize("strike", [lose, put_back])
def test_a_ledger_of_before_knows_of_the_runs_since(
    site: GovernedSite, strike: Callable[[GovernedSite], Callable[[], None]]
) -> None:
    site.sign_policy(4, text=site.world.policy_yaml.replace("max_runs: 5", "max_runs: 1"))
    before = strike(site)
    assert site.offer("run-1") == "allow"
    assert start(site) == ""
    site.restart(before)
    assert site.ledger.runs(POLICY) == 1
    assert site.offer("run-2") == Code.RUN_BUDGET_SPENT.value
    site.nothing_started_since("run_budget_spent")


@pytest.mark.parametrize("strike", [lose, put_back])
def test_nor_is_a_job_that_ran_run_again_under_another_name(
    site: GovernedSite, strike: Callable[[GovernedSite], Callable[[], None]]
) -> None:
    before = strike(site)
    assert site.offer("run-1") == "allow"
    assert start(site) == ""
    site.restart(before)
    spec = site.spec("run-1")
    site.come_back("run-9").hear(Offer("run-9", spec, sign_job(spec, key("ada")), site.fresh_token(), False))
    assert site.answered() == Code.JOB_REPLAYED.value
    site.nothing_started_since("job_replayed")


def test_what_has_left_is_known_again_round_by_round(site: GovernedSite) -> None:
    assert site.offer("run-1") == "allow"
    left = {"verb": "train", "round": "1", "bytes": "7", "inputs": "sha256:1"}
    for attempt in range(1, 5):
        fields = {"task": "train/1", "attempt": str(attempt), **left}
        site.audit_log.write(site.now, "result leaves", "run-1", fields)
    site.audit_log.write(site.now, "result leaves", "run-1", {**left, "task": "baseline", "round": "0", "attempt": "1"})
    for _ in range(2):  # The second time all of it is there.
        site.restart()
        assert site.ledger.rounds(POLICY) == 2, "the fourth update of a round is another round"
        assert site.ledger.begin_round("run-1", 1, "sha256:1", POLICY, 2)
        assert not site.ledger.begin_round("run-1", 2, "sha256:1", POLICY, 2)
        assert not site.ledger.send("run-1", "train/2/site-a/up/1", 7, Allowance(uploads=5, bytes=1000))
        assert site.ledger.send("run-1", "train/1/site-a/up/2", 7, Allowance(uploads=5, bytes=1000))


# ------------------------------------------------------------------------------------------------- resumptions


def test_a_run_that_is_resumed_under_another_policy_is_one_of_its_runs(site: GovernedSite) -> None:
    text = site.world.policy_yaml
    one, other = (text.replace(f"id: {POLICY}", f"id: {name}") for name in ("one", "other"))
    site.put_policy(sign(one.encode(), ASSET_POLICY, [key("cleo")]))
    for n in (1, 2):
        assert site.offer(f"run-{n}") == "allow"
        assert start(site) == ""
    site.put_policy(sign(other.replace("max_runs: 5", "max_runs: 1").encode(), ASSET_POLICY, [key("cleo")]))
    first, second = site.runs
    for run in (first, second):
        run.hear(StopOrder(run.run_id, "aborted", 1))
    started = len(site.runtime.started)
    for run in (first, second):  # Both are let in before either starts.
        site.runs.append(run)
        site.resend(2)
        assert site.answered() == "allow"
    codes = []
    for run in (first, second):
        site.runs.append(run)
        site.order(nth=2)
        codes.append(site.failure())
    del site.runs[2:]
    assert codes == ["", Code.RUN_BUDGET_SPENT.value]
    assert len(site.runtime.started) == started + 1
    assert (site.ledger.runs("one"), site.ledger.runs("other")) == (2, 1)


def resume(site: GovernedSite, generation: int, *, after: timedelta, over: timedelta) -> str:
    """Its user ends it after so long, and wants it back when it has been over for so long; the start's outcome."""
    site.now += after
    site.runs[-1].hear(StopOrder("run-1", "aborted by ada", generation - 1))
    assert site.runtime.ended.wait(PATIENCE_S)
    assert start(site) == "aborted by ada"
    site.now += over
    site.hear(site.papers(generation))
    site.resend(generation)
    assert site.answered() == "allow"
    return start(site)


def hours_left(site: GovernedSite) -> float:
    seconds = site.runtime.started[-1].limits.wall_time_s
    assert seconds is not None
    return seconds / 3600


@pytest.mark.parametrize("restarts", [False, True])
def test_a_run_has_its_time_once_however_often_it_is_resumed(site: GovernedSite, restarts: bool) -> None:
    assert site.offer("run-1") == "allow"
    assert start(site) == ""
    assert hours_left(site) == 72
    assert resume(site, 2, after=71 * HOUR, over=20 * HOUR) == ""
    assert hours_left(site) == 1, "the hours while it was over are not counted"
    if restarts:
        site.restart()
        site.come_back("run-1")
        site.order(nth=9)  # Another worker.
        assert site.failure() == ""
        assert hours_left(site) == 1
    assert resume(site, 3, after=1 * HOUR, over=1 * HOUR) == Code.RESOURCES_EXCEEDED.value
