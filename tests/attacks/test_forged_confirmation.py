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
from msfl.policies.encoding import Malformed, encode
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


def test_no_name_is_too_deep_or_too_many_to_be_read(mine: RunConfirmation) -> None:
    many: dict[str, Any] = {f"a{n:02d}_{'x' * 55}": {} for n in range(40)}
    deep: Any = {"allOf": [{"$ref": "#/$defs/d"}], "$defs": {"d": {"items": {"properties": {"lesions_of_each": {}}}}}}
    words: Any = {"properties": {"verdict": {"enum": ["sick", "well", 1]}, "kind": {"const": "scan"}}}
    declared: dict[str, Any] = {"prepare": {"properties": many | {"zz": {}}}, "fingerprint": deep, "train": words}
    outputs = {verb: {"document": schema} for verb, schema in (declared | {"evaluate": True}).items()}
    world = World()
    lines = tuple(declared_of(world.statement.model_copy(update={"outputs": outputs})))
    assert [name for name in (*many, "zz") if not any(name in line for line in lines)] == []
    assert lines[-4:] == (
        "fingerprint: lesions_of_each",
        "train: kind, verdict",
        "train, as texts: scan, sick, well",
        "evaluate: as the release declares",
    )
    assert other(mine, leaves=list(lines)).leaves == lines
    long = world.statement.model_copy(update={"outputs": {"train": {"document": {"properties": {"n" * 501: {}}}}}})
    with pytest.raises(Malformed):  # Refused, as nobody could sign it.
        other(mine, leaves=list(declared_of(long)))


def test_fewer_sites_other_data_and_another_model_to_begin_with_are_read(mine: RunConfirmation) -> None:
    text = "\n".join(in_words(mine, None))
    assert "  datasets: site-a/ms-trial, site-b/ms-cohort, site-c/ms-clinic\n  evaluate_only: none\n" in text
    assert "  min_sites: 2\n  start: all\n  baseline: local\n  start_from: none\n" in text
    before = json.loads(encode(other(mine, run="20261101-120000-00000000")))
    assert in_words(mine, before)[-1] == "  nothing differs"
    now = other(
        mine,
        datasets=["site-a/ms-trial", "sybil/d"],
        evaluate_only=["sybil/d"],
        min_sites=1,
        start="quorum",
        baseline=None,
        start_from={"run": "20261101-120000-00000000"},
        reviewers=["rui"],
    )
    assert [line for line in in_words(now, before) if "→" in line] == [
        "  reviewers: rosa, rui → rui",
        "  datasets: site-a/ms-trial, site-b/ms-cohort, site-c/ms-clinic → site-a/ms-trial, sybil/d",
        "  evaluate_only: none → sybil/d",
        "  min_sites: 2 → 1",
        "  start: all → quorum",
        "  baseline: local → none",
        "  start_from: none → the model of 20261101-120000-00000000, its best round",
    ]


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
        "datasets": ["site-a/ms-trial", "sybil/d"],
        "evaluate_only": ["site-a/ms-trial"],
        "min_sites": 1,
        "start": "quorum",
        "baseline": None,
        "start_from": {"run": "20261101-120000-00000000", "round": 3},
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
