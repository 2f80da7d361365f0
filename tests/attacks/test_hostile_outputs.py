"""A worker leaves something else in its outbox than a plain file. Nothing of the host is read, nothing hangs."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from msfl.policies.refusals import Code, Refused
from msfl.runtime import collect as collector
from msfl.runtime.collect import collect

SECRET = b"root:$6$secret"


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "outbox"
    folder.mkdir(parents=True)
    (tmp_path / "shadow").write_bytes(SECRET)
    return folder


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    return tmp_path / "taken"


def blocked(outbox: Path, name: str, taken: Path, max_bytes: int = 1000) -> str:
    with pytest.raises(Refused) as refused:
        collect(outbox, name, taken, max_bytes)
    assert refused.value.refusal.code is Code.OUTPUT_BLOCKED
    assert not taken.exists()
    return refused.value.refusal.fields["why"]


def test_an_honest_file_becomes_a_private_copy(outbox: Path, taken: Path) -> None:
    (outbox / "weights").write_bytes(b"w" * 3_000_000)
    (outbox / "weights").chmod(0o4777)
    got = collect(outbox, "weights", taken, 3_000_000)
    assert got.path.read_bytes() == b"w" * 3_000_000
    assert (got.size, got.sha256) == (3_000_000, hashlib.sha256(b"w" * 3_000_000).hexdigest())
    assert got.path.stat().st_mode & 0o7777 == 0o600
    assert not got.path.samefile(outbox / "weights")


def test_a_symbolic_link_to_a_file_of_the_host(outbox: Path, taken: Path) -> None:
    (outbox / "weights").symlink_to(outbox.parent.parent / "shadow")
    assert "link" in blocked(outbox, "weights", taken)


def test_an_outbox_that_became_a_link(outbox: Path, taken: Path) -> None:
    outbox.rmdir()
    outbox.symlink_to(outbox.parent.parent)
    assert "folder" in blocked(outbox, "shadow", taken)


def test_a_hard_link_to_a_file_of_the_host(outbox: Path, taken: Path) -> None:
    os.link(outbox.parent.parent / "shadow", outbox / "weights")
    assert "hard links" in blocked(outbox, "weights", taken)


def test_a_fifo_does_not_hang(outbox: Path, taken: Path) -> None:
    os.mkfifo(outbox / "weights")
    assert "regular" in blocked(outbox, "weights", taken)


def test_a_folder_and_a_socket(outbox: Path, taken: Path) -> None:
    (outbox / "folder").mkdir()
    assert "regular" in blocked(outbox, "folder", taken)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(outbox / "socket"))
        assert "cannot be opened" in blocked(outbox, "socket", taken)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../shadow",
        "/etc/passwd",
        "a/b",
        "a\nb",
        "weights\n",
        "a\0b",
        "-rf",
        ".hidden",
        "ä",
        "x" * 129,
        "a b",
    ],
)
def test_a_name_is_one_plain_word(outbox: Path, taken: Path, name: str) -> None:
    assert "plain file name" in blocked(outbox, name, taken)


def test_a_name_that_is_not_there(outbox: Path, taken: Path) -> None:
    assert "not there" in blocked(outbox, "weights", taken)


def test_a_sparse_file_larger_than_the_bound(outbox: Path, taken: Path) -> None:
    (outbox / "weights").touch()
    os.truncate(outbox / "weights", 1 << 40)
    assert "more than 1000" in blocked(outbox, "weights", taken)


@pytest.mark.parametrize(("size", "why"), [(5000, "grew"), (10, "shrank")])
def test_a_file_that_changes_after_the_check(
    outbox: Path, taken: Path, monkeypatch: pytest.MonkeyPatch, size: int, why: str
) -> None:
    (outbox / "weights").write_bytes(b"w" * 1000)
    check = collector._checked_size

    def then_change(source: int, name: str, max_bytes: int) -> int:
        found = check(source, name, max_bytes)
        os.truncate(outbox / "weights", size)
        return found

    monkeypatch.setattr(collector, "_checked_size", then_change)
    assert why in blocked(outbox, "weights", taken)


def test_a_name_swapped_for_a_link_after_the_check(outbox: Path, taken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (outbox / "weights").write_bytes(b"honest")
    check = collector._checked_size

    def then_swap(source: int, name: str, max_bytes: int) -> int:
        found = check(source, name, max_bytes)
        (outbox / "weights").unlink()
        (outbox / "weights").symlink_to(outbox.parent.parent / "shadow")
        return found

    monkeypatch.setattr(collector, "_checked_size", then_swap)
    assert collect(outbox, "weights", taken, 1000).path.read_bytes() == b"honest"


def test_what_is_taken_never_lies_where_the_worker_can_write(outbox: Path) -> None:
    (outbox / "weights").write_bytes(b"w")
    with pytest.raises(ValueError, match="outside"):
        collect(outbox, "weights", outbox.parent / "taken", 1000)


def test_nothing_that_is_there_is_overwritten(outbox: Path, taken: Path) -> None:
    (outbox / "weights").write_bytes(b"w")
    taken.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        collect(outbox, "weights", taken, 1000)
    assert taken.read_bytes() == b"precious"
