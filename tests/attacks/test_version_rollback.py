"""An older policy, list, timestamp or root comes back: from the registry, the centre, or an older copy of the disk."""

from __future__ import annotations

import shutil
from datetime import timedelta

import pytest

from fakes.governance import NOW, key
from fakes.governed_sites import GovernedSite, later
from msfl.gateway.home import write
from msfl.policies.encoding import encode
from msfl.policies.envelope import SITE_ROOT, sign
from msfl.policies.refusals import Code
from msfl.protos.messages import TrustPapers

BACK = Code.VERSION_ROLLED_BACK.value


def test_with_everything_in_order_a_worker_starts(site: GovernedSite) -> None:
    """The other stories change one thing of this."""
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    assert len(site.runtime.started) == len(site.audited("worker starts")) == 1


@pytest.mark.parametrize("how", ["at once", "after a restart", "the memory is put back", "the audit log is put back"])
def test_an_older_policy_is_refused(site: GovernedSite, how: str) -> None:
    site.standing.policies(NOW)
    saved = {name: (site.home.root / name).read_bytes() for name in ("trust/memory.sqlite", "audit/log.jsonl")}
    site.sign_policy(version=4)
    assert len(site.standing.policies(NOW)[0]) == 1
    site.sign_policy(version=3)

    def meanwhile() -> None:
        if "is put back" in how:
            name = "trust/memory.sqlite" if "memory" in how else "audit/log.jsonl"
            (site.home.root / name).write_bytes(saved[name])

    if how != "at once":
        site.restart(meanwhile)
    assert site.offer() == BACK
    site.nothing_started(BACK)


def test_other_bytes_under_the_same_version_are_refused(site: GovernedSite) -> None:
    site.standing.policies(NOW)
    site.sign_policy(text=site.world.policy_yaml.replace("max: 60", "max: 61"))
    assert site.offer() == BACK
    site.nothing_started(BACK)


def test_a_policy_that_was_withdrawn_does_not_bring_the_one_before_it_back(site: GovernedSite) -> None:
    old = (site.home.root / "policies/one.dsse").read_bytes()
    site.sign_policy(version=4)
    site.standing.policies(NOW)
    write(site.home.root / "policies/one.dsse", old)
    site.restart()
    assert site.offer() == BACK
    site.nothing_started(BACK)


def test_an_older_revocation_list_does_not_bring_a_release_back(site: GovernedSite) -> None:
    assert site.hear(site.papers(2, releases=(site.digest,))) == []
    older = site.revocations(1)
    assert site.hear(TrustPapers((), older, site.timestamp(older, 3))) == [BACK]
    site.restart()
    assert site.hear(TrustPapers((), older, site.timestamp(older, 4))) == [BACK]
    assert site.offer() == Code.RELEASE_REVOKED.value
    site.nothing_started("release_revoked")


def test_what_a_list_revoked_once_stays_revoked_under_a_later_list_without_it(site: GovernedSite) -> None:
    site.hear(site.papers(2, releases=(site.digest,)))
    assert site.hear(site.papers(3)) == []
    assert site.offer() == Code.RELEASE_REVOKED.value
    site.nothing_started("release_revoked")


def test_an_older_timestamp_is_refused_and_the_newer_one_counts(site: GovernedSite) -> None:
    first = site.papers(1)
    site.hear(site.papers(2))
    assert site.hear(first) == [BACK, BACK]
    assert site.audited("document refused") == [BACK, BACK]
    site.restart()
    assert site.hear(first) == [BACK, BACK]
    assert site.offer() == "allow"


def test_two_lists_of_one_version_are_not_both_taken(site: GovernedSite) -> None:
    other = site.revocations(1, sites=("site-z",))
    assert site.hear(TrustPapers((), other, site.timestamp(other, 2))) == [BACK]
    # And the timestamp that names the other one does not let anything begin.
    assert site.offer() == Code.ROOT_DIFFERS.value
    site.nothing_started("root_differs")


def test_a_memory_from_an_older_copy_learns_from_the_audit_log_what_is_missing(site: GovernedSite) -> None:
    older = (site.home.root / "trust/memory.sqlite").read_bytes()
    site.now += timedelta(hours=1)
    site.hear(site.papers(2, keys=(key("paul").id,)))

    site.restart(lambda: (site.home.root / "trust/memory.sqlite").write_bytes(older))
    assert site.offer() == BACK  # The timestamp at hand is older than one that was taken.
    site.nothing_started(BACK)
    site.hear(site.papers(2, keys=(key("paul").id,)))
    assert site.offer("run-2") == Code.KEY_REVOKED.value


def test_a_home_put_back_whole_learns_it_from_the_next_timestamp(site: GovernedSite) -> None:
    older = site.home.root.with_name("older")
    shutil.copytree(site.home.root, older)
    site.hear(site.papers(2, releases=(site.digest,)))

    def put_back() -> None:
        shutil.rmtree(site.home.root)
        shutil.copytree(older, site.home.root)

    site.restart(put_back)
    newer = site.papers(2, releases=(site.digest,))
    # Only the timestamp gets through: the site knows that it lacks a list.
    site.hear(TrustPapers((), b"", newer.timestamp))
    assert site.offer() == Code.TRUST_STALE.value
    site.nothing_started("trust_stale")


def test_the_site_root_before_is_not_put_back(site: GovernedSite) -> None:
    old = site.home.site_root_file.read_bytes()
    following = sign(encode(later(site.site_root)), SITE_ROOT, [key("cleo")])
    write(site.home.site_root_file.with_name("site-root.next.dsse"), following)
    site.standing.look_at_words(NOW)
    assert site.home.site_root_file.read_bytes() == following
    assert site.offer("run-1") == "allow"

    write(site.home.site_root_file, old)
    site.restart()
    assert site.offer("run-2") == BACK
    site.nothing_started(BACK)
