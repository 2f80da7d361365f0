"""A release, key, policy or site is revoked, or the policy expires: nothing starts after, and what runs is ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from typer.testing import CliRunner

from fakes.governance import key, member
from fakes.governed_sites import PATIENCE_S, GovernedSite, later
from msfl.gateway.confirmations import confirmation, signed
from msfl.gateway.home import write
from msfl.gateway.main import app
from msfl.gateway.standing import next_of
from msfl.policies.encoding import encode
from msfl.policies.envelope import SITE_ROOT, sign
from msfl.policies.refusals import Code
from msfl.registry.publish import add_review

Revoke = Callable[[GovernedSite], object]
POLICY = "ms-trial-lesion-segmentation"


def by_list(**named: Any) -> Revoke:
    return lambda site: site.hear(site.papers(2, **named))


def by_custodian(*words: str) -> Revoke:
    def revoke(site: GovernedSite) -> None:
        asked = ["revoke", "--home", str(site.home.root), "--by", "cleo", *words]
        asked = [site.digest if word == "DIGEST" else word for word in asked]
        result = CliRunner().invoke(app, asked, catch_exceptions=False)
        assert result.exit_code == 0, result.output

    return revoke


def release_by_list(site: GovernedSite) -> None:
    site.hear(site.papers(2, releases=(site.digest,)))


def policy_expires(site: GovernedSite) -> None:
    site.now = datetime(2027, 5, 1, tzinfo=UTC)


def policy_removed(site: GovernedSite) -> None:
    (site.home.root / "policies/one.dsse").unlink()


WAYS = [
    pytest.param(release_by_list, Code.RELEASE_REVOKED, id="release, by the federation"),
    pytest.param(by_list(keys=(key("paul").id,)), Code.KEY_REVOKED, id="publisher, by the federation"),
    pytest.param(by_list(keys=(key("rosa").id,)), Code.TOO_FEW_REVIEWERS, id="reviewer, by the federation"),
    pytest.param(by_list(keys=(key("cleo").id,)), Code.KEY_REVOKED, id="custodian, by the federation"),
    pytest.param(by_list(policies=(f"site-a/{POLICY}",)), Code.POLICY_REVOKED, id="policy, by the federation"),
    pytest.param(by_list(sites=("site-a",)), Code.SITE_REVOKED, id="site, by the federation"),
    pytest.param(by_list(keys=(key("issuer").id,)), Code.ISSUER_KEY_REVOKED, id="identity provider, by the federation"),
    pytest.param(by_custodian("--release", "DIGEST"), Code.RELEASE_REVOKED, id="release, by the custodian"),
    pytest.param(by_custodian("--key", key("paul").id), Code.KEY_REVOKED, id="publisher, by the custodian"),
    pytest.param(by_custodian("--policy", POLICY), Code.POLICY_REVOKED, id="policy, by the custodian"),
    pytest.param(policy_removed, Code.NO_POLICY, id="policy removed"),
    pytest.param(policy_expires, Code.POLICY_EXPIRED, id="policy expired"),
]


@pytest.mark.parametrize(("revoke", "code"), WAYS)
def test_the_worker_of_a_running_run_is_ended_within_seconds(site: GovernedSite, revoke: Revoke, code: Code) -> None:
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    site.order("prepare")
    assert site.runtime.busy.wait(PATIENCE_S)  # It works, and would for hours.
    revoke(site)
    began = time.monotonic()
    site.runs[0].look_again()  # As the gateway does every two seconds.
    assert site.runtime.ended.wait(PATIENCE_S)
    assert time.monotonic() - began < 5.0
    assert site.failure() == code.value
    assert site.audited("run not allowed any more") == [code.value]
    assert site.audited("run stopped") == [""]
    assert site.line.uploads == []
    assert len(site.runtime.started) == 1, "it was started again"


@pytest.mark.parametrize(("revoke", "code"), WAYS)
def test_nothing_starts_between_the_decision_and_the_start(site: GovernedSite, revoke: Revoke, code: Code) -> None:
    assert site.offer() == "allow"
    revoke(site)
    site.order()
    assert site.failure() == code.value
    assert site.runtime.started == []
    assert site.audited("task refused") == [code.value]
    assert site.audited("worker starts") == []


def test_nothing_starts_when_it_is_revoked_while_the_image_comes(site: GovernedSite) -> None:
    registry = site.registry
    served = registry.get_manifest

    def and_meanwhile(digest: str) -> bytes:
        if digest == site.digest:
            release_by_list(site)
        return served(digest)

    assert site.offer() == "allow"
    registry.get_manifest = and_meanwhile  # type: ignore[method-assign]
    site.order()
    assert site.failure() == Code.RELEASE_REVOKED.value
    assert site.runtime.started == []
    assert site.audited("worker starts") == []
    assert site.audited("task failed") == ["release_revoked"]


@pytest.mark.parametrize(("revoke", "code"), WAYS)
def test_a_restarted_gateway_does_not_take_it_up_again(site: GovernedSite, revoke: Revoke, code: Code) -> None:
    assert site.offer() == "allow"
    revoke(site)
    site.restart()
    verdict = site.offer("run-2")
    site.nothing_started(verdict)
    assert verdict == ("trust_stale" if code is Code.POLICY_EXPIRED else code.value)


@pytest.mark.parametrize("word", [("--release", "DIGEST"), ("--key", key("paul").id), ("--policy", POLICY)])
def test_a_custodians_revocation_survives_a_lost_memory_and_stands_in_the_audit_log(
    site: GovernedSite, word: tuple[str, str]
) -> None:
    by_custodian(*word)(site)
    site.standing.look_at_words(site.now)
    papers = site.papers()
    site.restart(lambda: site.home.memory_file.unlink())
    site.hear(papers)
    assert len(site.audited("revoked here")) == 1
    assert site.offer().endswith("_revoked")


@pytest.mark.parametrize("when", ["before the yes", "after it, before the start"])
def test_a_custodian_whose_key_was_stolen_and_revoked_confirms_nothing(site: GovernedSite, when: str) -> None:
    """The other custodian's policy stands; the thief says yes to a run that waits for one."""
    both = later(site.site_root, custodians=(member("cleo"), member("carl")))
    write(next_of(site.home.site_root_file), sign(encode(both), SITE_ROOT, [key("cleo")]))
    site.standing.look_at_words(site.now)
    site.sign_policy(4, text=site.world.policy_yaml.replace("mode: auto", "mode: confirm"))
    assert site.offer() == "confirm"
    revoke = by_custodian("--key", key("carl").id)
    asked = confirmation(site.home.pending()["run-1"]["asked"])
    if when == "before the yes":
        revoke(site)
    site.runs[0].custodian_signed(signed(asked, key("carl"), None))
    if when == "before the yes":
        assert site.offer_again() == "confirm", "it waits on"
        assert site.audited("confirmation not taken") == [Code.KEY_REVOKED.value]
        site.order()
        assert site.audited("custodian answered") == []
    else:
        assert site.offer_again() == "allow"
        revoke(site)
        site.order()
        assert site.failure() == Code.KEY_REVOKED.value
    assert site.runtime.started == []
    assert site.line.uploads == []
    assert site.audited("worker starts") == []


def test_a_job_that_names_a_revoked_site_is_refused_at_the_others(site: GovernedSite) -> None:
    site.hear(site.papers(2, sites=("site-b",)))
    assert site.offer() == Code.SITE_REVOKED.value
    site.nothing_started("site_revoked")


def test_a_reject_by_a_revoked_reviewer_still_refuses(site: GovernedSite) -> None:
    statement = site.world.statement.model_copy(update={"digest": site.digest})
    add_review(site.registry, site.digest, site.world.review("raya", statement=statement, verdict="reject"))
    site.hear(site.papers(2, keys=(key("raya").id,)))
    assert site.offer() == Code.RELEASE_REJECTED.value
    site.nothing_started("release_rejected")


def test_a_digest_that_no_policy_here_names_is_revoked_and_said_to_be_unknown(site: GovernedSite) -> None:
    def said(digest: str) -> str:
        asked = ["revoke", "--home", str(site.home.root), "--by", "cleo", "--release", digest]
        return CliRunner().invoke(app, asked, catch_exceptions=False).output

    mistyped = site.digest[:-1] + ("0" if site.digest[-1] != "0" else "1")
    assert "Look at its spelling" in said(mistyped)
    assert "note" not in said(site.digest)
