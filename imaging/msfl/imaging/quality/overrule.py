"""overrule: where a person decides otherwise than the figures, who, when and why; a chained log of the dataset.

`overrules.jsonl` is an audit chain like the site's own (`msfl.policies.audit`): an entry that was changed or taken out
shows. `head` stands in the dataset's record, which the site's audit log quotes. A decision holds for the images it was
made on: when they, or how they are measured, change, the verdict is the figures' again until a person looks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from msfl.imaging.quality.verdict import Overruled, Verdict
from msfl.imaging.workspace import Workspace
from msfl.policies.audit import Chain, append
from msfl.policies.refusals import CannotProceed


class Overrules:
    """Used while the workspace is held: one writer at a time."""

    def __init__(self, workspace: Workspace) -> None:
        self._file: Path = workspace.folder / "overrules.jsonl"

    @property
    def head(self) -> str | None:
        """The hash of the last entry; it says all the others. None without one. Raises CannotProceed where the chain is
        broken."""
        last = self._read()[0].last
        return None if last is None else last.sha256

    def add(self, case: str, verdict: Verdict, *, by: str, reason: str, inputs: str, at: datetime) -> None:
        """On disk before it has an effect. Raises CannotProceed without a name or a reason."""
        if not reason.strip() or not by.strip():
            raise CannotProceed("A verdict is overruled by somebody, for a reason: say both.")
        chain, _ = self._read()
        fields = {"verdict": verdict.value, "reason": reason.strip(), "inputs": inputs}
        entry = append(chain.last, at, by.strip(), "overrule", case, fields)
        with open(os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            log.write(entry.to_line())
            log.flush()
            os.fsync(log.fileno())

    def decisions(self) -> Mapping[tuple[str, str], Overruled]:
        """The last decision by case and by what it was made on. Raises CannotProceed where the chain is broken."""
        return self._read()[1]

    def _read(self) -> tuple[Chain, dict[tuple[str, str], Overruled]]:
        chain, decisions = Chain(), {}
        for line in self._file.read_bytes().splitlines(keepends=True) if self._file.exists() else ():
            if (broken := chain.take(line)) is not None:
                raise CannotProceed(f"{self._file} was changed: {broken.why}. Put back the copy that was not.")
            entry = chain.last
            assert entry is not None
            decision = Overruled(Verdict(entry.fields["verdict"]), entry.actor, entry.at, entry.fields["reason"])
            decisions[(entry.object, str(entry.fields["inputs"]))] = decision
        return chain, decisions
