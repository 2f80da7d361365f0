"""The forms that a result's document can have at all, whatever its release declares. Pure.

    fingerprint   counts that stand alone, a few; rows of keys and cases; for each channel one histogram over voxels;
                  texts and names as the dataset's record has them
    prepare       n_train, n_val, n_test
    train         counts, seconds, metrics; `incoming`: the same
    evaluate      summaries ▸ candidate ▸ n, loss, and for each metric: mean, sd, median, histogram over n cases

A release's schema is closed, and reviewers read it; but who publishes and reviews may be few, and the centre's. So here
stands once more what no schema can open: no text of a worker's own, neither as a value nor as a name; no list that
could hold a value for each case, of fractions or of counts; a histogram that counts the cases that its summary is over,
in few bins; no number of cases that the dataset does not have (`Known`); nothing of a single case (`min`, `max`,
`cases`) beside a summary; no number so long that it is a text.

What is left is bounded, not true: a worker that lies can still hide something in the few numbers that may leave, as it
can in weights. Which of the metrics leave, the policy says (`egress`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from msfl.gateway.cells import LONGEST_ROW

JsonObject: TypeAlias = dict[str, Any]
LARGEST = 2**53  # What JSON's readers agree on.
SUMMARY = frozenset({"mean", "sd", "median", "histogram"})
MOST_BINS = 20  # Of a metric, as `msfl.evaluation.metrics` makes them: a finer one tells the value of each case.
# Of a fingerprint. A histogram over voxels of fewer bins would do for a list of cases; each table of rows tells a value
# of whichever case it likes, and so does a count that stands alone.
FEWEST_VOXEL_BINS, MOST_VOXEL_BINS = 32, 1024
MOST_TABLES, MOST_ALONE = 16, 8
MOST_WORDS = 4  # Texts that the release brings along, and of which the worker chooses one: many would be an alphabet.
_MORE = (dict, list, tuple, str)


@dataclass(frozen=True)
class Known:
    """What the gateway knew before the worker began, for none of which a worker's word counts.

    `names` may be names and texts: the record's channels and labels, or the candidates that were asked for. The record
    has so many `channels`, `n_train` cases (those that validate among them) and `n_test`; `split` is what an evaluation
    was asked to be over.
    """

    names: frozenset[str]
    channels: int
    n_train: int
    n_test: int
    split: str = "test"


def misshapen(verb: str, document: JsonObject, schema: Mapping[str, Any], known: Known) -> str | None:
    """Where the document has no form of its verb, in words that hold nothing of it; None where it has.

    `schema` is the release's, for the names of properties and the constants that it writes out.
    """
    declared, constants = set[str](), set[str]()
    for part in _parts(schema):
        properties = part.get("properties")
        declared.update(properties if isinstance(properties, dict) else ())
        listed = part.get("enum")
        words = [part.get("const"), *(listed if isinstance(listed, list | tuple) else ())]
        constants.update(word for word in words if isinstance(word, str))
    form = _FORMS.get(verb)
    if form is None:
        return "a verb that has none"
    names = set(known.names)
    return _words(document, declared | names, constants, names) or _many_words(document, names) or form(document, known)


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list | tuple):
            waiting.extend(part)


def _words(value: Any, keys: set[str], texts: set[str], listed: set[str]) -> str | None:
    """Every name and text is one that stood somewhere before the worker began; every number is a number."""
    match value:
        case dict():
            if not keys.issuperset(value):
                return "a name that neither the release nor the task knows"
            return next((why for v in value.values() if (why := _words(v, keys, texts | listed, listed))), None)
        case list() | tuple():
            if len([v for v in value if isinstance(v, str)]) > len(listed):
                return "more texts than there are names"
            # Of a list, only names: a vocabulary that a release brings along would be an alphabet.
            return next((why for v in value if (why := _words(v, keys, listed, listed))), None)
        case str():
            return None if value in texts else "a text of the worker's own"
        case int() | float():
            return None if math.isfinite(value) and abs(value) <= LARGEST else "a number that is none"
        case _:
            return None


def _many_words(document: JsonObject, listed: set[str]) -> str | None:
    waiting: list[Any] = [document]
    chosen = 0
    while waiting:
        match waiting.pop():
            case dict() as part:
                waiting.extend(part.values())
            case list() | tuple() as part:
                waiting.extend(part)
            case str() as text if text not in listed:
                chosen += 1
    return "more texts of the release's than a document needs" if chosen > MOST_WORDS else None


@dataclass
class _Counted:
    """What a fingerprint holds: the length of each histogram over voxels, tables of rows, counts that stand alone."""

    voxel_bins: list[int] = field(default_factory=list)
    tables: int = 0
    alone: int = 0


def _fingerprint(document: JsonObject, known: Known) -> str | None:
    """Whole numbers, alone, in rows, or as histograms over voxels; of no more cases than there are to train on."""
    found = _Counted()
    if why := _looked_through(document, found):
        return why
    if not _within(document.get("n_cases", 0), known.n_train):
        return "more cases than the dataset has"
    if len(found.voxel_bins) > known.channels:
        return "more histograms over voxels than there are channels"
    if any(not FEWEST_VOXEL_BINS <= bins <= MOST_VOXEL_BINS for bins in found.voxel_bins):
        return "a list of counts that is no histogram over voxels"
    if found.tables > MOST_TABLES or found.alone > MOST_ALONE + len(known.names):
        return "more numbers than a fingerprint needs"
    return None


def _looked_through(value: Any, found: _Counted) -> str | None:
    match value:
        case dict():
            return next((why for part in value.values() if (why := _looked_through(part, found))), None)
        case list() | tuple() if value and all(map(_is_count, value)):
            found.voxel_bins.append(len(value))
            return None
        case list() | tuple() if value and all(map(_is_row, value)):
            found.tables += 1
            return None
        case list() | tuple() if all(isinstance(part, list | tuple) for part in value):
            return next((why for part in value if (why := _looked_through(part, found))), None)
        case list() | tuple():
            return None if all(isinstance(part, str) for part in value) else "a list of more than counts"
        case str():
            return None
        case _:
            found.alone += 1
            return None if _is_count(value) else "something else than counts"


def _is_count(value: Any) -> bool:
    """`2.0` is one as `2` is."""
    return (type(value) is int or (type(value) is float and value.is_integer())) and value >= 0


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple) and 2 <= len(value) <= LONGEST_ROW and all(map(_is_count, value))


def _within(value: Any, most: int) -> bool:
    return _is_count(value) and value <= most


def _prepared(document: JsonObject, known: Known) -> str | None:
    if set(document) != {"n_train", "n_val", "n_test"} or any(type(n) is not int or n < 0 for n in document.values()):
        return "something else than n_train, n_val and n_test"
    if document["n_train"] + document["n_val"] > known.n_train or document["n_test"] > known.n_test:
        return "more cases than the dataset has"
    return None


def _trained(document: JsonObject, known: Known) -> str | None:
    incoming = document.get("incoming")
    if incoming is not None and not isinstance(incoming, dict):
        return "an incoming that is none"
    for part in ({k: v for k, v in document.items() if k != "incoming"}, incoming or {}):
        if any(isinstance(value, _MORE) for value in part.values()):
            return "more than numbers"
        for name, most in (("n_train", known.n_train), ("n_val", known.n_train), ("n_test", known.n_test)):
            if part.get(name) is not None and not _within(part[name], most):
                return "more cases than the dataset has"
    return None


def _evaluated(document: JsonObject, known: Known) -> str | None:
    most = known.n_test if known.split == "test" else known.n_train
    if set(document) != {"summaries"} or not isinstance(document["summaries"], dict):
        return "something beside summaries"
    for summary in document["summaries"].values():
        if not isinstance(summary, dict) or type(n := summary.get("n")) is not int:
            return "a summary that does not say over how many cases it is"
        if not 0 <= n <= most:
            return "more cases than the dataset has"
        for metric in summary.values():
            if isinstance(metric, dict) and (why := _not_a_summary(metric, n)):
                return why
            if isinstance(metric, list | tuple | str):
                return "a list in a summary"
    return None


def _not_a_summary(metric: JsonObject, n: int) -> str | None:
    if not SUMMARY.issuperset(metric):
        return f"something beside {', '.join(sorted(SUMMARY))}"
    bins = metric.get("histogram", [n])
    if not isinstance(bins, list | tuple) or any(type(count) is not int or count < 0 for count in bins):
        return "a histogram that counts nothing"
    if len(bins) > MOST_BINS:
        return "a histogram so fine that it tells single cases"
    if sum(bins) != n:
        return "a histogram over another number of cases"
    return "a list in a summary" if any(isinstance(v, _MORE) for k, v in metric.items() if k != "histogram") else None


_FORMS = {"fingerprint": _fingerprint, "prepare": _prepared, "train": _trained, "evaluate": _evaluated}
