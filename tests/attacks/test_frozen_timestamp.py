"""The centre keeps new revocations back, or the clock is set back to when an old timestamp was good: no new run.

Nor one that was let in while all was well: the centre orders the start, and may take weeks over it.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from fakes.governance import NOW, key
from fakes.governed_sites import PATIENCE_S, GovernedSite
from msfl.gateway.confirmations import confirmation, signed
from msfl.policies.refusals import Code
from msfl.protos.messages import TrustPapers

DAY = timedelta(days=1)


def test_a_site_that_hears_nothing_new_begins_nothing_once_the_timestamp_is_old(site: GovernedSite) -> None:
    assert site.offer("run-1") == "allow"
    site.now += DAY
    assert site.offer("run-2") == Code.TRUST_STALE.value
    site.nothing_started("trust_stale")


def test_a_running_run_goes_on(site: GovernedSite) -> None:
    site.offer()
    site.order()
    assert site.failure() == ""
    site.now += DAY
    site.runs[0].look_again()
    site.order("prepare")
    assert site.runtime.busy.wait(PATIENCE_S)
    site.runs[0].custodian_stops("cleo")
    assert site.failure() == Code.CUSTODIAN_STOPPED.value, "it was working until the custodian stopped it"


def test_a_site_that_has_never_heard_a_timestamp_begins_nothing(site: GovernedSite) -> None:
    site.restart(lambda: site.home.memory_file.unlink())
    assert site.offer() == Code.TRUST_STALE.value
    site.nothing_started("trust_stale")


def test_a_list_is_kept_back_that_the_timestamp_names(site: GovernedSite) -> None:
    newer = site.papers(2, releases=(site.digest,))
    site.hear(TrustPapers((), b"", newer.timestamp))
    assert site.offer() == Code.TRUST_STALE.value
    site.nothing_started("trust_stale")


@pytest.mark.parametrize("between", ["nothing", "a restart", "the custodian's yes"])
def test_a_run_that_was_let_in_does_not_start_weeks_later(site: GovernedSite, between: str) -> None:
    if between == "the custodian's yes":
        site.sign_policy(4, text=site.world.policy_yaml.replace("mode: auto", "mode: confirm"))
    assert site.offer() == ("confirm" if between == "the custodian's yes" else "allow")
    site.now += 60 * DAY
    if between == "a restart":
        site.restart()
        site.come_back("run-1")
    if between == "the custodian's yes":
        asked = confirmation(site.home.pending()["run-1"]["asked"])
        site.runs[-1].custodian_signed(signed(asked, key("cleo"), None))
        assert site.answered() == "allow"
    must_not_start(site, Code.TRUST_STALE)


def test_nor_once_the_clock_is_set_back_to_when_it_was_let_in(site: GovernedSite) -> None:
    assert site.offer() == "allow"
    site.standing.tick(NOW + 300 * DAY)
    must_not_start(site, Code.CLOCK_SET_BACK)


def test_nor_when_the_timestamp_grows_old_while_the_image_comes(
    site: GovernedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = site.registry.get_manifest

    def slowly(digest: str) -> bytes:
        if digest == site.digest:
            site.now += DAY
        return served(digest)

    assert site.offer() == "allow"
    monkeypatch.setattr(site.registry, "get_manifest", slowly)
    site.order()
    assert site.failure() == Code.TRUST_STALE.value
    assert site.runtime.started == []
    assert site.audited("task failed") == [Code.TRUST_STALE.value]
    assert site.audited("worker starts") == []


def test_a_resumed_run_begins_anew(site: GovernedSite) -> None:
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    site.resend(2)
    assert site.answered() == "allow"
    assert site.runtime.ended.wait(PATIENCE_S)
    site.now += DAY
    site.order()
    assert site.failure() == Code.TRUST_STALE.value
    assert len(site.runtime.started) == 1


def test_a_run_that_has_begun_has_its_next_worker(site: GovernedSite) -> None:
    """Its first one died, or the gateway was restarted: it is the same run."""
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    site.now += DAY
    site.restart()
    site.come_back("run-1")
    site.order("prepare")
    assert site.runtime.busy.wait(PATIENCE_S)
    assert len(site.runtime.started) == 1


def must_not_start(site: GovernedSite, code: Code) -> None:
    site.order()
    assert site.failure() == code.value
    assert site.runtime.started == []
    assert site.line.uploads == []
    assert site.audited("task refused") == [code.value]
    assert site.audited("worker starts") == []


@pytest.mark.parametrize("forger", ["otto", "paul", "rosa", "cleo", "mallory"])
def test_nobody_but_the_timekeeper_freshens_it(site: GovernedSite, forger: str) -> None:
    site.now += DAY
    listed = site.revocations(1)
    forged = site.timestamp(listed, 2, site.now, by=forger)
    assert site.hear(TrustPapers((), listed, forged)) == [Code.WRONG_SIGNER.value]
    assert site.offer() == Code.TRUST_STALE.value
    site.nothing_started("trust_stale")


def test_a_stolen_timekeepers_key_is_revoked_like_any_other(site: GovernedSite) -> None:
    assert site.hear(site.papers(2, keys=(key("tim").id,))) == [Code.KEY_REVOKED.value]
    assert site.offer() == Code.KEY_REVOKED.value
    site.nothing_started("key_revoked")


@pytest.mark.parametrize("restart", [False, True])
def test_the_clock_is_set_back(site: GovernedSite, restart: bool) -> None:
    site.now += 3 * DAY
    site.standing.tick(site.now)
    site.now = NOW  # When the timestamp was good.
    if restart:
        site.restart()
    assert site.offer() == Code.CLOCK_SET_BACK.value
    site.nothing_started("clock_set_back")


@pytest.mark.parametrize("lost", ["trust/memory.sqlite", "audit/log.jsonl"])
def test_the_clock_is_set_back_and_one_of_the_two_witnesses_is_lost(site: GovernedSite, lost: str) -> None:
    site.now += 3 * DAY
    site.hear(site.papers(2))
    site.standing.tick(site.now)
    site.now = NOW
    site.restart(lambda: (site.home.root / lost).unlink())
    assert site.offer() == Code.CLOCK_SET_BACK.value
    site.nothing_started("clock_set_back")


def test_a_timestamp_from_the_future_shows_that_the_clock_is_behind(site: GovernedSite) -> None:
    assert site.hear(site.papers(2, issued=NOW + DAY)) == []
    assert site.offer() == Code.CLOCK_SET_BACK.value
    site.nothing_started("clock_set_back")


def test_a_clock_that_was_ahead_is_accepted_by_the_custodian_alone(site: GovernedSite) -> None:
    site.standing.tick(NOW + 300 * DAY)
    assert site.offer("run-1") == Code.CLOCK_SET_BACK.value
    site.memory.say("clock", "2026-12-01T12:00:00Z", "cleo")
    site.standing.look_at_words(NOW)
    assert site.audited("clock accepted") == [""]
    assert site.offer("run-2") == "allow"
    site.restart()
    assert site.offer("run-3") == "allow"


def test_after_a_clock_that_was_ahead_time_is_remembered_from_the_accepted_one_on(site: GovernedSite) -> None:
    site.standing.tick(NOW + 300 * DAY)
    site.memory.say("clock", "2026-12-01T12:00:00Z", "cleo")
    site.standing.look_at_words(NOW)
    site.standing.tick(NOW + DAY)
    site.restart()
    assert site.offer() == Code.CLOCK_SET_BACK.value
    site.nothing_started("clock_set_back")
