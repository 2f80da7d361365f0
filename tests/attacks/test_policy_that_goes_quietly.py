"""A policy, or a ban, is taken away, damaged or replaced between two runs: the audit log says so, unasked."""

from __future__ import annotations

import pytest

from fakes.governed_sites import GovernedSite
from msfl.gateway.agent import Agent
from msfl.policies.audit import Entry
from msfl.protos.audit_log import LOG_NAME, read_entries


@pytest.fixture
def agent(site: GovernedSite) -> Agent:
    return site.agent()


def told(site: GovernedSite) -> list[Entry]:
    return [e for e in read_entries(site.home.audit / LOG_NAME) if e.action == "policies here"]


def test_every_change_is_written_down_once(site: GovernedSite, agent: Agent) -> None:
    file = site.home.root / "policies/one.dsse"
    for _ in range(3):
        agent._look_at_policies()
    (first,) = told(site)
    assert "version 3" in str(first.fields["count"])
    assert str(first.fields["count"]).endswith("by cleo")
    envelope = file.read_bytes()
    file.write_bytes(envelope[:-40])
    agent._look_at_policies()
    file.unlink()
    agent._look_at_policies()
    site.sign_policy(version=4)
    agent._look_at_policies()
    _, damaged, gone, new = told(site)
    assert damaged.fields["count"] == ""
    assert "one.dsse" in str(damaged.fields["count_for_nothing"])
    assert set(gone.fields.values()) == {""}
    assert "version 4" in str(new.fields["count"])


def test_looking_makes_no_version_the_newest(site: GovernedSite, agent: Agent) -> None:
    site.sign_policy(version=9)
    agent._look_at_policies()
    site.sign_policy(version=3)
    assert site.offer() == "allow", "nobody was let in by version 9, so it can still be taken back"
