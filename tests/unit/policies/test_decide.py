"""Stories of `decide`: one job that is allowed, and for each rule the smallest change that is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest

from fakes.governance import DIGEST, ISSUER, NOW, POLICY_YAML, World, edit, trusted
from msfl.policies.decide import (
    RULES,
    Asked,
    Decision,
    Rehearsal,
    RuleOutcome,
    Unverified,
    Verdict,
    allowed_outputs,
    decide,
    overruled,
    recheck,
    rehearse,
)
from msfl.policies.documents import Isolation, ReleaseResources
from msfl.policies.refusals import ADVICE, Code, Refusal
from msfl.policies.trust import trust_policy

NEWER = edit(POLICY_YAML, "version: 3", "version: 4")
REFUSE = "releases:\n  - name"
OTHER_DIGEST = "sha256:" + "0" * 64


def with_policy(old: str, new: str) -> Decision:
    return World(policy_yaml=edit(POLICY_YAML, old, new)).decide()


def with_job(**changes: object) -> Decision:
    world = World()
    return world.decide(job=world.job.model_copy(update=changes))


def at(now: datetime) -> Decision:
    world = World()
    return decide(world.request(), (world.policy,), now)


def among(*texts: str) -> Decision:
    """The decision where the policy of the first text is the nearest among several."""
    worlds = [World(policy_yaml=text) for text in texts]
    return decide(worlds[0].request(), tuple(world.policy for world in worlds), NOW)


def with_statement(**changes: object) -> Decision:
    world = World()
    return world.decide(release=trusted(world.release(world.statement.model_copy(update=changes))))


def with_dataset(**changes: object) -> Decision:
    world = World()
    return world.decide(dataset=world.dataset.model_copy(update=changes))


def with_user(**changes: Any) -> Decision:
    world = World()
    return world.decide(user=replace(world.user, **changes))


def refusing(what: str) -> Decision:
    return World(policy_yaml=with_refusal(what)).decide()


def unlike(what: str, **changes: Any) -> Decision:
    """A user with other claims, under a policy that refuses somebody else by name."""
    world = World(policy_yaml=with_refusal(what))
    return world.decide(user=replace(world.user, **changes))


def with_refusal(what: str, text: str = POLICY_YAML) -> str:
    return edit(text, REFUSE, f"refuse: {{{what}}}\n{REFUSE}")


STORIES: dict[str, tuple[Code, Callable[[], Decision]]] = {
    "no policy at all": (Code.NO_POLICY, lambda: decide(World().request(), (), NOW)),
    "before the policy": (Code.POLICY_NOT_YET_VALID, lambda: at(datetime(2026, 10, 31, 23, 59, 59, tzinfo=UTC))),
    "the moment it expires": (Code.POLICY_EXPIRED, lambda: at(datetime(2027, 5, 1, tzinfo=UTC))),
    "a month after it expired": (Code.POLICY_EXPIRED, lambda: at(datetime(2027, 6, 1, tzinfo=UTC))),
    "a user refused by name": (Code.EXPLICITLY_REFUSED, lambda: refusing("users: [Ada@uni.example]")),
    "an organisation refused by name": (Code.EXPLICITLY_REFUSED, lambda: refusing("organisations: [uni.example]")),
    "an address is refused by name, and the token has none": (
        Code.EXPLICITLY_REFUSED,
        lambda: unlike("users: [eve@uni.example]", email=""),
    ),
    "an organisation is refused by name, and the token has none": (
        Code.EXPLICITLY_REFUSED,
        lambda: unlike("organisations: [x.example]", organisation=""),
    ),
    "an organisation refused by name, in capitals": (
        Code.EXPLICITLY_REFUSED,
        lambda: unlike("organisations: [x.example]", organisation="X.Example"),
    ),
    "an image refused by name": (Code.EXPLICITLY_REFUSED, lambda: refusing(f'digests: ["{DIGEST}"]')),
    "a newer version lies beside it": (
        Code.POLICY_SUPERSEDED,
        # The newer one does not name the dataset any more; the older one would still allow it.
        lambda: among(POLICY_YAML, edit(NEWER, "datasets: [ms-trial]", "datasets: [ms-other]")),
    ),
    "another dataset": (Code.DATASET_NOT_NAMED, lambda: with_policy("datasets: [ms-trial]", "datasets: [ms-other]")),
    "another user": (Code.USER_NOT_NAMED, lambda: with_user(email="bob@uni.example")),
    "a user without e-mail": (Code.USER_NOT_NAMED, lambda: with_user(email="")),
    "a named user of another organisation": (Code.ORGANISATION_NOT_NAMED, lambda: with_user(organisation="x.example")),
    "a named user of no organisation": (Code.ORGANISATION_NOT_NAMED, lambda: with_user(organisation="")),
    "a subject that is spelled like a named address": (
        Code.USER_NOT_NAMED,
        lambda: with_user(subject="ada@uni.example", email=""),
    ),
    "a subject that is spelled like an address refused by name": (
        Code.EXPLICITLY_REFUSED,
        lambda: unlike("users: [eve@uni.example]", subject="eve@uni.example"),
    ),
    "another release": (Code.RELEASE_NOT_NAMED, lambda: with_policy("name: ms-lesion-nnunet", "name: ms-other")),
    "another version": (Code.VERSION_NOT_NAMED, lambda: with_policy('["1.0.0"]', '["1.0.1"]')),
    "another digest": (Code.DIGEST_NOT_NAMED, lambda: with_policy(DIGEST, OTHER_DIGEST)),
    "training not allowed": (
        Code.TASK_NOT_ALLOWED,
        lambda: with_policy("[fingerprint, prepare, train, evaluate]", "[fingerprint, prepare, evaluate]"),
    ),
    "a task that the release does not declare": (
        Code.TASK_NOT_ALLOWED,
        lambda: with_statement(tasks=("fingerprint", "prepare", "evaluate")),
    ),
    "more graphics processors than the policy has": (
        Code.RESOURCES_EXCEEDED,
        lambda: with_statement(resources=ReleaseResources(gpus=2, memory_gib=4)),
    ),
    "more reviewers wanted": (Code.TOO_FEW_REVIEWERS, lambda: with_policy("{minimum: 2}", "{minimum: 3}")),
    "a key the policy does not list": (
        Code.CONFIG_KEY_NOT_LISTED,
        lambda: with_policy("  local_epochs: {max: 1}\n", ""),
    ),
    "the seed is a key like any other": (Code.CONFIG_KEY_NOT_LISTED, lambda: with_policy("  seed: {min: 0}\n", "")),
    "a value above max": (Code.CONFIG_OUT_OF_RANGE, lambda: with_job(config={"initial_lr": 0.06})),
    "a value below min": (Code.CONFIG_OUT_OF_RANGE, lambda: with_job(config={"initial_lr": 0.00001})),
    "rounds above max": (Code.CONFIG_OUT_OF_RANGE, lambda: with_job(rounds=61)),
    "a strategy outside enum": (Code.CONFIG_OUT_OF_RANGE, lambda: with_job(strategy="krum")),
    "a profile outside enum": (Code.CONFIG_OUT_OF_RANGE, lambda: with_job(profile="demo")),
    "a profile's own default outside the bounds": (
        Code.CONFIG_OUT_OF_RANGE,
        lambda: with_policy("local_epochs: {max: 1}", "local_epochs: {max: 0}"),
    ),
    "train split closed": (
        Code.SPLIT_NOT_ALLOWED,
        lambda: with_policy("train: [train, evaluate], test", "train: [evaluate], test"),
    ),
    "no validation on the train split": (
        Code.SPLIT_NOT_ALLOWED,
        lambda: with_policy("train: [train, evaluate], test", "train: [train], test"),
    ),
    "test split closed": (Code.SPLIT_NOT_ALLOWED, lambda: with_policy("test: [evaluate]", "test: []")),
    "no weights may leave": (Code.WEIGHTS_MAY_NOT_LEAVE, lambda: with_policy("  weights: {max_mib: 256}\n", "")),
    "too few training cases": (Code.TOO_FEW_TRAINING_CASES, lambda: with_dataset(n_train=4)),
    "too few test cases": (Code.TOO_FEW_TEST_CASES, lambda: with_dataset(n_test=2)),
    "a run that may start with this site alone": (Code.TOO_FEW_SITES, lambda: with_job(min_sites=1)),
    "too few sites at hand": (Code.TOO_FEW_SITES, lambda: World().decide(participants=1)),
    "the other sites only evaluate": (
        Code.TOO_FEW_SITES,
        lambda: with_job(evaluate_only=("site-b/ms-cohort", "site-c/ms-clinic")),
    ),
    "secure aggregation required": (
        Code.SECURE_AGGREGATION_UNAVAILABLE,
        lambda: with_policy("secure_aggregation: optional", "secure_aggregation: required"),
    ),
    "a privacy budget": (
        Code.PRIVACY_BUDGET_UNAVAILABLE,
        lambda: with_policy("epsilon_total: null", "epsilon_total: 8"),
    ),
    "too little memory allowed": (Code.RESOURCES_EXCEEDED, lambda: with_policy("memory_gib: 64", "memory_gib: 3")),
    "no sandbox at the site": (Code.ISOLATION_TOO_WEAK, lambda: World().decide(isolation=Isolation.NONE)),
    "a sandbox where a container is the least": (
        Code.ISOLATION_TOO_WEAK,
        lambda: with_policy("isolation: sandbox", "isolation: container"),
    ),
    "a bare token": (Code.PROOF_REQUIRED, lambda: World().decide(proof_given=False)),
    "all runs spent": (
        Code.RUN_BUDGET_SPENT,
        lambda: World().decide(runs_so_far={"ms-trial-lesion-segmentation": 5}),
    ),
    "rounds would be overspent": (
        Code.ROUND_BUDGET_SPENT,
        lambda: World().decide(rounds_so_far={"ms-trial-lesion-segmentation": 251}),
    ),
    "the job names another version": (Code.JOB_INCONSISTENT, lambda: with_job(release="ms-lesion-nnunet:1.0.1")),
    "the job names another digest": (Code.JOB_INCONSISTENT, lambda: with_job(digest=OTHER_DIGEST)),
    "the job does not name this dataset": (
        Code.JOB_INCONSISTENT,
        lambda: with_job(datasets=("site-b/ms-cohort", "site-c/ms-clinic")),
    ),
    "a dataset of another site": (Code.JOB_INCONSISTENT, lambda: World().decide(site="site-b")),
    "another config than the job's is handed over": (
        Code.JOB_INCONSISTENT,
        lambda: World().decide(resolved={**World().request().resolved, "rounds": 1}),
    ),
    "a key the release does not know": (Code.CONFIG_KEY_UNKNOWN, lambda: with_job(config={"network": "host"})),
    "a profile the release does not have": (Code.PROFILE_UNKNOWN, lambda: with_job(profile="huge")),
}


@cache
def told(story: str) -> Decision:
    return STORIES[story][1]()


@pytest.mark.parametrize("story", STORIES)
def test_a_refusal_names_its_rule_and_nothing_is_allowed(story: str) -> None:
    expected, _ = STORIES[story]
    decision = told(story)
    assert decision.verdict is Verdict.REFUSE
    assert decision.refusal is not None
    assert decision.refusal.code is expected
    assert decision.refusal.message.endswith(ADVICE[expected])
    failed = [rule for rule in decision.rules if not rule.passed]
    assert failed[0].code is expected
    assert all((rule.code is None) == rule.passed for rule in decision.rules)


def test_the_job_that_fits_is_allowed_and_every_rule_is_listed() -> None:
    decision = World().decide()
    assert decision.verdict is Verdict.ALLOW
    assert decision.refusal is None
    assert decision.policy_sha256 == World().policy.sha256
    assert [rule.rule for rule in decision.rules] == ["policy_present", "policy_newest", *(name for name, _ in RULES)]


def test_one_failed_rule_does_not_hide_the_others() -> None:
    world = World()
    decision = world.decide(proof_given=False, isolation=Isolation.NONE)
    assert [r.code for r in decision.rules if not r.passed] == [Code.ISOLATION_TOO_WEAK, Code.PROOF_REQUIRED]


def test_every_rule_of_the_table_is_failed_by_some_story() -> None:
    failed = {rule.rule for story in STORIES for rule in told(story).rules if not rule.passed}
    assert {name for name, _ in RULES} <= failed


def test_an_evaluate_only_dataset_needs_no_training_cases_and_no_rounds() -> None:
    world = World()
    job = world.job.model_copy(update={"evaluate_only": ("site-a/ms-trial",)})
    decision = world.decide(
        job=job,
        dataset=world.dataset.model_copy(update={"n_train": 0}),
        rounds_so_far={"ms-trial-lesion-segmentation": 300},
    )
    assert decision.verdict is Verdict.ALLOW


def test_an_evaluate_only_dataset_sends_no_weights_and_needs_no_leave_for_them() -> None:
    world = World(policy_yaml=edit(POLICY_YAML, "  weights: {max_mib: 256}\n", ""))
    job = world.job.model_copy(update={"evaluate_only": ("site-a/ms-trial",)})
    assert world.decide(job=job).verdict is Verdict.ALLOW


def test_a_rule_that_passes_says_what_it_found() -> None:
    found = {rule.rule: rule.detail for rule in World().decide().rules}
    assert (found["proof"], found["splits_allowed"], found["min_cases_train"]) == (
        "given",
        "train and test",
        "12 training cases",
    )
    optional = World(policy_yaml=edit(POLICY_YAML, "proof: required", "proof: optional"))
    job = optional.job.model_copy(update={"evaluate_only": ("site-a/ms-trial",)})
    found = {rule.rule: rule.detail for rule in optional.decide(job=job, proof_given=False).rules}
    assert (found["proof"], found["splits_allowed"], found["min_cases_train"]) == (
        "not given, optional",
        "test",
        "not trained on",
    )


def test_budgets_count_per_policy() -> None:
    assert World().decide(runs_so_far={"another-policy": 99}).verdict is Verdict.ALLOW


def test_the_first_run_of_a_policy_that_allows_one_is_allowed() -> None:
    world = World(policy_yaml=edit(POLICY_YAML, "max_runs: 5", "max_runs: 1"))
    assert world.decide().verdict is Verdict.ALLOW
    for spent in (1, 2):
        assert world.decide(runs_so_far={world.policy.id: spent}).verdict is Verdict.REFUSE


def test_a_run_may_spend_all_the_rounds_of_a_policy() -> None:
    assert World(policy_yaml=edit(POLICY_YAML, "max_rounds: 300", "max_rounds: 50")).decide().verdict is Verdict.ALLOW
    assert World(policy_yaml=edit(POLICY_YAML, "max_rounds: 300", "max_rounds: 49")).decide().verdict is Verdict.REFUSE


def test_where_two_entries_name_the_image_the_stricter_one_counts_its_reviewers() -> None:
    entry = POLICY_YAML[POLICY_YAML.index("  - name: ms-lesion") : POLICY_YAML.index("config:")]
    for stricter in (
        edit(POLICY_YAML, entry, entry + edit(entry, "minimum: 2", "minimum: 3")),
        edit(POLICY_YAML, entry, edit(entry, "minimum: 2", "minimum: 3") + entry),
    ):
        refusal = World(policy_yaml=stricter).decide().refusal
        assert refusal is not None
        assert refusal.code is Code.TOO_FEW_REVIEWERS


def confirm_world() -> World:
    return World(policy_yaml=edit(POLICY_YAML, "mode: auto", "mode: confirm"))


def test_confirm_mode_waits_and_a_confirmation_allows() -> None:
    assert confirm_world().decide().verdict is Verdict.CONFIRM
    assert confirm_world().decide(confirmed=True).verdict is Verdict.ALLOW


def test_a_confirmation_does_not_overrule_a_rule() -> None:
    decision = confirm_world().decide(confirmed=True, proof_given=False)
    assert decision.verdict is Verdict.REFUSE


def test_auto_for_names_those_who_need_no_confirmation() -> None:
    text = edit(confirm_world().policy_yaml, "auto_for: []", "auto_for: [ada@uni.example]")
    assert World(policy_yaml=text).decide().verdict is Verdict.ALLOW


def test_a_subject_may_be_named_instead_of_an_address() -> None:
    text = edit(POLICY_YAML, "users: [ada@uni.example]", "users: [user-1]")
    assert World(policy_yaml=text).decide().verdict is Verdict.ALLOW


def test_a_subject_that_is_spelled_like_a_named_account_is_none() -> None:
    text = edit(POLICY_YAML, "users: [ada@uni.example]", f'users: ["{ISSUER}#user-1"]')
    world = World(policy_yaml=text)
    assert world.decide().verdict is Verdict.ALLOW
    alike = replace(world.user, subject=f"{ISSUER}#user-1", issuer="https://other.example", email="")
    assert world.decide(user=alike).verdict is Verdict.REFUSE


def test_users_and_organisations_combine_with_and() -> None:
    only_organisation = edit(POLICY_YAML, "  users: [ada@uni.example]\n", "")
    assert World(policy_yaml=only_organisation).decide().verdict is Verdict.ALLOW
    assert with_user(organisation="x.example").verdict is Verdict.REFUSE
    only_users = edit(POLICY_YAML, "  organisations: [uni.example]\n", "")
    assert World(policy_yaml=only_users).decide().verdict is Verdict.ALLOW


def policies(*texts: str) -> tuple[World, ...]:
    return tuple(World(policy_yaml=text) for text in texts)


def test_one_policy_that_allows_everything_is_enough() -> None:
    first, second = policies(
        edit(POLICY_YAML, "rounds: {max: 60}", "rounds: {max: 2}"),
        edit(POLICY_YAML, "id: ms-trial-lesion-segmentation", "id: second"),
    )
    decision = decide(first.request(), (first.policy, second.policy), NOW)
    assert (decision.verdict, decision.policy_id) == (Verdict.ALLOW, "second")


def test_two_policies_do_not_add_up() -> None:
    first, second = policies(
        edit(POLICY_YAML, "rounds: {max: 60}", "rounds: {max: 2}"),
        edit(POLICY_YAML, "initial_lr: {min: 0.0001, max: 0.05}", "initial_lr: {max: 0.001}"),
    )
    assert decide(first.request(), (first.policy, second.policy), NOW).verdict is Verdict.REFUSE


def test_a_refusal_by_name_wins_over_a_policy_that_allows() -> None:
    """Also from a policy that is not in force any more, and whichever comes first."""
    far = edit(POLICY_YAML, "id: ms-trial-lesion-segmentation", "id: z-far")
    far = edit(far, "expires: 2027-05-01", "expires: 2026-11-02")
    world, other = policies(POLICY_YAML, with_refusal("users: [ada@uni.example]", far))
    for given in ((world.policy, other.policy), (other.policy, world.policy)):
        decision = decide(world.request(), given, NOW)
        assert (decision.verdict, decision.policy_id) == (Verdict.REFUSE, "z-far")
        assert decision.refusal is not None
        assert decision.refusal.code is Code.EXPLICITLY_REFUSED


def test_a_refusal_by_name_holds_for_the_datasets_of_its_policy_alone() -> None:
    elsewhere = edit(edit(POLICY_YAML, "id: ms-trial-lesion", "id: other-lesion"), "[ms-trial]", "[ms-other]")
    assert among(POLICY_YAML, with_refusal("users: [ada@uni.example]", elsewhere)).verdict is Verdict.ALLOW


def test_who_says_no_address_is_refused_only_where_one_is_listed() -> None:
    world = World(policy_yaml=with_refusal("users: [user-2]"))  # a subject, which every token has
    assert world.decide().verdict is Verdict.ALLOW
    nobody = replace(world.user, email="", organisation="")
    assert Code.EXPLICITLY_REFUSED not in [rule.code for rule in world.decide(user=nobody).rules]


def test_a_newer_version_lifts_an_older_ones_refusal_by_name() -> None:
    decision = among(NEWER, with_refusal("users: [ada@uni.example]"))
    assert (decision.verdict, decision.policy_sha256) == (Verdict.ALLOW, World(policy_yaml=NEWER).policy.sha256)


def test_two_texts_of_one_version_count_for_nothing_and_a_copy_is_no_second_text() -> None:
    decision = among(POLICY_YAML, POLICY_YAML + "# edited\n")
    assert decision.refusal is not None
    assert decision.refusal.code is Code.POLICY_SUPERSEDED
    assert "twice" in decision.refusal.message
    assert among(POLICY_YAML, POLICY_YAML).verdict is Verdict.ALLOW


def test_the_refusal_is_that_of_the_nearest_policy() -> None:
    far = edit(POLICY_YAML, "id: ms-trial-lesion-segmentation", "id: a-far")
    far = edit(far, "isolation: sandbox", "isolation: container")
    far = edit(far, "users: [ada@uni.example]", "users: [eve@uni.example]")
    near = edit(POLICY_YAML, "isolation: sandbox", "isolation: container")
    first, second = policies(far, near)
    decision = decide(first.request(), (first.policy, second.policy), NOW)
    assert decision.policy_id == "ms-trial-lesion-segmentation"
    assert decision.refusal is not None
    assert decision.refusal.code is Code.ISOLATION_TOO_WEAK


def test_a_policy_that_allows_is_asked_before_one_that_waits_whatever_their_names() -> None:
    waits = edit(edit(POLICY_YAML, "mode: auto", "mode: confirm"), "id: ms-trial", "id: a-trial")
    assert among(POLICY_YAML, waits).verdict is Verdict.ALLOW


def test_of_two_versions_that_refuse_the_newer_one_says_why() -> None:
    decision = among(POLICY_YAML, edit(NEWER, "isolation: sandbox", "isolation: container"))
    assert decision.refusal is not None
    assert decision.refusal.code is Code.ISOLATION_TOO_WEAK


@pytest.mark.parametrize("envelope", [World(policy_signers=("mallory",)).policy_envelope(), b"cut sh"])
def test_a_policy_that_is_not_trusted_refuses_everybody_for_what_it_may_be_about(envelope: bytes) -> None:
    """Here it lies beside one that allows."""
    other = World().policy
    refusal = trust_policy(envelope, World().site_root, NOW)
    assert isinstance(refusal, Refusal)
    decision = decide(World().request(), (other,), NOW, (refusal,))
    assert (decision.verdict, decision.policy_id, decision.refusal) == (Verdict.REFUSE, None, refusal)
    assert [(rule.rule, rule.passed, rule.code) for rule in decision.rules] == [("policy_trusted", False, refusal.code)]
    # What is wrong with the job itself is said first.
    first = decide(World().request(site="site-b"), (other,), NOW, (refusal,)).refusal
    assert first is not None
    assert first.code is Code.JOB_INCONSISTENT


def test_a_policy_that_is_not_trusted_takes_nothing_from_data_that_it_does_not_name() -> None:
    text = edit(POLICY_YAML, "datasets: [ms-trial]", "datasets: [ms-other]")
    elsewhere = World(policy_yaml=text, policy_signers=("mallory",)).trust_policy()
    here = World(policy_signers=("mallory",)).trust_policy()
    assert isinstance(elsewhere, Refusal)
    assert isinstance(here, Refusal)
    assert decide(World().request(), (World().policy,), NOW, (elsewhere,)).verdict is Verdict.ALLOW
    assert decide(World().request(), (World().policy,), NOW, (elsewhere, here)).refusal is here


def test_a_policy_for_other_data_does_not_stand_in_for_one_that_was_not_trusted() -> None:
    refusal = World(policy_signers=("mallory",)).trust_policy()
    assert isinstance(refusal, Refusal)
    elsewhere = World(policy_yaml=edit(POLICY_YAML, "datasets: [ms-trial]", "datasets: [ms-other]")).policy
    decision = decide(World().request(), (elsewhere,), NOW, (refusal,))
    assert [rule.code for rule in decision.rules] == [Code.DATASET_NOT_NAMED, Code.WRONG_SIGNER]


def test_a_policy_that_was_not_trusted_explains_why_there_is_none() -> None:
    refusal = World(policy_signers=("mallory",)).trust_policy()
    assert isinstance(refusal, Refusal)
    decision = decide(World().request(), (), NOW, (refusal,))
    assert decision.refusal is not None
    assert decision.refusal.code is Code.WRONG_SIGNER
    assert [(rule.rule, rule.passed, rule.code) for rule in decision.rules] == [
        ("policy_trusted", False, Code.WRONG_SIGNER)
    ]


def test_a_naive_time_is_a_bug() -> None:
    with pytest.raises(ValueError, match="UTC"):
        decide(World().request(), (World().policy,), NOW.replace(tzinfo=None))


def test_a_decision_is_plain_json() -> None:
    value = with_job(rounds=61).to_json()
    assert (value["verdict"], value["policy_id"]) == ("refuse", "ms-trial-lesion-segmentation")
    codes = {rule["rule"]: rule["code"] for rule in value["rules"]}
    assert (codes["config_in_range"], codes["proof"]) == ("config_out_of_range", None)
    assert World().decide().to_json()["refusal"] is None
    assert Refusal.from_json(value["refusal"]).code is Code.CONFIG_OUT_OF_RANGE


# ------------------------------------------------------------------------------- before each round


def test_a_policy_holds_until_its_last_second() -> None:
    policy = World().policy
    assert recheck(policy, 1, policy.document.expires - timedelta(seconds=1), 0) is None
    refusal = recheck(policy, 2, policy.document.expires, 1)
    assert refusal is not None
    assert refusal.code is Code.POLICY_EXPIRED


def test_the_round_budget_ends_a_run() -> None:
    assert recheck(World().policy, 50, NOW, 299) is None
    for spent in (300, 301):
        refusal = recheck(World().policy, 51, NOW, spent)
        assert refusal is not None
        assert refusal.code is Code.ROUND_BUDGET_SPENT


def test_a_round_beyond_the_policys_rounds_is_refused() -> None:
    policy = World().policy
    assert recheck(policy, 60, NOW, 59) is None
    refusal = recheck(policy, 61, NOW, 60)
    assert refusal is not None
    assert refusal.code is Code.CONFIG_OUT_OF_RANGE
    unlisted = World(policy_yaml=edit(POLICY_YAML, "  rounds: {max: 60}\n", "")).policy
    refusal = recheck(unlisted, 1, NOW, 0)
    assert refusal is not None
    assert refusal.code is Code.CONFIG_OUT_OF_RANGE
    endless = World(policy_yaml=edit(POLICY_YAML, "rounds: {max: 60}", "rounds: {min: 1}")).policy
    assert recheck(endless, 61, NOW, 60) is None
    with pytest.raises(ValueError, match="UTC"):
        recheck(policy, 1, NOW.replace(tzinfo=None), 0)
    # What is wrong first is told first.
    refusal = recheck(policy, 61, policy.document.expires, 300)
    assert refusal is not None
    assert refusal.code is Code.POLICY_EXPIRED
    refusal = recheck(policy, 61, NOW, 300)
    assert refusal is not None
    assert refusal.code is Code.ROUND_BUDGET_SPENT


@pytest.mark.parametrize(
    ("beside", "code"),
    [
        ((), None),
        ((edit(POLICY_YAML, "id: ms-trial-lesion", "id: other-lesion"),), None),
        ((edit(POLICY_YAML, "version: 3", "version: 2"),), None),
        ((NEWER,), Code.POLICY_SUPERSEDED),
        ((with_refusal("users: [ada@uni.example]", edit(POLICY_YAML, "id: ms", "id: no")),), Code.EXPLICITLY_REFUSED),
        ((with_refusal(f'digests: ["{DIGEST}"]', edit(POLICY_YAML, "id: ms", "id: no")),), Code.EXPLICITLY_REFUSED),
        (
            (
                edit(POLICY_YAML, "id: ms-trial-lesion", "id: other-lesion"),  # says nothing, and hides nothing
                with_refusal("users: [ada@uni.example]", edit(POLICY_YAML, "id: ms", "id: no")),
            ),
            Code.EXPLICITLY_REFUSED,
        ),
        ((with_refusal("users: [ada@uni.example]", edit(POLICY_YAML, "version: 3", "version: 2")),), None),
        (
            (
                with_refusal(
                    "users: [ada@uni.example]",
                    edit(edit(POLICY_YAML, "id: ms", "id: no"), "datasets: [ms-trial]", "datasets: [ms-other]"),
                ),
            ),
            None,
        ),
    ],
)
def test_what_custodians_sign_during_a_run_may_end_it(beside: tuple[str, ...], code: Code | None) -> None:
    world = World()
    all_of_them = (*(w.policy for w in policies(*beside)), world.policy)
    refusal = overruled(world.policy, all_of_them, "ms-trial", world.user, DIGEST)
    assert (None if refusal is None else refusal.code) is code


def rehearsal(**changes: Any) -> Rehearsal:
    asked: Asked[Any] = World().request()
    given = {name: getattr(asked, name) for name in asked.__dataclass_fields__}
    release = Unverified(asked.release.statement, asked.release.reviewers)
    return Rehearsal(**{**given, "release": release, **changes})


def test_a_rehearsal_shows_the_rules_that_a_decision_would() -> None:
    world = World()
    assert rehearse(world.policy.document, rehearsal(), NOW) == world.decide().rules
    changes: dict[str, Any] = {"proof_given": False, "isolation": Isolation.NONE}
    assert rehearse(world.policy.document, rehearsal(**changes), NOW) == world.decide(**changes).rules
    elsewhere = world.policy.document.model_copy(update={"datasets": ("ms-other",)})
    failed = [rule for rule in rehearse(elsewhere, rehearsal(), NOW) if not rule.passed]
    assert [rule.code for rule in failed] == [Code.DATASET_NOT_NAMED]
    (outcome,) = rehearse(world.policy.document, rehearsal(site="site-b"), NOW)
    assert isinstance(outcome, RuleOutcome)
    assert (outcome.passed, outcome.code) == (False, Code.JOB_INCONSISTENT)
    with pytest.raises(ValueError, match="UTC"):
        rehearse(world.policy.document, rehearsal(), NOW.replace(tzinfo=None))


def test_what_may_leave() -> None:
    rules = allowed_outputs(World().policy)
    assert rules.weights_max_bytes == 256 * 2**20
    assert rules.metrics == {"dice", "sensitivity", "precision", "loss"}
    assert (rules.local_model, rules.per_case_metrics) == (False, False)
    assert (rules.min_cases_train, rules.min_cases_metrics) == (5, 3)
    closed = World(policy_yaml=edit(POLICY_YAML, "  weights: {max_mib: 256}\n", "")).policy
    assert allowed_outputs(closed).weights_max_bytes == 0


def test_every_code_has_advice() -> None:
    assert set(ADVICE) == set(Code)


def test_the_release_keeps_the_same_reviewers_whatever_their_order() -> None:
    world = World()
    reviews = [world.review("rui"), world.review("rosa")]
    assert trusted(world.release(reviews=reviews)).reviewers == trusted(world.release()).reviewers
