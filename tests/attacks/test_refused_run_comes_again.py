"""A run that the site's custodian has refused comes back: offered once more by the centre, or resumed by its user.

Until then it waited like any other, with no word of the no: whoever of the custodians signed next let it in.
"""

from __future__ import annotations

import pytest

from fakes.governance import key
from fakes.governed_sites import GovernedSite
from msfl.gateway import answers
from msfl.gateway.confirmations import confirmation, signed
from msfl.policies.refusals import Code
from msfl.protos.messages import StopOrder

REFUSED = Code.CUSTODIAN_REFUSED.value


@pytest.fixture
def parked(site: GovernedSite) -> GovernedSite:
    site.sign_policy(4, text=site.world.policy_yaml.replace("mode: auto", "mode: confirm"))
    assert site.offer() == "confirm"
    return site


@pytest.fixture
def yes(parked: GovernedSite) -> bytes:
    """What a second custodian may have signed before she heard of the no."""
    return signed(confirmation(parked.home.pending()["run-1"]["asked"]), key("cleo"), None)


@pytest.fixture
def declined(parked: GovernedSite, yes: bytes) -> GovernedSite:
    answers.decline(parked.home, "run-1", "cleo")
    parked.runs[-1].custodian_declines()
    assert parked.answered() == REFUSED
    return parked


def must_stay_away(site: GovernedSite, yes: bytes) -> None:
    for generation in (1, 2, 7):
        site.resend(generation)
        assert site.answered() == REFUSED
        assert site.home.pending() == {}
        assert site.audited("offer refused")[-1] == REFUSED
    site.runs[-1].custodian_signed(yes)
    assert site.offer_again() == REFUSED
    site.order()
    assert site.offer_again() == REFUSED
    assert site.runtime.started == []
    assert site.line.uploads == []
    assert site.audited("worker starts") == []


def test_the_centre_offers_it_again(declined: GovernedSite, yes: bytes) -> None:
    must_stay_away(declined, yes)


def test_its_user_aborts_it_first(declined: GovernedSite, yes: bytes) -> None:
    declined.runs[-1].hear(StopOrder("run-1", "aborted", 1))
    must_stay_away(declined, yes)


def test_the_gateway_was_restarted_meanwhile(declined: GovernedSite, yes: bytes) -> None:
    declined.restart()
    declined.come_back("run-1")
    must_stay_away(declined, yes)


def test_a_no_that_was_not_heard_yet_is_not_forgotten_over_an_abort_and_a_resumption(
    parked: GovernedSite, yes: bytes
) -> None:
    answers.decline(parked.home, "run-1", "cleo")
    parked.runs[-1].hear(StopOrder("run-1", "aborted", 1))
    assert parked.answered() == REFUSED
    must_stay_away(parked, yes)


def test_a_no_that_was_said_while_the_gateway_was_down_is_heard(parked: GovernedSite, yes: bytes) -> None:
    parked.restart(lambda: answers.decline(parked.home, "run-1", "cleo"))
    parked.come_back("run-1")
    assert parked.answered() == REFUSED
    must_stay_away(parked, yes)
