"""Signed heads of an audit log, exchanged between centre and sites: each keeps the other's.

    gateway ── Witness(its newest checkpoint) ──▶ centre keeps it
            ◀─────────── the centre's newest ─── and the site keeps that

It happens beside the work, at least once per round and whenever a log has grown for a few seconds. A log's key is
pinned when it is first seen, over mutual TLS. A checkpoint that contradicts an earlier one is not kept: it is said
aloud, and the two together are the proof. Checkpoints are not synced one by one: losing the newest in a power cut loses
no truth that the next one does not hold.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from msfl.policies.audit_files import export
from msfl.policies.checkpoints import MAX_CHECKPOINT_BYTES, NotKept, checkpoint, judge
from msfl.policies.documents import AuditCheckpoint
from msfl.policies.encoding import Malformed
from msfl.policies.envelope import AUDIT_CHECKPOINT, Signed
from msfl.policies.keys import BadKey, KeyPair, encode_public
from msfl.policies.refusals import CannotProceed
from msfl.protos.audit_log import LOG_NAME, AuditBroken, AuditLog, read_lines
from msfl.protos.durable_files import write_durably

CHECKPOINTS, KEY, KNOWN_KEYS = "checkpoints.jsonl", "key.pem", "known-keys.json"


class NoAudit(CannotProceed):
    """What should lie beside an audit log is not there or is something else."""


@dataclass(frozen=True)
class Shown:
    """A checkpoint as it goes over the line. `public_key` as documents write it."""

    envelope: bytes
    public_key: str


class Notary:
    """Of the log called `name` (`site:…`, `centre:…`, `keyring:…`) in `log`, whose files lie in `folder`."""

    def __init__(self, log: AuditLog, folder: Path, name: str, clock: Callable[[], datetime]) -> None:
        """Makes the key at first use, and says so in the log. Raises AuditBroken, NoAudit, OSError."""
        self._log = log
        self._folder = folder
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, str] = _known_keys(folder)
        self._key = self._own_key()
        self._newest = _newest(folder / CHECKPOINTS)
        self._shown: Shown | None = None
        self._shown_size = -1
        mine = self._newest.get(name)
        if mine is not None and mine.size > log.size:
            raise AuditBroken(
                f"{folder / LOG_NAME}: it has {log.size} entries, and this log has signed that it had {mine.size}: "
                "entries at its end are missing"
            )
        self._file = os.open(folder / CHECKPOINTS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        _end_a_torn_line(self._file)

    @property
    def grown(self) -> bool:
        """Whether the log has entries that the newest checkpoint does not cover."""
        return self._log.size > self._shown_size

    def show(self) -> Shown:
        """The log as it stands, signed; the same again until it has grown. Raises OSError."""
        with self._lock:
            if self._shown is None or self.grown:
                size, envelope = self._log.look(
                    lambda chain: (chain.size, checkpoint(chain, self._name, self._clock(), self._key))
                )
                # Kept before it is shown: what others have seen of this log, this log has too.
                self._keep(envelope)
                self._shown = Shown(envelope, encode_public(self._key.public))
                self._shown_size = size
            return self._shown

    def take(self, log: str, shown: Shown) -> NotKept | None:
        """Keep what the owner of `log`, known by its certificate, has just shown. Raises OSError."""
        with self._lock:
            newest = self._newest.get(log)
            said = judge(shown.envelope, shown.public_key, log, self._known.get(log), newest)
            if isinstance(said, NotKept):
                return said
            if log not in self._known:
                self._log.write(self._clock(), "audit key seen", log, {"public_key": shown.public_key})
                self._pin(log, shown.public_key)
            if newest is None or said.size > newest.size:
                self._keep(shown.envelope)
                self._newest[log] = said
        return None

    def close(self) -> None:
        os.close(self._file)

    def _keep(self, envelope: bytes) -> None:
        line, end = envelope + b"\n", os.fstat(self._file).st_size
        if os.write(self._file, line) < len(line):
            os.ftruncate(self._file, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder / CHECKPOINTS))

    def _own_key(self) -> KeyPair:
        file = self._folder / KEY
        if file.exists():
            return _key(file)
        key = KeyPair.generate()
        public = encode_public(key.public)
        self._log.write(self._clock(), "audit key made", self._name, {"public_key": public})
        self._pin(self._name, public)
        write_durably(file, key.to_pem())
        return key

    def _pin(self, log: str, public_key: str) -> None:
        known = {**self._known, log: public_key}
        write_durably(self._folder / KNOWN_KEYS, json.dumps(known, indent=1, sort_keys=True).encode())
        self._known = known


def export_of(folder: Path, at: datetime) -> bytes:
    """The file that `msfl audit verify` reads, of the log in `folder`. Changes nothing there. Raises NoAudit."""
    file = folder / KEY
    if not file.exists():
        raise NoAudit(f"{folder} holds no audit log: give the home of a gateway or of an orchestrator that has served")
    public, known = encode_public(_key(file).public), _known_keys(folder)
    name = next((log for log, key in known.items() if key == public), None)
    if name is None:
        raise NoAudit(f"{folder / KNOWN_KEYS} does not name this log's own key: put it back from a copy")
    # The checkpoints first: of a log that grows meanwhile, none may reach beyond the entries.
    checkpoints = [line.rstrip(b"\n") for line in read_lines(folder / CHECKPOINTS) if line.endswith(b"\n")]
    return export(name, public, known, read_lines(folder / LOG_NAME), checkpoints, at)


def _newest(file: Path) -> dict[str, AuditCheckpoint]:
    """The last checkpoint of each log. Raises NoAudit.

    There are as many lines as rounds times sites, so each is only asked whose it is, and the last ones are read.
    """
    last = {}
    for number, line in enumerate(read_lines(file), start=1):
        if line.endswith(b"\n"):
            try:
                last[json.loads(base64.b64decode(json.loads(line)["payload"]))["log"]] = (number, line)
            except (ValueError, KeyError, TypeError) as error:
                raise _changed(file, number, repr(error)) from error
    newest = {}
    for log, (number, line) in last.items():
        try:
            signed = Signed.parse(line.rstrip(b"\n"), AUDIT_CHECKPOINT)
            newest[log] = AUDIT_CHECKPOINT.load(signed.payload_of_kind(), "checkpoint")
        except Malformed as error:
            raise _changed(file, number, str(error)) from error
    return newest


def _changed(file: Path, number: int, why: str) -> NoAudit:
    return NoAudit(f"{file}: line {number} is no checkpoint ({why}): it was changed; put the file back from a copy")


def _end_a_torn_line(descriptor: int) -> None:
    """A process that was killed while it wrote leaves half a line, which was never shown to anybody."""
    size = os.fstat(descriptor).st_size
    last = os.pread(descriptor, MAX_CHECKPOINT_BYTES + 1, max(0, size - MAX_CHECKPOINT_BYTES - 1))
    os.ftruncate(descriptor, size - len(last) + last.rfind(b"\n") + 1)


def _known_keys(folder: Path) -> dict[str, str]:
    file = folder / KNOWN_KEYS
    return dict(json.loads(file.read_bytes())) if file.exists() else {}


def _key(file: Path) -> KeyPair:
    try:
        return KeyPair.from_pem(file.read_bytes())
    except BadKey as error:
        raise NoAudit(f"{file}: {error}: put it back from a copy") from error
