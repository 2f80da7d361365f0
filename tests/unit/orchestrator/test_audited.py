"""The centre writes an event into its audit log before it keeps it, and acts on none that it cannot write down."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.audit_logs import Time
from fakes.stores import MemoryRunStore
from msfl.orchestrator.runs.events import SiteFailed, to_json
from msfl.orchestrator.store.audited import AuditedRuns
from msfl.orchestrator.store.interface import StoreUnavailable
from msfl.policies.encoding import sha256_of
from msfl.protos.audit_log import AuditLog, read_entries

EVENT = to_json(SiteFailed(1.0, "site-a", "train/1", "worker_failed"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit/log.jsonl"


@pytest.fixture
def log(file: Path) -> Iterator[AuditLog]:
    log = AuditLog(file, "orchestrator demo")
    yield log
    log.close()


def test_an_entry_says_what_happened_and_binds_the_event_by_its_hash(file: Path, log: AuditLog) -> None:
    runs = AuditedRuns(MemoryRunStore(), log, Time())
    assert runs.append("run-1", EVENT) == 1
    assert [e.text for e in runs.events("run-1")] == [EVENT]
    assert runs.runs() == ["run-1"]
    (entry,) = read_entries(file)
    assert (entry.action, entry.object) == ("site failed", "run-1")
    said = {"site": "site-a", "task_id": "train/1", "code": "worker_failed", "event": sha256_of(EVENT.encode())}
    assert entry.fields == said


def test_a_secret_of_an_event_is_not_in_the_log(file: Path, log: AuditLog) -> None:
    text = json.dumps({"kind": "Resumed", "at": 1.0, "by": "ada", "token": "the-token", "proof": "the-proof"})
    AuditedRuns(MemoryRunStore(), log, Time()).append("run-1", text)
    assert b"the-" not in file.read_bytes()


def test_on_a_full_disk_nothing_is_kept_that_was_not_announced(
    file: Path, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = MemoryRunStore()
    runs = AuditedRuns(inner, log, Time())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreUnavailable, match="audit log cannot be written"):
            runs.append("run-1", EVENT)
    assert inner.runs() == []
    assert read_entries(file) == []
    runs.append("run-1", EVENT)
    assert len(read_entries(file)) == 1
