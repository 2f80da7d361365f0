"""The audit chain: each entry carries the hash of the one before, so an edit, a gap or a reordering shows.

    sha256 = SHA-256("msfl/audit/v1\\n" + canonical JSON of {seq, at, actor, action, object, fields, previous})
    entry 0: previous = "sha256:" + 64 zeros        file: one canonical JSON line per entry

Pure: gateway and orchestrator write the lines (before the effect, and durably: `msfl.protos.audit_log`). A chain alone
does not show that its end was cut off, or that all of it was made anew: that shows against a checkpoint, the Merkle
root of the first n lines, which another party keeps (`checkpoints`, `audit_files`).
Entries hold ids, codes, hashes and counts; never a file name, a case or a word from a log. Some come from the other
side of the line, so `append` makes no entry that a reader would refuse, whatever text it is given: characters that
nobody sees are spelt out, and what does not fit in a line is cut. Lines from before it did so are read, too: a chain
needs one spelling of each line, not a visible one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from msfl.policies.documents import format_utc
from msfl.policies.encoding import MAX_BYTES, Malformed, canonical_json, read_json, visible
from msfl.policies.merkle import Tree

GENESIS = "sha256:" + "0" * 64
_DOMAIN = b"msfl/audit/v1\n"
_MAX_LINE_BYTES = 32 << 20  # No line was ever longer: the longest message, each letter of it escaped.
_FIELDS = {"seq", "at", "actor", "action", "object", "fields", "previous", "sha256"}


@dataclass(frozen=True)
class Entry:
    """`actor` did `action` to `object`; `at` is UTC text; `fields` holds JSON values."""

    seq: int
    at: str
    actor: str
    action: str
    object: str
    fields: Mapping[str, Any]
    previous: str
    sha256: str

    def to_line(self) -> bytes:
        """One line of the log file, with its newline."""
        return canonical_json(asdict(self)) + b"\n"


@dataclass(frozen=True)
class BrokenChain:
    """The first line that does not fit, counted from 0, and why."""

    seq: int
    why: str


def append(
    previous: Entry | None, at: datetime, actor: str, action: str, object: str, fields: Mapping[str, str] | None = None
) -> Entry:
    """The entry that follows `previous` (None: the first). Its line has at most MAX_BYTES; only texts that would make
    it longer are cut."""
    actor, action, object = visible(actor), visible(action), visible(object)
    seen = {visible(name): visible(value) for name, value in (fields or {}).items()}
    most = MAX_BYTES
    while True:
        body = {
            "seq": 0 if previous is None else previous.seq + 1,
            "at": format_utc(at),
            "actor": _cut(actor, most),
            "action": _cut(action, most),
            "object": _cut(object, most),
            "fields": {_cut(name, most): _cut(value, most) for name, value in seen.items()},
            "previous": GENESIS if previous is None else previous.sha256,
        }
        entry = Entry(**body, sha256=_hash(body))  # type: ignore[arg-type]  # the dict holds exactly Entry's fields
        if len(entry.to_line()) <= MAX_BYTES or most == 0:
            return entry
        most //= 2


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} [cut: {len(text)} letters]"


def from_line(line: bytes) -> Entry | str:
    """The entry of one line, or why it is none. The line must be canonical, newline included."""
    try:
        raw = read_json(line, "audit line", max_bytes=_MAX_LINE_BYTES, any_text=True)
    except Malformed as error:
        return f"unreadable ({error})"
    if not isinstance(raw, dict) or set(raw) != _FIELDS:
        return "does not have the fields of an entry"
    texts = all(isinstance(raw[name], str) for name in ("at", "actor", "action", "object", "previous", "sha256"))
    if not texts or type(raw["seq"]) is not int or not isinstance(raw["fields"], dict):
        return "has a field of the wrong type"
    entry = Entry(**raw)
    try:
        return entry if entry.to_line() == line else "is not written canonically"
    except UnicodeEncodeError:
        return "holds half a character"


class Chain:
    """Lines that were taken and fit: how many, the last of them, and the Merkle tree over their bytes."""

    def __init__(self) -> None:
        self.last: Entry | None = None
        self._tree = Tree()

    @property
    def size(self) -> int:
        return self._tree.size

    @property
    def head(self) -> str:
        return GENESIS if self.last is None else self.last.sha256

    @property
    def root(self) -> str:
        return "sha256:" + self._tree.root().hex()

    def take(self, line: bytes) -> BrokenChain | None:
        """Why the line does not follow; then nothing has changed."""
        seq = self.size
        entry = from_line(line)
        if isinstance(entry, str):
            return BrokenChain(seq, f"line {seq + 1} {entry}")
        body = asdict(entry)
        stated = body.pop("sha256")
        if entry.seq != seq:
            return BrokenChain(seq, f"line {seq + 1} has the number {entry.seq}, not {seq}: one is missing or moved")
        if entry.previous != self.head:
            return BrokenChain(seq, f"line {seq + 1} does not follow the line before it")
        if _hash(body) != stated:
            return BrokenChain(seq, f"line {seq + 1} was changed after it was written")
        self.add(entry, line)
        return None

    def add(self, entry: Entry, line: bytes) -> None:
        """An entry that was just made to follow the last one."""
        self.last = entry
        self._tree.append(line)


def verify(lines: Iterable[bytes], head: str | None = None) -> BrokenChain | None:
    """None when the chain is whole, and ends in `head` where one is given."""
    chain = Chain()
    for line in lines:
        if (broken := chain.take(line)) is not None:
            return broken
    if head is not None and head != chain.head:
        what = f"the chain ends in {chain.head}, not in {head}: entries at its end are missing"
        return BrokenChain(chain.size, what)
    return None


def _hash(body: Mapping[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(_DOMAIN + canonical_json(body)).hexdigest()
