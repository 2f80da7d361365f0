"""What a contained process keeps on disk, counted from outside whatever it makes there."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

import pytest

from msfl.runtime.quota import Quota, Usage, Watch, measure

PLENTY = Quota(bytes=1 << 30, files=10_000)


def test_blocks_are_counted_not_lengths(tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(b"x" * 100_000)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    used = measure([tmp_path], PLENTY)
    assert used.files == 2
    assert 100_000 <= used.bytes < 200_000


def test_folders_below_and_links_count_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "big").write_bytes(b"x" * 1_000_000)
    here = tmp_path / "here"
    (here / "a" / "b").mkdir(parents=True)
    (here / "a" / "link").symlink_to(tmp_path / "elsewhere")
    assert measure([here], PLENTY).files == 3
    assert measure([here], PLENTY).bytes < 100_000
    swapped = tmp_path / "swapped"
    swapped.symlink_to(tmp_path / "elsewhere")
    assert measure([swapped, tmp_path / "gone"], PLENTY) == Usage(0, 0)


def test_counting_ends_once_it_is_too_much(tmp_path: Path) -> None:
    for n in range(50):
        (tmp_path / str(n)).touch()
    used = measure([tmp_path], Quota(bytes=1 << 30, files=10))
    assert used.files == 11
    assert "10 files" in used.excess(Quota(bytes=1 << 30, files=10))


def test_folders_too_deep_to_be_counted_are_too_much(tmp_path: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(200):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    assert "too deep" in measure([tmp_path], PLENTY).excess(PLENTY)


def test_a_file_without_a_name_still_counts(tmp_path: Path) -> None:
    with (tmp_path / "gone").open("w+b", buffering=0) as held:
        held.write(b"x" * 1_000_000)
        (tmp_path / "gone").unlink()
        assert measure([tmp_path], PLENTY).bytes == 0
        assert measure([tmp_path], PLENTY, [os.getpid()]).bytes >= 1_000_000
        mapped = mmap.mmap(held.fileno(), 1_000_000)
    try:
        assert measure([tmp_path], PLENTY, [os.getpid()]).bytes >= 1_000_000, "closed, but mapped"
    finally:
        mapped.close()
    assert measure([tmp_path], PLENTY, [os.getpid()]).bytes == 0


@pytest.mark.parametrize("cause", ["bytes", "time"])
def test_whoever_has_too_much_is_told_on_once(tmp_path: Path, cause: str) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    said: list[str] = []
    told = threading.Event()

    def exceeded(what: str) -> None:
        said.append(what)
        told.set()

    quota = Quota(bytes=10, files=10) if cause == "bytes" else PLENTY
    watch = Watch([tmp_path], quota, exceeded, deadline=0.0 if cause == "time" else None, every_s=0.001)
    assert told.wait(5)
    watch.stop()
    assert len(said) == 1
    assert ("all its time" in said[0]) == (cause == "time")
