"""`RunStore` that says in the centre's audit log what it is about to keep, before it does: every event of every run.

    append(run, event) ─▶ audit entry, durable ─▶ the store

So the centre acts on nothing that is not in its log: whatever it does follows from an event that was kept. An entry
holds the kind, who and which step, and the hash of the event, never its content. One whose event was then not kept, on
a full disk, is followed by another when it is tried again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

from msfl.orchestrator.store.interface import RunStore, StoredEvent, StoreUnavailable
from msfl.policies.encoding import sha256_of
from msfl.protos.audit_log import AuditLog
from msfl.protos.durable_files import DISK_TROUBLE

_SAID = ("site", "task_id", "verdict", "code", "by")


class AuditedRuns:
    def __init__(self, inner: RunStore, audit: AuditLog, clock: Callable[[], datetime]) -> None:
        self._inner = inner
        self._audit = audit
        self._clock = clock

    def append(self, run_id: str, text: str) -> int:
        event = json.loads(text)
        fields = {name: str(event[name]) for name in _SAID if event.get(name)}
        try:
            self._audit.write(
                self._clock(), _words(event["kind"]), run_id, {**fields, "event": sha256_of(text.encode())}
            )
        except OSError as error:
            if error.errno not in DISK_TROUBLE:
                raise
            what = f"the audit log cannot be written ({error.strerror}): free or mount its disk; nothing is lost"
            raise StoreUnavailable(what) from error
        return self._inner.append(run_id, text)

    def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
        return self._inner.events(run_id, after)

    def runs(self) -> list[str]:
        return self._inner.runs()


def _words(kind: str) -> str:
    """`TaskDone` is `task done`."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in kind).strip()
