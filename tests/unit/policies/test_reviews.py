"""What a review is worth, and where that leaves the release: every worth and every state has its story."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from fakes.governance import NOW, World, key
from msfl.policies.documents import Materials, Publication, ReleaseStatement
from msfl.policies.encoding import Malformed, encode, load_json, sha256_of
from msfl.policies.envelope import PUBLICATION, RELEASE_STATEMENT, sign
from msfl.policies.refusals import Code
from msfl.policies.release_state import State, release_state
from msfl.policies.trust import NOTHING_REVOKED, Revoked, TrustedRelease

HOUR = timedelta(hours=1)
WORLD = World(now=NOW + 2 * HOUR)


def worths(*reviews: bytes, world: World = WORLD, **changes: Any) -> list[str]:
    return [one.worth.value for one in standing(*reviews, world=world, **changes).reviews]


def standing(*reviews: bytes, world: World = WORLD, publications: tuple[bytes, ...] = (), **changes: Any) -> Any:
    statement = changes.pop("statement", sign(encode(world.statement), RELEASE_STATEMENT, [key("paul")]))
    revoked = changes.pop("revoked", NOTHING_REVOKED)
    return release_state(statement, reviews, publications, world.federation_root, world.now, revoked)


@pytest.mark.parametrize(
    ("review", "worth"),
    [
        (WORLD.review("rosa"), "approves"),
        (WORLD.review("rosa", verdict="reject"), "rejects"),
        (WORLD.review("rosa", verdict="reject", expires=NOW), "rejects"),
        (WORLD.review("rosa", verdict="reject", statement_sha256="sha256:" + "0" * 64), "rejects"),
        (WORLD.review("rosa", statement_sha256="sha256:" + "0" * 64), "other_statement"),
        (WORLD.review("rosa", digest="sha256:" + "0" * 64), "other_image"),
        (WORLD.review("rosa", verdict="reject", digest="sha256:" + "0" * 64), "other_image"),
        (WORLD.review("rosa", expires=NOW + HOUR), "expired"),
        (WORLD.review("rosa", issued=NOW + 3 * HOUR), "not_yet"),
        (WORLD.review("rosa", reviewer="rui"), "no_reviewer"),
        (WORLD.review("paul"), "no_reviewer"),
    ],
)
def test_each_worth(review: bytes, worth: str) -> None:
    assert worths(review) == [worth]


def test_a_revoked_key_approves_nothing_and_still_rejects() -> None:
    revoked = Revoked(keys=frozenset({key("rosa").id}))
    assert worths(WORLD.review("rosa"), WORLD.review("rosa", verdict="reject"), revoked=revoked) == [
        "key_revoked",
        "rejects",
    ]


def test_what_nobody_of_the_root_signed_is_not_there() -> None:
    assert worths(WORLD.review("mallory"), b"{}", b"\xff") == []


def test_a_later_approval_takes_the_reject_back() -> None:
    reject = WORLD.review("rosa", verdict="reject")
    later = WORLD.review("rosa", issued=NOW + HOUR)
    assert worths(reject, later) == ["withdrawn", "approves"]
    assert worths(later, reject) == ["approves", "withdrawn"]
    assert standing(reject, later).state is State.REVIEWED


@pytest.mark.parametrize(
    "later",
    [
        WORLD.review("rosa"),  # at the same moment
        WORLD.review("rosa", issued=NOW - HOUR),
        WORLD.review("rosa", issued=NOW + 3 * HOUR),  # not yet
        WORLD.review("rosa", issued=NOW + HOUR, statement_sha256="sha256:" + "0" * 64),
        WORLD.review("rosa", issued=NOW + HOUR, reviewer="rui"),
        WORLD.review("rui", issued=NOW + HOUR),
        WORLD.review("rui", issued=NOW + HOUR, reviewer="rosa"),
        WORLD.review("mallory", issued=NOW + HOUR, reviewer="rosa"),
    ],
)
def test_nothing_else_takes_it_back(later: bytes) -> None:
    found = standing(WORLD.review("rosa", verdict="reject"), later)
    assert found.reviews[0].worth == "rejects"
    assert found.state is State.REJECTED


def test_a_reject_after_an_approval_stands() -> None:
    found = standing(WORLD.review("rosa"), WORLD.review("rosa", verdict="reject", issued=NOW + HOUR))
    assert found.state is State.REJECTED


def test_an_approval_that_has_expired_takes_back_and_counts_for_nothing() -> None:
    later = WORLD.review("rosa", issued=NOW + HOUR, expires=NOW + 2 * HOUR)
    found = standing(WORLD.review("rosa", verdict="reject"), later)
    assert [one.worth for one in found.reviews] == ["withdrawn", "expired"]
    assert (found.state, found.approvals) == (State.SUBMITTED, ())


def test_a_stolen_key_that_is_revoked_takes_nothing_back() -> None:
    revoked = Revoked(keys=frozenset({key("rosa").id}))
    found = standing(WORLD.review("rosa", verdict="reject"), WORLD.review("rosa", issued=NOW + HOUR), revoked=revoked)
    assert found.state is State.REJECTED


# ------------------------------------------------------------------ states


def publication(signer: str = "paul", world: World = WORLD, **changes: Any) -> bytes:
    word = Publication(
        digest=world.statement.digest,
        statement_sha256=sha256_of(encode(world.statement)),
        publisher="paul",
        issued=NOW,
    )
    return sign(encode(word.model_copy(update=changes)), PUBLICATION, [key(signer)])


def test_the_whole_way() -> None:
    assert standing(statement=None).state is State.UNSIGNED
    assert standing().state is State.SUBMITTED
    approved = (WORLD.review("rosa"),)
    assert standing(*approved).state is State.REVIEWED
    assert standing(*approved, publications=(publication(),)).state is State.PUBLISHED
    assert standing(publications=(publication(),)).state is State.SUBMITTED
    rejected = (*approved, WORLD.review("rui", verdict="reject"))
    assert standing(*rejected, publications=(publication(),)).state is State.REJECTED
    gone = Revoked(releases=frozenset({WORLD.statement.digest}))
    assert standing(*approved, publications=(publication(),), revoked=gone).state is State.REVOKED
    assert standing(statement=b"{}").state is State.INVALID
    by_mallory = sign(encode(WORLD.statement), RELEASE_STATEMENT, [key("mallory")])
    found = standing(*approved, statement=by_mallory)
    assert (found.state, found.statement, found.reviews) == (State.INVALID, None, ())


def test_a_statement_whose_time_is_over_has_expired() -> None:
    short = WORLD.statement.model_copy(update={"expires": NOW + HOUR})
    envelope = sign(encode(short), RELEASE_STATEMENT, [key("paul")])
    found = standing(WORLD.review("rosa", statement=short), statement=envelope)
    assert (found.state, found.statement) == (State.EXPIRED, short)


@pytest.mark.parametrize(
    "mark",
    [
        publication("rosa"),
        publication("mallory"),
        publication(publisher="rosa"),
        publication(digest="sha256:" + "0" * 64),
        publication(statement_sha256="sha256:" + "0" * 64),
        publication(issued=NOW + 3 * HOUR),
        WORLD.review("rosa"),
        b"",
    ],
)
def test_nobody_but_the_publisher_publishes_and_only_this_statement(mark: bytes) -> None:
    assert standing(WORLD.review("rosa"), publications=(mark,)).state is State.REVIEWED


def test_a_state_never_says_more_than_trust() -> None:
    """Whatever the papers: only what sites would take is reviewed or published."""
    papers = [
        WORLD.review("rosa"),
        WORLD.review("rosa", verdict="reject"),
        WORLD.review("rui", issued=NOW + HOUR),
        WORLD.review("paul"),
    ]
    for chosen in range(16):
        reviews = [paper for bit, paper in enumerate(papers) if chosen >> bit & 1]
        found = standing(*reviews, publications=(publication(),))
        usable = isinstance(WORLD.release(reviews=reviews), TrustedRelease)
        assert (found.state in (State.REVIEWED, State.PUBLISHED)) is usable
        assert (found.why is None) is usable


# ------------------------------------------------------------------ the statement's version


def test_a_statement_of_before_is_read_as_it_was() -> None:
    data = encode(WORLD.statement)
    assert b"materials" not in data
    assert load_json(data, ReleaseStatement) == WORLD.statement


def test_materials_are_named_from_version_2_on() -> None:
    materials = Materials(sbom="sha256:" + "1" * 64, model_card="sha256:" + "2" * 64)
    said = WORLD.statement.model_dump()
    new = ReleaseStatement(**{**said, "api_version": "msfl/v2", "materials": materials})
    assert load_json(encode(new), ReleaseStatement) == new
    for broken in ({"materials": materials}, {"api_version": "msfl/v2"}, {"api_version": "msfl/v3"}):
        with pytest.raises(ValueError, match="msfl/v"):
            ReleaseStatement(**{**said, **broken})
    with pytest.raises(Malformed):
        load_json(encode(new).replace(b'"sbom"', b'"sboms"'), ReleaseStatement)


def test_the_refusal_of_a_reject_names_who_and_why() -> None:
    found = standing(WORLD.review("rui", verdict="reject", comment="writes to /tmp"))
    assert found.why.code is Code.RELEASE_REJECTED
    assert "rejected by rui: writes to /tmp." in found.why.message
