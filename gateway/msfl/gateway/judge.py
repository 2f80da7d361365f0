"""From an offer to a decision: gathers what the pure `decide` needs, in the order in which trust is built.

    spec bytes ─▶ strict JobSpec ─▶ may any run begin here now? (`standing`)
      ─▶ token verified against pinned issuers ─▶ job signed with the token's key, for this generation
      ─▶ release statement and reviews trusted under the federation root ─▶ config resolved from that statement
      ─▶ policies trusted under the site's own root ─▶ the dataset's record ─▶ decide()

The first step that fails is the refusal. Nothing here starts anything; nothing that is not verified is used.

`again` builds the same trust for a run that was allowed before the gateway was restarted, from the papers that it kept.
`stands` decides anew on a run that has begun: before every task, before its worker starts, and every few seconds.
`begins` asks before its first worker what is asked of an offer, too: may any run begin here now?

A bug in any of this is a no (`fail_closed`, ENGINE_ERROR): an offer refused, a run ended. Everywhere else a bug ends
the process. Here whoever makes the offer chooses what is decided on, and sends it anew until it is answered: a gateway
that ended would end each time, with every other run at the site, and nothing in its audit log would say why.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

import structlog

from msfl.gateway.disk import is_full
from msfl.gateway.home import Home
from msfl.gateway.ledger import Ledger
from msfl.gateway.record import Papers
from msfl.gateway.standing import Standing
from msfl.policies.decide import Decision, Request, Verdict, decide, in_doubt, overruled, recheck
from msfl.policies.documents import DatasetRecord, Isolation, JobSpec
from msfl.policies.encoding import Malformed, load_json, sha256_of
from msfl.policies.identity import User, issuer_key_revoked, verify_job, verify_token
from msfl.policies.orders import unasked
from msfl.policies.refusals import Code, Refusal, Refused, refuse
from msfl.policies.resolve import resolve_config
from msfl.policies.trust import (
    NotTrusted,
    Revoked,
    TrustedFederationRoot,
    TrustedPolicy,
    TrustedRelease,
    separate_roles,
)
from msfl.protos.messages import Offer, TaskOrder
from msfl.registry.interface import NotInRegistry, Registry, RegistryFails
from msfl.registry.publish import statements_of, trust_papers

JsonObject: TypeAlias = dict[str, Any]
_T = TypeVar("_T")
log = structlog.get_logger()


@dataclass(frozen=True)
class EngineError(Refusal):
    """No decision came out. `error`, the exception's type, is for the site's audit log; `to_json` leaves it out."""

    error: str = ""


def fail_closed(decide: Callable[[], _T]) -> _T | EngineError:
    """What `decide` says; where it raises, no: the only place that catches a bug (see above). A full disk is none."""
    try:
        return decide()
    except Exception as error:
        if isinstance(error, OSError) and is_full(error):
            raise
        # As text, without the variables of each frame: among them are the user's token and names of files.
        log.error("the decision itself failed; the answer is no", traceback=traceback.format_exc())
        no = refuse(Code.ENGINE_ERROR, "The decision itself failed at this site.")
        return EngineError(no.code, no.message, error=type(error).__name__)


@dataclass(frozen=True)
class Accepted:
    """Everything a run may rely on, all of it verified: what `decide` saw, and the policy that allowed it. With
    `request` and `papers` it can be decided on anew."""

    job: JobSpec
    user: User
    release: TrustedRelease
    resolved: JsonObject
    dataset_id: str
    trains: bool
    policy: TrustedPolicy
    request: Request
    papers: Papers

    @property
    def job_sha256(self) -> str:
        return sha256_of(self.papers.spec)


@dataclass(frozen=True)
class Judgement:
    """`accepted` and `papers` are there when the verdict is allow, or would be once the custodian confirms."""

    decision: Decision
    accepted: Accepted | None
    job: JobSpec | None = None
    user: User | None = None
    papers: Papers | None = None


class Judge:
    def __init__(
        self,
        home: Home,
        registry: Registry,
        ledger: Ledger,
        isolation: Isolation,
        standing: Standing,
        *,
        whole_images: bool = False,
    ) -> None:
        """`whole_images`: this site runs containers, which take releases on a base image only."""
        self._whole_images = whole_images
        self._home = home
        self._standing = standing
        self._registry = registry
        self._ledger = ledger
        self._isolation = isolation

    def judge(self, offer: Offer, now: datetime, kept: Papers | None = None) -> Judgement:
        """`kept`: papers of an earlier decision on this run; its release's serve where the registry cannot be asked."""
        judged = fail_closed(lambda: self._judge(offer, now, kept))
        return refused(judged) if isinstance(judged, EngineError) else judged

    def again(self, papers: Papers, now: datetime) -> Accepted | Refusal:
        """What the decision on `papers` allowed, as far as it still stands: root, job, release, dataset, policy.

        The user's claims are taken as they were verified at the decision: the token was good then, may have expired
        since, and a run does not end with it. That the job is signed with that user's key is verified again.
        """
        return fail_closed(lambda: self._again(papers, now))

    def stands(self, accepted: Accepted, now: datetime, *, starting: bool = False) -> Refusal | None:
        """Decide anew on a run that has begun: is its release still trusted, does the policy that allowed it still
        stand, as these very bytes, and does it still allow it? Its budgets are not asked: the run is part of them.

        `starting`: a worker of it is to start now, beside no policy that has stopped being trusted. What works already
        goes on: when its run was decided on, all of them could be read."""
        return fail_closed(lambda: self._stands(accepted, now, starting))

    def begins(self, accepted: Accepted, now: datetime) -> Refusal | None:
        """The same of a run that has not begun; and may any begin here now? That was asked when it was offered, and
        whoever orders the start chooses how long ago that was."""
        return fail_closed(lambda: self._stands(accepted, now, starting=True) or self._standing.may_begin(now))

    def recheck(self, accepted: Accepted, order: TaskOrder, now: datetime, *, begun: bool) -> Refusal | None:
        """Does all that the run rests on still stand, and does it bear this order? Not yet `begun`: may it begin?"""
        stands = self.stands if begun else self.begins
        return stands(accepted, now) or fail_closed(lambda: self._recheck(accepted, order, now))

    def unasked(self, accepted: Accepted, order: TaskOrder, document: JsonObject) -> Refusal | None:
        """The same, of the order alone, once all its parameters are at hand, also those that come sealed."""
        return fail_closed(lambda: unasked(accepted.request, order.task_id, order.verb, order.round, document))

    # ----------------------------------------------------------------- the steps

    def _judge(self, offer: Offer, now: datetime, kept: Papers | None) -> Judgement:
        try:
            job = load_json(offer.spec, JobSpec, "the job")
        except Malformed as error:
            return refused(refuse(Code.MALFORMED_DOCUMENT, f"The job cannot be read: {error}."))
        if (not_now := self._standing.may_begin(now)) is not None:
            return refused(not_now, job)
        root, revoked = self._standing.federation_root(now), self._standing.revoked()
        if isinstance(root, Refusal):
            return refused(root, job)
        if gone := sorted(revoked.sites.intersection(job.sites)):
            return refused(refuse(Code.SITE_REVOKED, f"The job names {gone[0]}, which is revoked.", site=gone[0]), job)
        # What the centre carries counts for its stewards' signatures alone; what is not taken leaves what is known.
        not_taken = self._standing.take_key_sets(offer.issuer_keys, root, now)
        user = verify_token(offer.token, root.document.issuers, now, self._standing.key_sets(root), revoked)
        if isinstance(user, Refusal):
            return refused(not_taken[0] if not_taken and user.code is Code.ISSUER_KEYS_STALE else user, job)
        proof = verify_job(
            offer.spec, offer.proof, user, proof_required=False, dry_run=offer.dry_run, generation=offer.generation
        )
        if isinstance(proof, Refusal):
            return refused(proof, job, user)
        if not offer.dry_run and not self._ledger.claim(job.nonce, offer.run_id):
            return refused(refuse(Code.JOB_REPLAYED, f"The job {job.name} was used for another run."), job, user)
        envelopes = self._envelopes(job, kept)
        if isinstance(envelopes, Refusal):
            return refused(envelopes, job, user)
        statement, reviews = envelopes
        release = _release(job, statement, reviews, root, now, revoked)
        if isinstance(release, Refusal):
            return refused(release, job, user)
        resolved = resolve_config(job, release.statement)
        if isinstance(resolved, Refusal):
            return refused(resolved, job, user)
        dataset = self._dataset(job)
        if isinstance(dataset, Refusal):
            return refused(dataset, job, user)
        policies, untrusted = self._standing.policies(now)
        ids = [p.document.id for p in policies]
        request = replace(
            self._request(job, user, release, resolved, dataset, bool(offer.proof)),
            runs_so_far={i: self._ledger.runs(i) for i in ids},
            rounds_so_far={i: self._ledger.rounds(i) for i in ids},
        )
        decision = decide(request, policies, now, untrusted)
        if decision.verdict is Verdict.REFUSE:
            return Judgement(decision, None, job, user)
        policy = next(p for p in policies if p.sha256 == decision.policy_sha256)
        if (twice := self._twice(policy, release, root, now)) is not None:
            return refused(twice, job, user)
        if self._whole_images and (lacking := _without_base(release)) is not None:
            return refused(lacking, job, user)
        papers = Papers(
            offer.spec,
            offer.proof,
            user,
            statement,
            reviews,
            policy.document.id,
            policy.sha256,
            offer.generation,
        )
        trains = job.trains_on(dataset.ref)
        accepted = Accepted(job, user, release, resolved, dataset.id, trains, policy, request, papers)
        return Judgement(decision, accepted, job, user, papers)

    def _again(self, papers: Papers, now: datetime) -> Accepted | Refusal:
        try:
            job = load_json(papers.spec, JobSpec, "the job")
        except Malformed as error:
            return refuse(Code.MALFORMED_DOCUMENT, f"The job cannot be read: {error}.")
        root, revoked = self._standing.federation_root(now), self._standing.revoked()
        if isinstance(root, Refusal):
            return root
        wrong = verify_job(papers.spec, papers.proof, papers.user, proof_required=False, generation=papers.generation)
        if wrong is not None:
            return wrong
        release = _release(job, papers.statement, papers.reviews, root, now, revoked)
        if isinstance(release, Refusal):
            return release
        resolved = resolve_config(job, release.statement)
        if isinstance(resolved, Refusal):
            return resolved
        dataset = self._dataset(job)
        if isinstance(dataset, Refusal):
            return dataset
        policy = _policy(papers, *self._standing.policies(now))
        if isinstance(policy, Refusal):
            return policy
        request = self._request(job, papers.user, release, resolved, dataset, bool(papers.proof))
        trains = job.trains_on(dataset.ref)
        accepted = Accepted(job, papers.user, release, resolved, dataset.id, trains, policy, request, papers)
        return self._stands(accepted, now) or accepted

    def _stands(self, accepted: Accepted, now: datetime, starting: bool = False) -> Refusal | None:
        if (gone := self._standing.site_revoked()) is not None:
            return gone
        root = self._standing.federation_root(now)
        if isinstance(root, Refusal):
            return root
        papers, revoked = accepted.papers, self._standing.revoked()
        if (gone := issuer_key_revoked(accepted.user, revoked)) is not None:
            return gone
        release = _release(accepted.job, papers.statement, papers.reviews, root, now, revoked)
        if isinstance(release, Refusal):
            return release
        policies, untrusted = self._standing.policies(now)
        policy = _policy(papers, policies, untrusted)
        if isinstance(policy, Refusal):
            return policy
        if starting and (doubt := in_doubt(untrusted, accepted.dataset_id)) is not None:
            return doubt
        if against := overruled(policy, policies, accepted.dataset_id, accepted.user, release.statement.digest):
            return against
        if (twice := self._twice(policy, release, root, now)) is not None:
            return twice
        request = replace(accepted.request, release=release, runs_so_far={}, rounds_so_far={}, confirmed=True)
        return decide(request, (policy,), now).refusal

    def _recheck(self, accepted: Accepted, order: TaskOrder, now: datetime) -> Refusal | None:
        if (refusal := unasked(accepted.request, order.task_id, order.verb, order.round, order.document)) is not None:
            return refusal
        policy = accepted.policy
        # Only training spends rounds; a run that has trained its last one may still evaluate.
        trains, beside = order.verb == "train" and order.round > 0, (order.run_id, order.round)
        spent = self._ledger.rounds(policy.document.id, beside) if trains else 0
        return recheck(policy, order.round, now, spent)

    def _twice(
        self, policy: TrustedPolicy, release: TrustedRelease, root: TrustedFederationRoot, now: datetime
    ) -> Refusal | None:
        site = self._standing.site_root(now)
        if isinstance(site, Refusal):
            return site
        return separate_roles(f"The policy {policy.id}", policy.signers, release.people, site, root)

    def _request(
        self,
        job: JobSpec,
        user: User,
        release: TrustedRelease,
        resolved: JsonObject,
        dataset: DatasetRecord,
        proof_given: bool,
    ) -> Request:
        return Request(
            site=self._home.settings().site,
            dataset=dataset,
            release=release,
            user=user,
            job=job,
            resolved=resolved,
            isolation=self._isolation,
            proof_given=proof_given,
            participants=len(job.datasets),
        )

    def _dataset(self, job: JobSpec) -> DatasetRecord | Refusal:
        ref = next((r for r in job.datasets if r.startswith(f"{self._home.settings().site}/")), None)
        if ref is None:
            return refuse(Code.JOB_INCONSISTENT, "The job names no dataset of this site.")
        return self._home.dataset(ref.split("/", 1)[1])

    def _envelopes(self, job: JobSpec, kept: Papers | None) -> tuple[bytes, tuple[bytes, ...]] | Refusal:
        if job.digest is None:
            return refuse(Code.JOB_INCONSISTENT, f"The job names {job.release} without its digest.")
        try:
            return statements_of(self._registry, job.digest)
        except Refused as flooded:  # Kept papers do not serve then: a reject may have come since.
            return flooded.refusal
        except (NotInRegistry, FileNotFoundError, RegistryFails) as error:
            if kept is not None:
                return kept.statement, kept.reviews
            # What the registry is called here, and where it lies, is the site's own: the answer leaves it.
            log.error("the papers of a release cannot be had", digest=job.digest, why=str(error))
            if isinstance(error, RegistryFails):
                what = f"The statement of {job.digest} could not be fetched; the site's log says why."
                return refuse(Code.REGISTRY_UNREACHABLE, what, digest=job.digest)
            what = (
                f"The registry holds no signed statement for {job.digest}, or not all of it; the site's log says more."
            )
            return refuse(Code.WRONG_PUBLISHER, what, digest=job.digest)


def _policy(
    papers: Papers, policies: tuple[TrustedPolicy, ...], untrusted: tuple[NotTrusted, ...]
) -> TrustedPolicy | Refusal:
    """The policy that allowed a run, if it is still in force as these very bytes; else why it is not."""
    if (policy := next((p for p in policies if p.sha256 == papers.policy_sha256), None)) is not None:
        return policy
    revoked = {Code.KEY_REVOKED, Code.POLICY_REVOKED}
    return next((r for r in untrusted if r.code in revoked), _withdrawn(papers.policy_id))


def _without_base(release: TrustedRelease) -> Refusal | None:
    """A statement without materials does not say; then the container's start finds out."""
    materials = release.statement.materials
    if materials is None or materials.base is not None:
        return None
    what = f"{release.statement.ref} has no base image, and this site runs releases in containers only."
    return refuse(Code.IMAGE_NOT_SELF_CONTAINED, what, digest=release.statement.digest)


def _release(
    job: JobSpec,
    statement: bytes,
    reviews: tuple[bytes, ...],
    root: TrustedFederationRoot,
    now: datetime,
    revoked: Revoked,
) -> TrustedRelease | Refusal:
    if job.digest is None:
        return refuse(Code.JOB_INCONSISTENT, f"The job names {job.release} without its digest.")
    release = trust_papers(statement, reviews, job.digest, root, now, revoked)
    if isinstance(release, TrustedRelease) and release.statement.ref != job.release:
        what = f"The job names {job.release} with the digest of {release.statement.ref}."
        return refuse(Code.JOB_INCONSISTENT, what)
    return release


def _withdrawn(policy_id: str) -> Refusal:
    return refuse(Code.NO_POLICY, f"The policy {policy_id} that allowed this run is not in force any more.")


def refused(refusal: Refusal, job: JobSpec | None = None, user: User | None = None) -> Judgement:
    return Judgement(Decision(Verdict.REFUSE, None, None, (), refusal), None, job, user)
