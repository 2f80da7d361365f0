"""A policy in plain words, for the custodian who is about to sign it and for everybody who is told no by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from msfl.policies.changes import bounds_in_words
from msfl.policies.decide import RuleOutcome
from msfl.policies.documents import (
    AssetPolicy,
    Bound,
    FederationRoot,
    Member,
    PolicyLimits,
    ReleaseStatement,
    format_utc,
)
from msfl.policies.refusals import ADVICE
from msfl.policies.resolve import WrongType, config_bounds, typed, violation


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
    refuse = policy.refuse
    never = _and([*refuse.users, *refuse.organisations, *(f"image {d[:19]}…" for d in refuse.digests)])
    test_use = "evaluation only" if policy.splits.test else "nothing"
    return (
        f"{policy.id}, version {policy.version}: {policy.purpose}",
        f"In force from {format_utc(policy.not_before)} until {format_utc(policy.expires)}.",
        f"Data: {_and(policy.datasets)}. Training cases serve {_and(policy.splits.train) or 'nothing'}; "
        f"test cases serve {test_use}.",
        f"For {people}.",
        *([f"Never, whatever another policy says: {never}."] if never else []),
        "What may run:",
        *releases,
        "With these settings, and no others:",
        *(f"  {key}: {bounds_in_words(limits)}" for key, limits in policy.config.items()),
        f"What may leave: {what_may_leave(policy)}",
        f"Only with {cases.train} training cases, {cases.metrics} test cases and {policy.privacy.min_sites} sites.",
        f"Within {policy.resources.gpus} GPUs, {policy.resources.memory_gib} GiB and {policy.resources.wall_time}; "
        f"isolation at least {policy.isolation.value}; the user's signature on the job is {policy.proof}.",
        f"At most {approval.max_runs} runs and {approval.max_rounds} rounds in all. {confirm}",
    )


def root_in_a_line(root: FederationRoot, sha256: str) -> str:
    """What people read to each other over the telephone: the same wherever a root is shown. `sha256` is of the payload,
    so that one more keeper's signature changes nothing; and whole, because half a hash can be met by another root."""
    return f"federation {root.federation}, root version {root.version}, {sha256}, until {format_utc(root.expires)}"


def federation_in_words(root: FederationRoot, sha256: str) -> tuple[str, ...]:
    """Whom a site relies on that accepts this federation root."""

    def people(members: tuple[Member, ...]) -> str:
        return _and(dict.fromkeys(m.person for m in members))

    timekeepers = people(root.timekeepers) or "the keepers"
    return (
        root_in_a_line(root, sha256),
        f"  publishes releases:   {people(root.publishers)}",
        f"  reviews them:         {people(root.reviewers)}; {root.reviews_needed} needed",
        f"  says who users are:   {_and(issuer.issuer for issuer in root.issuers)}",
        f"  keeps this root:      {people(root.keepers)}; {root.threshold} needed",
        f"  says what is newest:  {timekeepers}",
    )


def what_may_leave(policy: AssetPolicy) -> str:
    outputs = policy.outputs
    weights = f"weights up to {outputs.weights.max_mib} MiB" if outputs.weights else "no weights"
    return (
        f"{weights}; {'also' if outputs.local_model else 'never'} this site's own unaggregated model; "
        f"{_and(outputs.metrics) or 'no metrics'}, {'per case' if outputs.per_case_metrics else 'never per case'}."
    )


FEWEST_CASES = 3  # Of two, each knows the other.


@dataclass(frozen=True)
class Look:
    """What is valid but worth a second look before signing; `path` is where in the document."""

    path: tuple[str | int, ...]
    what: str


def warnings(policy: AssetPolicy, now: datetime, release: ReleaseStatement | None = None) -> tuple[Look, ...]:
    """`release`: the statement of the release that the policy is for; its bounds are then held against that table."""
    found: list[Look] = []

    def look(what: str, *path: str | int) -> None:
        found.append(Look(path, what))

    if policy.expires <= now:
        look("it has expired: nothing will run", "expires")
    elif policy.not_before > now:
        look(f"nothing will run before {format_utc(policy.not_before)}", "not_before")
    elif policy.expires - now > timedelta(days=366):
        look("it is in force for more than a year", "expires")
    if not policy.beneficiaries.users:
        look("it names no user: everybody of the organisations may use the data", "beneficiaries")
    for n, allowed in enumerate(policy.releases):
        if allowed.reviewers.minimum < 2:
            look(f"one reviewer of {allowed.name} is enough", "releases", n, "reviewers")
    if policy.outputs.local_model:
        look("this site's own, unaggregated model may leave", "outputs", "local_model")
    if policy.outputs.per_case_metrics:
        look("metrics of single cases may leave", "outputs", "per_case_metrics")
    if policy.privacy.min_sites < 2:
        look("a run may have this site alone, so the result is this site's own model", "privacy", "min_sites")
    for name, fewest in (("train", policy.privacy.min_cases.train), ("metrics", policy.privacy.min_cases.metrics)):
        if fewest < FEWEST_CASES:
            look(
                f"what {fewest} case(s) alone say may leave: keep it at {FEWEST_CASES} or more",
                "privacy",
                "min_cases",
                name,
            )
    if policy.isolation.value == "none":
        look("no isolation between the reviewed code and this computer", "isolation")
    if policy.proof == "optional":
        look("whoever gets hold of a user's token can submit jobs as that user", "proof")
    if policy.privacy.secure_aggregation == "required":
        look(_UNAVAILABLE, "privacy", "secure_aggregation")
    if policy.privacy.epsilon_total is not None:
        look(_UNAVAILABLE, "privacy", "epsilon_total")
    limits = policy.config.get("rounds")
    if limits is not None and limits.max is not None and limits.max > policy.approval.max_rounds:
        look("one run may ask for more rounds than max_rounds allows in all", "config", "rounds")
    if release is not None:
        found += _against(policy, release)
    return tuple(found)


_UNAVAILABLE = "it asks for protection that this version does not have: every job will be refused"


def _against(policy: AssetPolicy, release: ReleaseStatement) -> Iterator[Look]:
    """Where a policy's table and a release's do not belong together."""
    table = config_bounds(release)
    entries = [(n, e) for n, e in enumerate(policy.releases) if e.name == release.name]
    if not any(release.version in e.versions and release.digest in e.digests for _, e in entries):
        yield Look(("releases",), f"{release.ref} with the digest {release.digest[:19]}… is not named")
    for n, entry in entries:
        for task in entry.tasks:
            if task not in release.tasks:
                yield Look(("releases", n, "tasks"), f"{release.ref} has no task {task}")
    for key, limits in policy.config.items():
        bound = table.get(key)
        if bound is None:
            yield Look(("config", key), f"{release.ref} has no setting {key}")
        elif not _can_hold(limits, bound):
            yield Look(("config", key), f"no {bound.type} that {release.ref} takes is within these bounds")
    for key in table:
        if key not in policy.config:
            yield Look(("config",), f"{key} is not listed, but every run of {release.ref} has it: all will be refused")
    if release.resources.gpus > policy.resources.gpus or release.resources.memory_gib > policy.resources.memory_gib:
        needs = f"{release.resources.gpus} GPUs and {release.resources.memory_gib} GiB"
        yield Look(("resources",), f"{release.ref} needs {needs}: every job will be refused")


def _can_hold(limits: PolicyLimits, bound: Bound) -> bool:
    """May any value be within both? Only plain contradictions are found."""
    named = limits.enum if limits.enum is not None else None if limits.const is None else (limits.const,)
    if named is not None:
        return any(_fits(value, bound) for value in named)
    if bound.type in ("boolean", "string", "strings"):
        return False
    return (limits.max is None or bound.min is None or limits.max >= bound.min) and (
        limits.min is None or bound.max is None or limits.min <= bound.max
    )


def _fits(value: object, bound: Bound) -> bool:
    # An enum speaks of the elements of a list, a const of the whole.
    whole = (value,) if bound.type.endswith("s") and not isinstance(value, tuple) else value
    read = typed(whole, bound)
    return not isinstance(read, WrongType) and violation(read, bound) is None


# --------------------------------------------------------------------------------------- decisions and versions

RULE_WORDS: Mapping[str, str] = {
    "policy_present": "the site has a policy",
    "policy_trusted": "the policy is signed by this site's custodians",
    "policy_newest": "the policy is the newest of its id",
    "request_consistent": "the job, the release and the dataset belong together",
    "not_refused": "nobody and nothing in it is refused by name",
    "policy_in_force": "the policy is in force",
    "dataset_named": "the dataset is named",
    "user_beneficiary": "the user may use the data",
    "release_named": "the release is named in this version",
    "digest_named": "the image is the named one",
    "tasks_allowed": "what the run does is allowed",
    "reviewers_enough": "enough people have reviewed the release",
    "config_known_keys": "every setting is listed",
    "config_in_range": "every setting is within its bounds",
    "splits_allowed": "the cases may be used for this",
    "weights_may_leave": "weights may leave, where the run trains",
    "min_cases_train": "there are enough training cases",
    "min_cases_test": "there are enough test cases",
    "min_sites": "enough sites take part",
    "secure_aggregation": "aggregation is as secure as asked for",
    "epsilon_total": "the privacy budget is kept",
    "resources": "the release needs no more than the site gives",
    "isolation": "the code runs in enough isolation",
    "proof": "the user has signed the job",
    "max_runs": "a run is left",
    "max_rounds": "enough rounds are left",
}


def rules_in_words(rules: Iterable[RuleOutcome]) -> tuple[str, ...]:
    """One line per rule: pass or fail, what it asks, what was found, and for a failed one what to do."""
    lines = []
    for rule in rules:
        advice = "" if rule.code is None else f" [{rule.code.value}] {ADVICE[rule.code]}"
        what = RULE_WORDS.get(rule.rule, rule.rule.replace("_", " "))
        lines.append(f"  {'pass' if rule.passed else 'FAIL'}  {what}: {rule.detail}{advice}")
    return tuple(lines)


def _and(words: Iterable[str]) -> str:
    return ", ".join(words)
