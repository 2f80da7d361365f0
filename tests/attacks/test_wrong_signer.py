"""Only the people whom the site's own root names can sign its policies: not the centre, not another site."""

from __future__ import annotations

import pytest

from fakes.governance import NOW, World, edit
from msfl.policies.decide import Verdict, decide
from msfl.policies.documents import Review
from msfl.policies.encoding import Malformed, encode, load_json
from msfl.policies.refusals import Code, Refusal
from msfl.policies.trust import trust_release


@pytest.mark.parametrize("signer", ["mallory", "otto", "paul", "rosa", "issuer", "ada"])
def test_nobody_else_signs_a_policy(signer: str) -> None:
    # otto keeps the federation root, paul publishes, rosa reviews: none of them has a say at the site.
    world = World(policy_signers=(signer,))
    refusal = world.trust_policy()
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.WRONG_SIGNER
    decision = decide(world.request(), (), NOW, (refusal,))
    assert decision.verdict is Verdict.REFUSE
    assert decision.rules[0].code is Code.WRONG_SIGNER


def test_a_policy_of_another_sites_custodian_is_refused() -> None:
    here, there = World(), World(custodians=("carl",), policy_signers=("carl",))
    assert not isinstance(there.trust_policy(), Refusal)
    refusal = World(custodians=here.custodians, policy_signers=("carl",)).trust_policy()
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.WRONG_SIGNER


def test_reviews_of_one_release_do_not_serve_another() -> None:
    world = World()
    other = world.statement.model_copy(update={"digest": "sha256:" + "0" * 64})
    refusal = world.release(statement=other, reviews=[world.review("rosa"), world.review("rui")])
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.RELEASE_NOT_REVIEWED


def test_reviews_of_one_statement_do_not_serve_another_about_the_same_image() -> None:
    world = World()
    wider = world.statement.model_copy(update={"description": "now also reads the whole disk"})
    refusal = world.release(statement=wider, reviews=[world.review("rosa"), world.review("rui")])
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.RELEASE_NOT_REVIEWED


def test_a_registry_that_serves_junk_hides_nothing_and_adds_nothing() -> None:
    world = World()
    junk = [b"", b"{}", b"\xff", world.review("mallory")]
    release = world.release(reviews=[*junk, world.review("rosa")])
    assert release.reviewers == ("rosa",)
    refusal = trust_release(b"junk", [], world.federation_root, NOW)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.MALFORMED_DOCUMENT


def test_a_look_alike_person_cannot_be_written() -> None:
    text = edit(encode(Review.model_validate_json(_review())).decode(), '"reviewer":"rosa"', '"reviewer":"rоsa"')
    with pytest.raises(Malformed, match="which is no letter for a name"):
        load_json(text.encode(), Review)


def _review() -> str:
    when = '"issued":"2026-12-01T00:00:00Z","expires":"2027-12-01T00:00:00Z"'
    digests = f'"digest":"sha256:{"0" * 64}","statement_sha256":"sha256:{"0" * 64}"'
    return f'{{{digests},"verdict":"approve","reviewer":"rosa",{when}}}'
