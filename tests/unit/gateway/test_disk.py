"""A full or read-only disk at a site: what waits goes on by itself, and nothing is half-written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.governance import NOW
from msfl.gateway.disk import RETRY_S, GivenUp, has_room, with_room
from msfl.gateway.home import write
from msfl.gateway.ledger import Ledger
from msfl.policies.audit import verify
from msfl.protos.audit_log import AuditLog


def failing(times: int, number: int = errno.ENOSPC) -> Callable[[], str]:
    left = [number] * times

    def call() -> str:
        if left:
            raise OSError(left.pop(), "as if")
        return "done"

    return call


class Patience:
    """Instead of a clock: counts the waits, and gives up after `most`."""

    def __init__(self, most: int = 100) -> None:
        self.waits: list[float] = []
        self.said = 0
        self._most = most

    def pause(self, wait_s: float) -> bool:
        self.waits.append(wait_s)
        return len(self.waits) > self._most

    def say(self) -> None:
        self.said += 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_waits_for_room_goes_on_by_itself(tmp_path: Path, number: int) -> None:
    patience = Patience()
    assert with_room(failing(3, number), tmp_path, patience.say, patience.pause) == "done"
    assert patience.waits == [RETRY_S] * 3
    assert patience.said == 3


def test_other_troubles_are_not_waited_for(tmp_path: Path) -> None:
    patience = Patience()
    with pytest.raises(OSError, match="as if"):
        with_room(failing(1, errno.EIO), tmp_path, patience.say, patience.pause)
    assert not patience.waits


def test_waiting_ends_with_the_gateway(tmp_path: Path) -> None:
    patience = Patience(most=2)
    with pytest.raises(GivenUp):
        with_room(failing(99), tmp_path, patience.say, patience.pause)


def test_room_is_found_out_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_room(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "fsync", lambda _: _raise(errno.ENOSPC))
    assert not has_room(tmp_path)


def test_a_line_that_does_not_fit_leaves_the_audit_chain_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "log.jsonl", "gateway site-a")
    log.write(NOW, "run decided", "run-1", {})
    really = os.write
    monkeypatch.setattr(os, "write", lambda file, data: really(file, data[:10]))  # what a nearly full disk does
    with pytest.raises(OSError, match="No space"):
        log.write(NOW, "worker starts", "run-1", {})
    monkeypatch.setattr(os, "write", really)
    log.write(NOW, "worker starts", "run-1", {})
    log.close()
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 2
    assert verify(lines) is None


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "state.json", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: _raise(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "state.json", b"new")
    assert (tmp_path / "state.json").read_bytes() == b"old"


def test_a_ledger_on_a_full_disk_says_so_like_a_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.close()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger._tables._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(OSError, match="Read-only"):
        ledger.begin_run("run-1", "policy", 1)
    ledger._tables._connection.execute("PRAGMA query_only = 0")
    assert ledger.begin_run("run-1", "policy", 1)
    ledger.close()


def _raise(number: int) -> None:
    raise OSError(number, os.strerror(number))
