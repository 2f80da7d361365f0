"""A policy in plain words, for the custodian who is about to sign it and for everybody who is told no by it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from msfl.policies.documents import AssetPolicy, PolicyLimits, format_utc


def in_words(policy: AssetPolicy) -> tuple[str, ...]:
    """One sentence per line, in the order in which the rules are decided."""
    who = policy.beneficiaries
    people = f"the users {_and(who.users)}" if who.users else "any user"
    if who.organisations:
        people += f" of {_and(who.organisations)}"
    releases = [
        f"  {r.name} {_and(r.versions)}: {_and(r.tasks)}; at least {r.reviewers.minimum} reviewers; "
        f"image {_and(d[:19] + '…' for d in r.digests)}"
        for r in policy.releases
    ]
    cases, approval = policy.privacy.min_cases, policy.approval
    auto = f", except for {_and(approval.auto_for)}" if approval.auto_for else ""
    confirm = f"You confirm each run{auto}." if approval.mode == "confirm" else "Runs start without asking you."
    test_use = "evaluation only" if policy.splits.test else "nothing"
    return (
        f"{policy.id}, version {policy.version}: {policy.purpose}",
        f"In force from {format_utc(policy.not_before)} until {format_utc(policy.expires)}.",
        f"Data: {_and(policy.datasets)}. Training cases serve {_and(policy.splits.train) or 'nothing'}; "
        f"test cases serve {test_use}.",
        f"For {people}.",
        "What may run:",
        *releases,
        "With these settings, and no others:",
        *(f"  {key}: {_limits(limits)}" for key, limits in policy.config.items()),
        f"What may leave: {what_may_leave(policy)}",
        f"Only with {cases.train} training cases, {cases.metrics} test cases and {policy.privacy.min_sites} sites.",
        f"Within {policy.resources.gpus} GPUs, {policy.resources.memory_gib} GiB and {policy.resources.wall_time}; "
        f"isolation at least {policy.isolation.value}; the user's signature on the job is {policy.proof}.",
        f"At most {approval.max_runs} runs and {approval.max_rounds} rounds in all. {confirm}",
    )


def what_may_leave(policy: AssetPolicy) -> str:
    outputs = policy.outputs
    weights = f"weights up to {outputs.weights.max_mib} MiB" if outputs.weights else "no weights"
    return (
        f"{weights}; {'also' if outputs.local_model else 'never'} this site's own unaggregated model; "
        f"{_and(outputs.metrics) or 'no metrics'}, {'per case' if outputs.per_case_metrics else 'never per case'}."
    )


def warnings(policy: AssetPolicy, now: datetime) -> tuple[str, ...]:
    """What is valid but worth a second look before signing."""
    found = []
    if policy.expires <= now:
        found.append("it has expired: nothing will run")
    if not policy.beneficiaries.users:
        found.append("it names no user: everybody of the organisations may use the data")
    if policy.outputs.local_model:
        found.append("this site's own, unaggregated model may leave")
    if policy.outputs.per_case_metrics:
        found.append("metrics of single cases may leave")
    if policy.privacy.min_sites < 2:
        found.append("a run may have this site alone, so the result is this site's own model")
    if policy.isolation.value == "none":
        found.append("no isolation between the reviewed code and this computer")
    if policy.proof == "optional":
        found.append("whoever gets hold of a user's token can submit jobs as that user")
    if policy.privacy.secure_aggregation == "required" or policy.privacy.epsilon_total is not None:
        found.append("it asks for protection that this version does not have: every job will be refused")
    return tuple(found)


def _limits(limits: PolicyLimits) -> str:
    parts = []
    if limits.const is not None:
        parts.append(f"exactly {limits.const}")
    if limits.enum is not None:
        parts.append(f"one of {_and(map(str, limits.enum))}")
    if limits.min is not None:
        parts.append(f"at least {limits.min}")
    if limits.max is not None:
        parts.append(f"at most {limits.max}")
    return ", ".join(parts) + (", or none" if limits.nullable else "")


def _and(words: Iterable[str]) -> str:
    return ", ".join(words)
