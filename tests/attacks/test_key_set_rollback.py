"""A provider has changed a key that was stolen; an older key set comes back to a site, from the centre or from an older
copy of the site's disk, and with it whatever the thief signs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.governed_sites import GovernedSite
from fakes.oidc import ACCESS, Provider, access_claims, jws, rsa_jwk
from msfl.protos.messages import TrustPapers

PROVIDER = Provider(stewards=("stella",))
OLD, NEW = PROVIDER.key_set(1, (rsa_jwk("stolen"),)), PROVIDER.key_set(2)
CLAIMS = access_claims(email="ada@uni.example", email_verified=True)
SOUND, STOLEN = jws(ACCESS, CLAIMS), jws(ACCESS, CLAIMS, "stolen")
BACK, STALE, UNKNOWN = "version_rolled_back", "issuer_keys_stale", "token_unknown_issuer"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[GovernedSite]:
    site = GovernedSite(tmp_path, PROVIDER.issuer)
    site.hear(site.papers())
    yield site
    site.close()


def with_keys(site: GovernedSite, *envelopes: bytes) -> TrustPapers:
    return replace(site.papers(), issuer_keys=envelopes)


def offer(site: GovernedSite, token: str) -> str:
    site.token = token
    return site.offer(f"run-{len(site.runs)}")


def test_a_new_key_set_comes_with_the_heartbeat_before_any_offer(site: GovernedSite) -> None:
    assert offer(site, SOUND) == STALE
    site.nothing_started(STALE)
    assert site.hear(with_keys(site, OLD)) == []
    assert offer(site, STOLEN) == "allow"
    assert site.hear(with_keys(site, NEW)) == []
    assert offer(site, STOLEN) == UNKNOWN
    assert offer(site, SOUND) == "allow"


def test_an_older_set_from_the_centre_is_refused_and_stands_in_the_audit_log(site: GovernedSite) -> None:
    site.hear(with_keys(site, NEW))
    assert site.hear(with_keys(site, OLD)) == [BACK]
    assert site.audited("document refused") == [BACK]
    assert offer(site, STOLEN) == UNKNOWN
    site.nothing_started(UNKNOWN)
    assert offer(site, SOUND) == "allow"


def test_other_bytes_under_the_same_version_are_refused(site: GovernedSite) -> None:
    site.hear(with_keys(site, NEW))
    assert site.hear(with_keys(site, PROVIDER.key_set(2, (rsa_jwk("stolen"),)))) == [BACK]
    assert offer(site, STOLEN) == UNKNOWN


@pytest.mark.parametrize("lost", ["", "trust/memory.sqlite", "audit"])
def test_an_older_set_put_back_at_the_site_does_not_count(site: GovernedSite, tmp_path: Path, lost: str) -> None:
    """Nor when one of the two memories of what was seen is put back with it."""
    site.hear(with_keys(site, OLD))
    kept = tmp_path / "kept"
    site.restart(lambda: shutil.copytree(site.home.root, kept))
    site.hear(with_keys(site, NEW))

    def put_back() -> None:
        for name in filter(None, ("trust/issuers", lost)):
            target = site.home.root / name
            if target.is_dir():
                shutil.rmtree(target)
                shutil.copytree(kept / name, target)
            else:
                shutil.copy(kept / name, target)

    site.restart(put_back)
    assert offer(site, STOLEN) == STALE
    site.nothing_started(STALE)
    site.hear(with_keys(site, NEW))
    assert offer(site, SOUND) == "allow"


def test_a_home_that_was_put_back_whole_learns_with_the_next_heartbeat(site: GovernedSite, tmp_path: Path) -> None:
    site.hear(with_keys(site, OLD))
    kept = tmp_path / "kept"
    site.restart(lambda: shutil.copytree(site.home.root, kept))
    site.hear(with_keys(site, NEW))

    def put_back() -> None:
        shutil.rmtree(site.home.root)
        shutil.copytree(kept, site.home.root)

    site.restart(put_back)
    assert site.standing.received == ""  # The centre says it all again.
    site.hear(with_keys(site, NEW))
    assert offer(site, STOLEN) == UNKNOWN
    site.nothing_started(UNKNOWN)


def test_a_site_that_was_killed_between_its_memory_and_the_file_takes_the_set_again(site: GovernedSite) -> None:
    site.hear(with_keys(site, NEW))
    site.restart(lambda: shutil.rmtree(site.home.root / "trust/issuers"))
    assert offer(site, SOUND) == STALE
    assert site.hear(with_keys(site, NEW)) == []
    assert offer(site, SOUND) == "allow"


def test_papers_with_another_key_set_have_another_name() -> None:
    papers = TrustPapers((b"root",), b"list", b"stamp")
    names = {replace(papers, issuer_keys=keys).sha256 for keys in ((), (OLD,), (NEW,), (OLD, NEW))}
    names |= {TrustPapers((b"root", OLD), b"list", b"stamp").sha256}
    assert len(names) == 5
