"""Every paper is genuine, and they do not belong together: the approval of one thing is used for another.

A statement, a review or a policy that was signed for release A, dataset A or site A counts for nothing else. In each
story all signatures are valid; nothing starts, and the site's audit log says which code refused it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fakes.governance import DIGEST, LATER, POLICY_YAML, World, edit, key, member
from fakes.governed_sites import JOB, GovernedSite, OfferedSite, forge, must_be_refused
from fakes.registries import MemoryRegistry
from msfl.gateway.confirmations import confirmation, signed
from msfl.gateway.home import write
from msfl.policies.documents import SiteRoot
from msfl.policies.encoding import encode
from msfl.policies.envelope import ASSET_POLICY, RELEASE_STATEMENT, REVIEW, SITE_ROOT, Kind, sign
from msfl.policies.identity import sign_job
from msfl.registry.publish import add_review, submit_statement

OTHER = "sha256:" + "0" * 64


def test_the_papers_that_belong_together_are_allowed(tmp_path: Path) -> None:
    """Else every story below would be refused for another reason than it tells."""
    told = OfferedSite(tmp_path).told()
    assert (told.verdict, told.code, told.logged["verdict"]) == ("allow", "", "allow")


def test_the_statement_of_another_release_on_this_image(tmp_path: Path) -> None:
    site = OfferedSite(tmp_path)
    site.put_release(name="ms-harmless")
    must_be_refused(site.told(), "job_inconsistent")


def test_the_statement_of_another_image_on_this_one(tmp_path: Path) -> None:
    site = OfferedSite(tmp_path)
    site.put_release(digest=OTHER)
    must_be_refused(site.told(), "image_broken")


@pytest.mark.parametrize("changes", [{"digest": OTHER}, {"statement_sha256": OTHER}])
def test_reviews_of_another_release(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Also those of this very image under an earlier statement, which promised other outputs."""
    site, world = OfferedSite(tmp_path), World()
    fresh = MemoryRegistry()
    fresh.tamper(DIGEST, b"{}")
    submit_statement(fresh, DIGEST, sign(encode(world.statement), RELEASE_STATEMENT, [key("paul")]))
    for reviewer in world.reviewers:
        add_review(fresh, DIGEST, world.review(reviewer, **changes))
    site.registry.__dict__.update(fresh.__dict__)
    must_be_refused(site.told(), "release_not_reviewed")


def test_the_policy_for_another_dataset(tmp_path: Path) -> None:
    text = edit(POLICY_YAML, "datasets: [ms-trial]", "datasets: [ms-other]")
    must_be_refused(OfferedSite(tmp_path, text.encode()).told(), "dataset_not_named")


def test_the_policy_for_another_image_of_the_same_name_and_version(tmp_path: Path) -> None:
    must_be_refused(OfferedSite(tmp_path, edit(POLICY_YAML, DIGEST, OTHER).encode()).told(), "digest_not_named")


def test_the_policy_of_another_site(tmp_path: Path) -> None:
    """Validly signed there, by a custodian whom this site's root does not name."""
    site = OfferedSite(tmp_path)
    site.put_policy(sign(POLICY_YAML.encode(), ASSET_POLICY, [key("carl-of-site-b")]))
    must_be_refused(site.told(), "wrong_signer")


def test_the_root_of_another_site(tmp_path: Path) -> None:
    site = OfferedSite(tmp_path)
    root = SiteRoot(site="site-b", version=1, custodians=(member("carl"),), threshold=1, expires=LATER)
    write(site.home.root / "trust/site-root.dsse", sign(encode(root), SITE_ROOT, [key("carl")]))
    site.put_policy(sign(POLICY_YAML.encode(), ASSET_POLICY, [key("carl")]))
    must_be_refused(site.told(), "root_differs")


@pytest.mark.parametrize("kind", [SITE_ROOT, RELEASE_STATEMENT, REVIEW])
def test_a_policy_that_was_signed_as_something_else(tmp_path: Path, kind: Kind[Any]) -> None:
    site = OfferedSite(tmp_path)
    site.put_policy(forge(POLICY_YAML.encode(), kind.payload_type, "cleo"))
    must_be_refused(site.told(), "wrong_document_kind")


def test_a_payload_type_that_is_swapped_after_signing(tmp_path: Path) -> None:
    site = OfferedSite(tmp_path)
    envelope = json.loads(forge(POLICY_YAML.encode(), REVIEW.payload_type, "cleo"))
    envelope["payloadType"] = ASSET_POLICY.payload_type
    site.put_policy(json.dumps(envelope).encode())
    must_be_refused(site.told(), "wrong_signer")


def test_the_job_of_another_user_under_this_users_token(tmp_path: Path) -> None:
    must_be_refused(OfferedSite(tmp_path).told(proof=sign_job(encode(JOB), key("eve"))), "proof_other_key")


def test_the_signature_of_another_job(tmp_path: Path) -> None:
    other = JOB.model_copy(update={"rounds": 1})
    must_be_refused(OfferedSite(tmp_path).told(proof=sign_job(encode(other), key("ada"))), "proof_invalid")


def test_a_job_for_another_sites_dataset(tmp_path: Path) -> None:
    job = JOB.model_copy(update={"datasets": ("site-b/ms-cohort", "site-c/ms-clinic")})
    must_be_refused(OfferedSite(tmp_path).told(job), "job_inconsistent")


@pytest.mark.parametrize(
    "changes",
    [{"policy_sha256": OTHER}, {"run": "run-2"}, {"digest": OTHER}, {"dataset": "site-a/ms-other"}, {"generation": 2}],
    ids=str,
)
def test_a_yes_to_another_policy_or_run(site: GovernedSite, changes: dict[str, Any]) -> None:
    """The custodian's own, and not to this."""
    site.sign_policy(4, text=site.world.policy_yaml.replace("mode: auto", "mode: confirm"))
    assert site.offer() == "confirm"
    document = confirmation({**site.home.pending()["run-1"]["asked"], **changes})
    site.runs[0].custodian_signed(signed(document, key("cleo"), None))
    assert site.offer_again() == "confirm", "it waits on"
    assert site.audited("confirmation not taken") == ["confirmation_differs"]
    assert (site.runtime.started, site.line.uploads, site.audited("worker starts")) == ([], [], [])


def test_an_older_version_that_is_left_beside_the_newer_one(tmp_path: Path) -> None:
    site = OfferedSite(tmp_path)
    newer = edit(edit(POLICY_YAML, "version: 3", "version: 4"), "rounds: {max: 60}", "rounds: {max: 2}")
    site.put_policy(sign(newer.encode(), ASSET_POLICY, [key("cleo")]), "newer")
    must_be_refused(site.told(), "config_out_of_range")  # of the newer one: the older allows nothing any more
