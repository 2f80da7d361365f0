"""A release with all its signatures whose schema lets out what no policy allows: values of single cases, texts, names.

Who owns the centre may own the keys of publisher and reviewers too, and a custodian reads the policy, not the schema.
The gate knows forms that no schema can open.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest

from msfl.gateway.egress import check_document
from msfl.policies.decide import OutputRules
from msfl.policies.refusals import Code, Refusal

RULES = OutputRules(
    weights_max_bytes=1 << 20,
    local_model=False,
    metrics=frozenset({"dice", "loss"}),
    per_case_metrics=False,
    min_cases_metrics=3,
    min_cases_train=5,
)
OPEN: dict[str, Any] = {"type": "object"}
TRAINED = {"n_train": 8, "train_loss": 0.5, "seconds": 1.0}
SUMMARY = {"mean": 0.5, "sd": 0.1, "median": 0.5, "histogram": [*[0] * 19, 4]}
LETTERS = {"enum": list("abcdefghijklmnopqrstuvwxyz")}
NAMES = {"FLAIR", "T1w", "background", "lesion"}


def anything(*names: str) -> dict[str, Any]:
    """A schema's properties that are open to every value."""
    return {name: {} for name in names}


def gate(verb: str, document: dict[str, Any], schema: dict[str, Any], names: set[str] = NAMES) -> Any:
    return check_document(verb, document, {verb: {"document": schema}}, RULES, names)


def must_stay(answer: Any) -> None:
    assert isinstance(answer, Refusal), answer
    assert answer.code is Code.OUTPUT_BLOCKED
    assert "0.91" not in answer.message
    assert "DOE" not in answer.message


@pytest.mark.parametrize(
    "extra",
    [
        {"dice_of_each_case": [0.91, 0.42, 0.17]},
        {"cases": [910, 420, 170]},
        {"note": "DOE^JOHN"},
        {"DOE^JOHN": 1},
        {"nested": {"deep": 0.91}},
        {"n_inside": 10**400},
        {"letters": ["d", "o", "e"]},
    ],
)
def test_what_a_training_says_is_numbers(extra: dict[str, Any]) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"letters": {"type": "array", "items": LETTERS}}}
    must_stay(gate("train", {**TRAINED, **extra}, OPEN))
    must_stay(
        gate(
            "train",
            {**TRAINED, **extra},
            {**schema, "properties": {**anything(*extra), **schema["properties"]}},
        )
    )


def test_a_metric_under_a_name_that_the_policy_does_not_list_is_taken_out() -> None:
    schema = {"type": "object", "properties": {**anything(*TRAINED), "hausdorff": {}, "sensitivity": {}}}
    left = gate("train", {**TRAINED, "hausdorff": 12.5, "sensitivity": 0.91}, schema)
    assert left == {**TRAINED, "hausdorff": None, "sensitivity": None}


@pytest.mark.parametrize(
    "summary",
    [
        {"n": 4, "dice": {**SUMMARY, "cases": [910, 420, 170, 3]}},
        {"n": 4, "dice": {**SUMMARY, "max": 0.91}},
        {"n": 4, "dice": [0.91, 0.42, 0.17, 0.03]},
        {"n": 4, "dice": {**SUMMARY, "histogram": [910, 420, 170, 3]}},
        {"n": 40, "dice": SUMMARY},  # Over fewer cases than it says: the fewest that the policy asks for would be met.
        {"n": 4, "dice": {**SUMMARY, "mean": "DOE"}},
        {"dice": SUMMARY},
    ],
)
def test_a_summary_is_one(summary: dict[str, Any]) -> None:
    must_stay(gate("evaluate", {"summaries": {"federated": summary}}, OPEN, {"federated"}))
    schema = {"properties": {"summaries": {"properties": {"federated": {"properties": anything("n", "dice")}}}}}
    must_stay(gate("evaluate", {"summaries": {"federated": summary}}, schema, {"federated"}))


def test_nothing_stands_beside_the_summaries() -> None:
    document = {"summaries": {"federated": {"n": 4, "dice": SUMMARY}}, "hausdorff": 12.5}
    must_stay(gate("evaluate", document, {"properties": {"summaries": {}, "hausdorff": {}}}, {"federated"}))


def test_a_candidate_is_one_that_was_asked_for() -> None:
    document = {"summaries": {"local:doe-john-1970": {"n": 4, "dice": SUMMARY}}}
    schema = {
        "properties": {"summaries": {"propertyNames": {"pattern": "^local:"}, "properties": {"n": {}, "dice": {}}}}
    }
    must_stay(gate("evaluate", document, schema, {"federated"}))


@pytest.mark.parametrize(
    "extra",
    [{"names": ["DOE", "JOHN"]}, {"labels": {"DOE": 1}}, {"spacing": [0.91, 0.42]}, {"letters": ["d", "o", "e"]}],
)
def test_a_fingerprint_has_counts_and_the_names_of_the_record(extra: dict[str, Any]) -> None:
    properties = {**anything("names", "labels", "spacing"), "letters": {"type": "array", "items": LETTERS}}
    honest = {"n_cases": 8, "channel_names": ["FLAIR", "T1w"], "labels": {"lesion": 1}, "shape": [[[160, 8]]]}
    schema = {"properties": {**properties, **anything(*honest)}}
    assert gate("fingerprint", honest, schema) == honest
    must_stay(gate("fingerprint", {**honest, **extra}, schema))


def test_a_schema_does_not_make_the_gateway_call_anybody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        must_stay(gate("train", TRAINED, {"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/schema"}))
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "schema", [{"type": 5}, {"type": "nope"}, {"propertyNames": {"pattern": "("}}, {"$ref": "#"}, {"$ref": "#/nope"}]
)
def test_a_schema_that_is_none_ends_the_task_and_not_the_gateway(schema: dict[str, Any]) -> None:
    must_stay(gate("train", TRAINED, schema))
    for nothing in (5, {"document": 5}, {}):
        must_stay(check_document("train", TRAINED, {"train": nothing}, RULES))


def test_shapes_of_single_cases_do_not_leave_in_a_histogram_of_ones() -> None:
    shapes = {"n_cases": 6, "shape": [[[150, 1], [151, 1], [160, 1], [170, 1], [171, 1], [190, 1]]]}
    assert gate("fingerprint", shapes, OPEN | {"properties": anything("n_cases", "shape")}) == {
        "n_cases": 6,
        "shape": [[[151, 3], [171, 3]]],
    }
    must_stay(gate("fingerprint", {**shapes, "n_cases": 60}, OPEN | {"properties": anything("n_cases", "shape")}))
