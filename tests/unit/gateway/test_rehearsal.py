"""What `msfl registry try` says: which declared fields were never sent, and everything in plain words."""

from __future__ import annotations

from fakes.governance import World
from msfl.gateway.rehearsal import Blocked, Rehearsed, Sent, Tensors, everything_declared, unused
from msfl.gateway.try_release import in_words
from msfl.policies.documents import ReleaseStatement

SUMMARY = {"type": "object", "properties": {"mean": {}, "sd": {}}}
OUTPUTS = {
    "train": {"document": {"properties": {"n_train": {}, "incoming": {"properties": {"val_dice": {}}}}}},
    "evaluate": {
        "document": {
            "properties": {
                "summaries": {"additionalProperties": {"properties": {"n": {}, "dice": {"$ref": "#/$defs/summary"}}}}
            },
            "$defs": {"summary": SUMMARY},
        }
    },
}


def statement() -> ReleaseStatement:
    return World().statement.model_copy(update={"outputs": OUTPUTS})


def test_what_was_declared_and_never_sent() -> None:
    sent = [
        Sent("train/1", "site-a", {"n_train": 4, "incoming": {"val_dice": None}}, None),
        Sent("evaluate/test", "site-a", {"summaries": {"federated": {"n": 2, "dice": {"mean": 0.5}}}}, None),
    ]
    assert unused(statement(), sent) == ("train.incoming.val_dice", "evaluate.summaries.*.dice.sd")
    sent.append(Sent("train/2", "site-b", {"n_train": 4, "incoming": {"val_dice": 0.5}}, None))
    assert unused(statement(), sent) == ("evaluate.summaries.*.dice.sd",)


def test_the_rules_allow_all_that_is_declared_and_nothing_by_name_alone() -> None:
    rules = everything_declared(statement())
    assert {"dice", "loss", "val_dice", "n_train"} <= rules.metrics
    assert "phoneme" not in rules.metrics


def test_plain_words() -> None:
    found = Rehearsed("own:1.0.0", "sha256:0", ("bubblewrap: no network",))
    found.sent.append(Sent("train/1", "site-a", {"n_train": 4}, Tensors({"w": (2, 3)}, 200)))
    found.blocked.append(Blocked("evaluate/test", "site-b", "A result of evaluate was not declared.", "'name' …"))
    text = "\n".join(in_words(found, made_up=True))
    assert "weights: 1 tensors, 6 float32 numbers, 200 bytes" in text
    assert "w 2 × 3" in text
    assert "BLOCKED in evaluate/test at site-b" in text
    assert "Nothing was blocked" not in text
