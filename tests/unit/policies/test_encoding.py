"""The strict readers: what a custodian wrote is what is read, or one clear line says where it is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes.governance import POLICY_YAML, World, edit
from msfl.policies.documents import AssetPolicy, DatasetRecord, JobSpec
from msfl.policies.encoding import (
    MAX_PROBLEMS,
    Malformed,
    canonical_json,
    encode,
    load_json,
    load_yaml,
    read_json,
    read_yaml,
)

YAML_VALUES = [
    ("a: NO", "NO"),
    ("a: on", "on"),
    ("a: 12:30:45", "12:30:45"),
    ("a: 0755", "0755"),
    ("a: 0x10", "0x10"),
    ("a: 1_000", "1_000"),
    ("a: 2026-11-01", "2026-11-01"),
    ("a: 3e-5", 3e-5),
    ("a: .5", 0.5),
    ("a: -7", -7),
    ("a: 1.0.0", "1.0.0"),
    ("a: '1'", "1"),
    ("a: true", True),
    ("a: ~", None),
    ("a:", None),
    ("a: [1, [x]]", (1, ("x",))),
]


@pytest.mark.parametrize(("text", "value"), YAML_VALUES)
def test_scalars_are_yaml_1_2_core_with_decimal_numbers_only(text: str, value: object) -> None:
    read = read_yaml(text.encode())[0]["a"]
    assert (type(read), read) == (type(value), value)


def test_lines_are_known() -> None:
    _, lines = read_yaml(b"a: 1\nb:\n  - x\n  - c: 2\n")
    assert (lines[("a",)], lines[("b", 0)], lines[("b", 1, "c")]) == (1, 3, 4)


POLICY_FLAWS = [
    ("min_sites: 2", "min_sites: two", "privacy.min_sites", 34),
    ("min_sites: 2", "min_sites: 2.0", "privacy.min_sites", 34),
    ("min_sites: 2", "min_sites: true", "privacy.min_sites", 34),
    ("isolation: sandbox", "isolation: strong", "isolation", 38),
    ("expires: 2027-05-01T00:00:00Z", "expires: 2027-05-01", "expires", 7),
    ("expires: 2027-05-01T00:00:00Z", "expires: 2027-05-01T00:00:00+02:00", "expires", 7),
    ("expires: 2027-05-01T00:00:00Z\n", "", "expires", None),
    ("id: ms-trial-lesion-segmentation", "id: ms-triаl", "id", 3),  # a Cyrillic letter
    ("id: ms-trial-lesion-segmentation", "id: ../ms-trial", "id", 3),
    ("  rounds: {max: 60}", "  rounds: {}", "config.rounds", 19),
    ("  rounds: {max: 60}", "  rounds: {max: 60, step: 2}", "config.rounds.step", 19),
    ("test: [evaluate]", "test: [train]", "splits.test[0]", 26),
    ("beneficiaries:\n  users: [ada@uni.example]\n  organisations: [uni.example]\n", "beneficiaries: {}\n", None, 9),
]


@pytest.mark.parametrize(("old", "new", "key", "line"), POLICY_FLAWS)
def test_a_flaw_is_named_with_line_and_key(old: str, new: str, key: str | None, line: int | None) -> None:
    with pytest.raises(Malformed) as caught:
        load_yaml(edit(POLICY_YAML, old, new).encode(), AssetPolicy, "policy.yaml")
    assert "policy.yaml" in str(caught.value)
    if key is not None:
        assert caught.value.key == key
    if line is not None:
        assert caught.value.line == line


def test_a_letter_that_looks_like_another_is_named() -> None:
    text = edit(POLICY_YAML, "id: ms-trial-lesion-segmentation", "id: ms-tri\u0430l")
    with pytest.raises(Malformed, match=r"holds U\+0430 \(CYRILLIC SMALL LETTER A\)"):
        load_yaml(text.encode(), AssetPolicy, "policy.yaml")


def test_a_flaw_in_json_is_named_with_its_line_too() -> None:
    text = json.dumps(World().job.model_dump(mode="json"), indent=1)
    with pytest.raises(Malformed) as caught:
        load_json(text.replace('"rounds": 50', '"rounds": "many"').encode(), JobSpec, "job.json")
    line = text.splitlines().index(' "rounds": 50,') + 1
    assert (caught.value.file, caught.value.line, caught.value.key) == ("job.json", line, "rounds")
    with pytest.raises(Malformed) as caught:
        read_json(b'{\n "a": 1,\n "b": {"c": 1,\n "c": 2}\n}')
    assert (caught.value.line, caught.value.key) == (3, "c")


def test_of_very_many_problems_the_first_are_told() -> None:
    text = edit(POLICY_YAML, "datasets: [ms-trial]", f"datasets: [{'1,' * 1000}]")
    with pytest.raises(Malformed) as caught:
        load_yaml(text.encode(), AssetPolicy)
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert "951 more problems" in str(caught.value)


def test_an_unknown_key_says_what_is_known() -> None:
    text = edit(POLICY_YAML, "proof: required", "proofs: required")
    with pytest.raises(Malformed) as caught:
        load_yaml(text.encode(), AssetPolicy, "policy.yaml")
    assert caught.value.key == "proofs"
    assert "proof, approval" in caught.value.allowed


def test_all_problems_are_told_at_once() -> None:
    text = edit(edit(POLICY_YAML, "min_sites: 2", "min_sites: 0"), "proof: required", "proof: maybe")
    with pytest.raises(Malformed) as caught:
        load_yaml(text.encode(), AssetPolicy)
    assert [p.key for p in caught.value.problems] == ["privacy.min_sites", "proof"]


@pytest.mark.parametrize("text", ['{"a": 1', "[1] x", "", '{"a": "\\ud800"}', "1" * 5000, '{"a": "\\u202e"}'])
def test_broken_json_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        read_json(text.encode())


def test_documents_survive_their_own_encoding() -> None:
    world = World()
    documents: list[Any] = [world.job, world.dataset, world.statement, world.site_root.document]
    for document in documents:
        assert load_json(encode(document), type(document)) == document


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"datasets": ["site-a/x", "site-a/y"]}, "one dataset per site"),
        ({"evaluate_only": ["site-z/x"]}, "not under datasets"),
        ({"min_sites": 9}, "min_sites"),
        ({"evaluate_only": ["site-b/ms-cohort", "site-c/ms-clinic"]}, "trains at 1 sites"),
        ({"datasets": ["site-a/../../etc"]}, "wrong form"),
        ({"personalise": "ditto"}, "personalise"),
        ({"nonce": "short"}, "wrong form"),
    ],
)
def test_a_job_that_contradicts_itself_is_malformed(changes: dict[str, Any], part: str) -> None:
    raw = {**World().job.model_dump(mode="json"), **changes}
    with pytest.raises(Malformed, match=part):
        load_json(canonical_json(raw), JobSpec)


def test_an_integer_is_not_a_bool_in_json_either() -> None:
    raw = {**World().dataset.model_dump(mode="json"), "n_train": True}
    with pytest.raises(Malformed, match="n_train"):
        load_json(canonical_json(raw), DatasetRecord)
