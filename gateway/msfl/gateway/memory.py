"""What a site must not forget: the newest version of every document it has acted on, what is revoked, the latest time.

    marks      kind, id ─▶ version and hash. They only grow
    kept       the federation's list and timestamp, as envelopes
    revoked    key ids, releases, policies, sites; by a list of the federation or by this site's custodian; for good
    clock      the latest time that was seen

Durable before anything rests on it; but what is revoked is so from the moment when it is heard, on a full disk, too.
The audit log holds the same in other words (`recall`), so that one of the two files, put back from an older copy, is
corrected by the other. When the whole home is put back, a site can know better about the federation's documents only,
from the next timestamp.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from msfl.gateway.durable import DurableTables
from msfl.policies.audit import Entry
from msfl.policies.documents import RevocationList, parse_utc
from msfl.policies.trust import Revoked

# The audit log's words for what is remembered here.
TAKEN, REVOKED_HERE, CLOCK_ACCEPTED = "document taken", "revoked here", "clock accepted"
ISSUER_KEYS = "issuer-keys"  # A kind of document, whose ids are issuers.
KINDS = ("key", "release", "policy", "site")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS marks (
    kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (kind, id)
) STRICT;
CREATE TABLE IF NOT EXISTS kept (kind TEXT PRIMARY KEY, envelope BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS revoked (kind TEXT NOT NULL, what TEXT NOT NULL, PRIMARY KEY (kind, what)) STRICT;
CREATE TABLE IF NOT EXISTS said (
    number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, what TEXT NOT NULL, by TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY CHECK (one = 1), latest INTEGER NOT NULL) STRICT;
"""


@dataclass(frozen=True)
class Mark:
    version: int
    sha256: str


@dataclass(frozen=True)
class Word:
    """What a custodian said at a terminal, before the gateway has written it into the audit log. `kind`: one of KINDS,
    or `clock`."""

    number: int
    kind: str
    what: str
    by: str


class Memory:
    def __init__(self, file: Path) -> None:
        self._tables = DurableTables(file, _SCHEMA)
        self._heard = frozenset[tuple[str, str]]()  # revoked, by kind and name, and perhaps not durable yet

    # --------------------------------------------------------------- documents

    def mark(self, kind: str, id: str) -> Mark | None:
        rows = self._tables.ask("SELECT version, sha256 FROM marks WHERE kind = ? AND id = ?", kind, id)
        return Mark(*rows[0]) if rows else None

    def remember(self, kind: str, id: str, mark: Mark) -> None:
        """A mark that is not newer changes nothing."""
        self._tables.do(
            "INSERT INTO marks VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET version = ?3, sha256 = ?4 "
            "WHERE version < ?3",
            kind,
            id,
            mark.version,
            mark.sha256,
        )

    def keep(self, kind: str, envelope: bytes) -> None:
        self._tables.do("INSERT OR REPLACE INTO kept VALUES (?, ?)", kind, envelope)

    def kept(self, kind: str) -> bytes | None:
        rows = self._tables.ask("SELECT envelope FROM kept WHERE kind = ?", kind)
        return bytes(rows[0][0]) if rows else None

    # -------------------------------------------------------------- revocation

    def revoke(self, kind: str, what: str) -> None:
        assert kind in KINDS, kind
        self._tables.do("INSERT OR IGNORE INTO revoked VALUES (?, ?)", kind, what)

    def revoke_listed(self, document: RevocationList) -> None:
        listed = {
            "key": document.keys,
            "release": document.releases,
            "policy": document.policies,
            "site": document.sites,
        }
        found = [(kind, what) for kind, names in listed.items() for what in names]
        self._heard = self._heard.union(found)
        for kind, what in found:
            self.revoke(kind, what)

    def revoked(self) -> Revoked:
        found: dict[str, set[str]] = {kind: set() for kind in KINDS}
        for kind, what in (*self._heard, *self._tables.ask("SELECT kind, what FROM revoked")):
            found[kind].add(what)
        return Revoked(*(frozenset(found[kind]) for kind in KINDS))

    def say(self, kind: str, what: str, by: str) -> None:
        """The custodian's word. A revocation holds when this returns; the gateway then writes it down."""
        if kind in KINDS:
            self.revoke(kind, what)
        self._tables.do("INSERT INTO said (kind, what, by) VALUES (?, ?, ?)", kind, what, by)

    def said(self) -> tuple[Word, ...]:
        return tuple(Word(*row) for row in self._tables.ask("SELECT number, kind, what, by FROM said ORDER BY number"))

    def heard(self, word: Word) -> None:
        self._tables.do("DELETE FROM said WHERE number = ?", word.number)

    # -------------------------------------------------------------------- time

    def saw(self, now: datetime) -> None:
        latest = int(now.timestamp())
        self._tables.do(
            "INSERT INTO clock VALUES (1, ?1) ON CONFLICT DO UPDATE SET latest = ?1 WHERE latest < ?1", latest
        )

    def latest(self) -> datetime | None:
        rows = self._tables.ask("SELECT latest FROM clock")
        return datetime.fromtimestamp(rows[0][0], UTC) if rows else None

    def accept_clock(self, now: datetime) -> None:
        """The clock was ahead: what it showed then does not count."""
        self._tables.do("INSERT OR REPLACE INTO clock VALUES (1, ?)", int(now.timestamp()))

    # ----------------------------------------------------------- the audit log

    def recall(self, entries: Iterable[Entry]) -> None:
        """Catch up with what the audit log knows, after one of the two was put back from an older copy."""
        latest: datetime | None = None
        for entry in entries:
            at = parse_utc(entry.at)
            latest = at if latest is None or entry.action == CLOCK_ACCEPTED else max(latest, at)
            kind, _, what = entry.object.partition(" ")
            if entry.action == TAKEN:
                self.remember(kind, what, Mark(int(entry.fields["version"]), str(entry.fields["sha256"])))
            elif entry.action == REVOKED_HERE:
                self.revoke(kind, what)
        if latest is not None:
            self.saw(latest)

    def close(self) -> None:
        self._tables.close()


@contextmanager
def remembered(file: Path) -> Iterator[Memory | None]:
    """For who only looks, whether a gateway serves or not. None where nothing is remembered yet."""
    memory = Memory(file) if file.exists() else None
    try:
        yield memory
    finally:
        if memory is not None:
            memory.close()
