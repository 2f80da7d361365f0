"""The ledger: what policies were used for, counted once, over restarts."""

from __future__ import annotations

from pathlib import Path

from msfl.gateway.ledger import Ledger


def test_runs_and_rounds_are_counted_by_policy(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert (ledger.runs("p"), ledger.rounds("p")) == (0, 0)
    ledger.begin_run("run-1", "p")
    ledger.begin_run("run-2", "p")
    ledger.begin_run("run-3", "other")
    for n in (1, 2, 3):
        ledger.begin_round("run-1", n, "p")
    ledger.begin_round("run-2", 1, "p")
    assert (ledger.runs("p"), ledger.rounds("p")) == (2, 4)
    assert (ledger.runs("other"), ledger.rounds("other")) == (1, 0)
    ledger.close()


def test_what_is_begun_twice_counts_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for _ in range(3):
        ledger.begin_run("run-1", "p")
        ledger.begin_round("run-1", 1, "p")
    assert (ledger.runs("p"), ledger.rounds("p")) == (1, 1)
    ledger.close()


def test_a_budget_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    """The first ledger is never closed, as after a kill."""
    killed = Ledger(tmp_path / "deep" / "ledger.sqlite")
    killed.begin_run("run-1", "p")
    killed.begin_round("run-1", 1, "p")
    again = Ledger(tmp_path / "deep" / "ledger.sqlite")
    again.begin_round("run-1", 1, "p")
    assert (again.runs("p"), again.rounds("p")) == (1, 1)
    again.close()
    killed.close()
