"""The only door from Signed… to Trusted…: bytes are verified, then read, and what was read is what is used.

    Signed[SiteRoot]          site's own file        ── own threshold, site, expiry ──────────▶ TrustedSiteRoot
    Signed[FederationRoot]    pinned hash            ── hash, own threshold, expiry ──────────▶ TrustedFederationRoot
    Signed[AssetPolicy]       TrustedSiteRoot        ── threshold of different custodians ────▶ TrustedPolicy
    Signed[ReleaseStatement]  TrustedFederationRoot  ── a publisher, named in the statement,
      + Signed[Review]…                                 expiry, no reject, enough approvals ──▶ TrustedRelease
    Signed[RevocationList]    TrustedFederationRoot  ── threshold of keepers ───────────────▶ TrustedRevocations
    Signed[Timestamp]         TrustedFederationRoot  ── a timekeeper ───────────────────────▶ TrustedTimestamp
    Signed[…Root], the next   the root before it     ── old threshold and new, version + 1 ─▶ its Trusted…Root

The Trusted… types cannot be made anywhere else: their constructors want a seal that only this module holds, so a
function that takes one needs no second check. Thresholds count different people, never keys. A root names
its own signers, so it alone is read, strictly, before its own threshold can be checked. What a review is worth says
`reviews`; one that somebody of the root signed and that is unreadable refuses the release.
A policy's time in force is a rule of `decide`, so that an expired policy is a decision with its reason; a timestamp's
is `freshness`, so that what was the newest is kept also once it is old. `Revoked` is what a site holds for revoked, by
the federation's word or its custodian's: a revoked key counts for nobody, but for a reject, which only ever refuses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from msfl.policies.documents import (
    AssetPolicy,
    Document,
    FederationRoot,
    Member,
    ReleaseStatement,
    RevocationList,
    RunConfirmation,
    SiteRoot,
    Timestamp,
    format_utc,
)
from msfl.policies.encoding import Malformed, encode, sha256_of
from msfl.policies.envelope import (
    ASSET_POLICY,
    FEDERATION_ROOT,
    RELEASE_STATEMENT,
    REVOCATIONS,
    RUN_CONFIRMATION,
    SITE_ROOT,
    TIMESTAMP,
    Kind,
    Signed,
)
from msfl.policies.refusals import Code, Refusal, refuse
from msfl.policies.reviews import Worth, weigh

D = TypeVar("D", bound=Document)
_SEAL = object()
CLOCK_LEEWAY = timedelta(minutes=5)  # clocks of hospitals differ


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
class NotTrusted(Refusal):
    """Why a policy at the site counts for nothing. `datasets` are those that it names, by nobody's word, which is
    enough to refuse by: whom it keeps out nobody can say any more. None where they cannot be read: any dataset."""

    datasets: frozenset[str] | None = None

    def concerns(self, dataset_id: str) -> bool:
        return self.datasets is None or dataset_id in self.datasets


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

    @property
    def people(self) -> frozenset[str]:
        """Those whose word it rests on; see `separate_roles`."""
        return frozenset({self.publisher, *self.reviewers})


@dataclass(frozen=True)
class TrustedRevocations:
    document: RevocationList
    sha256: str
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _only_here(seal)


@dataclass(frozen=True)
class TrustedTimestamp:
    """Rightly signed; whether it still says anything about now is `freshness`."""

    document: Timestamp
    sha256: str
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _only_here(seal)


@dataclass(frozen=True)
class Revoked:
    """`keys` are key ids, `releases` digests, `policies` are `site/policy`."""

    keys: frozenset[str] = frozenset()
    releases: frozenset[str] = frozenset()
    policies: frozenset[str] = frozenset()
    sites: frozenset[str] = frozenset()

    def without(self, members: Iterable[Member]) -> tuple[Member, ...]:
        return tuple(m for m in members if m.key_id not in self.keys)


NOTHING_REVOKED = Revoked()


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
        what = f"The federation root's file has the hash {found}, not {expected_sha256}."
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


def next_site_root(current: bytes, envelope: bytes, site: str) -> TrustedSiteRoot | Refusal:
    """`envelope` takes the place of `current`, the root in force: signed by enough people of both, one version on.

    `current` may have expired: a root that was not renewed in time can still be renewed, by the same people.
    """
    old = _open_and_read(current, SITE_ROOT, "site root")
    if isinstance(old, Refusal):
        return old
    new = _open_and_read(envelope, SITE_ROOT, "next site root")
    if isinstance(new, Refusal):
        return new
    (_, before), (signed, root) = old, new
    if {before.site, root.site} != {site}:
        return refuse(Code.ROOT_DIFFERS, f"The next site root names the site {root.site}, not {site}.", site=root.site)
    if refusal := _one_version_on(root.version, before.version, "site root"):
        return refusal
    for who, threshold in ((before.custodians, before.threshold), (root.custodians, root.threshold)):
        if refusal := _enough(signed, who, threshold, "next site root"):
            return refusal
    return TrustedSiteRoot(root, signed.sha256, _SEAL)


def next_federation_root(
    current: bytes, envelope: bytes, revoked: Revoked = NOTHING_REVOKED
) -> TrustedFederationRoot | Refusal:
    """The same for the federation's root and its keepers. `current` is the root in force, whose bytes were pinned.

    A keeper whose key is stolen is replaced first and revoked then: a revoked key makes no root."""
    old = _open_and_read(current, FEDERATION_ROOT, "federation root")
    if isinstance(old, Refusal):
        return old
    new = _open_and_read(envelope, FEDERATION_ROOT, "next federation root")
    if isinstance(new, Refusal):
        return new
    (_, before), (signed, root) = old, new
    if root.federation != before.federation:
        return _other_federation("next federation root", root.federation, before.federation)
    if refusal := _one_version_on(root.version, before.version, "federation root"):
        return refusal
    for who, threshold in ((before.keepers, before.threshold), (root.keepers, root.threshold)):
        if refusal := _enough(signed, who, threshold, "next federation root", revoked):
            return refusal
    return TrustedFederationRoot(root, signed.sha256, _SEAL)


def trust_revocations(
    envelope: bytes, root: TrustedFederationRoot, revoked: Revoked = NOTHING_REVOKED
) -> TrustedRevocations | Refusal:
    """`revoked` is what was revoked before this list: a keeper may sign that their own key is."""
    signed = _open(envelope, REVOCATIONS, "revocation list")
    if isinstance(signed, Refusal):
        return signed
    if refusal := _enough(signed, root.document.keepers, root.document.threshold, "revocation list", revoked):
        return refusal
    document = _read(signed)
    if isinstance(document, Refusal):
        return document
    if document.federation != root.document.federation:
        return _other_federation("revocation list", document.federation, root.document.federation)
    return TrustedRevocations(document, signed.sha256, _SEAL)


def trust_timestamp(
    envelope: bytes, root: TrustedFederationRoot, revoked: Revoked = NOTHING_REVOKED
) -> TrustedTimestamp | Refusal:
    signed = _open(envelope, TIMESTAMP, "timestamp")
    if isinstance(signed, Refusal):
        return signed
    federation = root.document
    who, threshold = federation.timekeepers, 1
    if not who:
        who, threshold = federation.keepers, federation.threshold
    if refusal := _enough(signed, who, threshold, "timestamp", revoked):
        return refusal
    document = _read(signed)
    if isinstance(document, Refusal):
        return document
    if document.federation != federation.federation:
        return _other_federation("timestamp", document.federation, federation.federation)
    return TrustedTimestamp(document, signed.sha256, _SEAL)


def freshness(
    timestamp: TrustedTimestamp, root: TrustedFederationRoot, revocations: TrustedRevocations | None, now: datetime
) -> Refusal | None:
    """Does the site know what the federation knows now? Root and list may be newer than those that are named, never
    older: who has heard of a revocation sooner does not wait for the next timestamp."""
    said = timestamp.document
    if said.issued > now + CLOCK_LEEWAY:
        what = f"It is {format_utc(now)} here, and the newest timestamp was issued at {format_utc(said.issued)}."
        return refuse(Code.CLOCK_SET_BACK, what, issued=format_utc(said.issued))
    if said.expires <= now:
        what = f"The newest timestamp of the federation expired at {format_utc(said.expires)}."
        return refuse(Code.TRUST_STALE, what, expires=format_utc(said.expires))
    held = {"federation root": (root.document.version, root.sha256)}
    held["revocation list"] = (0, "") if revocations is None else (revocations.document.version, revocations.sha256)
    for name, named in (("federation root", said.root), ("revocation list", said.revocations)):
        version, sha256 = held[name]
        if version < named.version:
            what = f"The timestamp names version {named.version} of the {name}; this site holds version {version}."
            return refuse(Code.TRUST_STALE, what, document=name, named=str(named.version), held=str(version))
        if version == named.version and sha256 != named.sha256:
            what = f"The {name} of version {version} that this site holds is not the one that the timestamp names."
            return refuse(Code.ROOT_DIFFERS, what, document=name, named=named.sha256, held=sha256)
    return None


def trust_policy(
    envelope: bytes,
    root: TrustedSiteRoot,
    now: datetime,
    file: str = "policy",
    revoked: Revoked = NOTHING_REVOKED,
) -> TrustedPolicy | NotTrusted:
    """Verified against the site's own root; the policy's time in force is left to `decide`."""
    policy = _trust_policy(envelope, root, now, file, revoked)
    return not_trusted(policy, _datasets_of(envelope, file)) if isinstance(policy, Refusal) else policy


def not_trusted(why: Refusal, datasets: frozenset[str] | None = None) -> NotTrusted:
    return NotTrusted(why.code, why.message, why.fields, datasets)


def _datasets_of(envelope: bytes, file: str) -> frozenset[str] | None:
    """Read without a signature, and for nothing but `NotTrusted`."""
    try:
        signed = Signed.parse(envelope, ASSET_POLICY, file)
        return frozenset(ASSET_POLICY.load(signed.payload_of_kind(), file).datasets)
    except Malformed:
        return None


def _trust_policy(
    envelope: bytes, root: TrustedSiteRoot, now: datetime, file: str, revoked: Revoked
) -> TrustedPolicy | Refusal:
    if root.document.expires <= now:
        return _root_expired("site root", root.document.expires)
    signed = _open(envelope, ASSET_POLICY, file)
    if isinstance(signed, Refusal):
        return signed
    if refusal := _enough(signed, root.document.custodians, root.document.threshold, file, revoked):
        return refusal
    policy = _read(signed)
    if isinstance(policy, Refusal):
        return policy
    if f"{root.document.site}/{policy.id}" in revoked.policies:
        return refuse(Code.POLICY_REVOKED, f"The policy {policy.id} is revoked.", policy=policy.id)
    signers = _people(revoked.without(signed.signed_by(root.document.custodians)))
    return TrustedPolicy(policy, signed.sha256, signers, _SEAL)


def trust_confirmation(
    envelope: bytes,
    asked: RunConfirmation,
    root: TrustedSiteRoot,
    now: datetime,
    file: str = "confirmation",
    revoked: Revoked = NOTHING_REVOKED,
) -> tuple[str, ...] | Refusal:
    """The custodians of the site's own root who signed a yes to exactly what is `asked`, whenever that was."""
    if root.document.expires <= now:
        return _root_expired("site root", root.document.expires)
    signed = _open(envelope, RUN_CONFIRMATION, file)
    if isinstance(signed, Refusal):
        return signed
    if refusal := _enough(signed, root.document.custodians, root.document.threshold, file, revoked):
        return refusal
    said = _read(signed)
    if isinstance(said, Refusal):
        return said
    asked = asked.model_copy(update={"issued": said.issued})
    if encode(said) != encode(asked):  # As bytes: to Python, true equals 1.
        differs = ", ".join(k for k, v in said.model_dump().items() if repr(v) != repr(getattr(asked, k)))
        return refuse(Code.CONFIRMATION_DIFFERS, f"{file} is for another {differs}.", differs=differs)
    return _people(revoked.without(signed.signed_by(root.document.custodians)))


def separate_roles(
    what: str,
    signers: tuple[str, ...],
    of_the_release: Iterable[str],
    site: TrustedSiteRoot,
    federation: TrustedFederationRoot,
) -> Refusal | None:
    """Nobody counts twice: whoever published or reviewed the release, or has a key in the federation root too, is not
    also the custodian who lets it in. Enough of the signers of `what`, a policy or a run's confirmation, must be left.
    """
    root = federation.document
    central = {
        m.public_key for group in (root.keepers, root.timekeepers, root.publishers, root.reviewers) for m in group
    }
    twice = {m.person for m in site.document.custodians if m.public_key in central}
    twice |= set(of_the_release)
    left = [person for person in signers if person not in twice]
    if len(left) >= site.document.threshold:
        return None
    who = ", ".join(person for person in signers if person in twice)
    why = f"{what} is signed by {who}, who has another part in this release or federation."
    return refuse(Code.ONE_PERSON_TWO_ROLES, why, signers=who)


def trust_release(
    statement: bytes,
    reviews: Iterable[bytes],
    root: TrustedFederationRoot,
    now: datetime,
    revoked: Revoked = NOTHING_REVOKED,
) -> TrustedRelease | Refusal:
    """`statement` and `reviews` are envelopes as the registry served them; the registry itself is not trusted."""
    federation = root.document
    if federation.expires <= now:
        return _root_expired("federation root", federation.expires)
    signed = _open(statement, RELEASE_STATEMENT, "release statement")
    if isinstance(signed, Refusal):
        return signed
    signers = signed.signed_by(federation.publishers)
    if not signers:
        return _wrong_publisher("no publisher of the federation root signed the release statement")
    publishers = _people(revoked.without(signers))
    if not publishers:
        return _revoked_key("release statement", signers)
    release = _read(signed)
    if isinstance(release, Refusal):
        return release
    if release.publisher not in publishers:
        return _wrong_publisher(f"{release.ref} names {release.publisher} as publisher, who did not sign it")
    if release.digest in revoked.releases:
        return refuse(Code.RELEASE_REVOKED, f"{release.ref} is revoked.", release=release.ref, digest=release.digest)
    if release.expires <= now:
        what = f"{release.ref} expired at {format_utc(release.expires)}."
        return refuse(Code.RELEASE_EXPIRED, what, release=release.ref, expires=format_utc(release.expires))
    approvals = _approvals(reviews, signed.sha256, release, publishers, federation, now, revoked)
    if isinstance(approvals, Refusal):
        return approvals
    reviewers = tuple(sorted(approvals))
    if len(reviewers) < federation.reviews_needed:
        what = f"{release.ref} has {len(reviewers)} valid reviews of {federation.reviews_needed} needed."
        return refuse(Code.RELEASE_NOT_REVIEWED, what, release=release.ref, reviewers=", ".join(reviewers))
    return TrustedRelease(release, signed.sha256, release.publisher, reviewers, _SEAL)


def _approvals(
    reviews: Iterable[bytes],
    statement_sha256: str,
    release: ReleaseStatement,
    publishers: tuple[str, ...],
    root: FederationRoot,
    now: datetime,
    revoked: Revoked,
) -> set[str] | Refusal:
    who = frozenset({*publishers, release.publisher})
    try:
        weighed = weigh(reviews, release, statement_sha256, who, root, now, revoked.keys)
    except Malformed as error:
        return _malformed(error)
    for one in weighed:
        if one.worth is Worth.REJECTS:
            by = ", ".join(one.signers)
            what = f"{release.ref} was rejected by {by}: {one.review.comment or 'no comment'}"
            return refuse(Code.RELEASE_REJECTED, what.rstrip(".") + ".", release=release.ref, reviewers=by)
    return {one.review.reviewer for one in weighed if one.worth is Worth.APPROVES}


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


def _open_and_read(envelope: bytes, kind: Kind[D], file: str) -> tuple[Signed[D], D] | Refusal:
    """For roots alone, which name their own signers."""
    signed = _open(envelope, kind, file)
    if isinstance(signed, Refusal):
        return signed
    document = _read(signed)
    return document if isinstance(document, Refusal) else (signed, document)


def _one_version_on(version: int, before: int, name: str) -> Refusal | None:
    if version == before + 1:
        return None
    what = f"The next {name} has version {version}, and the one in force version {before}."
    code = Code.VERSION_SKIPPED if version > before else Code.VERSION_ROLLED_BACK
    return refuse(code, what, version=str(version), in_force=str(before))


def _enough(
    signed: Signed[D],
    members: tuple[Member, ...],
    threshold: int,
    file: str,
    revoked: Revoked = NOTHING_REVOKED,
) -> Refusal | None:
    signers = signed.signed_by(members)
    people = _people(revoked.without(signers))
    if len(people) < threshold <= len(_people(signers)):
        return _revoked_key(file, signers)
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


def _revoked_key(file: str, signers: tuple[Member, ...]) -> Refusal:
    who = ", ".join(_people(signers))
    return refuse(Code.KEY_REVOKED, f"{file} is signed by {who} with a key that is revoked.", file=file, signers=who)


def _other_federation(name: str, found: str, expected: str) -> Refusal:
    what = f"The {name} is of the federation {found}, not {expected}."
    return refuse(Code.ROOT_DIFFERS, what, found=found, expected=expected)


def _root_expired(name: str, expires: datetime) -> Refusal:
    return refuse(Code.ROOT_EXPIRED, f"The {name} expired at {format_utc(expires)}.", expires=format_utc(expires))


def _wrong_publisher(what: str) -> Refusal:
    return refuse(Code.WRONG_PUBLISHER, f"{what[:1].upper()}{what[1:]}.")
