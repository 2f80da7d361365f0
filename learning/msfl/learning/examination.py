"""What the centre takes from a site's document: numbers with known names, and a few words. All else is refused by name.

A site that is refused is refused alone: its code and name go into the round's record, and the others go on.
"""

from __future__ import annotations

import re

from msfl.learning.contract import JsonObject

MAX_CASES = 1 << 24  # Of one site. Together with float32 values, every product in the sum is exact in float64.
MAX_SUMMARIES = 256  # models of one site, and entries of one summary
OPTIONAL_FIELDS = {"peak_rss_mib"}
_TRAIN_FIELDS = {"n_train", "train_loss", "seconds"}
_INCOMING_FIELDS = {"n_val", "val_loss", "val_dice"}
_SUMMARY_FIELDS = {"mean", "sd", "median", "histogram"}
UNROUNDED = "unrounded"
"""What a federated model is called that a 16-bit wire format has not rounded; it is only ever tested."""
_MODEL_NAME = re.compile(rf"federated|{UNROUNDED}|local:[a-z0-9][a-z0-9._-]{{0,63}}")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")


class UpdateRefused(Exception):
    """What one site sent cannot be used. `code` goes into the run's record, `detail` stays in the centre's log."""

    def __init__(self, site: str, code: str, detail: str) -> None:
        super().__init__(f"{site}: {code}: {detail}")
        self.site = site
        self.code = code
        self.detail = detail


def training_document(site: str, said: JsonObject) -> JsonObject:
    """`n_train`, `train_loss`, `seconds`, `incoming`; a site's policy may have withheld a number (None)."""
    document = {k: v for k, v in said.items() if k not in OPTIONAL_FIELDS}
    incoming = document.pop("incoming", None) or {}
    known = set(document) == _TRAIN_FIELDS and isinstance(incoming, dict) and set(incoming) <= _INCOMING_FIELDS
    numbers = (document.get("train_loss"), document.get("seconds"), *(incoming.values() if known else ()))
    n_train = document.get("n_train")
    if not known or not all(v is None or _is_number(v) for v in numbers):
        raise UpdateRefused(site, "update_fields", "the document has other fields than an update's")
    if type(n_train) is not int or not 1 <= n_train <= MAX_CASES:
        raise UpdateRefused(site, "update_cases", f"{n_train!r:.40} training cases")
    return {**document, "incoming": incoming}


def summaries_document(site: str, said: JsonObject) -> JsonObject:
    """`{"summaries": {model: summary}}`, and nothing in it that is neither a number nor one of a few words."""
    document = {k: v for k, v in said.items() if k not in OPTIONAL_FIELDS}
    summaries = document.get("summaries")
    if set(document) != {"summaries"} or not isinstance(summaries, dict) or len(summaries) > MAX_SUMMARIES:
        raise UpdateRefused(site, "update_fields", "the document holds no summaries")
    for model, summary in summaries.items():
        if not _MODEL_NAME.fullmatch(model) or not _is_summary(summary):
            raise UpdateRefused(site, "update_fields", "a summary holds more than numbers")
    return document


def _is_summary(summary: object) -> bool:
    if not isinstance(summary, dict) or "n" not in summary or len(summary) > MAX_SUMMARIES:
        return False
    for name, value in summary.items():
        match value:
            case str():  # why the site withholds the numbers, a code
                good = name == "withheld" and _WORD.fullmatch(value) is not None
            case dict():
                good = _WORD.fullmatch(name) is not None and set(value) == _SUMMARY_FIELDS
                good = good and all(_is_number(value[key]) for key in _SUMMARY_FIELDS - {"histogram"})
                good = good and _is_histogram(value["histogram"])
            case _:
                good = _WORD.fullmatch(name) is not None and (value is None or _is_number(value))
        if not good:
            return False
    return True


def _is_histogram(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 1000 and all(type(n) is int and 0 <= n <= MAX_CASES for n in value)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e12  # type: ignore[arg-type]  # mypy cannot read type(…) in
