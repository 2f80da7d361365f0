"""A threshold of two must mean two people: not one key under two names, not one person with two keys."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes.governance import LATER, NOW, World, key, member, trusted
from msfl.policies.documents import Member, SiteRoot
from msfl.policies.encoding import Malformed, canonical_json, encode, load_json
from msfl.policies.envelope import ASSET_POLICY, SITE_ROOT, add_signature, sign
from msfl.policies.keys import encode_public
from msfl.policies.refusals import Code, Refusal
from msfl.policies.trust import trust_policy, trust_site_root


def root_of(*custodians: Member, threshold: int = 2) -> SiteRoot:
    return SiteRoot(site="site-a", version=1, custodians=custodians, threshold=threshold, expires=LATER)


def test_the_same_key_under_two_people_is_no_root() -> None:
    raw = root_of(member("cleo"), member("carl")).model_dump(mode="json")
    raw["custodians"][1] = {**raw["custodians"][0], "person": "carl"}
    with pytest.raises(Malformed, match="same key"):
        load_json(canonical_json(raw), SiteRoot)


def test_a_key_under_an_id_that_is_not_its_own_is_no_root() -> None:
    raw = root_of(member("cleo"), member("carl")).model_dump(mode="json")
    raw["custodians"][1] = {"person": "carl", "key_id": "0" * 64, "public_key": encode_public(key("cleo").public)}
    with pytest.raises(Malformed, match="has the id"):
        load_json(canonical_json(raw), SiteRoot)


def test_two_keys_of_one_person_count_once() -> None:
    root = root_of(member("cleo"), member("cleo", "cleo-laptop"), member("carl"))
    envelope = sign(encode(root), SITE_ROOT, [key("cleo"), key("carl")])
    site = trusted(trust_site_root(envelope, "site-a", NOW))
    policy = add_signature(World().policy_envelope(), ASSET_POLICY, key("cleo-laptop"))
    refusal = trust_policy(policy, site, NOW)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.TOO_FEW_SIGNERS


def test_one_signature_listed_under_a_second_id_counts_once() -> None:
    root = root_of(member("cleo"), member("carl"))
    site = trusted(trust_site_root(sign(encode(root), SITE_ROOT, [key("cleo"), key("carl")]), "site-a", NOW))
    envelope: dict[str, Any] = json.loads(World().policy_envelope())
    envelope["signatures"].append({**envelope["signatures"][0], "keyid": key("carl").id})
    refusal = trust_policy(canonical_json(envelope), site, NOW)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.TOO_FEW_SIGNERS


def test_a_publisher_is_not_a_second_pair_of_eyes_on_the_own_release() -> None:
    world = World()
    refusal = world.release(reviews=[world.review("paul-as-reviewer", reviewer="paul")])
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.RELEASE_NOT_REVIEWED
