"""The only door from Signed… to Trusted…: bytes are verified, then read, and what was read is what is used.

    Signed[SiteRoot]          site's own file        ── own threshold, site, expiry ──────────▶ TrustedSiteRoot
    Signed[FederationRoot]    pinned hash            ── hash, own threshold, expiry ──────────▶ TrustedFederationRoot
    Signed[AssetPolicy]       TrustedSiteRoot        ── threshold of different custodians ────▶ TrustedPolicy
    Signed[ReleaseStatement]  TrustedFederationRoot  ── a publisher, named in the statement,
      + Signed[Review]…                                 expiry, no reject, enough approvals ──▶ TrustedRelease

The Trusted… types cannot be made anywhere else: their constructors want a seal that only this module holds, so a
function that takes one needs no second check. Thresholds count different people, never keys. A root names
its own signers, so it alone is read, strictly, before its own threshold can be checked. A reject counts whoever
of the root signed it, and does not expire: publish a corrected release under a new digest instead. A review that no
reviewer of the root signed is nobody's word and is ignored; one that is signed but unreadable refuses the release.
A policy's time in force is a rule of `decide`, so that an expired policy is a decision with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from typing import TypeVar

from msfl.policies.documents import (
    AssetPolicy,
    Document,
    FederationRoot,
    Member,
    ReleaseStatement,
    Review,
    RunConfirmation,
    SiteRoot,
    format_utc,
)
from msfl.policies.encoding import Malformed, encode, sha256_of
from msfl.policies.envelope import (
    ASSET_POLICY,
    FEDERATION_ROOT,
    RELEASE_STATEMENT,
    REVIEW,
    RUN_CONFIRMATION,
    SITE_ROOT,
    Kind,
    Signed,
)
from msfl.policies.refusals import Code, Refusal, refuse

D = TypeVar("D", bound=Document)
_SEAL = object()


def _only_here(seal: object) -> None:
    if seal is not _SEAL:
        raise TypeError("a Trusted… is made by msfl.policies.trust from verified bytes, never by hand")


@dataclass(frozen=True)
class TrustedSiteRoot:
    document: SiteRoot
    sha256: str
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _only_here(seal)


@dataclass(frozen=True)
class TrustedFederationRoot:
    document: FederationRoot
    sha256: str
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _only_here(seal)


@dataclass(frozen=True)
class TrustedPolicy:
    """`sha256` is of the YAML's exact bytes; `signers` are people. `id` and `datasets` are the document's, in the form
    in which every decision looks them up."""

    document: AssetPolicy
    sha256: str
    signers: tuple[str, ...]
    seal: InitVar[object]
    id: str = field(init=False, compare=False, repr=False)
    datasets: frozenset[str] = field(init=False, compare=False, repr=False)

    def __post_init__(self, seal: object) -> None:
        _only_here(seal)
        object.__setattr__(self, "id", self.document.id)
        object.__setattr__(self, "datasets", frozenset(self.document.datasets))


@dataclass(frozen=True)
class TrustedRelease:
    """`reviewers` are the different people, other than the publisher, who approve exactly this statement now."""

    statement: ReleaseStatement
    sha256: str
    publisher: str
    reviewers: tuple[str, ...]
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _only_here(seal)


def trust_site_root(envelope: bytes, site: str, now: datetime) -> TrustedSiteRoot | Refusal:
    """The root lies in the site's own folder; its signatures show that its custodians agreed to these bytes."""
    opened = _open(envelope, SITE_ROOT, "site root")
    if isinstance(opened, Refusal):
        return opened
    signed, root = opened, _read(opened)
    if isinstance(root, Refusal):
        return root
    if root.site != site:
        return refuse(Code.ROOT_DIFFERS, f"The site root names the site {root.site}, not {site}.", site=root.site)
    if refusal := _enough(signed, root.custodians, root.threshold, "site root"):
        return refusal
    if root.expires <= now:
        return _root_expired("site root", root.expires)
    return TrustedSiteRoot(root, signed.sha256, _SEAL)


def trust_federation_root(envelope: bytes, expected_sha256: str, now: datetime) -> TrustedFederationRoot | Refusal:
    """`expected_sha256` is the hash of the envelope's bytes that came with the registration token."""
    if (found := sha256_of(envelope)) != expected_sha256:
        what = f"The federation root has the hash {found}, not {expected_sha256}."
        return refuse(Code.ROOT_DIFFERS, what, found=found, expected=expected_sha256)
    signed = _open(envelope, FEDERATION_ROOT, "federation root")
    if isinstance(signed, Refusal):
        return signed
    root = _read(signed)
    if isinstance(root, Refusal):
        return root
    if refusal := _enough(signed, root.keepers, root.threshold, "federation root"):
        return refusal
    if root.expires <= now:
        return _root_expired("federation root", root.expires)
    return TrustedFederationRoot(root, signed.sha256, _SEAL)


def trust_policy(
    envelope: bytes, root: TrustedSiteRoot, now: datetime, file: str = "policy"
) -> TrustedPolicy | Refusal:
    """Verified against the site's own root; the policy's time in force is left to `decide`."""
    if root.document.expires <= now:
        return _root_expired("site root", root.document.expires)
    signed = _open(envelope, ASSET_POLICY, file)
    if isinstance(signed, Refusal):
        return signed
    if refusal := _enough(signed, root.document.custodians, root.document.threshold, file):
        return refusal
    policy = _read(signed)
    if isinstance(policy, Refusal):
        return policy
    return TrustedPolicy(policy, signed.sha256, _people(signed.signed_by(root.document.custodians)), _SEAL)


def trust_confirmation(
    envelope: bytes, asked: RunConfirmation, root: TrustedSiteRoot, now: datetime, file: str = "confirmation"
) -> tuple[str, ...] | Refusal:
    """The custodians of the site's own root who signed a yes to exactly what is `asked`, whenever that was."""
    if root.document.expires <= now:
        return _root_expired("site root", root.document.expires)
    signed = _open(envelope, RUN_CONFIRMATION, file)
    if isinstance(signed, Refusal):
        return signed
    if refusal := _enough(signed, root.document.custodians, root.document.threshold, file):
        return refusal
    said = _read(signed)
    if isinstance(said, Refusal):
        return said
    asked = asked.model_copy(update={"issued": said.issued})
    if encode(said) != encode(asked):  # As bytes: to Python, true equals 1.
        differs = ", ".join(k for k, v in said.model_dump().items() if repr(v) != repr(getattr(asked, k)))
        return refuse(Code.CONFIRMATION_DIFFERS, f"{file} is for another {differs}.", differs=differs)
    return _people(signed.signed_by(root.document.custodians))


def trust_release(
    statement: bytes, reviews: Iterable[bytes], root: TrustedFederationRoot, now: datetime
) -> TrustedRelease | Refusal:
    """`statement` and `reviews` are envelopes as the registry served them; the registry itself is not trusted."""
    federation = root.document
    if federation.expires <= now:
        return _root_expired("federation root", federation.expires)
    signed = _open(statement, RELEASE_STATEMENT, "release statement")
    if isinstance(signed, Refusal):
        return signed
    publishers = _people(signed.signed_by(federation.publishers))
    if not publishers:
        return _wrong_publisher("no publisher of the federation root signed the release statement")
    release = _read(signed)
    if isinstance(release, Refusal):
        return release
    if release.publisher not in publishers:
        return _wrong_publisher(f"{release.ref} names {release.publisher} as publisher, who did not sign it")
    if release.expires <= now:
        what = f"{release.ref} expired at {format_utc(release.expires)}."
        return refuse(Code.RELEASE_EXPIRED, what, release=release.ref, expires=format_utc(release.expires))
    approvals = _approvals(reviews, signed.sha256, release, federation, now)
    if isinstance(approvals, Refusal):
        return approvals
    reviewers = tuple(sorted(approvals - set(publishers) - {release.publisher}))
    if len(reviewers) < federation.reviews_needed:
        what = f"{release.ref} has {len(reviewers)} valid reviews of {federation.reviews_needed} needed."
        return refuse(Code.RELEASE_NOT_REVIEWED, what, release=release.ref, reviewers=", ".join(reviewers))
    return TrustedRelease(release, signed.sha256, release.publisher, reviewers, _SEAL)


def _approvals(
    reviews: Iterable[bytes], statement_sha256: str, release: ReleaseStatement, root: FederationRoot, now: datetime
) -> set[str] | Refusal:
    approving: set[str] = set()
    for data in reviews:
        try:
            signed = Signed.parse(data, REVIEW, "review")
        except Malformed:
            continue  # not even an envelope: nobody's word
        if signed.payload_type != REVIEW.payload_type:
            continue
        reviewers = _people(signed.signed_by(root.reviewers))
        others = _people(signed.signed_by(root.publishers))
        if not reviewers and not others:
            continue
        review = _read(signed)
        if isinstance(review, Refusal):
            return review
        if refusal := _rejects(review, release, {*reviewers, *others}):
            return refusal
        exact = review.digest == release.digest and review.statement_sha256 == statement_sha256
        in_time = review.issued <= now < review.expires
        if review.verdict == "approve" and exact and in_time and review.reviewer in reviewers:
            approving.add(review.reviewer)
    return approving


def _rejects(review: Review, release: ReleaseStatement, signers: set[str]) -> Refusal | None:
    if review.verdict != "reject" or review.digest != release.digest:
        return None
    by = ", ".join(sorted(signers))
    what = f"{release.ref} was rejected by {by}: {review.comment or 'no comment'}"
    return refuse(Code.RELEASE_REJECTED, what.rstrip(".") + ".", release=release.ref, reviewers=by)


def _open(data: bytes, kind: Kind[D], file: str) -> Signed[D] | Refusal:
    try:
        signed = Signed.parse(data, kind, file)
    except Malformed as error:
        return _malformed(error)
    if signed.payload_type != kind.payload_type:
        what = f"{file} was signed as {signed.payload_type!r}, not as {kind.payload_type!r}."
        return refuse(Code.WRONG_DOCUMENT_KIND, what, file=file)
    return signed


def _read(signed: Signed[D]) -> D | Refusal:
    try:
        return signed.kind.load(signed.payload, signed.file)
    except Malformed as error:
        return _malformed(error)


def _enough(signed: Signed[D], members: tuple[Member, ...], threshold: int, file: str) -> Refusal | None:
    people = _people(signed.signed_by(members))
    if not people:
        ids = ", ".join(keyid[:16] for keyid, _ in signed.signatures)
        what = f"{file} is signed by none of the people whom the root names (key ids {ids})."
        return refuse(Code.WRONG_SIGNER, what, file=file, key_ids=ids)
    if len(people) < threshold:
        what = f"{file} is signed by {len(people)} of {threshold} people needed ({', '.join(people)})."
        return refuse(Code.TOO_FEW_SIGNERS, what, file=file, signers=", ".join(people))
    return None


def _people(members: Iterable[Member]) -> tuple[str, ...]:
    return tuple(sorted({m.person for m in members}))


def _malformed(error: Malformed) -> Refusal:
    line = "" if error.line is None else str(error.line)
    fields = {"file": error.file, "line": line, "key": error.key, "allowed": error.allowed}
    return refuse(Code.MALFORMED_DOCUMENT, f"{error}.", **fields)


def _root_expired(name: str, expires: datetime) -> Refusal:
    return refuse(Code.ROOT_EXPIRED, f"The {name} expired at {format_utc(expires)}.", expires=format_utc(expires))


def _wrong_publisher(what: str) -> Refusal:
    return refuse(Code.WRONG_PUBLISHER, f"{what[:1].upper()}{what[1:]}.")
