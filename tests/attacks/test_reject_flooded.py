"""A reviewer rejects a release, and whoever may push to the registry buries that under other papers.

No signature is needed: junk, and the old approvals once more with other white space around the same signed words.
"""

from __future__ import annotations

import json
from datetime import timedelta

import httpx
import pytest

from fakes.governance import NOW, World, key
from fakes.governed_sites import GovernedSite
from fakes.registries import Image
from msfl.policies.encoding import encode
from msfl.policies.envelope import RELEASE_STATEMENT, sign
from msfl.policies.refusals import Code, Refusal, Refused
from msfl.registry.distribution import Address, DistributionRegistry
from msfl.registry.interface import INDEX, MANIFEST, Registry, referrers_tag
from msfl.registry.publish import MAX_PAPERS, REVIEW_TYPE, add_review, papers_of, publication, submit_statement

FLOODED = Code.TOO_MANY_PAPERS.value


def bury(registry: Registry, digest: str, approvals: list[bytes], papers: int = MAX_PAPERS) -> None:
    for n in range(papers - len(approvals)):
        add_review(registry, digest, b'{"junk":%d}' % n)
    for approval in approvals:
        add_review(registry, digest, json.dumps(json.loads(approval), indent=1).encode())


def test_all_papers_are_read_or_none() -> None:
    world, image = World(), Image()
    digest, registry = image.push(), image.registry
    statement = world.statement.model_copy(update={"digest": digest})
    submit_statement(registry, digest, sign(encode(statement), RELEASE_STATEMENT, [key("paul")]))
    approvals = [world.review(reviewer, statement=statement) for reviewer in world.reviewers]
    reject = world.review("rosa", statement=statement, verdict="reject", issued=NOW + timedelta(hours=1))
    for review in (*approvals, reject):
        add_review(registry, digest, review)

    def code() -> str:
        found = publication(registry, digest, world.federation_root, NOW + timedelta(hours=2))
        assert isinstance(found, Refusal)
        return found.code.value

    bury(registry, digest, approvals, MAX_PAPERS - 3)
    assert code() == "release_rejected"
    bury(registry, digest, approvals)
    assert code() == FLOODED
    with pytest.raises(Refused, match=FLOODED):
        papers_of(registry, digest)


def reject_and_bury(site: GovernedSite) -> None:
    statement = site.world.statement.model_copy(update={"digest": site.digest})
    reject = site.world.review("rosa", statement=statement, verdict="reject", issued=NOW)
    add_review(site.registry, site.digest, reject)
    bury(site.registry, site.digest, [site.world.review(r, statement=statement) for r in site.world.reviewers])


def test_a_site_does_not_take_the_release(site: GovernedSite) -> None:
    reject_and_bury(site)
    assert site.offer() == FLOODED
    site.nothing_started(FLOODED)


def test_nor_for_a_run_that_it_had_taken_it_for_before(site: GovernedSite) -> None:
    """The papers that were kept with it are older than the reject."""
    assert site.offer() == "allow"
    reject_and_bury(site)
    site.resend(2)
    assert site.answered() == FLOODED
    site.nothing_started(FLOODED)


# ------------------------------------------------------------------------------------ the registry's own ways to list

SUBJECT = "sha256:" + "5" * 64
HOME = "https://registry.example/ms/releases"


def listed(number: int) -> dict[str, object]:
    return {"mediaType": MANIFEST, "digest": f"sha256:{number:064x}", "size": 1, "artifactType": REVIEW_TYPE}


def asked(request: httpx.Request, pages: int) -> httpx.Response:
    """A registry that lists one referrer on a page."""
    page = int(request.url.params.get("page", 0))
    headers = {"Content-Type": INDEX}
    if page < pages - 1:
        headers["Link"] = f'<?page={page + 1}>; rel="next"'
    body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [listed(page)]}
    return httpx.Response(200, headers=headers, stream=httpx.ByteStream(json.dumps(body).encode()))


def registry_of(pages: int) -> DistributionRegistry:
    return DistributionRegistry(Address.parse(HOME, ()), transport=httpx.MockTransport(lambda r: asked(r, pages)))


def test_a_reject_on_a_later_page_is_found() -> None:
    assert [d.digest for d in registry_of(3).referrers(SUBJECT, REVIEW_TYPE)] == [
        f"sha256:{page:064x}" for page in range(3)
    ]


def test_a_list_without_end_is_no_list() -> None:
    with pytest.raises(Refused, match=FLOODED):
        registry_of(10**6).referrers(SUBJECT)


def test_nor_is_one_of_more_tags_than_are_looked_up() -> None:
    """A registry that keeps no referrers: each paper has a tag, and the index of them was written over."""

    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/tags/list"):
            return httpx.Response(404)
        tags = [f"{referrers_tag(SUBJECT)}.{n:04d}-{n:012x}" for n in range(MAX_PAPERS + 1)]
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps({"tags": tags}).encode()))

    registry = DistributionRegistry(Address.parse(HOME, ()), transport=httpx.MockTransport(answer))
    with pytest.raises(Refused, match=FLOODED):
        registry.referrers(SUBJECT)
