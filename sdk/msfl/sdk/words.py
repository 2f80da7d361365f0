"""Codes of a run in plain words: one table for the live view, the command line and the report.

    said("update_exploded")  ▸  "the update is far larger than any training makes it"

A governance code (`msfl.policies.refusals.Code`) is its own words, and its advice says what to do. A code that nobody
has words for is shown as it is: a newer centre may know more of them.
"""

from __future__ import annotations

from msfl.policies.refusals import ADVICE, Code

_WORDS = {
    # An update that the aggregator refuses; the round goes on without it.
    "update_not_finite": "the update holds NaN or infinity",
    "update_exploded": "the update is far larger than any training makes it",
    "update_cases": "the update does not say how many cases it was trained on",
    "update_without_tensors": "the update holds no weights",
    "update_fields": "the update says other things than an update does",
    "update_malformed": "the update cannot be read",
    "update_": "the update's weights are not those of this model",
    "seal_": "the update's seal is broken",
    # Why a site is away, or out of the run.
    "silent": "nothing is heard of the site",
    "too_late": "the site missed the deadline",
    "answered_too_late": "the site did not answer in time",
    "bad_run_secret": "the site's key for this run cannot be opened",
    "run_over": "the run is over at the site",
    "process_": "the worker at the site ended or fell silent, again and again",
    # Why the centre gave up.
    "aggregator_error": "the aggregator failed, again and again",
    "image_not_self_contained": "the release has no base image, so it cannot run in containers",
    "quorum_not_reached": "too few sites are left",
    "no_updates": "no site sent an update",
    # What a run waits for at the centre.
    "registry": "the registry, which the centre cannot reach; its operator must see to it",
    "keyring": "the centre's keyring, which does not answer; its operator must start it",
    "disk": "room on the centre's disk; its operator must make some",
    # Conspicuous in a round, and no more than that.
    "loss_rising": "its training loss has risen for several rounds",
    "update_outlier": "its update is far larger than the others'",
}


def said(code: str) -> str:
    """What a code means, as part of a sentence; the code itself, with spaces, when there are no other words."""
    if code in _WORDS:
        return _WORDS[code]
    family = code.partition("_")[0] + "_"
    return _WORDS.get(family, code.replace("_", " "))


def paused_words(reason: str) -> str:
    """That a run is paused, and by whom or why; the machine's own reason for a pause does not name the pause."""
    return reason if reason.startswith("paused") else f"paused: {reason}"


def advice(code: str) -> str:
    """What to do about a governance code; empty for all others."""
    known = {c.value: ADVICE[c] for c in Code}
    return known.get(code, "")
