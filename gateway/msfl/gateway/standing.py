"""What holds at this site now: which roots, lists and policies are in force, what is revoked, and whether that is known
well enough to begin a run.

    heartbeat ─ trust papers ─▶ roots, one version on each ▸ revocation list, newer ▸ timestamp, newer ▸ key sets of
                                identity providers, newer (these come with offers, too) ─▶ memory
    `may_begin`    clock not set back ▸ roots as remembered ▸ timestamp fresh ▸ list as named ▸ site not revoked
    `policies`     signed by custodians ▸ not revoked ▸ no older than the newest that was in force here

A version that goes back is refused, also after a restart. What is stale or missing keeps new runs from beginning, when
they are offered and when their first worker is to start, and leaves running ones alone: nobody would be helped by
ending them because the line is down. What is revoked ends them (`judge.Judge.stands`). Whatever is taken up is written
to the audit log first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import structlog

from msfl.gateway.home import Home, write
from msfl.gateway.memory import CLOCK_ACCEPTED, ISSUER_KEYS, REVOKED_HERE, TAKEN, Mark, Memory, remembered
from msfl.policies.documents import format_utc, parse_utc
from msfl.policies.encoding import Malformed, sha256_of
from msfl.policies.envelope import FEDERATION_ROOT, SITE_ROOT, Kind, Signed
from msfl.policies.issuers import TrustedKeySet, trust_key_set
from msfl.policies.refusals import Code, Refusal, refuse
from msfl.policies.trust import (
    CLOCK_LEEWAY,
    NotTrusted,
    Revoked,
    TrustedFederationRoot,
    TrustedPolicy,
    TrustedRevocations,
    TrustedSiteRoot,
    TrustedTimestamp,
    freshness,
    next_federation_root,
    next_site_root,
    not_trusted,
    trust_revocations,
    trust_timestamp,
)
from msfl.protos.audit_log import AuditLog
from msfl.protos.messages import TrustPapers

TICK = timedelta(seconds=30)
log = structlog.get_logger()


class Standing:
    """One per gateway process; its methods may be called by any thread."""

    def __init__(self, home: Home, memory: Memory, audit: AuditLog) -> None:
        self._home = home
        self._memory = memory
        self._audit = audit
        self._settings = home.settings()
        self._lock = threading.RLock()
        self._roots: dict[str, tuple[Path, Kind[Any], str]] = {
            "site-root": (home.site_root_file, SITE_ROOT, self._settings.site),
            "federation-root": (home.federation_root_file, FEDERATION_ROOT, self._settings.federation),
        }
        self._ticked: datetime | None = None
        self._received = ""  # Not kept: after a restart the centre says it all again.

    # ------------------------------------------------------------ what is held

    def revoked(self) -> Revoked:
        return self._memory.revoked()

    def site_root(self, now: datetime) -> TrustedSiteRoot | Refusal:
        with self._lock:
            root = self._home.site_root(now)
            if isinstance(root, Refusal):
                return root
            return self._as_remembered("site-root", self._settings.site, root, now) or root

    def federation_root(self, now: datetime) -> TrustedFederationRoot | Refusal:
        with self._lock:
            root = self._home.federation_root(now)
            if isinstance(root, Refusal):
                return root
            return self._as_remembered("federation-root", self._settings.federation, root, now) or root

    def policies(self, now: datetime) -> tuple[tuple[TrustedPolicy, ...], tuple[NotTrusted, ...]]:
        """As `Home.policies`, and none that an earlier one of the same id has taken the place of."""
        with self._lock:
            root = self.site_root(now)
            if isinstance(root, Refusal):
                return (), (not_trusted(root),)
            found, refused = self._home.policies(now, self.revoked())
            return _newest(found, refused, lambda policy: self._not_older("policy", policy.id, policy, now))

    def policies_as_they_lie(self, now: datetime) -> tuple[tuple[TrustedPolicy, ...], tuple[NotTrusted, ...]]:
        """The same, and none becomes the newest by it."""
        with self._lock:
            return _as_they_lie(self._home, self._memory, now)

    def may_begin(self, now: datetime) -> Refusal | None:
        """Why no new run may begin at this site now, whatever its policies say."""
        with self._lock:
            if refusal := self._clock(now):
                return refusal
            self._memory.saw(now)
            root = self.federation_root(now)
            if isinstance(root, Refusal):
                return root
            if self._settings.site in self.revoked().sites:
                return self.site_revoked()
            held = self._memory.kept("timestamp")
            if held is None:
                return refuse(Code.TRUST_STALE, "This site has no timestamp of the federation yet.")
            timestamp = trust_timestamp(held, root, self.revoked())
            if isinstance(timestamp, Refusal):
                return timestamp
            if (older := self._older("timestamp", root.document.federation, timestamp)) is not None:
                return older
            return freshness(timestamp, root, self._revocations(root), now)

    def tick(self, now: datetime) -> None:
        """Time goes by. Once in a while that is durable."""
        with self._lock:
            if self._clock(now) is None and (self._ticked is None or now - self._ticked > TICK):
                self._memory.saw(now)
                self._ticked = now

    def site_revoked(self) -> Refusal | None:
        """For runs that have begun."""
        if self._settings.site not in self.revoked().sites:
            return None
        return refuse(Code.SITE_REVOKED, f"The site {self._settings.site} is revoked.", site=self._settings.site)

    def key_sets(self, root: TrustedFederationRoot) -> tuple[TrustedKeySet, ...]:
        """Of each identity provider with stewards the newest that was ever seen here, or none: no older one."""
        with self._lock:
            found = self._home.key_sets.trusted(root, self.revoked())
            return tuple(k for k in found if self._older(ISSUER_KEYS, k.document.issuer, k) is None)

    # ----------------------------------------------------- what the centre says

    @property
    def received(self) -> str:
        """The name of the papers that were heard last; the centre sends others only."""
        return self._received

    def take(self, papers: TrustPapers, now: datetime) -> tuple[Refusal, ...]:
        """Take up what is newer; what was refused, and why. Raises OSError on a full disk: it is to be heard again,
        and what is revoked is so all the same."""
        with self._lock:
            refused: list[Refusal | None] = []
            no_room: OSError | None = None
            try:
                self._take_roots(papers.roots, now)
            except OSError as error:  # The list may be signed by those of today.
                no_room = error
            root = self.federation_root(now)
            if isinstance(root, Refusal):
                return (root,)
            federation = root.document.federation
            if papers.revocations:
                listed = self._listed(papers.revocations, root)
                if isinstance(listed, TrustedRevocations) and self._older("revocations", federation, listed) is None:
                    self._memory.revoke_listed(listed.document)
                refused.append(self._keep("revocations", listed, papers.revocations, federation, now))
            if no_room is not None:
                raise no_room
            if papers.timestamp:
                timestamp = trust_timestamp(papers.timestamp, root, self.revoked())
                refused.append(self._keep("timestamp", timestamp, papers.timestamp, federation, now))
            refused += self.take_key_sets(papers.issuer_keys, root, now)
            reasons = tuple(refusal for refusal in refused if refusal is not None)
            for refusal in reasons:
                self._audit.write(now, "document refused", refusal.fields.get("document", ""), _coded(refusal))
                log.error("what the centre sent is refused", code=refusal.code.value, why=refusal.message)
            self._received = papers.sha256
            return reasons

    def take_key_sets(
        self, envelopes: tuple[bytes, ...], root: TrustedFederationRoot, now: datetime
    ) -> tuple[Refusal, ...]:
        """Why what is not taken is not. Raises OSError."""
        refused: list[Refusal] = []
        with self._lock:
            for envelope in envelopes:
                found = trust_key_set(envelope, root, revoked=self.revoked())
                if isinstance(found, Refusal):
                    refused.append(found)
                elif (older := self._not_older(ISSUER_KEYS, found.document.issuer, found, now)) is not None:
                    refused.append(older)
                elif envelope not in self._home.key_sets.envelopes():
                    self._home.key_sets.keep(found.document.issuer, envelope)
        return tuple(refused)

    def _keep(
        self,
        kind: str,
        found: TrustedRevocations | TrustedTimestamp | Refusal,
        envelope: bytes,
        federation: str,
        now: datetime,
    ) -> Refusal | None:
        if isinstance(found, Refusal):
            return found
        if (refusal := self._not_older(kind, federation, found, now)) is not None:
            return refusal
        self._memory.keep(kind, envelope)
        return None

    def _take_roots(self, roots: tuple[bytes, ...], now: datetime) -> None:
        """Each root that follows the one in force; the others say nothing here. Whether one is missing is for the
        timestamp to say."""
        for envelope in roots:
            if (current := self._in_force("federation-root")) is None:
                return
            if isinstance(root := next_federation_root(current, envelope, self.revoked()), TrustedFederationRoot):
                write(next_of(self._home.federation_root_file), envelope)
                self._change_root("federation-root", self._settings.federation, root, now)
                log.info("the federation has a new root", version=root.document.version)

    # -------------------------------------------------- what the custodian says

    def look_at_words(self, now: datetime) -> None:
        """What was said at a terminal since: revocations, a clock that is right, a next root. Also at every start."""
        with self._lock:
            for word in self._memory.said():
                if word.kind == "clock":
                    self._audit.write(now, CLOCK_ACCEPTED, self._settings.site, {"by": word.by})
                    self._memory.accept_clock(parse_utc(word.what))
                    self._ticked = None
                else:
                    self._audit.write(now, REVOKED_HERE, f"{word.kind} {word.what}", {"by": word.by})
                self._memory.heard(word)
            self._take_next_site_root(now)
            self._finish("federation-root")

    def _take_next_site_root(self, now: datetime) -> None:
        file, site = self._home.site_root_file, self._settings.site
        if not next_of(file).exists() or self._finish("site-root"):
            return
        current = self._in_force("site-root")
        match None if current is None else next_site_root(current, next_of(file).read_bytes(), site):
            case None:
                log.error("the site root was replaced; nothing follows it", site=site)
                next_of(file).unlink()
            case Refusal() as refusal:
                self._audit.write(now, "document refused", f"site-root {site}", _coded(refusal))
                log.error("the next site root is refused", code=refusal.code.value, why=refusal.message)
                next_of(file).unlink()
            case root:
                self._change_root("site-root", site, root, now)
                log.info("the site has a new root", version=root.document.version)

    def _in_force(self, kind: str) -> bytes | None:
        """The root's envelope; None when the file is not what this site holds to. It may have expired."""
        file, document, id = self._roots[kind]
        envelope, mark = file.read_bytes(), self._memory.mark(kind, id)
        if kind == "federation-root" and sha256_of(envelope) != file.with_suffix(".sha256").read_text().strip():
            return None
        try:
            as_remembered = mark is None or Signed.parse(envelope, document).sha256 == mark.sha256
        except Malformed:
            return None
        return envelope if as_remembered else None

    def _change_root(self, kind: str, id: str, root: TrustedSiteRoot | TrustedFederationRoot, now: datetime) -> None:
        """Audit log ▸ memory ▸ file. A gateway that is killed in between finishes at its next start (`_finish`)."""
        self._remember(kind, id, root, now)
        self._finish(kind)

    def _finish(self, kind: str) -> bool:
        """Put the next root in its place, if it is the one that was taken up."""
        file, document, id = self._roots[kind]
        following = next_of(file)
        if not following.exists():
            return False
        envelope = following.read_bytes()
        mark = self._memory.mark(kind, id)
        try:
            taken = mark is not None and Signed.parse(envelope, document).sha256 == mark.sha256
        except Malformed:
            return False
        if taken:
            if kind == "federation-root":
                write(file.with_suffix(".sha256"), sha256_of(envelope).encode())
            os.replace(following, file)
        return taken

    # ------------------------------------------------------------------- small

    def _revocations(self, root: TrustedFederationRoot) -> TrustedRevocations | None:
        held = self._memory.kept("revocations")
        listed = None if held is None else trust_revocations(held, root)
        if listed is None or isinstance(listed, Refusal):
            return None
        older = self._older("revocations", root.document.federation, listed)
        return listed if older is None else None

    def _listed(self, envelope: bytes, root: TrustedFederationRoot) -> TrustedRevocations | Refusal:
        """The list that was taken up last stands, also where it revokes a key that signed it; another one needs keepers
        whose keys are not revoked."""
        listed = trust_revocations(envelope, root)
        if isinstance(listed, Refusal) or self._memory.mark("revocations", root.document.federation) == _mark(listed):
            return listed
        return trust_revocations(envelope, root, self.revoked())

    def _clock(self, now: datetime) -> Refusal | None:
        return set_back(self._memory, now)

    def _older(self, kind: str, id: str, found: _Versioned) -> Refusal | None:
        return _older(self._memory.mark(kind, id), kind, id, found)

    def _not_older(self, kind: str, id: str, found: _Versioned, now: datetime) -> Refusal | None:
        """The same, and from now on it is the newest."""
        if (refusal := self._older(kind, id, found)) is None and self._memory.mark(kind, id) != _mark(found):
            self._remember(kind, id, found, now)
        return refusal

    def _remember(self, kind: str, id: str, found: _Versioned, now: datetime) -> None:
        mark = _mark(found)
        self._audit.write(now, TAKEN, f"{kind} {id}", {"version": str(mark.version), "sha256": mark.sha256})
        self._memory.remember(kind, id, mark)

    def _as_remembered(self, kind: str, id: str, found: _Versioned, now: datetime) -> Refusal | None:
        """Roots change by rotation alone: another file in their place is nobody's word."""
        known, mark = self._memory.mark(kind, id), _mark(found)
        if known is None:
            self._remember(kind, id, found, now)
            return None
        if known == mark:
            return None
        what = f"The {kind} of {id} is version {mark.version} ({mark.sha256}), not the one in force here"
        code = Code.VERSION_ROLLED_BACK if mark.version < known.version else Code.ROOT_DIFFERS
        return refuse(code, f"{what}: version {known.version} ({known.sha256}).", document=f"{kind} {id}")


# ---------------------------------------------------------------- read beside a gateway, which may serve or not


def policies_here(home: Home, now: datetime) -> tuple[tuple[TrustedPolicy, ...], tuple[NotTrusted, ...]]:
    """As `Standing.policies`, for who only looks: nothing is written, and nothing becomes the newest by it."""
    with remembered(home.memory_file) as memory:
        return home.policies(now) if memory is None else _as_they_lie(home, memory, now)


def _as_they_lie(home: Home, memory: Memory, now: datetime) -> tuple[tuple[TrustedPolicy, ...], tuple[NotTrusted, ...]]:
    found, refused = home.policies(now, memory.revoked())
    marks = {policy.id: memory.mark("policy", policy.id) for policy in found}

    def older(policy: TrustedPolicy) -> Refusal | None:
        if (refusal := _older(marks[policy.id], "policy", policy.id, policy)) is None:
            marks[policy.id] = _mark(policy)
        return refusal

    return _newest(found, refused, older)


def set_back(memory: Memory, now: datetime) -> Refusal | None:
    """Whether this machine's clock shows less than it did before."""
    latest = memory.latest()
    if latest is None or now >= latest - CLOCK_LEEWAY:
        return None
    what = f"It is {format_utc(now)} by this machine's clock, and it was {format_utc(latest)} before."
    return refuse(Code.CLOCK_SET_BACK, what, now=format_utc(now), latest=format_utc(latest))


def _newest(
    found: tuple[TrustedPolicy, ...],
    refused: tuple[NotTrusted, ...],
    older: Callable[[TrustedPolicy], Refusal | None],
) -> tuple[tuple[TrustedPolicy, ...], tuple[NotTrusted, ...]]:
    trusted: list[TrustedPolicy] = []
    for policy in sorted(found, key=lambda p: -p.document.version):
        if (refusal := older(policy)) is None:
            trusted.append(policy)
            continue
        # Its own newer version beside it has taken back what it said, also whom it refused.
        newer = any(p.id == policy.id and p.document.version > policy.document.version for p in trusted)
        refused = (*refused, not_trusted(refusal, frozenset() if newer else policy.datasets))
    return tuple(trusted), refused


def _older(known: Mark | None, kind: str, id: str, found: _Versioned) -> Refusal | None:
    """None for what is newer than all before, or the newest itself, byte for byte."""
    version = found.document.version
    if known is None or version > known.version or _mark(found) == known:
        return None
    how = "of the same version, with other bytes," if version == known.version else f"of version {known.version}"
    what = f"The {kind} {id} has version {version}; one {how} was in force here before."
    fields = {"document": f"{kind} {id}", "version": str(version), "newest": str(known.version)}
    return refuse(Code.VERSION_ROLLED_BACK, what, **fields)


_Versioned: TypeAlias = (
    TrustedSiteRoot | TrustedFederationRoot | TrustedPolicy | TrustedRevocations | TrustedTimestamp | TrustedKeySet
)


def _mark(found: _Versioned) -> Mark:
    return Mark(found.document.version, found.sha256)


def next_of(file: Path) -> Path:
    """Where the root lies that shall take the place of `file`."""
    return file.with_name(f"{file.stem}.next.dsse")


def _coded(refusal: Refusal) -> dict[str, str]:
    return {"code": refusal.code.value}
