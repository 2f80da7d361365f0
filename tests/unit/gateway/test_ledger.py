"""The ledger: what policies were used for, counted once, over restarts."""

from __future__ import annotations

from pathlib import Path

from msfl.gateway.egress import Allowance
from msfl.gateway.ledger import SENT_FOR_ONE, Ledger


def test_runs_and_rounds_are_counted_by_policy(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert (ledger.runs("p"), ledger.rounds("p")) == (0, 0)
    ledger.begin_run("run-1", "p", 9)
    ledger.begin_run("run-2", "p", 9)
    ledger.begin_run("run-3", "other", 9)
    for n in (1, 2, 3):
        ledger.begin_round("run-1", n, "model", "p", 9)
    ledger.begin_round("run-2", 1, "model", "p", 9)
    assert (ledger.runs("p"), ledger.rounds("p")) == (2, 4)
    assert (ledger.runs("other"), ledger.rounds("other")) == (1, 0)
    ledger.close()


def test_what_is_begun_twice_counts_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for _ in range(3):
        ledger.begin_run("run-1", "p", 9)
        ledger.begin_round("run-1", 1, "model", "p", 9)
    assert (ledger.runs("p"), ledger.rounds("p")) == (1, 1)
    ledger.close()


def test_a_budget_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    """The first ledger is never closed, as after a kill."""
    killed = Ledger(tmp_path / "deep" / "ledger.sqlite")
    killed.begin_run("run-1", "p", 9)
    killed.begin_round("run-1", 1, "model", "p", 9)
    again = Ledger(tmp_path / "deep" / "ledger.sqlite")
    again.begin_round("run-1", 1, "model", "p", 9)
    assert (again.runs("p"), again.rounds("p")) == (1, 1)
    again.close()
    killed.close()


def test_no_more_runs_begin_than_the_policy_allows_and_a_repeat_is_the_same_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.begin_run("run-1", "p", 1)
    assert ledger.begin_run("run-1", "p", 1)
    assert not ledger.begin_run("run-2", "p", 1)
    assert ledger.begin_run("run-2", "other", 1)
    ledger.close()


def test_no_more_rounds_are_trained_than_the_policy_allows_and_one_that_is_lost_is_the_same_round(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.begin_round("run-1", 1, "model", "p", 2)
    assert ledger.begin_round("run-1", 1, "model", "p", 2)
    assert ledger.begin_round("run-1", 1, "other", "p", 2)
    assert not ledger.begin_round("run-1", 2, "model", "p", 2)
    assert not ledger.begin_round("run-2", 1, "model", "p", 2)
    assert ledger.begin_round("run-1", 1, "model", "p", 2), "what was begun may be done again"
    assert ledger.begin_round("run-1", 1, "model", "another", 2)
    assert (ledger.rounds("p"), ledger.rounds("p", beside=("run-1", 1))) == (2, 0)
    ledger.close()


def test_a_round_that_was_sent_thrice_is_another_one_from_then_on(tmp_path: Path) -> None:
    ledger, most = Ledger(tmp_path / "ledger.sqlite"), Allowance(uploads=99, bytes=99)
    assert ledger.begin_round("run-1", 1, "model", "p", 1)
    for attempt in range(1, SENT_FOR_ONE + 1):
        assert ledger.begin_round("run-1", 1, "model", "p", 1)
        assert ledger.send("run-1", f"train/1/site-a/up/{attempt}", 1, most)
        assert ledger.send("run-1", f"train/11/site-a/up/{attempt}", 1, most)
    assert not ledger.begin_round("run-1", 1, "model", "p", 1)
    assert ledger.begin_round("run-1", 1, "model", "p", 2)
    ledger.close()


def test_a_signed_job_is_claimed_by_one_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.claim("nonce", "run-1")
    assert ledger.claim("nonce", "run-1")
    assert not ledger.claim("nonce", "run-2")
    ledger.close()


def test_a_run_sends_no_more_and_no_more_often_than_it_may(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    most = Allowance(uploads=3, bytes=100)
    assert ledger.send("run-1", "train/1/a/up/1", 60, most)
    assert ledger.send("run-1", "train/1/a/up/1", 60, most)  # The same, once more, after the line was cut.
    assert not ledger.send("run-1", "train/1/a/up/1", 61, most)  # Something else under its name.
    assert not ledger.send("run-1", "train/2/a/up/1", 41, most)
    assert ledger.send("run-1", "train/2/a/up/1", 30, most)
    ledger.close()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.send("run-1", "train/3/a/up/1", 5, most)
    assert not ledger.send("run-1", "train/4/a/up/1", 1, most)
    assert ledger.send("run-2", "train/1/a/up/1", 100, most)
    ledger.close()
