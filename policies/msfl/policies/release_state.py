"""Where a release stands between its publisher and the sites: pure, from its papers, the root, the list and the clock.

    unsigned   ─submit─▶  submitted  ─enough approvals─▶  reviewed  ─publish─▶  published
                              │  ▲                            │                     │
                              ▼  │ the reviewer approves      ▼                     ▼
                           rejected ◀───────────────────── a reject ◀────────── a reject
    any of them ─the statement's time is over─▶ expired          ─the keepers' list─▶ revoked, for good
    any of them ─signed by nobody who may, or unreadable─▶ invalid

`trust_release` alone decides whether a release may be used; a state is its answer in one word, with what is missing.
Published is the publisher's own mark, for exactly the statement that was reviewed: a new statement begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from msfl.policies.documents import ReleaseStatement, Review
from msfl.policies.encoding import Malformed
from msfl.policies.envelope import PUBLICATION, RELEASE_STATEMENT, Signed
from msfl.policies.refusals import Code, Refusal
from msfl.policies.reviews import Weighed, strangers, weigh
from msfl.policies.trust import (
    NOTHING_REVOKED,
    Revoked,
    TrustedFederationRoot,
    TrustedRelease,
    trust_release,
)


class State(StrEnum):
    UNSIGNED = "unsigned"
    SUBMITTED = "submitted"
    REJECTED = "rejected"
    REVIEWED = "reviewed"
    PUBLISHED = "published"
    REVOKED = "revoked"
    EXPIRED = "expired"
    INVALID = "invalid"


_STATE_OF = {
    Code.RELEASE_REVOKED: State.REVOKED,
    Code.RELEASE_EXPIRED: State.EXPIRED,
    Code.RELEASE_REJECTED: State.REJECTED,
    Code.RELEASE_NOT_REVIEWED: State.SUBMITTED,
}


@dataclass(frozen=True)
class Standing:
    """`why` is the refusal behind a state in which no site would take the release. `reviews` are all that somebody of
    the root signed, each with what it is worth; `approvals` of `needed` count now. `strangers`: what nobody of the root
    signed, which is worth nothing."""

    state: State
    statement: ReleaseStatement | None
    why: Refusal | None
    reviews: tuple[Weighed, ...]
    approvals: tuple[str, ...]
    needed: int
    strangers: tuple[Review, ...] = ()


def release_state(
    statement: bytes | None,
    reviews: Iterable[bytes],
    publications: Iterable[bytes],
    root: TrustedFederationRoot,
    now: datetime,
    revoked: Revoked = NOTHING_REVOKED,
) -> Standing:
    """All of them envelopes as the registry served them; the registry is not trusted."""
    needed = root.document.reviews_needed
    if statement is None:
        return Standing(State.UNSIGNED, None, None, (), (), needed)
    papers = tuple(reviews)
    found = trust_release(statement, papers, root, now, revoked)
    if isinstance(found, Refusal):
        said, weighed = _read(statement, papers, root, now, revoked)
        approvals = tuple(sorted({one.review.reviewer for one in weighed if one.worth == "approves"}))
        state = _STATE_OF.get(found.code, State.INVALID)
        unknown = () if said is None else strangers(papers, said.digest, root.document)
        return Standing(state, said, found, weighed, approvals, needed, unknown)
    _, weighed = _read(statement, papers, root, now, revoked)
    published = any(_publishes(data, found, root, now, revoked) for data in publications)
    state = State.PUBLISHED if published else State.REVIEWED
    unknown = strangers(papers, found.statement.digest, root.document)
    return Standing(state, found.statement, None, weighed, found.reviewers, needed, unknown)


def _read(
    statement: bytes, reviews: tuple[bytes, ...], root: TrustedFederationRoot, now: datetime, revoked: Revoked
) -> tuple[ReleaseStatement | None, tuple[Weighed, ...]]:
    """For people only: what a publisher of the root said, even where it is not good for a site any more."""
    try:
        signed = Signed.parse(statement, RELEASE_STATEMENT, "release statement")
        publishers = frozenset(m.person for m in signed.signed_by(root.document.publishers))
        if not publishers:
            return None, ()
        said = RELEASE_STATEMENT.load(signed.payload_of_kind(), signed.file)
        who = publishers | {said.publisher}
        return said, weigh(reviews, said, signed.sha256, who, root.document, now, revoked.keys)
    except Malformed:
        return None, ()


def _publishes(
    data: bytes, release: TrustedRelease, root: TrustedFederationRoot, now: datetime, revoked: Revoked
) -> bool:
    try:
        signed = Signed.parse(data, PUBLICATION, "publication")
        signers = {m.person for m in revoked.without(signed.signed_by(root.document.publishers))}
        if release.publisher not in signers:
            return False
        said = PUBLICATION.load(signed.payload_of_kind(), signed.file)
    except Malformed:
        return False
    exact = said.digest == release.statement.digest and said.statement_sha256 == release.sha256
    return exact and said.publisher == release.publisher and said.issued <= now
