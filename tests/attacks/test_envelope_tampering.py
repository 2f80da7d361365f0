"""Envelopes: what was signed as one thing passes as nothing else, and an envelope has one spelling."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from fakes.governance import NOW, World, key
from msfl.policies.encoding import Malformed, canonical_json, encode
from msfl.policies.envelope import ASSET_POLICY, RELEASE_STATEMENT, REVIEW, add_signature, sign
from msfl.policies.refusals import Code, Refusal
from msfl.policies.trust import trust_policy, trust_release

Envelope = dict[str, Any]


def tampered(change: Callable[[Envelope], object]) -> Code:
    world = World()
    envelope: Envelope = json.loads(world.policy_envelope())
    change(envelope)
    return verdict(canonical_json(envelope))


def verdict(envelope: bytes) -> Code:
    refusal = trust_policy(envelope, World().site_root, NOW)
    assert isinstance(refusal, Refusal)
    return refusal.code


def test_a_payload_type_swap_is_refused() -> None:
    assert tampered(lambda e: e.update(payloadType=REVIEW.payload_type)) is Code.WRONG_DOCUMENT_KIND
    assert tampered(lambda e: e.update(payloadType="application/json")) is Code.WRONG_DOCUMENT_KIND


def test_a_document_signed_as_another_kind_does_not_become_a_policy() -> None:
    # The custodian signed these very bytes, but as something else; the attacker relabels the envelope.
    world = World()
    statement: Envelope = json.loads(sign(encode(world.statement), RELEASE_STATEMENT, [key("cleo")]))
    statement["payload"] = base64.b64encode(world.policy_yaml.encode()).decode()
    statement["payloadType"] = ASSET_POLICY.payload_type
    assert verdict(canonical_json(statement)) is Code.WRONG_SIGNER


def test_a_review_is_not_a_release_statement() -> None:
    world = World()
    refusal = trust_release(world.review("rosa"), [], world.federation_root, NOW)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.WRONG_DOCUMENT_KIND


def test_a_second_signature_is_never_put_under_another_kind() -> None:
    world = World()
    with pytest.raises(Malformed, match="payloadType"):
        add_signature(world.review("rosa"), ASSET_POLICY, key("cleo"))


def test_one_changed_bit_of_the_payload_is_the_wrong_signer() -> None:
    text = World().policy_yaml.replace("max_rounds: 300", "max_rounds: 900")
    assert tampered(lambda e: e.update(payload=base64.b64encode(text.encode()).decode())) is Code.WRONG_SIGNER


def test_a_payload_is_not_parsed_before_it_is_verified() -> None:
    # Not even YAML, and signed by a stranger: the answer is about the signer, so nobody read the bytes.
    assert tampered(lambda e: e.update(payload=base64.b64encode(b"\x00[[[[").decode())) is Code.WRONG_SIGNER


def relabel(envelope: Envelope) -> None:
    envelope["signatures"][0]["keyid"] = key("carl").id


def twice(envelope: Envelope) -> None:
    envelope["signatures"] *= 2


def shorten(envelope: Envelope) -> None:
    envelope["signatures"][0]["sig"] = base64.b64encode(b"short").decode()


def other_base64(envelope: Envelope) -> None:
    # The last character before the padding carries unused bits; another one decodes to the same bytes.
    sig = envelope["signatures"][0]["sig"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    envelope["signatures"][0]["sig"] = sig[:-3] + alphabet[alphabet.index(sig[-3]) + 1] + "=="


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (relabel, Code.WRONG_SIGNER),
        (shorten, Code.WRONG_SIGNER),
        (twice, Code.MALFORMED_DOCUMENT),
        (other_base64, Code.MALFORMED_DOCUMENT),
        (lambda e: e.update(signatures=[]), Code.MALFORMED_DOCUMENT),
        (lambda e: e.update(extra=1), Code.MALFORMED_DOCUMENT),
        (lambda e: e.pop("payloadType"), Code.MALFORMED_DOCUMENT),
        (lambda e: e["signatures"][0].update(cert="x"), Code.MALFORMED_DOCUMENT),
        (lambda e: e.update(payload=e["payload"] + "\n"), Code.MALFORMED_DOCUMENT),
        (lambda e: e.update(payload=e["payload"].rstrip("=") + "===="), Code.MALFORMED_DOCUMENT),
        (lambda e: e.update(payload=7), Code.MALFORMED_DOCUMENT),
    ],
)
def test_an_envelope_with_anything_odd_is_refused(change: Callable[[Envelope], object], code: Code) -> None:
    assert tampered(change) is code


def test_a_duplicate_member_is_refused_even_if_the_last_one_is_right() -> None:
    envelope = World().policy_envelope()
    doubled = b'{"payload":"aGk=",' + envelope[1:]
    assert verdict(doubled) is Code.MALFORMED_DOCUMENT
