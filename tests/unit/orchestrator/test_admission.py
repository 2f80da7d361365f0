"""Who may call at the gateways' door: one decision, from what TLS and the keyring say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from msfl.orchestrator.doors.admission import Caller, judge
from msfl.orchestrator.keyring.keyring import Freeze, SiteStanding

KEY, OLD = "a" * 64, "b" * 64
STANDING = SiteStanding(("10.1.0.0/16", "2001:db8::/32"), frozenset({OLD}))
CALLER = Caller("site-a", KEY, "10.1.2.3")


def code(caller: Caller, standing: SiteStanding = STANDING) -> str:
    refused = judge(caller, {"site-a": standing})
    return "" if refused is None else refused.code


def test_a_member_calls_from_where_it_may() -> None:
    assert code(CALLER) == ""
    assert code(replace(CALLER, ip="2001:db8::7")) == ""


@pytest.mark.parametrize("ip", ["10.2.0.1", "127.0.0.1", "::1", "::ffff:10.1.2.3", "", "nowhere"])
def test_from_elsewhere_it_may_not(ip: str) -> None:
    assert code(replace(CALLER, ip=ip)) == "address_not_allowed"


def test_without_ranges_there_is_no_address() -> None:
    assert code(CALLER, replace(STANDING, cidrs=())) == "address_not_allowed"


def test_a_revoked_certificate_is_refused_and_the_other_is_not() -> None:
    assert code(replace(CALLER, key=OLD)) == "certificate_revoked"


def test_a_frozen_site_is_refused_with_every_certificate() -> None:
    frozen = replace(STANDING, frozen=Freeze(0, "its laptop was stolen", "otto"))
    assert code(CALLER, frozen) == code(replace(CALLER, key=OLD), frozen) == "site_frozen"


def test_the_reason_of_a_freeze_stays_at_the_centre() -> None:
    refused = judge(CALLER, {"site-a": replace(STANDING, frozen=Freeze(0, "its laptop was stolen", "otto"))})
    assert refused is not None
    assert "laptop" not in str(refused)


def test_a_stranger_and_a_nobody_are_refused() -> None:
    assert code(replace(CALLER, site="site-z")) == "not_enrolled"
    assert code(replace(CALLER, site=None)) == "no_site"
