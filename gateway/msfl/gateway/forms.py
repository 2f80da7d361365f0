"""The forms that a result's document can have at all, whatever its release declares. Pure.

    fingerprint   counts, and lists of counts at any depth; texts and names as the dataset's record has them
    prepare       counts
    train         counts, seconds, metrics; `incoming`: the same
    evaluate      summaries ▸ candidate ▸ n, loss, and for each metric: mean, sd, median, histogram over n cases

A release's schema is closed, and reviewers read it; but who publishes and reviews may be few, and the centre's. So here
stands once more what no schema can open: no text of a worker's own, neither as a value nor as a name; no list of
fractions, which could hold a value for each case; a histogram that counts the cases that its summary is over; nothing
of a single case (`min`, `max`, `cases`) beside a summary; no number so long that it is a text.

Which of the metrics leave, the policy says (`egress`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
LARGEST = 2**53  # What JSON's readers agree on.
SUMMARY = frozenset({"mean", "sd", "median", "histogram"})
_MORE = (dict, list, tuple, str)


def misshapen(verb: str, document: JsonObject, schema: Mapping[str, Any], names: Collection[str]) -> str | None:
    """Where the document has no form of its verb, in words that hold nothing of it; None where it has.

    Args:
        schema: the release's, for the names of properties and the constants that it writes out.
        names: what may be a name or a text beside those: the record's channels and labels, the candidates asked for.
    """
    declared, constants = vocabulary(schema)
    return _words(document, declared | set(names), constants, set(names)) or _FORMS.get(verb, _counts)(document)


def vocabulary(schema: Any) -> tuple[set[str], set[str]]:
    """All names, and all texts, that a schema writes out, in whatever part of it: nothing beyond them can leave."""
    declared, constants = set[str](), set[str]()
    for part in _parts(schema):
        properties = part.get("properties")
        declared.update(properties if isinstance(properties, Mapping) else ())
        listed = part.get("enum")
        words = [part.get("const"), *(listed if isinstance(listed, list | tuple) else ())]
        constants.update(word for word in words if isinstance(word, str))
    return declared, constants


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
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


def _counts(document: JsonObject) -> str | None:
    """Whole numbers, alone or in lists at any depth."""
    return None if all(map(_is_counts, document.values())) else "something else than counts"


def _is_counts(value: Any) -> bool:
    match value:
        case float():
            return value.is_integer()
        case dict():
            return all(map(_is_counts, value.values()))
        case list() | tuple():
            return all(map(_is_counts, value))
        case _:
            return True


def _trained(document: JsonObject) -> str | None:
    for name, value in document.items():
        if name == "incoming" and isinstance(value, dict):
            if any(isinstance(v, _MORE) for v in value.values()):
                return "incoming holds more than numbers"
        elif isinstance(value, _MORE):
            return "more than numbers"
    return None


def _evaluated(document: JsonObject) -> str | None:
    if set(document) != {"summaries"} or not isinstance(document["summaries"], dict):
        return "something beside summaries"
    for summary in document["summaries"].values():
        if not isinstance(summary, dict) or type(n := summary.get("n")) is not int:
            return "a summary that does not say over how many cases it is"
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
    if sum(bins) != n:
        return "a histogram over another number of cases"
    return "a list in a summary" if any(isinstance(v, _MORE) for k, v in metric.items() if k != "histogram") else None


_FORMS = {"fingerprint": _counts, "prepare": _counts, "train": _trained, "evaluate": _evaluated}
