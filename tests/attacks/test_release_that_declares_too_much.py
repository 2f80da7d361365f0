"""A release with all its signatures whose schema lets out what no policy allows: values of single cases, texts, names.

Who owns the centre may own the keys of publisher and reviewers too, and a custodian reads the policy, not the schema.
The gate knows forms that no schema can open.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest

from msfl.gateway.egress import check_document
from msfl.gateway.forms import Known
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


def gate(verb: str, document: dict[str, Any], schema: dict[str, Any], names: set[str] = NAMES, n: int = 8) -> Any:
    """At a site with two channels, so many training cases, and as many test cases."""
    known = Known(frozenset(names), channels=2, n_train=n, n_test=n)
    return check_document(verb, document, {verb: {"document": schema}}, RULES, known)


def open_to(document: dict[str, Any]) -> dict[str, Any]:
    """A schema that declares every name in the document, and nothing of what may stand there."""
    names: set[str] = set()
    waiting: list[Any] = [document]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            names.update(part)
            waiting.extend(part.values())
    return {"type": "object", "properties": anything(*names)}


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
        must_stay(check_document("train", TRAINED, {"train": nothing}, RULES, Known(frozenset(), 2, 8, 8)))


def test_shapes_of_single_cases_do_not_leave_in_a_histogram_of_ones() -> None:
    shapes = {"n_cases": 6, "shape": [[[150, 1], [151, 1], [160, 1], [170, 1], [171, 1], [190, 1]]]}
    assert gate("fingerprint", shapes, OPEN | {"properties": anything("n_cases", "shape")}) == {
        "n_cases": 6,
        "shape": [[[151, 3], [171, 3]]],
    }
    must_stay(gate("fingerprint", {**shapes, "n_cases": 60}, OPEN | {"properties": anything("n_cases", "shape")}))


VOLUMES = [1203, 87, 45110, 9931, 12, 777777]  # one of each of six patients, in mm³
COUNTS = {"n_train": 5, "n_val": 1, "n_test": 6}


@pytest.mark.parametrize(
    "extra",
    [
        {"volumes": VOLUMES},
        {"per_case": [[i, volume] for i, volume in enumerate(VOLUMES)]},
        {"n": [ord(letter) for letter in "DOE^JOHN 12.03.1970"]},
        {"volume_of_the_first": 1203},
        {"n_train": [5]},
        {"n_train": 5.0},
        {"n_train": -1},
        {"n_train": 6},  # With the one that validates more than there are.
        {"n_test": 1203},
    ],
)
def test_what_a_preparation_says_is_three_numbers_of_cases(extra: dict[str, Any]) -> None:
    schema = open_to(COUNTS | extra)
    assert gate("prepare", COUNTS, schema, n=6) == COUNTS
    must_stay(gate("prepare", COUNTS | extra, schema, n=6))


@pytest.mark.parametrize(
    "extra",
    [
        {"n_cases": 18, "shape": [[volume, 3] for volume in VOLUMES]},  # A number of cases of the worker's own.
        {"shape": [*([volume, 3] for volume in VOLUMES), [10**9, -12]]},
        {"shape": [[-volume, 1] for volume in VOLUMES]},
        {"voxels": VOLUMES},
        {"voxels": [[volume] for volume in VOLUMES]},
        {"voxels": [[["FLAIR", volume]] for volume in VOLUMES]},
        {"voxels": [{"FLAIR": volume} for volume in VOLUMES]},
        {"voxels": [[volume, *[0] * 63] for volume in VOLUMES]},  # One histogram for each case, not for each channel.
        {"voxels": [VOLUMES + [0] * 2000]},
        {"has_lesion": [True, False, True]},
        {"has_lesion": [1, None, 1]},
        {"tables": [[[volume, 6]] for volume in VOLUMES * 3]},
        {f"volume_of_{i}": volume for i, volume in enumerate(VOLUMES * 3)},
    ],
)
def test_a_fingerprint_has_no_list_of_a_number_for_each_case(extra: dict[str, Any]) -> None:
    honest = {"n_cases": 6, "n_inside": 10**7, "shape": [[[160, 6]]] * 3, "intensity": [[*range(3, 67)]] * 2}
    assert gate("fingerprint", honest, open_to(honest), n=6) == honest
    must_stay(gate("fingerprint", honest | extra, open_to(honest | extra), n=6))


def test_a_name_is_not_spelled_in_words_that_the_release_brings_along() -> None:
    spelled = {f"letter_{i}": letter for i, letter in enumerate("doejohn")}
    schema = {"properties": {"n_cases": {}, **{name: LETTERS for name in spelled}}}
    must_stay(gate("fingerprint", {"n_cases": 6, **spelled}, schema))


def test_a_summary_is_of_no_more_cases_than_there_are() -> None:
    """The policy's fewest cases would be met by the worker's word alone."""
    of_one = {"mean": 0.91, "sd": 0, "median": 0.91, "histogram": [0, 100]}
    must_stay(gate("evaluate", {"summaries": {"federated": {"n": 100, "dice": of_one}}}, OPEN, {"federated"}))
    schema = {"properties": {"summaries": {}, "n": {}, "dice": {}, **anything(*SUMMARY)}}
    for n, passes in ((4, True), (3, False)):
        left = gate("evaluate", {"summaries": {"federated": {"n": 4, "dice": SUMMARY}}}, schema, {"federated"}, n)
        assert isinstance(left, dict) == passes


def test_a_histogram_is_not_so_fine_that_it_tells_single_cases() -> None:
    fine = [0] * 10001
    for dice in (0.9137, 0.4211, 0.1702):
        fine[round(dice * 10000)] += 1
    document = {"summaries": {"federated": {"n": 3, "dice": {**SUMMARY, "histogram": fine}}}}
    must_stay(gate("evaluate", document, open_to(document), {"federated"}))


@pytest.mark.parametrize(
    "said", [{"n_train": 777}, {"n_train": 0.91}, {"incoming": 0.91}, {"incoming": {"n_val": 9, "val_loss": 0.91}}]
)
def test_a_training_counts_cases_that_there_are(said: dict[str, Any]) -> None:
    """`incoming.n_val` decides whether its metrics may leave."""
    must_stay(gate("train", TRAINED | said, open_to(TRAINED | said)))
