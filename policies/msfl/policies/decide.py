"""`decide`: the one place that says whether a job may touch a dataset. Pure; the same arguments, the same decision.

    no trusted policy at the site ─────────────────────────────▶ REFUSE no_policy (or why a policy was not trusted)
    no policy names the dataset ───────────────────────────────▶ REFUSE dataset_not_named
    one that is not trusted names it, or cannot be read ───────▶ REFUSE why it is not trusted
    for each policy that names it: every rule of RULES, pass or fail
        some policy refuses the user or the image by name ─────▶ REFUSE explicitly_refused, whatever others allow
        some policy passes all, mode auto or user in auto_for ─▶ ALLOW
        some policy passes all, mode confirm ──────────────────▶ CONFIRM, or ALLOW once the custodian has confirmed
        none passes all ───────────────────────────────────────▶ REFUSE: the first failed rule of the nearest policy

The nearest policy is the one that passes most rules; ties go to the smaller id. Lists inside one policy combine with
AND (`beneficiaries.users` and `beneficiaries.organisations` both given: both must hold). Policies combine with OR, but
for what one of them lists under `refuse`: that holds for its datasets as long as the policy lies at the site, in force
or not. So one that has stopped being trusted refuses everybody for its datasets, until it is removed or signed anew:
whom it kept out nobody can say. Of one policy id only the newest version counts. The config that is judged is the
resolved one, and it is resolved here again, so that what a caller passes cannot differ from what the job and the
release say.

`recheck` and `overruled` run before every round; `allowed_outputs` is what the egress gate obeys. `rehearse` shows the
same rules for papers that nobody has verified; it gives no decision, so that nothing can start on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from msfl.policies.documents import (
    AllowedRelease,
    AssetPolicy,
    DatasetRecord,
    Isolation,
    JobSpec,
    ReleaseStatement,
    Task,
    format_utc,
)
from msfl.policies.identity import User
from msfl.policies.refusals import Code, JsonObject, Refusal, refuse
from msfl.policies.resolve import resolve_config, violation
from msfl.policies.trust import NotTrusted, TrustedPolicy, TrustedRelease

POLICY_TRUSTED = "policy_trusted"
"""The rule that says of each policy at the site that counts for nothing why it does."""


class Verdict(StrEnum):
    ALLOW = "allow"
    REFUSE = "refuse"
    CONFIRM = "confirm"


class RuleOutcome(NamedTuple):
    """`code` is None exactly when the rule passed. A tuple, because a decision makes two dozen of them."""

    rule: str
    passed: bool
    detail: str
    code: Code | None

    def to_json(self) -> JsonObject:
        code = None if self.code is None else self.code.value
        return {"rule": self.rule, "passed": self.passed, "detail": self.detail, "code": code}


@dataclass(frozen=True)
class Decision:
    """`policy_id` and `policy_sha256` name the policy that decided, None when there was none to name."""

    verdict: Verdict
    policy_id: str | None
    policy_sha256: str | None
    rules: tuple[RuleOutcome, ...]
    refusal: Refusal | None

    def to_json(self) -> JsonObject:
        return {
            "verdict": self.verdict.value,
            "policy_id": self.policy_id,
            "policy_sha256": self.policy_sha256,
            "rules": [rule.to_json() for rule in self.rules],
            "refusal": None if self.refusal is None else self.refusal.to_json(),
        }


class Release(Protocol):
    """What the rules look at of a release."""

    @property
    def statement(self) -> ReleaseStatement: ...

    @property
    def reviewers(self) -> tuple[str, ...]: ...


R = TypeVar("R", bound=Release, covariant=True)


@dataclass(frozen=True)
class Asked(Generic[R]):
    """Everything a decision depends on, but for policies and time.

    `user` is verified; `proof_given` says that `verify_job` passed with a proof. `runs_so_far` and `rounds_so_far`
    count per policy id, from the site's ledger; an id that is absent counts 0. `participants` is the number of training
    sites that the job names, or that accepted so far, whichever the gateway knows.
    """

    site: str
    dataset: DatasetRecord
    release: R
    user: User
    job: JobSpec
    resolved: JsonObject
    isolation: Isolation
    proof_given: bool
    participants: int
    runs_so_far: Mapping[str, int] = field(default_factory=dict)
    rounds_so_far: Mapping[str, int] = field(default_factory=dict)
    confirmed: bool = False

    @cached_property
    def trains(self) -> bool:
        return self.job.trains_on(self.dataset.ref)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """What the run would do here. An evaluate-only dataset is neither fingerprinted nor trained on."""
        return ("fingerprint", "prepare", "train", "evaluate") if self.trains else ("prepare", "evaluate")


@dataclass(frozen=True)
class Request(Asked[TrustedRelease]):
    """What is decided on: the release is verified."""


@dataclass(frozen=True)
class Unverified:
    """A release as its own statement describes it, with the reviewers that somebody says it has."""

    statement: ReleaseStatement
    reviewers: tuple[str, ...]


@dataclass(frozen=True)
class Rehearsal(Asked[Unverified]):
    """What is only shown, to a custodian at a terminal: nobody has verified the release."""


@dataclass(frozen=True)
class OutputRules:
    """What may leave, for the egress gate. `weights_max_bytes` is 0 where no weights may leave."""

    weights_max_bytes: int
    local_model: bool
    metrics: frozenset[str]
    per_case_metrics: bool
    min_cases_metrics: int
    min_cases_train: int


Finding: TypeAlias = tuple[Code | None, str]
Rule: TypeAlias = Callable[[AssetPolicy, Asked[Any], datetime], Finding]


def decide(
    request: Request, policies: tuple[TrustedPolicy, ...], now: datetime, untrusted: tuple[NotTrusted, ...] = ()
) -> Decision:
    """`now` is in UTC. `untrusted` says why policies of the site were not trusted; it explains a missing policy, and
    refuses where there is another."""
    _utc(now)
    dataset = request.dataset.id
    naming = [p for p in policies if dataset in p.datasets]
    if not naming:
        return _no_policy(request, policies, untrusted)
    if inconsistent := _inconsistent(request):
        return refused(inconsistent, "request_consistent")
    if (doubt := in_doubt(untrusted, dataset)) is not None:
        return Decision(Verdict.REFUSE, None, None, _distrust(untrusted), doubt)
    versions = _versions(naming, policies)
    judged = [_judge(p, request, now, versions[p.id]) for p in naming]
    policy, findings, _, verdict = min(judged, key=_nearest)
    rules = _outcomes(policy.document, findings)
    return Decision(verdict, policy.id, policy.sha256, rules, _refusal(policy, rules, request))


def in_doubt(untrusted: Iterable[NotTrusted], dataset_id: str) -> NotTrusted | None:
    """Why nothing begins on the dataset: a policy that is not trusted may refuse by name whoever asks."""
    for one in untrusted:
        if one.concerns(dataset_id):
            return one
    return None


def rehearse(policy: AssetPolicy, asked: Rehearsal, now: datetime) -> tuple[RuleOutcome, ...]:
    """Every rule of one policy, as `decide` would apply it if all papers were signed and there were no other policy."""
    _utc(now)
    if inconsistent := _inconsistent(asked):
        return (RuleOutcome("request_consistent", False, inconsistent.message, inconsistent.code),)
    return _outcomes(policy, [_NEWEST, *(rule(policy, asked, now) for _, rule in RULES)])


def refused(refusal: Refusal, rule: str) -> Decision:
    """A decision that no policy was needed for: release, user or proof were refused before one was asked."""
    return Decision(Verdict.REFUSE, None, None, (RuleOutcome(rule, False, refusal.message, refusal.code),), refusal)


def recheck(policy: TrustedPolicy, round: int, now: datetime, rounds_so_far: int) -> Refusal | None:
    """Before each round: is the policy still in force, and is a round left? `rounds_so_far` counts all runs of it."""
    _utc(now)
    document = policy.document
    code, detail = _policy_in_force(document, now)
    if code is None and rounds_so_far >= document.approval.max_rounds:
        code = Code.ROUND_BUDGET_SPENT
        detail = f"{rounds_so_far} of {document.approval.max_rounds} rounds are spent before round {round}"
    limits = document.config.get("rounds")
    if code is None and (limits is None or (limits.max is not None and round > limits.max)):
        code, detail = Code.CONFIG_OUT_OF_RANGE, f"round {round} is outside the policy's bounds for rounds"
    if code is None:
        return None
    return _because(code, detail, f"policy {document.id}", {"policy": document.id, "round": str(round)})


def asks_custodian(policy: AssetPolicy, user: User) -> bool:
    """Whether each run of this user waits for the custodian's signature."""
    return policy.approval.mode != "auto" and not _named(user, policy.approval.auto_for)


def overruled(
    policy: TrustedPolicy, policies: Iterable[TrustedPolicy], dataset_id: str, user: User, digest: str
) -> Refusal | None:
    """Before each round: what custodians have signed since the run was allowed may supersede the policy, or refuse
    the user or the image by name."""
    policies = tuple(policies)
    code, detail = _newest(policy, _versions([policy], policies)[policy.id])
    where = f"policy {policy.id}"
    if code is None:
        naming = [p for p in policies if dataset_id in p.datasets]
        versions = _versions(naming, policies)
        for other in naming:
            code, detail = _by_name(other.document, user, digest)
            if code is not None and not _older(other, versions[other.id]):
                where = f"policy {other.id}"
                break
            code = None
    return None if code is None else _because(code, detail, where, {"policy": policy.id})


def allowed_outputs(policy: TrustedPolicy) -> OutputRules:
    outputs, cases = policy.document.outputs, policy.document.privacy.min_cases
    return OutputRules(
        weights_max_bytes=0 if outputs.weights is None else outputs.weights.max_mib * 2**20,
        local_model=outputs.local_model,
        metrics=frozenset(outputs.metrics),
        per_case_metrics=outputs.per_case_metrics,
        min_cases_metrics=cases.metrics,
        min_cases_train=cases.train,
    )


# ------------------------------------------------------------------------------------------------- rules


def _policy_in_force(policy: AssetPolicy, now: datetime) -> Finding:
    if now < policy.not_before:
        return Code.POLICY_NOT_YET_VALID, f"in force from {format_utc(policy.not_before)}"
    if now >= policy.expires:
        return Code.POLICY_EXPIRED, f"expired at {format_utc(policy.expires)}"
    return None, f"until {format_utc(policy.expires)}"


def _not_refused(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    return _by_name(policy, request.user, request.release.statement.digest)


def _in_force(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    return _policy_in_force(policy, now)


def _dataset_named(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    if request.dataset.id in policy.datasets:
        return None, request.dataset.id
    return Code.DATASET_NOT_NAMED, f"{request.dataset.id} is not among {', '.join(policy.datasets)}"


def _user_beneficiary(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    allowed, user = policy.beneficiaries, request.user
    if allowed.users and not _named(user, allowed.users):
        return Code.USER_NOT_NAMED, f"{user.name} is not among the named users"
    if allowed.organisations and user.organisation not in allowed.organisations:
        return Code.ORGANISATION_NOT_NAMED, f"{user.organisation or 'no organisation'} is not among the named ones"
    return None, user.name


def _release_named(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    statement = request.release.statement
    entries = [entry for entry in policy.releases if entry.name == statement.name]
    if not entries:
        return Code.RELEASE_NOT_NAMED, f"{statement.name} is not named"
    if not any(statement.version in entry.versions for entry in entries):
        return Code.VERSION_NOT_NAMED, f"{statement.name} is named, but not in version {statement.version}"
    return None, statement.ref


def _digest_named(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    if _entries(policy, request):
        return None, request.release.statement.digest
    return Code.DIGEST_NOT_NAMED, f"{request.release.statement.digest} is not named for {request.release.statement.ref}"


def _tasks_allowed(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    declared = request.release.statement.tasks
    allowed = [task for entry in _entries(policy, request) for task in entry.tasks]
    for task in request.tasks:
        if task not in declared or task not in allowed:
            return Code.TASK_NOT_ALLOWED, f"{task} is not allowed for {request.release.statement.ref}"
    return None, ", ".join(request.tasks)


def _reviewers_enough(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    # Where several entries name the digest, the strictest holds.
    needed = max([entry.reviewers.minimum for entry in _entries(policy, request)], default=None)
    found = len(request.release.reviewers)
    if needed is None or found < needed:
        return Code.TOO_FEW_REVIEWERS, f"{found} reviewers, {needed if needed is not None else 'unknown'} needed"
    return None, f"{found} reviewers, {needed} needed"


def _config_known_keys(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    if unlisted := [key for key in request.resolved if key not in policy.config]:
        return Code.CONFIG_KEY_NOT_LISTED, f"not listed: {', '.join(unlisted)}"
    return None, f"{len(request.resolved)} keys"


def _config_in_range(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    for key, value in request.resolved.items():
        limits = policy.config.get(key)
        if limits is not None and (why := violation(value, limits)) is not None:
            return Code.CONFIG_OUT_OF_RANGE, f"{key} = {value!r} {why}"
    return None, f"{len(request.resolved)} values"


def _splits_allowed(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    if request.trains:
        for use in ("train", "evaluate"):
            if use not in policy.splits.train:
                return Code.SPLIT_NOT_ALLOWED, f"the train split is not open to {use}"
    if "evaluate" not in policy.splits.test:
        return Code.SPLIT_NOT_ALLOWED, "the test split is not open to evaluate"
    return None, "train and test" if request.trains else "test"


def _weights_may_leave(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    if request.trains and policy.outputs.weights is None:
        return Code.WEIGHTS_MAY_NOT_LEAVE, "the job trains, but outputs.weights is not given"
    return None, "as far as outputs says"


def _min_cases_train(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    found, needed = request.dataset.n_train, policy.privacy.min_cases.train
    if request.trains and found < needed:
        return Code.TOO_FEW_TRAINING_CASES, f"{found} training cases, at least {needed} needed"
    return None, f"{found} training cases" if request.trains else "not trained on"


def _min_cases_test(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    found, needed = request.dataset.n_test, policy.privacy.min_cases.metrics
    if found < needed:
        return Code.TOO_FEW_TEST_CASES, f"{found} test cases, at least {needed} needed"
    return None, f"{found} test cases"


def _min_sites(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    training = len(request.job.datasets) - len(set(request.job.evaluate_only))
    # The smallest of: sites at hand, sites whose updates are mixed, and the number the job would start with.
    found, needed = min(request.participants, training, request.job.min_sites), policy.privacy.min_sites
    if found < needed:
        return Code.TOO_FEW_SITES, f"{found} training sites are sure, at least {needed} needed"
    return None, f"{found} sites"


def _secure_aggregation(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    if policy.privacy.secure_aggregation == "required":
        return Code.SECURE_AGGREGATION_UNAVAILABLE, "required, but this version has none"
    return None, policy.privacy.secure_aggregation


def _epsilon(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    if policy.privacy.epsilon_total is not None:
        return Code.PRIVACY_BUDGET_UNAVAILABLE, f"epsilon_total is {policy.privacy.epsilon_total}, but none is kept"
    return None, "none asked for"


def _resources(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    needed, most = request.release.statement.resources, policy.resources
    if needed.gpus > most.gpus:
        return Code.RESOURCES_EXCEEDED, f"{needed.gpus} GPUs needed, {most.gpus} allowed"
    if needed.memory_gib > most.memory_gib:
        return Code.RESOURCES_EXCEEDED, f"{needed.memory_gib} GiB of memory needed, {most.memory_gib} allowed"
    return None, f"{most.gpus} GPUs, {most.memory_gib} GiB, {most.wall_time}"


def _isolation(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    if request.isolation < policy.isolation:
        return Code.ISOLATION_TOO_WEAK, f"{request.isolation.value} is in force, {policy.isolation.value} is the least"
    return None, request.isolation.value


def _proof(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    if policy.proof == "required" and not request.proof_given:
        return Code.PROOF_REQUIRED, "the job is not signed by a key bound to the token"
    return None, "given" if request.proof_given else "not given, optional"


def _runs_left(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    spent, most = request.runs_so_far.get(policy.id, 0), policy.approval.max_runs
    if spent >= most:
        return Code.RUN_BUDGET_SPENT, f"{spent} of {most} runs are spent"
    return None, f"{spent} of {most} runs are spent"


def _rounds_left(policy: AssetPolicy, request: Asked[Any], now: datetime) -> Finding:
    spent, most = request.rounds_so_far.get(policy.id, 0), policy.approval.max_rounds
    asked = request.job.rounds if request.trains else 0
    if spent + asked > most:
        return Code.ROUND_BUDGET_SPENT, f"{spent} of {most} rounds are spent, {asked} more asked for"
    return None, f"{spent} of {most} rounds are spent"


RULES: tuple[tuple[str, Rule], ...] = (
    ("not_refused", _not_refused),
    ("policy_in_force", _in_force),
    ("dataset_named", _dataset_named),
    ("user_beneficiary", _user_beneficiary),
    ("release_named", _release_named),
    ("digest_named", _digest_named),
    ("tasks_allowed", _tasks_allowed),
    ("reviewers_enough", _reviewers_enough),
    ("config_known_keys", _config_known_keys),
    ("config_in_range", _config_in_range),
    ("splits_allowed", _splits_allowed),
    ("weights_may_leave", _weights_may_leave),
    ("min_cases_train", _min_cases_train),
    ("min_cases_test", _min_cases_test),
    ("min_sites", _min_sites),
    ("secure_aggregation", _secure_aggregation),
    ("epsilon_total", _epsilon),
    ("resources", _resources),
    ("isolation", _isolation),
    ("proof", _proof),
    ("max_runs", _runs_left),
    ("max_rounds", _rounds_left),
)


# ------------------------------------------------------------------------------------------------- parts


# The first two outcomes of every policy are made here and not by a rule: they need more than the policy itself.
_NEWEST: Finding = None, "the newest at the site"
_Judged: TypeAlias = tuple[TrustedPolicy, list[Finding], int, Verdict]  # the number of failed rules
_Versions: TypeAlias = set[tuple[int, str]]


def _versions(naming: Iterable[TrustedPolicy], policies: Iterable[TrustedPolicy]) -> dict[str, _Versions]:
    """For each policy id among `naming`: the version and hash of every document at the site that bears it."""
    found: dict[str, _Versions] = {p.id: set() for p in naming}
    for policy in policies:
        if policy.id in found:
            found[policy.id].add((policy.document.version, policy.sha256))
    return found


def _newest(policy: TrustedPolicy, versions: _Versions) -> Finding:
    if len(versions) == 1:  # its own
        return _NEWEST
    mine = policy.document.version
    if (latest := max(versions)[0]) > mine:
        return Code.POLICY_SUPERSEDED, f"version {mine} is superseded by version {latest}"
    if any(version == mine and sha256 != policy.sha256 for version, sha256 in versions):
        return Code.POLICY_SUPERSEDED, f"version {mine} is there twice, with different text"
    return _NEWEST


def _older(policy: TrustedPolicy, versions: _Versions) -> bool:
    return max(versions)[0] > policy.document.version


def _judge(policy: TrustedPolicy, request: Request, now: datetime, versions: _Versions) -> _Judged:
    document = policy.document
    findings = [_newest(policy, versions), *[rule(document, request, now) for _, rule in RULES]]
    failed = len([code for code, _ in findings if code is not None])
    return policy, findings, failed, _verdict(document, request, failed)


def _outcomes(policy: AssetPolicy, findings: list[Finding]) -> tuple[RuleOutcome, ...]:
    names = ("policy_newest", *_RULE_NAMES)
    made = [RuleOutcome(name, code is None, detail, code) for name, (code, detail) in zip(names, findings, strict=True)]
    return (RuleOutcome("policy_present", True, policy.id, None), *made)


_RULE_NAMES = tuple(name for name, _ in RULES)


def _verdict(policy: AssetPolicy, request: Request, failed: int) -> Verdict:
    if failed:
        return Verdict.REFUSE
    return Verdict.CONFIRM if asks_custodian(policy, request.user) and not request.confirmed else Verdict.ALLOW


_ORDER = {Verdict.ALLOW: 0, Verdict.CONFIRM: 1, Verdict.REFUSE: 2}


def _nearest(judged: _Judged) -> tuple[bool, int, int, str, int]:
    """A refusal by name before allow before confirm before any other refusal; among equals the policy that passes most
    rules, then the smaller id."""
    policy, findings, failed, verdict = judged
    # A policy that is superseded refuses nobody by name any more.
    by_name = findings[1][0] is not None and findings[0] is _NEWEST
    return not by_name, _ORDER[verdict], failed, policy.id, -policy.document.version


def _refusal(policy: TrustedPolicy, rules: tuple[RuleOutcome, ...], request: Request) -> Refusal | None:
    for rule in rules:
        if rule.code is not None:
            where = f"{request.dataset.ref} under policy {policy.id} version {policy.document.version}"
            fields = {"site": request.site, "dataset": request.dataset.ref, "policy": policy.id}
            return _because(rule.code, rule.detail, where, {**fields, "rule": rule.rule, "detail": rule.detail})
    return None


def _because(code: Code, detail: str, where: str, fields: Mapping[str, str]) -> Refusal:
    return refuse(code, f"{where}: {detail}.", **fields)


def _no_policy(request: Request, policies: tuple[TrustedPolicy, ...], untrusted: tuple[NotTrusted, ...]) -> Decision:
    distrust = _distrust(untrusted)
    if not policies and untrusted:
        return Decision(Verdict.REFUSE, None, None, distrust, untrusted[0])
    ref = request.dataset.ref
    if policies:
        refusal = refuse(Code.DATASET_NOT_NAMED, f"{ref}: none of {len(policies)} policies names it.", dataset=ref)
        decision = refused(refusal, "dataset_named")
    else:
        refusal = refuse(Code.NO_POLICY, f"{ref}: {request.site} has no asset policy.", dataset=ref)
        decision = refused(refusal, "policy_present")
    return replace(decision, rules=decision.rules + distrust)


def _distrust(untrusted: tuple[NotTrusted, ...]) -> tuple[RuleOutcome, ...]:
    return tuple(RuleOutcome(POLICY_TRUSTED, False, refusal.message, refusal.code) for refusal in untrusted)


def _inconsistent(request: Asked[Any]) -> Refusal | None:
    """Release, digest, dataset and config must be those of the job, whatever the centre offered them with."""
    job, statement = request.job, request.release.statement
    if job.release != statement.ref or job.digest not in (None, statement.digest):
        what = f"The job names {job.release} {job.digest or ''}, the release is {statement.ref} {statement.digest}."
        return refuse(Code.JOB_INCONSISTENT, what)
    if request.dataset.ref not in job.datasets or request.dataset.site != request.site:
        return refuse(Code.JOB_INCONSISTENT, f"The job does not name {request.dataset.ref} of {request.site}.")
    resolved = resolve_config(job, statement)
    if isinstance(resolved, Refusal):
        return resolved
    if resolved != request.resolved:
        return refuse(Code.JOB_INCONSISTENT, "The config at hand is not the one that job and release give.")
    return None


def _entries(policy: AssetPolicy, request: Asked[Any]) -> list[AllowedRelease]:
    """The policy's entries that name the release in this version with this digest."""
    s = request.release.statement
    return [e for e in policy.releases if e.name == s.name and s.version in e.versions and s.digest in e.digests]


def _by_name(policy: AssetPolicy, user: User, digest: str) -> Finding:
    """Who is refused chooses what a token asks the provider for: one that leaves out what the list compares is refused,
    too, and letters in another case are the same letters."""
    refuse = policy.refuse
    if _named(user, refuse.users) or user.subject in refuse.users:
        return Code.EXPLICITLY_REFUSED, f"{user.name} is refused by name"
    if not user.email and any("@" in name for name in refuse.users):
        return Code.EXPLICITLY_REFUSED, f"the token of {user.name} has no e-mail address, and some are refused by name"
    if user.organisation.lower() in refuse.organisations:
        return Code.EXPLICITLY_REFUSED, f"{user.organisation} is refused by name"
    if not user.organisation and refuse.organisations:
        return Code.EXPLICITLY_REFUSED, f"the token of {user.name} has no organisation, and some are refused by name"
    if digest in refuse.digests:
        return Code.EXPLICITLY_REFUSED, f"the image {digest} is refused by name"
    return None, "not refused by name"


def _named(user: User, names: tuple[str, ...]) -> bool:
    """What has an @ is an address, which the provider has checked; a subject may be whatever its user likes, and does
    not count for one, nor for an account. With two providers it does not say whose it is."""
    if user.account in names:
        return True
    if user.only_issuer and user.subject in names and "@" not in user.subject and "://" not in user.subject:
        return True
    return bool(user.email) and user.email.lower() in {name.lower() for name in names}


def _utc(now: datetime) -> None:
    if now.utcoffset() != timedelta(0):
        raise ValueError("now must carry the time zone UTC")
