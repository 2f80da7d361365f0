"""What status, page and doctor say of policies is what the serving gateway decides by; and looking changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.governed_sites import GovernedSite
from msfl.gateway.doctor import measure
from msfl.gateway.page import views
from msfl.gateway.standing import policies_here
from msfl.protos.health import Unmeasured

POLICY = "ms-trial-lesion-segmentation"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[GovernedSite]:
    with GovernedSite.up(tmp_path) as site:
        yield site


def in_force(site: GovernedSite) -> tuple[list[int], list[str]]:
    """Versions that count, and the codes of those that do not: the same for the gateway and for who looks."""
    trusted, refused = policies_here(site.home, site.now)
    decides_by, no_more = site.standing.policies(site.now)
    assert ([p.sha256 for p in trusted], refused) == ([p.sha256 for p in decides_by], no_more)
    assert [p.version for p in views.policies(site.home, site.now)[0]] == [p.document.version for p in trusted]
    return [p.document.version for p in trusted], [refusal.code.value for refusal in refused]


def test_an_older_version_and_another_text_of_the_same(site: GovernedSite) -> None:
    assert in_force(site) == ([3], [])
    site.sign_policy(version=4)
    assert in_force(site) == ([4], [])
    site.sign_policy(version=3)
    assert in_force(site) == ([], ["version_rolled_back"])
    site.sign_policy(version=4, text=site.world.policy_yaml.replace("max_runs: ", "max_runs: 1"))
    assert in_force(site) == ([], ["version_rolled_back"])


def test_one_that_is_revoked(site: GovernedSite) -> None:
    site.memory.say("policy", f"site-a/{POLICY}", "cleo")
    assert in_force(site) == ([], ["policy_revoked"])


def test_looking_makes_nothing_the_newest(site: GovernedSite) -> None:
    site.sign_policy(version=9)
    policies_here(site.home, site.now)
    assert site.memory.mark("policy", POLICY) is None
    assert site.audited("document taken").count("policy") == 0


def test_what_is_spent_is_said(site: GovernedSite) -> None:
    (shown,) = views.policies(site.home, site.now)[0]
    assert shown.spent.startswith("0 of ")
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    (shown,) = views.policies(site.home, site.now)[0]
    assert shown.spent.startswith("1 of ")
    facts = measure(site.home.root, site.now)
    assert not isinstance(facts.policies, Unmeasured)
    assert [policy.spent for policy in facts.policies[0]] == [""]
