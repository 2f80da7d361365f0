"""A dataset's folder: where a case stands, and what a process that dies leaves behind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msfl.imaging.faults import ADVICE, Fault, unusable
from msfl.imaging.workspace import (
    LESION,
    Case,
    Entry,
    State,
    Step,
    Workspace,
    read_json,
    stands,
    write_json,
    write_whole,
)
from msfl.policies.refusals import CannotProceed

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


def did(step: Step) -> Entry:
    return Entry(step, NOON)


def failed(step: Step) -> Entry:
    return Entry(step, NOON, "unreadable", "It cannot be read.")


@pytest.mark.parametrize(
    ("journal", "state", "stuck"),
    [
        ([], State.FOUND, False),
        ([did(Step.IMPORT)], State.IMPORTED, False),
        ([failed(Step.IMPORT)], State.FOUND, True),
        ([failed(Step.IMPORT), did(Step.IMPORT)], State.IMPORTED, False),
        ([did(Step.IMPORT), did(Step.STANDARDISE)], State.STANDARD, False),
        ([did(Step.IMPORT), failed(Step.STANDARDISE)], State.IMPORTED, True),
        ([did(Step.IMPORT), did(Step.STANDARDISE), did(Step.QUALITY)], State.CHECKED, False),
        ([did(Step.IMPORT), did(Step.STANDARDISE), did(Step.QUALITY), did(Step.IMPORT)], State.IMPORTED, False),
        ([did(Step.IMPORT), did(Step.STANDARDISE), did(Step.QUALITY), failed(Step.STANDARDISE)], State.IMPORTED, True),
        ([did(Step.IMPORT), did(Step.STANDARDISE), failed(Step.QUALITY)], State.STANDARD, True),
    ],
)
def test_the_journal_says_where_a_case_stands(journal: list[Entry], state: State, stuck: bool) -> None:
    standing = stands(journal)
    assert standing.state is state
    assert (standing.failed is not None) is stuck


@given(st.lists(st.builds(Entry, st.sampled_from(Step), st.just(NOON), st.sampled_from(["", "unreadable"]))))
def test_no_state_is_reached_by_a_step_that_failed(journal: list[Entry]) -> None:
    standing = stands(journal)
    assert (standing.failed is None) == (not journal or journal[-1].done)
    reached = {
        State.IMPORTED: Step.IMPORT,
        State.STANDARD: Step.STANDARDISE,
        State.CHECKED: Step.QUALITY,
    }
    if journal and journal[-1].done:
        assert reached[standing.state] is journal[-1].step


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    case = Workspace.of(tmp_path, "ms-trial").case("p7k3qx-s1")
    entries = (failed(Step.IMPORT), Entry(Step.IMPORT, NOON + timedelta(hours=1), inputs="sha256:0"))
    for entry in entries:
        case.record(entry)
    assert case.journal == entries
    assert [c.id for c in Workspace.of(tmp_path, "ms-trial").cases()] == ["p7k3qx-s1"]


@pytest.mark.parametrize("name", ["", "../other", "a/b", "MS", "a.json", "b.path", "a" * 65, ".hidden"])
def test_a_dataset_has_a_name_that_policies_can_use(tmp_path: Path, name: str) -> None:
    with pytest.raises(CannotProceed, match="cannot be the name of a dataset"):
        Workspace.of(tmp_path, name)


@pytest.mark.parametrize("name", ["", "..", "../p1", "p1/..", ".raw.new"])
def test_a_case_has_a_name_that_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(CannotProceed, match="not the name of a case"):
        Workspace.of(tmp_path, "ms-trial").case(name)


class Died(Exception):
    pass


def half_fill(case: Case) -> None:
    with case.filling("raw") as fresh:
        (fresh / "lesion.nii.gz").write_bytes(b"sec")
        raise Died


def test_a_folder_that_was_half_filled_changes_nothing(tmp_path: Path) -> None:
    case = Case(tmp_path / "p1")
    with case.filling("raw") as fresh:
        (fresh / "lesion.nii.gz").write_bytes(b"first")
    with pytest.raises(Died):
        half_fill(case)
    assert case.raw(LESION).read_bytes() == b"first"
    assert case.has_lesion
    assert [f.name for f in case.folder.iterdir()] == ["raw"]


def test_a_second_filling_replaces_the_first_whole(tmp_path: Path) -> None:
    case = Case(tmp_path / "p1")
    for name in ("FLAIR", "T1w"):
        with case.filling("raw") as fresh:
            (fresh / f"{name}.nii.gz").write_bytes(b"image")
    assert [f.name for f in (case.folder / "raw").iterdir()] == ["T1w.nii.gz"]


def test_only_one_command_at_a_time_changes_a_dataset(tmp_path: Path) -> None:
    workspace = Workspace.of(tmp_path, "ms-trial")
    with workspace.held(new=True), pytest.raises(CannotProceed, match="Another command"), workspace.held(new=True):
        pass
    with workspace.held(new=True):
        pass


def test_same_content_gives_the_same_bytes_and_only_the_site_may_read_them(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    write_json(tmp_path / "b.json", {"a": "é", "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o600
    assert read_json(tmp_path / "a.json") == {"a": "é", "b": 1}
    write_whole(tmp_path / "c.json", b"[]")
    with pytest.raises(CannotProceed, match="not a JSON object"):
        read_json(tmp_path / "c.json")


@pytest.mark.parametrize("fault", Fault)
def test_every_fault_says_what_to_do(fault: Fault) -> None:
    found = unusable(fault, "Something is wrong.", slices=3)
    assert found.code == fault.value
    assert found.reason == f"Something is wrong. {ADVICE[fault]}"
    assert str(found) == f"{fault.value}: {found.reason}"
