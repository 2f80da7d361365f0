"""A worker leaves something else in its outbox than a plain file. Nothing of the host is read, nothing hangs, and what
it left can be removed, whatever it is."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from msfl.gateway.record import forget
from msfl.gateway.task_files import TaskFiles
from msfl.policies.refusals import Code, Refused
from msfl.runtime import collect as collector
from msfl.runtime.collect import collect
from msfl.runtime.removal import empty, remove_tree

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
        assert "regular" in blocked(outbox, "socket", taken)


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


def test_a_device(outbox: Path, taken: Path) -> None:
    try:
        os.mknod(outbox / "weights", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")
    assert "regular" in blocked(outbox, "weights", taken)


def test_a_lease_does_not_hang(outbox: Path, taken: Path) -> None:
    """Whoever opens a file under a lease waits for up to 45 s, unless he says that he does not wait."""
    (outbox / "weights").write_bytes(b"w")
    with open(outbox / "weights", "r+b") as held:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        since = time.monotonic()
        assert "cannot be opened" in blocked(outbox, "weights", taken)
        assert time.monotonic() - since < 5
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    signal.signal(signal.SIGIO, signal.SIG_DFL)


def test_a_file_that_nobody_may_read(outbox: Path, taken: Path) -> None:
    (outbox / "weights").write_bytes(b"w")
    (outbox / "weights").chmod(0)
    if os.geteuid() == 0:
        assert collect(outbox, "weights", taken, 10).size == 1
    else:
        assert "cannot be opened" in blocked(outbox, "weights", taken)


# ------------------------------------------------------------------ removing what is left


def hostile(folder: Path) -> None:
    """One of everything."""
    (folder / "link").symlink_to(folder.parent.parent / "shadow")
    (folder / "folder-link").symlink_to(folder.parent.parent)
    os.mkfifo(folder / "fifo")
    (folder / "a\nb").write_text("x")
    (folder / "-rf").write_text("x")
    (folder / "\udcff").write_text("x")  # a name that is no text
    os.link(folder / "-rf", folder / "second name")
    (folder / "setuid").touch()
    (folder / "setuid").chmod(0o4777)
    (folder / "sparse").touch()
    os.truncate(folder / "sparse", 1 << 40)
    (folder / "shut" / "in").mkdir(parents=True)
    (folder / "shut" / "in" / "file").touch()
    (folder / "shut" / "in").chmod(0)
    (folder / "shut").chmod(0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))


def deep(folder: Path, most: int) -> None:
    """Deeper than a path can name, and than a stack is high."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(most):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def test_everything_it_left_goes_and_nothing_else(outbox: Path) -> None:
    hostile(outbox)
    deep(outbox, 3000)
    assert remove_tree(outbox)
    assert not outbox.exists()
    assert (outbox.parent.parent / "shadow").read_bytes() == SECRET


def test_thousands_of_files_go(outbox: Path) -> None:
    for n in range(5000):
        (outbox / str(n)).touch()
    assert empty(outbox)
    assert os.listdir(outbox) == []


def test_a_folder_that_became_a_link_goes_itself(outbox: Path) -> None:
    elsewhere = outbox.parent.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("data")
    outbox.rmdir()
    outbox.symlink_to(elsewhere)
    assert empty(outbox)
    assert not outbox.is_symlink()
    assert (elsewhere / "precious").read_text() == "data"


def test_what_is_kept_is_a_plain_file_and_nothing_that_looks_like_one(outbox: Path) -> None:
    (outbox / "weights").write_bytes(b"w")
    (outbox / "folder").mkdir()
    (outbox / "twice").write_bytes(b"t")
    os.link(outbox / "twice", outbox / "again")
    assert empty(outbox, keep={"weights", "folder", "twice"})
    assert os.listdir(outbox) == ["weights"]


def test_a_gateway_clears_whatever_was_left(tmp_path: Path) -> None:
    """What it does before and after each task, and when the run is over."""
    run = tmp_path / "run-1"
    for part in ("inbox", "outbox", "scratch", "figures"):
        (run / "box" / part).mkdir(parents=True)
    (tmp_path / "shadow").write_bytes(SECRET)
    outbox = run / "box" / "outbox"
    hostile(outbox)
    deep(run / "box" / "scratch", 2000)
    (outbox / "weights.safetensors").symlink_to(tmp_path / "shadow")
    files = TaskFiles.__new__(TaskFiles)
    files._box, files.inbox, files._held = run / "box", run / "box" / "inbox", {}
    files.clear()
    assert os.listdir(outbox) == []
    forget(run)
    assert not (run / "box").exists()
    assert (tmp_path / "shadow").read_bytes() == SECRET


# ------------------------------------------------------------------ a process that races

_RACER = """
import os, sys
os.chdir(sys.argv[1])
honest, n = b"h" * 200_000, 0
def fresh(name):
    if os.path.isdir(name) and not os.path.islink(name): os.rmdir(name)
    elif os.path.lexists(name): os.unlink(name)
def plain(): open("new", "wb").write(honest)
def link(): os.symlink(sys.argv[2], "new")
def fifo(): os.mkfifo("new")
def hard(): os.link("kept", "new")
def grown(): open("new", "wb").write(honest + b"g" * (n % 5000))
open("kept", "wb").write(honest)
while True:
    for make in (plain, link, plain, fifo, plain, hard, plain, grown):
        n += 1
        fresh("new"); make(); os.rename("new", "weights")
    os.truncate("weights", n % 200_000) if not os.path.islink("weights") else None
    fresh("weights"); os.mkdir("weights"); os.rmdir("weights")
"""


@pytest.mark.system
@pytest.mark.slow
def test_a_process_that_swaps_what_it_left_all_the_time(outbox: Path, tmp_path: Path) -> None:
    """Many thousand swaps: what is taken is each time the whole of an honest file or of a grown one, never a mixture
    with the host's, and nothing ever waits."""
    secret = tmp_path / "shadow"
    racer = subprocess.Popen([sys.executable, "-c", _RACER, str(outbox), str(secret)])
    whys: set[str] = set()
    took = 0
    give_up = time.monotonic() + 6
    try:
        while time.monotonic() < give_up:
            into = tmp_path / "taken"
            since = time.monotonic()
            try:
                got = collect(outbox, "weights", into, 210_000)
            except Refused as refused:
                whys.add(refused.refusal.fields["why"].split(",")[0])
            else:
                data = got.path.read_bytes()
                assert set(data) <= set(b"hg\0")
                assert hashlib.sha256(data).hexdigest() == got.sha256
                assert len(data) == got.size
                took += 1
                into.unlink()
            assert time.monotonic() - since < 5
        assert racer.poll() is None, "it raced to the end"
        assert took > 10
        assert {"it is a link", "it is not a regular file", "it has other names (hard links)"} <= whys, whys
        # Also while it goes on, clearing ends.
        since = time.monotonic()
        empty(outbox, patience_s=2.0)
        assert time.monotonic() - since < 5
    finally:
        racer.kill()
        racer.wait()
    assert remove_tree(outbox)
    assert secret.read_bytes() == SECRET
