"""What each review of a release is worth, now: pure, one rule per line, for `trust` and for whoever asks why.

    approves           by a reviewer of the root, of exactly this statement, in time, not by its publisher
    rejects            by anybody of the root, of this image, whatever the statement; does not expire
    withdrawn          a reject, after which each of its signers approved exactly this statement
    other_statement    approves another statement of this image: what is said of it has changed since
    other_image        is about another image
    expired, not_yet   approves, but not now
    key_revoked        approves, with a key that is revoked
    no_reviewer        approves, and is the publisher, or nobody who reviews, or signs in another's name

Only what somebody of the root signed is looked at: the rest is nobody's word. A reject that stands needs no valid key
and no valid time, because it can only ever refuse. It ends in one way: who rejected approves later, and says so of the
statement as it stands. A later approval that has itself expired still takes the reject back, and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from msfl.policies.documents import FederationRoot, Member, ReleaseStatement, Review
from msfl.policies.encoding import Malformed
from msfl.policies.envelope import REVIEW, Signed


class Worth(StrEnum):
    APPROVES = "approves"
    REJECTS = "rejects"
    WITHDRAWN = "withdrawn"
    OTHER_STATEMENT = "other_statement"
    OTHER_IMAGE = "other_image"
    EXPIRED = "expired"
    NOT_YET = "not_yet"
    KEY_REVOKED = "key_revoked"
    NO_REVIEWER = "no_reviewer"


@dataclass(frozen=True)
class Weighed:
    """`signers` are the people of the root whose keys signed it."""

    review: Review
    signers: tuple[str, ...]
    worth: Worth


def weigh(
    reviews: Iterable[bytes],
    statement: ReleaseStatement,
    statement_sha256: str,
    publishers: frozenset[str],
    root: FederationRoot,
    now: datetime,
    revoked_keys: frozenset[str],
) -> tuple[Weighed, ...]:
    """In their order. Raises Malformed for a review that somebody of the root signed and that cannot be read."""
    weighed = []
    for data in reviews:
        try:
            signed = Signed.parse(data, REVIEW, "review")
        except Malformed:
            continue  # not even an envelope: nobody's word
        if signed.payload_type != REVIEW.payload_type:
            continue
        reviewers, others = signed.signed_by(root.reviewers), signed.signed_by(root.publishers)
        if not reviewers and not others:
            continue
        review = REVIEW.load(signed.payload, signed.file)
        valid = {m.person for m in reviewers if m.key_id not in revoked_keys}
        worth = _worth(review, statement, statement_sha256, publishers, {m.person for m in reviewers}, valid, now)
        weighed.append(Weighed(review, _people((*reviewers, *others)), worth))
    return tuple(_after_what_came_later(one, weighed) for one in weighed)


def strangers(reviews: Iterable[bytes], digest: str, root: FederationRoot) -> tuple[Review, ...]:
    """Reviews of this image that nobody of the root signed, under whatever name: for people only, who may look for
    theirs in vain."""
    found = []
    for data in reviews:
        try:
            signed = Signed.parse(data, REVIEW, "review")
            review = REVIEW.load(signed.payload_of_kind(), signed.file)
        except Malformed:
            continue
        if review.digest == digest and not signed.signed_by((*root.reviewers, *root.publishers)):
            found.append(review)
    return tuple(found)


def _worth(
    review: Review,
    statement: ReleaseStatement,
    statement_sha256: str,
    publishers: frozenset[str],
    reviewers: set[str],
    valid: set[str],
    now: datetime,
) -> Worth:
    if review.digest != statement.digest:
        return Worth.OTHER_IMAGE
    if review.verdict == "reject":
        return Worth.REJECTS
    if review.statement_sha256 != statement_sha256:
        return Worth.OTHER_STATEMENT
    if review.reviewer not in reviewers or review.reviewer in publishers:
        return Worth.NO_REVIEWER
    if review.reviewer not in valid:
        return Worth.KEY_REVOKED
    if review.issued > now:
        return Worth.NOT_YET
    return Worth.APPROVES if now < review.expires else Worth.EXPIRED


def _after_what_came_later(one: Weighed, weighed: list[Weighed]) -> Weighed:
    if one.worth is not Worth.REJECTS:
        return one
    changed_their_mind = {
        later.review.reviewer
        for later in weighed
        if later.worth in (Worth.APPROVES, Worth.EXPIRED) and later.review.issued > one.review.issued
    }
    return replace(one, worth=Worth.WITHDRAWN) if set(one.signers) <= changed_their_mind else one


def _people(members: Iterable[Member]) -> tuple[str, ...]:
    return tuple(sorted({m.person for m in members}))
