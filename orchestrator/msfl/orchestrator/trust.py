"""What the federation's keepers say, as the centre itself heeds it: the root of now, and all that was ever revoked.

    trust/federation-root.dsse ▸ trust/revocations.dsse ── signed by that root's keepers, not older ──▶ `Revoked`

The centre passes these papers on to sites, which judge them by themselves; here they decide whom the centre serves and
what its keyring does. They are read anew whenever they have changed. A revocation is for good: what a list named counts
also when the next one lacks it, or an older one is put in its place, and after a restart (`memory`, one file per
process that heeds them). It counts at once, and is then written down; a full disk delays that alone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from msfl.policies.encoding import sha256_of
from msfl.policies.refusals import CannotProceed, Code, Refusal, refuse
from msfl.policies.trust import Revoked, trust_federation_root, trust_revocations
from msfl.protos.audit_log import AuditLog
from msfl.protos.durable_files import write_durably

log = structlog.get_logger()
_KINDS = tuple(f.name for f in fields(Revoked))


@dataclass(frozen=True)
class Taken:
    """A list that was taken up, and what it is the first to name."""

    federation: str
    version: int
    sha256: str
    new: Revoked

    def into(self, audit: AuditLog, now: datetime) -> None:
        """Raises OSError."""
        named = {kind: " ".join(sorted(getattr(self.new, kind))) for kind in _KINDS}
        fields = {"version": str(self.version), "sha256": self.sha256} | {k: v for k, v in named.items() if v}
        audit.write(now, "document taken", f"revocations {self.federation}", fields)


@dataclass(frozen=True)
class _Memory:
    version: int = 0
    sha256: str = ""
    revoked: Revoked = field(default_factory=Revoked)


class MemoryDamaged(CannotProceed):
    """What was revoked before cannot be read: nobody goes on as if nothing was."""


class CentreTrust:
    """`written`: told of each list before it is remembered. Any thread may call."""

    def __init__(self, folder: Path, memory: Path, written: Callable[[Taken], object] = lambda taken: None) -> None:
        """Raises MemoryDamaged."""
        self._folder = folder
        self._file = memory
        self._written = written
        self._lock = threading.Lock()
        self._memory = _read(memory)
        self._unwritten: list[Taken] = []
        self._seen: tuple[bytes, bytes] | None = None

    def revoked(self) -> Revoked:
        """All that is revoked by now."""
        with self._lock:
            self._look()
            return self._memory.revoked

    def _look(self) -> None:
        papers = (_bytes(self._folder / "federation-root.dsse"), _bytes(self._folder / "revocations.dsse"))
        if papers != self._seen:
            self._seen = papers
            if all(papers):
                self._take(*papers)
        try:
            while self._unwritten:
                self._written(self._unwritten[0])
                self._unwritten.pop(0)
                self._save()
        except OSError as error:
            log.error("what is revoked counts, and cannot be written down yet", why=error.strerror)

    def _take(self, root_envelope: bytes, envelope: bytes) -> None:
        # The operator put the root there; that it has expired does not bring back what its keepers revoked.
        root = trust_federation_root(root_envelope, sha256_of(root_envelope), datetime.min.replace(tzinfo=UTC))
        listed = root if isinstance(root, Refusal) else trust_revocations(envelope, root)
        if isinstance(root, Refusal) or isinstance(listed, Refusal):
            assert isinstance(listed, Refusal)
            log.error("the revocation list is refused", code=listed.code.value, why=listed.message)
            return
        said, known = listed.document, self._memory
        if (said.version, listed.sha256) == (known.version, known.sha256):
            return
        # That one stands, also where it revokes a key that signed it; another one needs keepers who are not revoked.
        if isinstance(gone := trust_revocations(envelope, root, known.revoked), Refusal):
            log.error("the revocation list is refused", code=gone.code.value, why=gone.message)
            return
        if said.version <= known.version:
            what = f"The revocation list has version {said.version}; version {known.version} was in force here before."
            refusal = refuse(Code.VERSION_ROLLED_BACK, what)
            log.error("the revocation list is refused", code=refusal.code.value, why=refusal.message)
            return
        named = {kind: frozenset(getattr(said, kind)) for kind in _KINDS}
        before = {kind: getattr(known.revoked, kind) for kind in _KINDS}
        together = Revoked(**{kind: before[kind] | named[kind] for kind in _KINDS})
        self._memory = _Memory(said.version, listed.sha256, together)
        new = Revoked(**{kind: named[kind] - before[kind] for kind in _KINDS})
        self._unwritten.append(Taken(said.federation, said.version, listed.sha256, new))
        log.warning("a revocation list is taken up", version=said.version, sites=sorted(new.sites), keys=len(new.keys))

    def _save(self) -> None:
        revoked = {kind: sorted(names) for kind, names in asdict(self._memory.revoked).items()}
        document = {"version": self._memory.version, "sha256": self._memory.sha256, "revoked": revoked}
        write_durably(self._file, json.dumps(document, indent=1).encode())


def _read(file: Path) -> _Memory:
    if not file.exists():
        return _Memory()
    try:
        raw: dict[str, Any] = json.loads(file.read_bytes())
        revoked = Revoked(**{kind: frozenset(raw["revoked"][kind]) for kind in _KINDS})
        return _Memory(int(raw["version"]), str(raw["sha256"]), revoked)
    except (ValueError, KeyError, TypeError) as error:
        what = f"{file} cannot be read ({error!r}): put it back from a copy, or remove it if trust/revocations.dsse is"
        raise MemoryDamaged(f"{what} the newest list") from error


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""
