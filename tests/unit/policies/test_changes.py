"""What a new version allows is told to whoever is about to sign it, and nothing that becomes wider goes untold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from fakes.asked import documents, requests, with_document
from fakes.governance import DIGEST, NOW, POLICY_YAML, edit
from msfl.policies.changes import Way, changes
from msfl.policies.decide import Request, Verdict, decide
from msfl.policies.documents import AssetPolicy
from msfl.policies.encoding import load_yaml

OLD = load_yaml(POLICY_YAML.encode(), AssetPolicy)
OTHER = "sha256:" + "0" * 64

WIDER = [
    ("not_before: 2026-11-01", "not_before: 2026-10-01", "not_before", "from 2026-10-01T00:00:00Z"),
    ("expires: 2027-05-01", "expires: 2027-06-01", "expires", "until 2027-06-01T00:00:00Z"),
    ("datasets: [ms-trial]", "datasets: [ms-trial, ms-two]", "datasets", "the dataset ms-two"),
    (
        "users: [ada@uni.example]",
        "users: [ada@uni.example, bob@x.example]",
        "beneficiaries.users",
        "user bob@x.example",
    ),
    ("  users: [ada@uni.example]\n", "", "beneficiaries.users", "users of any name"),
    ("organisations: [uni.example]", "organisations: []", "beneficiaries.organisations", "organisations of any name"),
    ('["1.0.0"]', '["1.0.0", "1.1.0"]', "releases", "train by ms-lesion-nnunet 1.1.0"),
    (f'["{DIGEST}"]', f'["{DIGEST}", "{OTHER}"]', "releases", f"image {OTHER}"),
    ("{minimum: 2}", "{minimum: 1}", "releases", "with 1 reviewers instead of 2"),
    ("rounds: {max: 60}", "rounds: {max: 61}", "config.rounds", "max 61 instead of max 60"),
    ("initial_lr: {min: 0.0001, max: 0.05}", "initial_lr: {max: 0.05}", "config.initial_lr", "no min instead of min"),
    (
        "initial_lr: {min: 0.0001, max",
        "initial_lr: {min: 0.00001, max",
        "config.initial_lr",
        "min 1e-05 instead of",
    ),
    ("  seed: {min: 0}", "  seed: {min: 0}\n  extra: {max: 3}", "config.extra", "at most 3"),
    ("strategy: {enum: [fedavg, fedprox]}", "strategy: {enum: [fedavg, fedprox, krum]}", "config.strategy", "'krum'"),
    ("rounds: {max: 60}", "rounds: {max: 60, nullable: true}", "config.rounds", "left unset"),
    ("max_mib: 256", "max_mib: 512", "outputs.weights.max_mib", "up to 512 MiB"),
    ("local_model: false", "local_model: true", "outputs.local_model", "own model"),
    ("metrics: [dice,", "metrics: [hausdorff, dice,", "outputs.metrics", "the metric hausdorff"),
    ("per_case_metrics: false", "per_case_metrics: true", "outputs.per_case_metrics", "single cases"),
    ("{train: 5, metrics: 3}", "{train: 4, metrics: 3}", "privacy.min_cases.train", "only 4 training cases"),
    ("{train: 5, metrics: 3}", "{train: 5, metrics: 2}", "privacy.min_cases.metrics", "only 2 test cases"),
    ("min_sites: 2", "min_sites: 1", "privacy.min_sites", "only 1 sites"),
    ("gpus: 1", "gpus: 2", "resources.gpus", "up to 2 GPUs"),
    ("memory_gib: 64", "memory_gib: 65", "resources.memory_gib", "up to 65 GiB"),
    ("wall_time: 72h", "wall_time: 4d", "resources.wall_time", "4d per run instead of 72h"),
    ("isolation: sandbox", "isolation: none", "isolation", "isolation none instead of sandbox"),
    ("proof: required", "proof: optional", "proof", "has not signed"),
    ("auto_for: []", "auto_for: [ada@uni.example]", "approval.auto_for", "without your confirmation"),
    ("max_runs: 5", "max_runs: 6", "approval.max_runs", "up to 6 runs"),
    ("max_rounds: 300", "max_rounds: 301", "approval.max_rounds", "up to 301 rounds"),
]


@pytest.mark.parametrize(("old", "new", "field", "words"), WIDER)
def test_what_becomes_wider_is_said_and_the_way_back_is_narrower(old: str, new: str, field: str, words: str) -> None:
    changed = load_yaml(edit(POLICY_YAML, old, new).encode(), AssetPolicy)
    wider = [c for c in changes(OLD, changed) if c.way is Way.WIDER]
    assert wider
    assert {c.field for c in wider} == {field}
    assert any(words in str(c) for c in wider), wider
    back = changes(changed, OLD)
    assert {(c.way, c.field) for c in back if c.field != "version"} == {(Way.NARROWER, field)}


NARROWER = [
    ("releases:\n", "refuse: {users: [eve@x.example]}\nreleases:\n", "refuse.users"),
    ("mode: auto", "mode: confirm", "approval.mode"),
    ("rounds: {max: 60}", "rounds: {max: 60, enum: [1, 2]}", "config.rounds"),
    ("rounds: {max: 60}", "rounds: {max: 60, const: 7}", "config.rounds"),
    ("test: [evaluate]", "test: []", "splits.test"),
    ("secure_aggregation: optional", "secure_aggregation: required", "privacy.secure_aggregation"),
    ("epsilon_total: null", "epsilon_total: 8", "privacy.epsilon_total"),
]


@pytest.mark.parametrize(("old", "new", "field"), NARROWER)
def test_what_becomes_narrower_is_said_and_the_way_back_is_wider(old: str, new: str, field: str) -> None:
    changed = load_yaml(edit(POLICY_YAML, old, new).encode(), AssetPolicy)
    assert {(c.way, c.field) for c in changes(OLD, changed) if c.field != "version"} == {(Way.NARROWER, field)}
    assert {(c.way, c.field) for c in changes(changed, OLD) if c.field != "version"} == {(Way.WIDER, field)}


def test_what_is_neither_is_said_as_well() -> None:
    text = edit(POLICY_YAML, "purpose: Train", "purpose: Treat")
    text = edit(text, "secure_aggregation: optional", "secure_aggregation: forbidden")
    found = changes(OLD, load_yaml(text.encode(), AssetPolicy))
    assert {(c.way, c.field) for c in found} == {
        (Way.OTHER, "purpose"),
        (Way.OTHER, "version"),  # the custodian forgot to count it up
        (Way.OTHER, "privacy.secure_aggregation"),
    }
    newer = load_yaml(edit(POLICY_YAML, "version: 3", "version: 4").encode(), AssetPolicy)
    assert changes(OLD, newer) == ()


@settings(max_examples=60, deadline=None)
@given(requests(), documents(), documents())
def test_no_job_is_newly_allowed_without_a_word(request: Request, old: AssetPolicy, new: AssetPolicy) -> None:
    """Whatever made a refused job allowed is among the changes, as one that allows more."""
    old = old.model_copy(update={"id": "a", "version": 1})
    new = new.model_copy(update={"id": "a", "version": 2})
    before = decide(request, (with_document(old, "sha256:1"),), NOW).verdict
    after = decide(request, (with_document(new, "sha256:2"),), NOW).verdict
    strict = [Verdict.REFUSE, Verdict.CONFIRM, Verdict.ALLOW]
    if strict.index(after) > strict.index(before):
        assert any(change.way is Way.WIDER for change in changes(old, new))
    if strict.index(after) < strict.index(before):
        assert any(change.way is Way.NARROWER for change in changes(old, new))


def test_every_field_of_a_policy_is_compared() -> None:
    told = {field.split(".")[0] for *_, field, _ in WIDER} | {field.split(".")[0] for *_, field in NARROWER}
    assert set(AssetPolicy.model_fields) - told == {"api_version", "kind", "id", "version", "purpose"}
