"""Attack 22, from the other side: a word that a log takes in, and after which nobody can read the log.

The centre has a reason for its stop and a name for its task, a site has a name for its task and a code for its failure,
a viewer has the path of a page. One character that is not seen, or three hundred kilobytes of them, and the honest log
would be called tampered for good: no gateway, no centre, no `msfl audit verify`. The doors refuse such words; the log
would take them, and be read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fakes.audit_logs import Time
from fakes.governance import NOW
from fakes.governed_sites import GovernedSite
from fakes.staff import StaffedSite
from fakes.stores import MemoryRunStore
from msfl.orchestrator.runs.events import SiteFailed, to_json
from msfl.orchestrator.store.audited import AuditedRuns
from msfl.policies.audit import Chain, Entry, append, verify
from msfl.policies.encoding import MAX_BYTES, canonical_json, read_json
from msfl.protos.audit_log import AuditLog, read_entries
from msfl.protos.messages import StopOrder, TaskOrder

POISON = {
    "a space of no width": "aborted\u200b",
    "a direction override": "export/\u202e",
    "half a character": "\ud800",
    "a newline that composes": "\n\u0301",
    "another Unicode form": "o\u0308",
    "much": "x" * 300_000,
    "much that is escaped": '"\\\u200b' * 100_000,
}
WRITTEN_ONCE = {name: poison for name, poison in POISON.items() if name != "half a character"}  # That has no bytes.
poisons = pytest.mark.parametrize("poison", POISON.values(), ids=POISON)


def whole(file: Path) -> list[Entry]:
    """Both as the next start reads it, and as an auditor does, whose reader may be the strict one of before."""
    lines = file.read_bytes().splitlines(keepends=True)
    assert verify(lines) is None
    for line in lines:
        read_json(line)
    return read_entries(file)


@pytest.mark.parametrize(
    "order",
    [
        lambda poison: StopOrder("run-1", poison, 1),
        lambda poison: TaskOrder("run-1", poison, "export", 0, 1, {}, ()),
    ],
    ids=["stop", "task"],
)
@poisons
def test_a_site_starts_again_after_any_word_of_the_centre(
    site: GovernedSite, order: Callable[[str], StopOrder | TaskOrder], poison: str
) -> None:
    """Said past the door, which lets none of them in: `test_convert.py`."""
    assert site.offer() == "allow"
    site.runs[-1].hear(order(poison))
    log = site.home.root / "audit/log.jsonl"
    before = len(whole(log))
    site.close()
    assert len(whole(log)) > before
    site.start_gateway()
    site.audit_log.write(NOW, "task begins", "run-2", {})


@poisons
def test_the_centre_starts_again_after_any_word_of_a_site(tmp_path: Path, poison: str) -> None:
    file = tmp_path / "log.jsonl"
    log = AuditLog(file, "orchestrator demo")
    runs = AuditedRuns(MemoryRunStore(), log, Time())
    runs.append("run-1", to_json(SiteFailed(at=1.0, site="site-a", task_id=poison, code=poison)))
    log.close()
    assert len(whole(file)) == 1
    AuditLog(file, "orchestrator demo").close()


def test_a_viewer_of_the_page_ends_no_log(site: GovernedSite) -> None:
    staffed = StaffedSite(site.home)
    viewer = staffed.browser()
    viewer.log_in("vera")
    assert viewer.post(unquote("/runs/%E2%80%8B/stop"), sure="yes").status == 403
    staffed.close()
    assert "\\u200b" in str(whole(site.home.root / "audit/log.jsonl")[-1].object)
    site.audit_log.write(NOW, "task begins", "run-2", {})


def test_what_nobody_sees_is_spelt_out_and_the_rest_stays_as_it_is(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log.jsonl", "gateway site-a")
    entry = log.write(
        NOW, "run stopped", "run-1", {"reason": "aborted\u200b", "by": "J\u00f6rg \\ \u2026", "to": "a\tb"}
    )
    log.close()
    assert entry.fields == {"reason": "aborted\\u200b", "by": "J\u00f6rg \\ \u2026", "to": "a\tb"}


def test_only_a_text_that_is_too_long_is_cut(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log.jsonl", "gateway site-a")
    entry = log.write(NOW, "result leaves", "run-1", {"fields": "dice, " * 10_000, "task": "x" * 300_000})
    log.close()
    assert entry.fields["fields"] == "dice, " * 10_000
    assert entry.fields["task"].endswith("x [cut: 300000 letters]")


@pytest.mark.parametrize("poison", WRITTEN_ONCE.values(), ids=WRITTEN_ONCE)
def test_a_log_that_was_poisoned_before_this_held_is_read_again(tmp_path: Path, poison: str) -> None:
    """Nothing in it is forged, so nobody has to mend it by hand: every line has one spelling, and the chain holds."""
    file = tmp_path / "log.jsonl"
    first = append(None, NOW, "gateway site-a", "run decided", "run-1", {"code": "ok"})
    second = as_it_was_written(first, poison)
    file.write_bytes(first.to_line() + second.to_line())
    log = AuditLog(file, "gateway site-a")
    log.write(NOW, "run decided", "run-2", {"code": "ok"})
    log.close()
    entries = read_entries(file)
    assert [entry.fields.get("reason") for entry in entries] == [None, poison, None]
    changed = file.read_bytes().splitlines(keepends=True)
    changed[1] = changed[1].replace(b"run stopped", b"run wanted!")
    broken = verify(changed)
    assert broken is not None
    assert broken.seq == 1


def as_it_was_written(previous: Entry, reason: str) -> Entry:
    """The entry that `append` once made: with the text as it came."""
    entry = replace(append(previous, NOW, "gateway site-a", "run stopped", "run-1"), fields={"reason": reason})
    body = asdict(entry)
    body.pop("sha256")
    return replace(entry, sha256="sha256:" + hashlib.sha256(b"msfl/audit/v1\n" + canonical_json(body)).hexdigest())


# Letters that are not seen, that compose, that JSON escapes, and all others.
ANY_TEXT = st.text(
    st.one_of(st.characters(), st.sampled_from('\u200b\u202e\u2028\ud800\x00\x7f\n\t\r"\\\u0301\u0308n\u212b'))
)


@settings(deadline=None)
@given(ANY_TEXT, ANY_TEXT, ANY_TEXT, st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=8), st.integers(1, 100))
@example("", "\n\u0301", "\t\u030c", {"\u1100\u1161": "\ud83d\ude00"}, 40_000)
@example("\x1f" * 40_000, "\u212b" * 40_000, "", {"\u200b" * 40_000: '"' * 40_000}, 1)
def test_whatever_is_written_is_read(actor: str, action: str, object: str, fields: dict[str, str], times: int) -> None:
    fields = {**fields, "much": object * times}
    first = append(None, NOW, actor, action, object, fields)
    second = append(first, NOW, actor, action, object, fields)
    chain = Chain()
    for entry in (first, second):
        line = entry.to_line()
        assert len(line) <= MAX_BYTES
        assert read_json(line)["seq"] == entry.seq
        assert chain.take(line) is None
        assert chain.last == entry


@settings(deadline=None)
@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT, st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3)), max_size=5))
def test_a_log_is_opened_again_whatever_was_written_into_it(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, str, dict[str, str]]]
) -> None:
    file = tmp_path_factory.mktemp("audit") / "log.jsonl"
    for action, object, fields in said:
        log = AuditLog(file, "gateway site-a")
        log.write(NOW, action, object, fields)
        log.close()
    assert len(whole(file) if file.exists() else []) == len(said)
