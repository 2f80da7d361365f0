"""Who may say what: publishers, reviewers, custodians and the two roots."""

from __future__ import annotations

import copy
import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from fakes.governance import LATER, NOW, World, key, member, trusted
from msfl.policies.documents import FederationRoot, SiteRoot
from msfl.policies.encoding import Malformed, encode, load_json, sha256_of
from msfl.policies.envelope import ASSET_POLICY, FEDERATION_ROOT, RELEASE_STATEMENT, SITE_ROOT, add_signature, sign
from msfl.policies.refusals import Code, Refusal
from msfl.policies.trust import (
    TrustedPolicy,
    TrustedRelease,
    trust_federation_root,
    trust_policy,
    trust_release,
    trust_site_root,
)


def code(value: object) -> Code:
    assert isinstance(value, Refusal), value
    return value.code


def test_a_policy_keeps_its_bytes_hash_and_its_signers() -> None:
    world = World()
    assert world.policy.sha256 == sha256_of(world.policy_yaml.encode())
    assert world.policy.signers == ("cleo",)


def test_a_trusted_thing_is_never_made_by_hand() -> None:
    world = World()
    policy = world.policy
    with pytest.raises(TypeError, match=r"never by hand"):
        TrustedPolicy(policy.document, policy.sha256, ("cleo",), object())
    release = trusted(world.release())
    with pytest.raises(TypeError, match=r"never by hand"):
        TrustedRelease(release.statement, release.sha256, "paul", ("rosa",), None)
    with pytest.raises(ValueError, match="seal"):
        dataclasses.replace(policy, sha256="sha256:" + "0" * 64)  # type: ignore[call-arg]
    assert copy.copy(policy) == policy


# ------------------------------------------------------------------------------------------ releases


def test_a_release_lists_the_people_who_reviewed_it() -> None:
    release = trusted(World().release())
    assert (release.publisher, release.reviewers) == ("paul", ("rosa", "rui"))


def test_a_release_signed_by_somebody_else_is_refused() -> None:
    world = World()
    envelope = sign(encode(world.statement), RELEASE_STATEMENT, [key("mallory")])
    assert code(trust_release(envelope, [], world.federation_root, NOW)) is Code.WRONG_PUBLISHER


def test_a_reviewer_cannot_publish() -> None:
    world = World()
    envelope = sign(encode(world.statement), RELEASE_STATEMENT, [key("rosa")])
    assert code(trust_release(envelope, [], world.federation_root, NOW)) is Code.WRONG_PUBLISHER


def test_a_statement_that_names_another_publisher_is_refused() -> None:
    world = World()
    statement = world.statement.model_copy(update={"publisher": "petra"})
    assert code(world.release(statement=statement)) is Code.WRONG_PUBLISHER


def test_an_expired_release_is_refused() -> None:
    world = World()
    statement = world.statement.model_copy(update={"expires": NOW})
    assert code(world.release(statement=statement)) is Code.RELEASE_EXPIRED


def test_an_unreviewed_release_is_refused() -> None:
    assert code(World().release(reviews=[])) is Code.RELEASE_NOT_REVIEWED


def test_one_reject_refuses_whatever_the_others_say() -> None:
    world = World()
    reviews = [world.review("rosa"), world.review("rui", verdict="reject", comment="writes to /tmp")]
    refusal = world.release(reviews=reviews)
    assert code(refusal) is Code.RELEASE_REJECTED
    assert "writes to /tmp" in refusal.message


def test_a_reject_does_not_expire_and_follows_the_digest() -> None:
    world = World()
    reject = world.review("rui", verdict="reject", expires=NOW, statement_sha256="sha256:" + "0" * 64)
    assert code(world.release(reviews=[world.review("rosa"), reject])) is Code.RELEASE_REJECTED


def test_a_reject_by_a_stranger_is_nobodys_word() -> None:
    world = World()
    reject = world.review("mallory", verdict="reject")
    assert trusted(world.release(reviews=[world.review("rosa"), reject])).reviewers == ("rosa",)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "sha256:" + "0" * 64},
        {"statement_sha256": "sha256:" + "0" * 64},
        {"expires": NOW},
        {"issued": NOW + timedelta(hours=1)},
        {"reviewer": "rui"},
    ],
)
def test_an_approval_of_something_else_does_not_count(changes: dict[str, Any]) -> None:
    world = World()
    review = world.review("rosa", **changes)
    assert code(world.release(reviews=[review])) is Code.RELEASE_NOT_REVIEWED


def test_a_publishers_own_review_does_not_count() -> None:
    world = World()
    own = world.review("paul-as-reviewer", reviewer="paul")
    assert code(world.release(reviews=[own])) is Code.RELEASE_NOT_REVIEWED
    assert trusted(world.release(reviews=[own, world.review("rosa")])).reviewers == ("rosa",)


def test_the_same_review_twice_is_one_reviewer() -> None:
    world = World()
    assert trusted(world.release(reviews=[world.review("rosa")] * 2)).reviewers == ("rosa",)


# --------------------------------------------------------------------------------------------- roots


def site_root(**changes: Any) -> SiteRoot:
    fields: dict[str, Any] = {
        "site": "site-a",
        "version": 1,
        "custodians": (member("cleo"), member("carl")),
        "threshold": 2,
        "expires": LATER,
    }
    return SiteRoot(**{**fields, **changes})


def test_a_threshold_of_two_wants_two_people() -> None:
    world = World()
    envelope = sign(encode(site_root()), SITE_ROOT, [key("cleo"), key("carl")])
    root = trusted(trust_site_root(envelope, "site-a", NOW))
    once = world.policy_envelope()
    assert code(trust_policy(once, root, NOW)) is Code.TOO_FEW_SIGNERS
    twice = add_signature(once, ASSET_POLICY, key("carl"))
    assert trusted(trust_policy(twice, root, NOW)).signers == ("carl", "cleo")


def test_a_site_root_is_for_its_own_site_and_time() -> None:
    envelope = sign(encode(site_root()), SITE_ROOT, [key("cleo"), key("carl")])
    assert code(trust_site_root(envelope, "site-b", NOW)) is Code.ROOT_DIFFERS
    assert code(trust_site_root(envelope, "site-a", LATER)) is Code.ROOT_EXPIRED
    half = sign(encode(site_root()), SITE_ROOT, [key("cleo")])
    assert code(trust_site_root(half, "site-a", NOW)) is Code.TOO_FEW_SIGNERS
    foreign = sign(encode(site_root()), SITE_ROOT, [key("otto")])
    assert code(trust_site_root(foreign, "site-a", NOW)) is Code.WRONG_SIGNER


def test_nothing_is_trusted_under_an_expired_root() -> None:
    world = World()
    assert code(trust_policy(world.policy_envelope(), world.site_root, LATER)) is Code.ROOT_EXPIRED
    assert code(World(now=LATER).release()) is Code.ROOT_EXPIRED


def test_a_federation_root_is_the_one_that_the_token_pinned() -> None:
    envelope = sign(encode(World().federation_root.document), FEDERATION_ROOT, [key("otto")])
    assert code(trust_federation_root(envelope, "sha256:" + "0" * 64, NOW)) is Code.ROOT_DIFFERS
    forged = sign(encode(World().federation_root.document), FEDERATION_ROOT, [key("mallory")])
    assert code(trust_federation_root(forged, sha256_of(forged), NOW)) is Code.WRONG_SIGNER


def test_one_key_serves_one_role() -> None:
    root = World().federation_root.document
    both = root.model_copy(update={"reviewers": (*root.reviewers, root.publishers[0])})
    with pytest.raises(Malformed, match="same key"):
        load_json(encode(both), FederationRoot)


def test_a_threshold_must_be_reachable_by_different_people() -> None:
    with pytest.raises(ValueError, match="cannot be reached"):
        site_root(custodians=(member("cleo"), member("cleo", "cleo-2")))
