"""A yes that the custodian did not give to this run: somebody else's, another run's, or one bent afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from fakes.governance import LATER, NOW, World, key, member, trusted
from msfl.gateway.confirmations import asked, confirmation, declared_of, in_words, signed
from msfl.gateway.judge import Accepted
from msfl.gateway.record import Papers
from msfl.policies.documents import RunConfirmation, SiteRoot
from msfl.policies.encoding import encode
from msfl.policies.envelope import REVIEW, RUN_CONFIRMATION, SITE_ROOT, sign
from msfl.policies.refusals import Code, Refusal
from msfl.policies.resolve import resolve_config
from msfl.policies.trust import TrustedSiteRoot, trust_confirmation, trust_site_root


def root_of(*people: str, threshold: int = 1) -> TrustedSiteRoot:
    members = tuple(member(p) for p in people)
    root = SiteRoot(site="site-a", version=1, custodians=members, threshold=threshold, expires=LATER)
    envelope = sign(encode(root), SITE_ROOT, [key(p) for p in people])
    result: TrustedSiteRoot = trusted(trust_site_root(envelope, "site-a", NOW))
    return result


ROOT = root_of("cleo")


@pytest.fixture(scope="module")
def mine() -> RunConfirmation:
    """What is asked of the custodian for one run."""
    world = World()
    release = trusted(world.release())
    resolved = resolve_config(world.job, release.statement)
    assert not isinstance(resolved, Refusal)
    papers = Papers(encode(world.job), "", world.user, b"", (), world.policy.id, world.policy.sha256)
    request = world.request()
    accepted = Accepted(world.job, world.user, release, resolved, "ms-trial", True, world.policy, request, papers)
    return asked(accepted, "site-a", "20261124-120000-00000000", 1, NOW)


def other(mine: RunConfirmation, **changes: Any) -> RunConfirmation:
    return confirmation({**json.loads(encode(mine)), **changes})


def code(envelope: bytes, mine: RunConfirmation, root: TrustedSiteRoot = ROOT) -> str:
    answer = trust_confirmation(envelope, mine, root, NOW)
    return answer.code.value if isinstance(answer, Refusal) else ", ".join(answer)


def test_what_is_signed_names_what_the_release_would_send(mine: RunConfirmation) -> None:
    declared = {"document": {"properties": {"n_train": {}, "train_loss": {}}}, "decimals": 4}
    world = World()
    statement = world.statement.model_copy(update={"outputs": {"train": declared, "evaluate": {"document": {}}}})
    assert tuple(declared_of(statement)) == ("train: n_train, train_loss", "evaluate: as the release declares")


def test_what_was_asked_and_signed_is_confirmed_whenever_that_was(mine: RunConfirmation) -> None:
    assert code(signed(other(mine, issued="2026-11-20T08:00:00Z"), key("cleo"), None), mine) == "cleo"


def variants(mine: RunConfirmation) -> Iterator[RunConfirmation]:
    digest = "sha256:" + "e" * 64
    config = json.loads(encode(mine))["config"]
    for name, value in {
        "site": "site-b",
        "run": "20261124-120000-00000001",
        "generation": 2,
        "user": "mallory@uni.example",
        "dataset": "site-a/ms-other",
        "release": "ms-lesion-nnunet:1.0.1",
        "digest": digest,
        "statement_sha256": digest,
        "publisher": "mallory",
        "reviewers": ["mallory"],
        "policy": "another",
        "policy_sha256": digest,
        "job_sha256": digest,
        "config": {**config, "rounds": 51},
        "leaves": ["nothing at all"],
    }.items():
        yield other(mine, **{name: value})


def test_a_yes_to_anything_else_is_none(mine: RunConfirmation) -> None:
    for variant in variants(mine):
        assert code(signed(variant, key("cleo"), None), mine) == Code.CONFIRMATION_DIFFERS


def test_true_is_not_one(mine: RunConfirmation) -> None:
    config = json.loads(encode(mine))["config"]
    one, true = (other(mine, config={**config, "flag": value}) for value in (1, True))
    assert code(signed(one, key("cleo"), None), true) == Code.CONFIRMATION_DIFFERS


@pytest.mark.parametrize("who", ["mallory", "grace", "keeper", "linus"])
def test_nobody_but_a_custodian_confirms(mine: RunConfirmation, who: str) -> None:
    assert code(signed(mine, key(who), None), mine) == Code.WRONG_SIGNER


def test_a_signature_over_another_kind_of_document_does_not_count(mine: RunConfirmation) -> None:
    envelope = json.loads(signed(mine, key("cleo"), None))
    envelope["payloadType"] = REVIEW.payload_type
    assert code(json.dumps(envelope).encode(), mine) == Code.WRONG_DOCUMENT_KIND
    envelope["payloadType"] = RUN_CONFIRMATION.payload_type
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAA="
    assert code(json.dumps(envelope).encode(), mine) == Code.WRONG_SIGNER


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"verdict": "confirm", "by": "cleo"}'])
def test_a_file_with_a_name_in_it_is_no_signature(mine: RunConfirmation, data: bytes) -> None:
    assert code(data, mine) == Code.MALFORMED_DOCUMENT


def test_where_two_must_sign_one_is_not_enough_and_twice_the_same_is_one(mine: RunConfirmation) -> None:
    both = root_of("cleo", "dora", threshold=2)
    first = signed(mine, key("cleo"), None)
    assert code(first, mine, both) == Code.TOO_FEW_SIGNERS
    # The second custodian signs the same bytes, at another time.
    later = other(mine, issued="2026-11-25T08:00:00Z")
    assert code(signed(later, key("dora"), first), mine, both) == "cleo, dora"


def test_the_second_custodian_is_not_shown_one_thing_and_made_to_sign_another(mine: RunConfirmation) -> None:
    both = root_of("cleo", "dora", threshold=2)
    bent = signed(other(mine, user="mallory@uni.example"), key("cleo"), None)
    assert code(signed(mine, key("dora"), bent), mine, both) == Code.TOO_FEW_SIGNERS


def test_an_expired_root_confirms_nothing(mine: RunConfirmation) -> None:
    late = trust_confirmation(signed(mine, key("cleo"), None), mine, ROOT, LATER + timedelta(seconds=1))
    assert isinstance(late, Refusal)
    assert late.code is Code.ROOT_EXPIRED


def test_what_is_read_is_what_is_signed(mine: RunConfirmation) -> None:
    text = "\n".join(in_words(mine, None))
    for word in (mine.run, mine.user, mine.dataset, mine.release, mine.digest, mine.publisher, *mine.reviewers):
        assert word in text
    assert all(line in text for line in mine.leaves)
    assert all(f"  {name}: " in text for name in mine.config)
    before = json.loads(encode(other(mine, run="20261101-120000-00000000", user="bob@uni.example")))
    before["config"]["rounds"] = 5
    told = in_words(mine, before)
    assert [line for line in told if "→" in line] == ["  rounds: 5 → 50", "  user: bob@uni.example → ada@uni.example"]
