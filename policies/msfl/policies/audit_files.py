"""Exported audit logs, and what a reader can find out from such files alone.

    export    a line that says whose log it is ▸ its entries, as they lie in the log ▸ the checkpoints its owner keeps:
              its own, and those that others have shown to it
    verify    each chain by itself; then each log against every checkpoint of it in any of the files; then checkpoints
              of one log against each other

What shows, and by what: an edited, deleted, moved entry by the chain; a cut end, or a whole chain made anew, by a
checkpoint that another party keeps; two histories shown to two parties by their two checkpoints. What no other party
has a checkpoint of, nobody but the owner vouches for: `Verdict.vouched` says up to where others do. What another party
has seen and no file holds is never passed over: it is missing, or, where the file says that it is older, unseen. When a
file was made is its owner's word alone, and would be with a signature: it holds the key. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from msfl.policies.audit import Chain
from msfl.policies.checkpoints import NotKept, read_checkpoint
from msfl.policies.documents import AuditCheckpoint, Count, Document, LogName, UtcTime, format_utc
from msfl.policies.encoding import Malformed, Problem, encode, load_json

MAX_FIRST_LINE = 4 << 20  # a centre knows the keys of all its sites


class AuditExport(Document):
    """The first line of an exported log. `known_keys`: the keys that other logs had when they were first seen here."""

    api_version: Literal["msfl/v1"] = "msfl/v1"
    kind: Literal["AuditExport"] = "AuditExport"
    log: LogName
    public_key: str
    known_keys: Mapping[LogName, str] = Field(default_factory=dict)
    entries: Count
    checkpoints: Count
    at: UtcTime


@dataclass(frozen=True)
class Exported:
    """A file as it was read: nothing of it is trusted yet."""

    file: str
    said: AuditExport
    entries: tuple[bytes, ...]
    checkpoints: tuple[bytes, ...]


@dataclass(frozen=True)
class Tampering:
    """`code`: file_damaged, chain_broken, end_missing, history_rewritten, two_histories, bad_checkpoint, other_key.

    `entry` is the first that is concerned, counted from 0, where one is known.
    """

    code: str
    log: str
    message: str
    entry: int | None = None


@dataclass(frozen=True)
class Verdict:
    """`entries` by log; `vouched`: how many of its first entries the checkpoints of others confirm.

    `unseen`: a log whose file says that it is older than a checkpoint of more entries than it holds. Runs may have gone
    on while files were collected, and a forger who has cut the end would say so, too: a newer file tells the two apart.
    `shown`: how many entries each log has had by the longest checkpoint of it. `absent`: logs with checkpoints here and
    no file.
    """

    tampering: tuple[Tampering, ...]
    unseen: tuple[str, ...] = ()
    entries: Mapping[str, int] = field(default_factory=dict)
    shown: Mapping[str, int] = field(default_factory=dict)
    vouched: Mapping[str, int] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Held:
    """A checkpoint that its log's key signed, and who keeps it."""

    holder: str
    said: AuditCheckpoint


def export(
    log: str,
    public_key: str,
    known_keys: Mapping[str, str],
    entries: Iterable[bytes],
    checkpoints: Iterable[bytes],
    at: datetime,
) -> bytes:
    """The bytes of a file. `entries` are lines with their newline, `checkpoints` envelopes."""
    lines, kept = list(entries), list(checkpoints)
    head = AuditExport(
        log=log, public_key=public_key, known_keys=known_keys, entries=len(lines), checkpoints=len(kept), at=at
    )
    return b"".join([encode(head) + b"\n", *lines, *(c + b"\n" for c in kept)])


def read_export(data: bytes, file: str) -> Exported:
    """Raises Malformed when the file does not begin as an exported log does; what follows is for `verify` to judge."""
    head, *lines = data.splitlines(keepends=True) or [b""]
    said = load_json(head, AuditExport, file, max_bytes=MAX_FIRST_LINE)
    if len(head) == len(data) and said.entries:
        raise Malformed(file, (Problem(1, "entries", "nothing follows the first line", f"{said.entries} entries"),))
    return Exported(file, said, tuple(lines[: said.entries]), tuple(c.rstrip(b"\n") for c in lines[said.entries :]))


def verify_files(files: Iterable[Exported]) -> Verdict:
    exports = list(files)
    found: list[Tampering] = []
    held: list[_Held] = []
    for exported in exports:
        found += _count(exported)
        held += _checkpoints(exported, exports, found)
    found += _two_histories(held)
    entries: dict[str, int] = {}
    for exported in exports:
        entries[exported.said.log] = max(entries.get(exported.said.log, 0), len(exported.entries))
    shown = dict.fromkeys(entries, 0)
    vouched = dict.fromkeys(entries, 0)
    unseen: list[str] = []
    for exported in exports:
        log, at, n = exported.said.log, exported.said.at, len(exported.entries)
        later: list[_Held] = []
        wanted: list[_Held] = []
        for one in held:
            if one.said.log == log:
                (later if one.said.at >= at and one.said.size > n else wanted).append(one)
        longest = max(later, key=lambda h: h.said.size, default=None)
        if longest is not None and longest.said.size > entries[log]:
            unseen.append(_unseen(exported, longest))
        tampered, confirmed = _against(exported, wanted)
        found += tampered
        shown[log] = max([shown[log], *(h.said.size for h in later), *(h.said.size for h in wanted)])
        vouched[log] = max(vouched[log], confirmed)
    absent = sorted({h.said.log for h in held} - set(entries))
    return Verdict(tuple(dict.fromkeys(found)), tuple(unseen), entries, shown, vouched, tuple(absent))


def _count(exported: Exported) -> Iterable[Tampering]:
    said = exported.said
    if (len(exported.entries), len(exported.checkpoints)) != (said.entries, said.checkpoints):
        what = (
            f"{exported.file} announces {said.entries} entries and {said.checkpoints} checkpoints and holds "
            f"{len(exported.entries)} and {len(exported.checkpoints)}: lines were removed or added"
        )
        yield Tampering("file_damaged", said.log, what)


def _checkpoints(exported: Exported, exports: list[Exported], found: list[Tampering]) -> list[_Held]:
    """Those of a file that are what they claim to be; why the others are not is added to `found`."""
    holder = exported.said.log
    own_keys = {e.said.log: e.said.public_key for e in exports}
    for log, key in exported.said.known_keys.items():
        if own_keys.get(log, key) != key:
            what = f"the exported log of {log} has another key than {holder} knows of it: one of the two was made anew"
            found.append(Tampering("other_key", log, what))
    keys = {**exported.said.known_keys, holder: exported.said.public_key}
    good = []
    for number, envelope in enumerate(exported.checkpoints, start=1):
        said = read_checkpoint(envelope, keys)
        if isinstance(said, NotKept):
            what = f"checkpoint {number} in {exported.file} counts for nothing: {said.why}"
            found.append(Tampering("bad_checkpoint", holder, what))
        else:
            good.append(_Held(holder, said))
    return good


def _two_histories(held: list[_Held]) -> Iterable[Tampering]:
    first: dict[tuple[str, int], _Held] = {}
    for one in held:
        other = first.setdefault((one.said.log, one.said.size), one)
        if (other.said.root, other.said.head) != (one.said.root, one.said.head):
            what = (
                f"{one.said.log} has two histories of {one.said.size} entries: {other.holder} was shown one "
                f"({format_utc(other.said.at)}), {one.holder} another ({format_utc(one.said.at)})"
            )
            yield Tampering("two_histories", one.said.log, what)


def _against(exported: Exported, held: list[_Held]) -> tuple[list[Tampering], int]:
    """One log: its chain, and every checkpoint of it, whoever keeps it. And how many of its first entries others vouch
    for: up to the first thing that is wrong."""
    log, found = exported.said.log, list[Tampering]()
    chain = Chain()
    roots = {0: chain.root}
    broken = None
    wanted = {h.said.size for h in held}
    for line in exported.entries:
        if (broken := chain.take(line)) is not None:
            what = f"{log}: entry {broken.seq}: {broken.why} ({exported.file})"
            found.append(Tampering("chain_broken", log, what, broken.seq))
            break
        if chain.size in wanted:
            roots[chain.size] = chain.root
    fits, vouched = 0, 0
    worst, longest = None, None
    for one in sorted(held, key=lambda h: (h.said.size, h.holder)):
        size = one.said.size
        if size > chain.size:
            longest = one
        elif worst is not None:
            continue
        elif roots[size] == one.said.root:
            fits = size
            vouched = vouched if one.holder == log else size
        else:
            worst = one
    if longest is not None and broken is None:
        found.append(_cut(log, chain.size, longest))
    if worst is not None:
        what = (
            f"{log}: entries {fits} to {worst.said.size - 1} are not those of {format_utc(worst.said.at)}: the "
            f"checkpoint of {worst.said.size} entries that {worst.holder} keeps does not fit ({exported.file})"
        )
        found.append(Tampering("history_rewritten", log, what, fits))
    return found, vouched


def _cut(log: str, size: int, one: _Held) -> Tampering:
    what = (
        f"{log}: the log ends after {size} entries; {one.holder} keeps its checkpoint of {one.said.size} entries, "
        f"made {format_utc(one.said.at)}: entries {size} to {one.said.size - 1} are missing"
    )
    return Tampering("end_missing", log, what, size)


def _unseen(exported: Exported, one: _Held) -> str:
    size = len(exported.entries)
    return (
        f"{exported.file} says that it was exported {format_utc(exported.said.at)}; {one.holder} keeps a later "
        f"checkpoint of {exported.said.log} ({format_utc(one.said.at)}, {one.said.size} entries): export it again, "
        f"entries {size} to {one.said.size - 1} have not been seen"
    )


def to_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "tampering": [
            {"code": t.code, "log": t.log, "entry": t.entry, "message": t.message} for t in verdict.tampering
        ],
        "unseen": list(verdict.unseen),
        "entries": dict(verdict.entries),
        "shown": dict(verdict.shown),
        "vouched": dict(verdict.vouched),
        "absent": list(verdict.absent),
    }
