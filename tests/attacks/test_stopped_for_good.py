"""A run that the site's custodian has stopped comes back: resumed by its user, or by whoever owns the centre with them.

`msfl gateway stop` ends a run at this site for good. A resumption is signed by the user and judged afresh, and a policy
that starts runs without asking would let it in again: the custodian's word weighs more than both.
"""

from __future__ import annotations

import pytest

from fakes.governed_sites import PATIENCE_S, GovernedSite
from msfl.gateway.agent import Agent
from msfl.policies.refusals import Code
from msfl.protos.messages import StopOrder

STOPPED = Code.CUSTODIAN_STOPPED.value


@pytest.fixture
def stopped(site: GovernedSite) -> GovernedSite:
    """Its worker has run, and the custodian has ended it."""
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    site.runs[-1].custodian_stops("cleo")
    assert site.runtime.ended.wait(PATIENCE_S)
    return site


def must_stay_away(site: GovernedSite, generation: int) -> None:
    site.resend(generation)
    assert site.answered() == STOPPED
    site.order("prepare", 0)
    assert site.failure() == STOPPED
    assert len(site.runtime.started) <= 1
    assert site.line.uploads == []
    assert site.audited("offer refused")[-1] == STOPPED


def test_its_user_resumes_it(stopped: GovernedSite) -> None:
    for generation in (2, 3, 7):
        must_stay_away(stopped, generation)


def test_its_user_had_resumed_it_before_the_word_was_heard(site: GovernedSite) -> None:
    """And the policy asks for a yes by now, which is not asked for any more."""
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    site.sign_policy(4, text=site.world.policy_yaml.replace("mode: auto", "mode: confirm"))
    site.resend(2)
    assert site.answered() == "confirm"
    site.runs[-1].custodian_stops("cleo")
    assert site.answered() == STOPPED
    must_stay_away(site, 3)
    assert site.home.pending() == {}


def test_its_user_aborts_it_first(stopped: GovernedSite) -> None:
    stopped.runs[-1].hear(StopOrder("run-1", "aborted", 1))
    must_stay_away(stopped, 2)


def test_the_gateway_was_restarted_meanwhile(stopped: GovernedSite) -> None:
    stopped.restart()
    stopped.come_back("run-1")
    must_stay_away(stopped, 2)


def test_a_word_that_was_not_heard_yet_is_not_forgotten_over_a_resumption(site: GovernedSite) -> None:
    """The centre ends the run between the custodian's word and the second in which the gateway reads it."""
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    site.home.ask_to_stop("run-1", "cleo")
    site.resend(2, proof="")  # Refused, and it ends the run that is up.
    assert site.answered() == Code.PROOF_REQUIRED.value
    site.resend(3)
    assert site.answered() == "allow"
    assert site.home.stop_asked("run-1") is not None
    agent = Agent.__new__(Agent)  # As it looks once a second; it needs no line for that.
    agent._around, agent._runs = site.around, {"run-1": site.runs[-1]}
    agent._ask_custodian()
    site.order("prepare")
    assert site.failure() == STOPPED
    assert len(site.runtime.started) == 1
