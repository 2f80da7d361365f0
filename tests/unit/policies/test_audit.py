"""The audit chain: whatever is done to a log afterwards shows, and says where."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from fakes.governance import NOW
from msfl.policies.audit import GENESIS, BrokenChain, Entry, append, from_line, verify


def chain(length: int) -> list[Entry]:
    entries: list[Entry] = []
    for n in range(length):
        previous = entries[-1] if entries else None
        entries.append(append(previous, NOW + timedelta(seconds=n), "gateway", "decide", f"run-{n}", {"code": "ok"}))
    return entries


def lines(length: int = 5) -> list[bytes]:
    return [entry.to_line() for entry in chain(length)]


def broken(log: list[bytes], head: str | None = None) -> BrokenChain:
    result = verify(log, head)
    assert result is not None
    return result


def test_a_whole_chain_verifies() -> None:
    assert verify([]) is None
    assert verify(lines()) is None
    assert verify(lines(), chain(5)[-1].sha256) is None
    assert chain(1)[0].previous == GENESIS


def test_a_line_reads_back_to_its_entry() -> None:
    entry = chain(3)[2]
    assert from_line(entry.to_line()) == entry


def test_an_edited_entry_shows() -> None:
    log = lines()
    log[2] = log[2].replace(b"run-2", b"run-9")
    assert broken(log) == BrokenChain(2, "line 3 was changed after it was written")


def test_an_edited_and_rehashed_entry_shows_at_the_next() -> None:
    entries = chain(5)
    forged = append(entries[1], NOW, "gateway", "decide", "run-9", {"code": "ok"})
    log = [*(e.to_line() for e in entries[:2]), forged.to_line(), *(e.to_line() for e in entries[3:])]
    assert broken(log).seq == 3


def test_a_deleted_a_doubled_and_a_moved_entry_show() -> None:
    log = lines()
    assert broken(log[:2] + log[3:]).seq == 2
    assert broken([*log[:2], log[1], *log[2:]]).seq == 2
    assert broken([log[1], log[0], *log[2:]]).seq == 0


def test_a_cut_end_shows_only_to_who_knows_the_head() -> None:
    assert verify(lines()[:3]) is None
    assert "missing" in broken(lines()[:3], chain(5)[-1].sha256).why


@pytest.mark.parametrize("line", [b"", b"{}\n", b"[]\n", b"\xff\n", b'{"seq":0,"seq":0}\n'])
def test_a_line_that_is_no_entry_shows(line: bytes) -> None:
    assert broken([line]).seq == 0


def test_a_line_has_one_spelling() -> None:
    spaced = json.dumps(json.loads(lines(1)[0]), sort_keys=True).encode() + b"\n"
    assert "canonically" in broken([spaced]).why
    assert "canonically" in broken([lines(1)[0].rstrip(b"\n")]).why


def test_half_a_character_shows() -> None:
    assert "half a character" in broken([lines(1)[0].replace(b"run-0", rb"\ud800")]).why


def test_a_field_of_another_type_shows() -> None:
    for old, new in ((b'"seq":0', b'"seq":false'), (b'"actor":"gateway"', b'"actor":1'), (b'{"code":"ok"}', b"[]")):
        log = [lines(1)[0].replace(old, new)]
        assert "wrong type" in broken(log).why
