"""From the state and the events of a run to its report: what was amiss, what was kept, what held it up."""

from __future__ import annotations

from typing import Any

import pytest

from msfl.evaluation.report import check_report
from msfl.sdk.reporting import report_document

T0 = 1_800_000_000.0
SITES = ("site-a", "site-b")


def state(**changes: Any) -> dict[str, Any]:
    """A run of two rounds, as `Run.state()` shows it."""
    known: dict[str, Any] = {
        "run_id": "run-1",
        "user": "ada@uni.example",
        "phase": "finished",
        "reason": "",
        "generation": 1,
        "submitted_at": T0,
        "ended_at": T0 + 100,
        "spec": {
            "name": "story", "release": "toy:1.0.0", "digest": "sha256:" + "a" * 64, "profile": "demo", "seed": 1,
            "rounds": 5, "min_sites": 1, "start": "all", "round_deadline_s": 60, "on_dropout": "continue",
            "keep": "best", "retain": {"last": 1, "best": 1, "every": 0}, "baseline": None,
            "early_stopping": {"patience": 1, "min_delta": 0.0}, "on_divergence": {"rounds": 3, "action": "flag"},
        },
        "sites": {
            site: {"dataset": "d", "trains": True, "standing": "accepted", "code": "", "decision": {}} for site in SITES
        },
        "rounds": [
            {
                "round": r, "seconds": 10.0, "bytes_up": 1, "bytes_down": 1, "late": [], "refused": {}, "flags": {},
                "weights_blake3": "blake3:" + "b" * 64, "validation_dice": None,
                "sites": {
                    site: {"n_train": 4, "train_loss": 0.5, "val_loss": None, "val_dice": None, "n_val": None,
                           "seconds": 8.0}
                    for site in SITES
                },
            }
            for r in (1, 2)
        ],
        "best_round": 2,
        "kept_rounds": [2],
        "documents": {},
        "step_seconds": {},
        "peak_rss_mib": {},
    }  # fmt: skip
    return known | changes


def test_each_round_says_in_words_what_was_amiss_and_what_is_kept() -> None:
    troubled = state()
    troubled["rounds"][0] |= {"refused": {"site-b": "update_exploded"}, "late": ["site-a"]}
    troubled["rounds"][1]["flags"] = {"site-a": ["loss_rising"]}
    report = report_document(troubled)
    check_report(report)
    first, second = report["rounds"]
    assert first["refused"] == [
        {"site": "site-b", "code": "update_exploded", "message": "the update is far larger than any training makes it"}
    ]
    assert [remark["code"] for remark in second["flags"]] == ["loss_rising"]
    assert (first["kept"], second["kept"]) == (False, True)
    assert report["survival"]["early_stopping"] == {"patience": 1, "min_delta": 0.0}


def test_interruptions_are_told_in_order_and_are_no_overhead() -> None:
    events: list[tuple[str, dict[str, Any]]] = [
        ("Submitted", {"at": T0}),
        ("SiteSilent", {"at": T0 + 10, "site": "site-b", "task_id": "train/1", "code": "silent"}),
        ("SiteReturned", {"at": T0 + 40, "site": "site-b"}),
        ("PauseRequested", {"at": T0 + 42, "by": "ada"}),
        ("Resumed", {"at": T0 + 100, "by": "ada"}),
    ]
    report = report_document(state(), events=events)
    check_report(report)
    assert [entry["message"] for entry in report["course"]] == [
        "site-b is away at train/1: nothing is heard of the site (silent)",
        "site-b is back after 30 s and takes part again",
        "paused by ada: what the sites have begun they finish, then nothing begins",
        "resumed by ada",
    ]
    assert report["course"][0]["at"] == "2027-01-15T08:00:10Z"
    assert report["timings"]["held"] == 58.0
    assert report["overhead_share"] == pytest.approx(1 - 16 / 42, abs=1e-4)


def test_a_calm_run_has_no_interruptions() -> None:
    report = report_document(state(), events=[("Submitted", {"at": T0})])
    check_report(report)
    assert report["course"] == []
    assert "held" not in report["timings"]
