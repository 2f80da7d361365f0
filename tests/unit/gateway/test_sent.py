"""What left, in words: from the entries that announced it."""

from __future__ import annotations

from datetime import UTC, datetime

from msfl.gateway.sent import departures, in_words
from msfl.policies.audit import Entry, append

NOW = datetime(2026, 12, 1, tzinfo=UTC)


def log(*entries: tuple[str, str, dict[str, str]]) -> list[Entry]:
    made: list[Entry] = []
    for action, run, fields in entries:
        made.append(append(made[-1] if made else None, NOW, "gateway site-a", action, run, fields))
    return made


RESULT = {"bytes": str(5 << 20), "blake3": "blake3:ab", "withheld": "", "stream": "", "weights": ""}
ENTRIES = log(
    ("run decided", "run-1", {"verdict": "allow", "code": ""}),
    ("worker starts", "run-1", {}),
    ("report leaves", "run-1", {"task": "start", "code": ""}),
    ("task begins", "run-1", {"task": "train/1", "progress": "steps, train_loss"}),
    ("result leaves", "run-2", {**RESULT, "task": "train/9", "verb": "train", "fields": ""}),
    (
        "result leaves",
        "run-1",
        {
            **RESULT,
            "task": "train/1",
            "verb": "train",
            "stream": "federated",
            "weights": "bf16",
            "fields": "n_train, seconds",
            "withheld": "train_loss, incoming.val_dice",
            "report": "bytes, seconds, peak memory",
        },
    ),
    ("task failed", "run-1", {"task": "validate", "code": "output_blocked"}),
    ("report leaves", "run-1", {"task": "validate", "code": "output_blocked"}),
)


def test_only_what_leaves_and_only_of_this_run_in_order() -> None:
    assert [one.entry for one in departures(ENTRIES, "run-1")] == [0, 2, 3, 5, 7]
    assert departures(ENTRIES, "run-3") == []


def test_a_result_is_told_with_its_size_hash_contents_and_what_was_held_back() -> None:
    text = "\n".join(in_words(departures(ENTRIES, "run-1"), "run-1"))
    assert text.startswith("run-1: 1 sealed results, 5.0 MiB in all")
    assert "train/1: the weights of the model after this site's training, as bf16 differences" in text
    assert "numbers in it: n_train, seconds" in text
    assert "held back:     train_loss, incoming.val_dice" in text
    assert "in its report: bytes, seconds, peak memory" in text
    assert "blake3:ab" in text
    assert "progress of train/1: steps done and the training loss" in text
    assert "report on validate: it failed: output_blocked" in text


def test_a_local_model_that_stays_is_told_apart_from_one_that_leaves() -> None:
    def told(weights: str) -> str:
        fields = {**RESULT, "task": "baseline", "verb": "train", "stream": "local", "weights": weights, "fields": ""}
        return departures(log(("result leaves", "r", fields)), "r")[0].what

    assert "without the model" in told("")
    assert told("float32") == "baseline: this site's own model"
