"""Processes that work on cases may die: the case they held is named, the others go on, and nothing is half there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import msfl.imaging.hands
from fakes.scanners import FLAIR, T1W, Patient, Scanner, head
from msfl.imaging.custodian import import_source, listing
from msfl.imaging.hands import at_work
from msfl.imaging.workspace import JsonObject, State, Workspace
from msfl.policies.refusals import CannotProceed

pytestmark = [pytest.mark.slow, pytest.mark.system]
DIES = """
import os, sys
from msfl.imaging.hands import serve

def do(order):
    print("a library says: Kowalczyk")
    if order["number"] % 4 == 1:
        os.kill(os.getpid(), 9)
    return {"twice": 2 * order["number"], "by": os.getpid()}

serve(do)
"""


def refuse(order: JsonObject) -> JsonObject:
    raise AssertionError("this process does no work while it has hands")


@pytest.mark.parametrize("hands", [1, 3])
def test_a_process_that_dies_loses_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hands: int) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    monkeypatch.setattr(msfl.imaging.hands, "COMMAND", (sys.executable, str(tmp_path / "dies.py")))
    orders = [{"number": n} for n in range(10)]
    answers = dict(at_work(orders, refuse, hands=hands, log=tmp_path / "logs" / "hands.log"))
    assert {n for n, answer in answers.items() if answer is None} == {1, 5, 9}
    assert all(answer["twice"] == 2 * n for n, answer in answers.items() if answer)
    if hands == 1:
        assert len({answer["by"] for answer in answers.values() if answer}) == 3, "fresh processes took the place"
    log = tmp_path / "logs" / "hands.log"
    assert "Kowalczyk" in log.read_text(), "what libraries print does not answer for us"
    assert log.stat().st_mode & 0o077 == 0


def test_nobody_listens_any_more_and_the_processes_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    monkeypatch.setattr(msfl.imaging.hands, "COMMAND", (sys.executable, str(tmp_path / "dies.py")))
    answers = at_work([{"number": 4 * n} for n in range(50)], refuse, hands=2, log=tmp_path / "hands.log")
    first = next(answers)[1]
    answers.close()
    assert first is not None
    deadline = time.monotonic() + 10
    while Path(f"/proc/{first['by']}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{first['by']}").exists()


def visits(source: Path, count: int) -> None:
    for number in range(count):
        scanner = Scanner(Patient(f"MRN{number}", f"Doe^{number}"))
        for seed, contrast in enumerate((FLAIR, T1W)):
            voxels, affine = head(seed=seed)
            scanner.scan(voxels, affine, source / str(number), contrast)


def test_an_import_that_was_killed_is_taken_up_where_it_stopped(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    visits(source, 4)
    command = [sys.executable, "-c", "from msfl.imaging.main import app; app()", "import", str(source)]
    options = ["--dataset", "ms-trial", "--home", str(home), "--jobs", "1"]
    process = subprocess.Popen([*command, *options], start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(home.glob("datasets/ms-trial/cases/*/journal.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    workspace = Workspace.of(home, "ms-trial")
    done = {case.id for case in workspace.cases() if case.standing.state is State.IMPORTED}
    assert 0 < len(done) < 4
    brought = import_source(home, "ms-trial", source, hands=1)
    assert {o.case for o in brought.outcomes if o.verdict == "unchanged"} == done
    assert {listed.standing.state for listed in listing(home, "ms-trial")} == {State.IMPORTED}
    left = [f.name for case in workspace.cases() for f in case.folder.iterdir() if f.name.startswith(".")]
    assert left == []
    assert not (home / "secrets" / "data" / "ms-trial" / "unpacked").exists()


def test_two_imports_at_once_do_not_meet(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    visits(source, 1)
    with Workspace.of(home, "ms-trial").held(new=True), pytest.raises(CannotProceed, match="Another command"):
        import_source(home, "ms-trial", source, hands=0)
