"""The audit log on disk: durable, chained over restarts, and never continued behind a change."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from msfl.policies.audit import verify
from msfl.protos.audit_log import AuditBroken, AuditLog

NOW = datetime(2026, 12, 1, tzinfo=UTC)


def lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A log of four entries, closed."""
    file = tmp_path / "audit" / "log.jsonl"
    log = AuditLog(file, "gateway site-a")
    for i in range(4):
        log.write(NOW + timedelta(seconds=i), "run decided", f"run-{i}", {"verdict": "allow"})
    log.close()
    return file


def test_an_entry_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log.jsonl", "gateway site-a")
    entry = log.write(NOW, "worker starts", "run-1", {"digest": "sha256:0"})
    assert lines(tmp_path / "log.jsonl") == [entry.to_line()]
    log.close()


def test_a_restart_continues_the_chain(file: Path) -> None:
    log = AuditLog(file, "gateway site-a")
    entry = log.write(NOW, "run stopped", "run-3", {})
    log.close()
    assert entry.seq == 4
    assert entry.previous == json.loads(lines(file)[3])["sha256"]
    assert verify(lines(file)) is None


def test_only_the_sites_staff_can_read_it(file: Path) -> None:
    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0


def edited(all: list[bytes]) -> list[bytes]:
    return [all[0], all[1].replace(b"allow", b"refuse"), *all[2:]]


@pytest.mark.parametrize(
    "tamper",
    [
        edited,
        lambda all: [*all[:1], *all[2:]],
        lambda all: [all[1], all[0], *all[2:]],
        lambda all: all[1:],
        lambda all: [*all, all[3]],
        lambda all: [*all[:3], all[3][:-10]],
        lambda all: [*all[:3], all[3].rstrip(b"\n")],
        lambda all: [*all, b"\n"],
        lambda all: [*all, b"not json\n"],
    ],
    ids=["edited", "cut", "swapped", "headless", "repeated", "torn", "unended", "blank", "foreign"],
)
def test_a_log_that_was_changed_does_not_open(file: Path, tamper: Callable[[list[bytes]], list[bytes]]) -> None:
    file.write_bytes(b"".join(tamper(lines(file))))
    before = file.read_bytes()
    with pytest.raises(AuditBroken, match=r"log\.jsonl"):
        AuditLog(file, "gateway site-a")
    assert file.read_bytes() == before


def test_entries_from_many_threads_make_one_chain(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log.jsonl", "gateway site-a")

    def write(run: str) -> None:
        for _ in range(5):
            log.write(NOW, "task begins", run, {})

    threads = [threading.Thread(target=write, args=(f"run-{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(lines(tmp_path / "log.jsonl")) == 20
    assert verify(lines(tmp_path / "log.jsonl")) is None


def test_two_processes_write_one_chain(tmp_path: Path) -> None:
    """Two open logs on one file, as a gateway and its page for staff have: each goes on behind the other."""
    file = tmp_path / "log.jsonl"
    gateway, page = AuditLog(file, "gateway site-a"), AuditLog(file, "page site-a")
    for n in range(3):
        gateway.write(NOW, "task begins", f"run-{n}", {})
        page.write(NOW, "staff logged in", "cleo", {})
    assert (gateway.size, page.size) == (6, 6)
    assert gateway.look(lambda chain: chain.head) == page.look(lambda chain: chain.head)
    gateway.close()
    page.close()
    assert verify(lines(file)) is None
    assert [json.loads(line)["actor"] for line in lines(file)] == ["gateway site-a", "page site-a"] * 3


def test_real_processes_do_not_lose_an_entry_of_each_other(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    log = AuditLog(file, "gateway site-a")
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=_write_some, args=(file,)) for _ in range(2)]
    for other in others:
        other.start()
    for _ in range(20):
        log.write(NOW, "task begins", "run-1", {})
    for other in others:
        other.join()
    log.close()
    assert verify(lines(file)) is None
    assert len(lines(file)) == 60


def _write_some(file: Path) -> None:
    log = AuditLog(file, "page site-a")
    for _ in range(20):
        log.write(NOW, "staff logged in", "cleo", {})
    log.close()


@pytest.mark.parametrize(
    "change",
    [lambda all: [*all, all[0]], lambda all: all[:2], lambda all: [*all, b"{}\n"]],
    ids=["repeated", "cut", "foreign"],
)
def test_nobody_goes_on_behind_a_change_that_was_made_while_the_log_was_open(
    file: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    log = AuditLog(file, "gateway site-a")
    file.write_bytes(b"".join(change(lines(file))))
    before = file.read_bytes()
    with pytest.raises(AuditBroken):
        log.write(NOW, "worker starts", "run-9", {})
    log.close()
    assert file.read_bytes() == before
