"""What a site remembers: only upwards, durable, and corrected by the audit log."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from fakes.governance import NOW
from msfl.gateway.memory import CLOCK_ACCEPTED, REVOKED_HERE, TAKEN, Mark, Memory
from msfl.policies.documents import RevocationList, parse_utc
from msfl.policies.trust import Revoked
from msfl.protos.audit_log import AuditLog, read_entries

HOUR = timedelta(hours=1)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "trust" / "memory.sqlite")


def test_a_mark_only_grows(memory: Memory) -> None:
    assert memory.mark("policy", "one") is None
    for version in (2, 3, 1, 3):
        memory.remember("policy", "one", Mark(version, f"sha256:{version}"))
    memory.remember("policy", "other", Mark(1, "sha256:1"))
    assert memory.mark("policy", "one") == Mark(3, "sha256:3")
    memory.remember("policy", "one", Mark(3, "sha256:else"))
    assert memory.mark("policy", "one") == Mark(3, "sha256:3")


def test_what_was_kept_and_revoked_is_there_after_a_restart(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "memory.sqlite")
    memory.keep("timestamp", b"one")
    memory.keep("timestamp", b"two")
    listed = RevocationList(federation="f", version=1, issued=NOW, keys=("a" * 64,), sites=("site-b",))
    memory.revoke_listed(listed)
    memory.revoke_listed(listed)
    memory.close()
    again = Memory(tmp_path / "memory.sqlite")
    assert again.kept("timestamp") == b"two"
    assert again.kept("revocations") is None
    assert again.revoked() == Revoked(frozenset(("a" * 64,)), frozenset(), frozenset(), frozenset(("site-b",)))


def test_a_custodians_revocation_holds_at_once_and_waits_to_be_written_down(memory: Memory) -> None:
    memory.say("policy", "site-a/one", "cleo")
    assert memory.revoked().policies == {"site-a/one"}
    (word,) = memory.said()
    assert (word.kind, word.what, word.by) == ("policy", "site-a/one", "cleo")
    memory.heard(word)
    assert memory.said() == ()
    assert memory.revoked().policies == {"site-a/one"}


def test_time_only_goes_on_until_the_custodian_says_otherwise(memory: Memory) -> None:
    assert memory.latest() is None
    memory.saw(NOW + HOUR)
    memory.saw(NOW)
    assert memory.latest() == NOW + HOUR
    memory.accept_clock(NOW)
    assert memory.latest() == NOW


def test_it_recalls_what_the_audit_log_knows(memory: Memory, tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log.jsonl", "gateway site-a")
    log.write(NOW, TAKEN, "policy one", {"version": "4", "sha256": "sha256:4"})
    log.write(NOW + 900 * HOUR, "run decided", "run-1", {})  # the clock was ahead
    log.write(NOW + HOUR, CLOCK_ACCEPTED, "site-a", {"by": "cleo"})
    log.write(NOW + 2 * HOUR, REVOKED_HERE, "release sha256:0", {"by": "cleo"})
    log.close()
    memory.remember("policy", "one", Mark(2, "sha256:2"))
    memory.recall(read_entries(tmp_path / "log.jsonl"))
    assert memory.mark("policy", "one") == Mark(4, "sha256:4")
    assert memory.revoked().releases == {"sha256:0"}
    assert memory.latest() == parse_utc(NOW + 2 * HOUR)
