"""`decide` against the same rules written down once more, plainly and from the custodian's page (docs/policy.md).

Whatever is done for speed, the verdict and the failed rules are those of the plain version, for policies and requests
that Hypothesis makes up: several policies for one dataset, budgets half spent, bounds just met and just missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.asked import documents, requests, with_document
from fakes.governance import NOW
from msfl.policies.decide import Decision, Request, Verdict, decide
from msfl.policies.documents import AssetPolicy, Isolation, PolicyLimits
from msfl.policies.identity import User
from msfl.policies.trust import TrustedPolicy

# ------------------------------------------------------------------------------------- the rules, once more


def named(user: User, names: tuple[str, ...]) -> bool:
    by_subject = user.only_issuer and "@" not in user.subject and user.subject in names
    return (
        by_subject
        or f"{user.issuer}#{user.subject}" in names
        or (user.email != "" and user.email.lower() in [n.lower() for n in names])
    )


def refuses_by_name(p: AssetPolicy, r: Request) -> bool:
    no_address = r.user.email == "" and any("@" in name for name in p.refuse.users)
    no_organisation = r.user.organisation == "" and p.refuse.organisations != ()
    return (
        named(r.user, p.refuse.users)
        or r.user.subject in p.refuse.users
        or no_address
        or r.user.organisation.lower() in p.refuse.organisations
        or no_organisation
        or r.release.statement.digest in p.refuse.digests
    )


def within(value: Any, limits: PolicyLimits) -> bool:
    """Only for what this file's jobs hold: one number, one string or one boolean."""
    if limits.const is not None and (
        value != limits.const or isinstance(value, bool) != isinstance(limits.const, bool)
    ):
        return False
    if limits.enum is not None and (type(value), value) not in [(type(e), e) for e in limits.enum]:
        return False
    if limits.min is None and limits.max is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (limits.min is None or limits.min <= value) and (limits.max is None or value <= limits.max)


def failed_rules(p: AssetPolicy, r: Request, now: datetime) -> set[str]:
    s, job = r.release.statement, r.job
    trains = r.dataset.ref not in job.evaluate_only
    by_name = [e for e in p.releases if e.name == s.name]
    by_digest = [e for e in by_name if s.version in e.versions and s.digest in e.digests]
    tasks = {"prepare", "evaluate"} | ({"fingerprint", "train"} if trains else set())
    training_sites = len(job.datasets) - len(job.evaluate_only)
    use = r.user
    strength = [Isolation.NONE, Isolation.SANDBOX, Isolation.CONTAINER]
    rules = {
        "not_refused": not refuses_by_name(p, r),
        "policy_in_force": p.not_before <= now < p.expires,
        "dataset_named": r.dataset.id in p.datasets,
        "user_beneficiary": (p.beneficiaries.users == () or named(use, p.beneficiaries.users))
        and (p.beneficiaries.organisations == () or use.organisation in p.beneficiaries.organisations),
        "release_named": any(s.version in e.versions for e in by_name),
        "digest_named": by_digest != [],
        "tasks_allowed": all(t in s.tasks and any(t in e.tasks for e in by_digest) for t in tasks),
        "reviewers_enough": by_digest != [] and all(e.reviewers.minimum <= len(r.release.reviewers) for e in by_digest),
        "config_known_keys": set(r.resolved) <= set(p.config),
        "config_in_range": all(within(v, p.config[k]) for k, v in r.resolved.items() if k in p.config),
        "splits_allowed": "evaluate" in p.splits.test and (not trains or {"train", "evaluate"} <= set(p.splits.train)),
        "weights_may_leave": not trains or p.outputs.weights is not None,
        "min_cases_train": not trains or r.dataset.n_train >= p.privacy.min_cases.train,
        "min_cases_test": r.dataset.n_test >= p.privacy.min_cases.metrics,
        "min_sites": all(n >= p.privacy.min_sites for n in (r.participants, training_sites, job.min_sites)),
        "secure_aggregation": p.privacy.secure_aggregation != "required",
        "epsilon_total": p.privacy.epsilon_total is None,
        "resources": s.resources.gpus <= p.resources.gpus and s.resources.memory_gib <= p.resources.memory_gib,
        "isolation": strength.index(r.isolation) >= strength.index(p.isolation),
        "proof": r.proof_given or p.proof == "optional",
        "max_runs": r.runs_so_far.get(p.id, 0) < p.approval.max_runs,
        "max_rounds": r.rounds_so_far.get(p.id, 0) + (job.rounds if trains else 0) <= p.approval.max_rounds,
    }
    return {name for name, holds in rules.items() if not holds}


@dataclass(frozen=True)
class Plain:
    verdict: Verdict
    failed: dict[str, set[str]]


def plainly(r: Request, policies: tuple[TrustedPolicy, ...], now: datetime) -> Plain:
    """`failed`: by the hash of each policy that names the dataset."""
    failed: dict[str, set[str]] = {}
    refused_by_name = allowed = possible = False
    for policy in policies:
        p = policy.document
        if r.dataset.id not in p.datasets:
            continue
        same = [q for q in policies if q.document.id == p.id]
        older = any(q.document.version > p.version for q in same)
        twice = any(q.document.version == p.version and q.sha256 != policy.sha256 for q in same)
        failed[policy.sha256] = failed_rules(p, r, now) | ({"policy_newest"} if older or twice else set())
        if refuses_by_name(p, r) and not older and not twice:
            refused_by_name = True
        if not failed[policy.sha256]:
            possible = True
            if p.approval.mode == "auto" or r.confirmed or named(r.user, p.approval.auto_for):
                allowed = True
    if refused_by_name:
        verdict = Verdict.REFUSE
    else:
        verdict = Verdict.ALLOW if allowed else Verdict.CONFIRM if possible else Verdict.REFUSE
    return Plain(verdict, failed)


def must_agree(decision: Decision, plain: Plain) -> None:
    assert decision.verdict is plain.verdict
    if not plain.failed:
        assert (decision.policy_id, decision.policy_sha256) == (None, None)
        return
    assert decision.policy_sha256 is not None
    failed = {rule.rule for rule in decision.rules if not rule.passed}
    assert failed == plain.failed[decision.policy_sha256]
    assert (decision.refusal is None) == (plain.verdict is not Verdict.REFUSE)
    assert all((rule.code is None) == rule.passed for rule in decision.rules)
    if decision.verdict is Verdict.REFUSE and "not_refused" not in failed:
        assert len(failed) == min(len(names) for names in plain.failed.values())


@settings(max_examples=60, deadline=None)
@given(requests(), st.lists(documents(), max_size=4))
def test_the_decision_is_the_plain_ones(request: Request, given_documents: list[AssetPolicy]) -> None:
    policies = tuple(with_document(document, f"sha256:{n:064d}") for n, document in enumerate(given_documents, start=1))
    must_agree(decide(request, policies, NOW), plainly(request, policies, NOW))


@settings(max_examples=20, deadline=None)
@given(requests(), st.lists(documents(), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_the_files_changes_nothing(request: Request, given_documents: list[AssetPolicy], mix: Any) -> None:
    policies = [with_document(d, f"sha256:{n:064d}") for n, d in enumerate(given_documents, start=1)]
    first = decide(request, tuple(policies), NOW)
    mix.shuffle(policies)
    assert decide(request, tuple(policies), NOW).verdict is first.verdict
