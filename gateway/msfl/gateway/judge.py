"""From an offer to a decision: gathers what the pure `decide` needs, in the order in which trust is built.

    spec bytes ─▶ strict JobSpec ─▶ token verified against pinned issuers ─▶ job signed with the token's key
      ─▶ release statement and reviews trusted under the federation root ─▶ config resolved from that statement
      ─▶ policies trusted under the site's own root ─▶ the dataset's record ─▶ decide()

The first step that fails is the refusal. Nothing here starts anything; nothing that is not verified is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from msfl.gateway.home import Home
from msfl.gateway.ledger import Ledger
from msfl.policies.decide import Decision, Request, Verdict, decide, recheck
from msfl.policies.documents import Isolation, JobSpec
from msfl.policies.encoding import Malformed, load_json
from msfl.policies.identity import User, verify_job, verify_token
from msfl.policies.refusals import Code, Refusal, refuse
from msfl.policies.resolve import resolve_config
from msfl.policies.trust import TrustedFederationRoot, TrustedPolicy, TrustedRelease
from msfl.protos.messages import Offer
from msfl.registry.interface import Registry
from msfl.registry.publish import publication

JsonObject: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Accepted:
    """Everything a run may rely on, all of it verified: what `decide` saw, and the policy that allowed it."""

    job: JobSpec
    user: User
    release: TrustedRelease
    resolved: JsonObject
    dataset_id: str
    trains: bool
    policy: TrustedPolicy


@dataclass(frozen=True)
class Judgement:
    """`accepted` is there when the verdict is allow, or would be once the custodian confirms."""

    decision: Decision
    accepted: Accepted | None
    job: JobSpec | None = None
    user: User | None = None


class Judge:
    def __init__(self, home: Home, registry: Registry, ledger: Ledger, isolation: Isolation) -> None:
        self._home = home
        self._registry = registry
        self._ledger = ledger
        self._isolation = isolation

    def judge(self, offer: Offer, now: datetime) -> Judgement:
        try:
            job = load_json(offer.spec, JobSpec, "the job")
        except Malformed as error:
            return _refused(refuse(Code.MALFORMED_DOCUMENT, f"The job cannot be read: {error}."))
        root = self._home.federation_root(now)
        if isinstance(root, Refusal):
            return _refused(root, job)
        user = verify_token(offer.token, root.document.issuers, now)
        if isinstance(user, Refusal):
            return _refused(user, job)
        proof = verify_job(offer.spec, offer.proof, user, proof_required=False)
        if isinstance(proof, Refusal):
            return _refused(proof, job, user)
        if not offer.dry_run and not self._ledger.claim(job.nonce, offer.run_id):
            return _refused(refuse(Code.JOB_REPLAYED, f"The job {job.name} was used for another run."), job, user)
        release = self._release(job, root, now)
        if isinstance(release, Refusal):
            return _refused(release, job, user)
        resolved = resolve_config(job, release.statement)
        if isinstance(resolved, Refusal):
            return _refused(resolved, job, user)
        ref = next((r for r in job.datasets if r.startswith(f"{self._home.settings().site}/")), None)
        if ref is None:
            return _refused(refuse(Code.JOB_INCONSISTENT, "The job names no dataset of this site."), job, user)
        dataset = self._home.dataset(ref.split("/", 1)[1])
        if isinstance(dataset, Refusal):
            return _refused(dataset, job, user)
        policies, untrusted = self._home.policies(now)
        ids = [p.document.id for p in policies]
        request = Request(
            site=self._home.settings().site,
            dataset=dataset,
            release=release,
            user=user,
            job=job,
            resolved=resolved,
            isolation=self._isolation,
            proof_given=bool(offer.proof),
            participants=len(job.datasets),
            runs_so_far={i: self._ledger.runs(i) for i in ids},
            rounds_so_far={i: self._ledger.rounds(i) for i in ids},
        )
        decision = decide(request, policies, now, untrusted)
        if decision.verdict is Verdict.REFUSE:
            return Judgement(decision, None, job, user)
        policy = next(p for p in policies if p.sha256 == decision.policy_sha256)
        accepted = Accepted(job, user, release, resolved, dataset.id, job.trains_on(ref), policy)
        return Judgement(decision, accepted, job, user)

    def recheck(self, accepted: Accepted, round: int, trains: bool, now: datetime) -> Refusal | None:
        """Does the policy that allowed the run still stand, as these very bytes, for this round?"""
        policies, _ = self._home.policies(now)
        policy = next((p for p in policies if p.sha256 == accepted.policy.sha256), None)
        if policy is None:
            what = f"The policy {accepted.policy.document.id} that allowed this run is not in force any more."
            return refuse(Code.NO_POLICY, what)
        # Only training spends rounds; a run that has trained its last one may still evaluate.
        spent = self._ledger.rounds(policy.document.id) if trains else 0
        return recheck(policy, round, now, spent)

    def _release(self, job: JobSpec, root: TrustedFederationRoot, now: datetime) -> TrustedRelease | Refusal:
        if job.digest is None:
            return refuse(Code.JOB_INCONSISTENT, f"The job names {job.release} without its digest.")
        release = publication(self._registry, job.digest, root, now)
        if isinstance(release, Refusal):
            return release
        if release.statement.ref != job.release:
            what = f"The job names {job.release} with the digest of {release.statement.ref}."
            return refuse(Code.JOB_INCONSISTENT, what)
        return release


def _refused(refusal: Refusal, job: JobSpec | None = None, user: User | None = None) -> Judgement:
    return Judgement(Decision(Verdict.REFUSE, None, None, (), refusal), None, job, user)
