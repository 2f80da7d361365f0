"""A keeper's key is stolen, the keepers revoke it, and the thief signs lists and roots with it.

The list that revokes the key may be signed by it: a keeper says so of their own. What comes after may not.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fakes.governance import World, key, member
from fakes.governed_sites import FEDERATION, GovernedSite, later
from msfl.orchestrator.trust import CentreTrust
from msfl.policies.documents import FederationRoot, RevocationList
from msfl.policies.encoding import encode
from msfl.policies.envelope import FEDERATION_ROOT, REVOCATIONS, sign
from msfl.policies.refusals import Code, Refusal
from msfl.policies.trust import Revoked, TrustedFederationRoot, next_federation_root
from msfl.protos.messages import TrustPapers

REVOKED = Code.KEY_REVOKED.value
OTTO = key("otto").id


def revoke_otto(site: GovernedSite) -> TrustPapers:
    papers = site.papers(2, keys=(OTTO,))
    assert site.hear(papers) == []
    return papers


def test_a_list_by_the_stolen_key_is_not_taken(site: GovernedSite) -> None:
    revoke_otto(site)
    site.restart()
    assert site.hear(TrustPapers((), site.revocations(3, sites=("site-b",)), b"")) == [REVOKED]
    assert site.standing.revoked().sites == frozenset()
    assert site.audited("document refused") == [REVOKED]
    assert site.offer() == "allow", "site-b is not revoked"


def test_nor_is_a_root(site: GovernedSite) -> None:
    revoke_otto(site)
    forged = later(site.root, keepers=(member("otto"), member("mallory")), publishers=(member("petra"),))
    site.hear(TrustPapers((sign(encode(forged), FEDERATION_ROOT, [key("otto"), key("mallory")]),), b"", b""))
    in_force = site.standing.federation_root(site.now)
    assert isinstance(in_force, TrustedFederationRoot)
    assert in_force.document.version == 1


def test_the_list_that_revokes_it_stands(site: GovernedSite) -> None:
    papers = revoke_otto(site)
    for run in ("run-1", "run-2"):
        assert site.hear(papers) == []  # The centre says it all again, also to a gateway that was restarted.
        assert site.offer(run) == "allow"
        site.restart()


def test_the_other_keepers_go_on(site: GovernedSite) -> None:
    both = later(site.root, keepers=(member("otto"), member("olga")))
    assert site.hear(TrustPapers((sign(encode(both), FEDERATION_ROOT, [key("otto")]),), b"", b"")) == []
    revoke_otto(site)
    without = later(both, keepers=(member("olga"),))
    listed = site.revocations(3, by="olga", keys=(OTTO,))
    root = sign(encode(without), FEDERATION_ROOT, [key("olga")])
    assert site.hear(TrustPapers((root,), listed, site.timestamp(listed, 3, root=without))) == []
    assert site.offer() == "allow"


@pytest.mark.parametrize(("signers", "taken"), [(("otto",), False), (("olga",), True), (("otto", "olga"), True)])
def test_a_root_needs_old_and_new_keepers_who_are_not_revoked(signers: tuple[str, ...], taken: bool) -> None:
    base = World().federation_root.document
    root: FederationRoot = base.model_copy(update={"keepers": (member("otto"), member("olga"))})
    envelope = sign(encode(later(root)), FEDERATION_ROOT, [key(s) for s in signers])
    current = sign(encode(root), FEDERATION_ROOT, [key("otto")])
    found = next_federation_root(current, envelope, Revoked(keys=frozenset({OTTO})))
    assert not taken if isinstance(found, Refusal) else taken


def test_the_centre_does_not_heed_it_either(tmp_path: Path) -> None:
    base = World().federation_root.document
    (tmp_path / "federation-root.dsse").write_bytes(sign(encode(base), FEDERATION_ROOT, [key("otto")]))
    issued = datetime(2026, 11, 28, tzinfo=UTC)

    def put(version: int, *sites: str) -> None:
        listed = RevocationList(federation=FEDERATION, version=version, issued=issued, keys=(OTTO,), sites=sites)
        (tmp_path / "revocations.dsse").write_bytes(sign(encode(listed), REVOCATIONS, [key("otto")]))

    put(1)
    assert CentreTrust(tmp_path, tmp_path / "memory.json").revoked().keys == {OTTO}
    trust = CentreTrust(tmp_path, tmp_path / "memory.json")  # After a restart.
    assert trust.revoked().keys == {OTTO}
    put(2, "site-b")
    assert trust.revoked().sites == frozenset()
