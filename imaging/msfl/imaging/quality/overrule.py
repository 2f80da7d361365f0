"""overrule: where a person decides otherwise than the figures, who, when and why; a chained log of the dataset.

`overrules.jsonl` is an audit chain like the site's own (`msfl.policies.audit`): an entry that was changed or taken out
shows. `head` stands in the dataset's record, which the site's audit log quotes. A decision holds for the images it was
made on: when they, or how they are measured, change, the verdict is the figures' again until a person looks.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from msfl.imaging.quality.verdict import Overruled, Verdict
from msfl.imaging.workspace import Workspace, read_json, write_whole
from msfl.policies.audit import Chain, append
from msfl.policies.refusals import CannotProceed

_PATIENT_ROW: Final = re.compile(r'<tr class="(?:removed|replaced)"><td>\(0010,[^<]*<td>([^<]*)<td>')
"""Of a page of changes (`msfl.imaging.deidentify.changes`): what stood in the headers about the patient."""


def known_identifiers(private: Path) -> frozenset[str]:
    """What names the dataset's patients, as far as the import has kept it for the custodian."""
    known: set[str] = set()
    links = private / "links.json"
    for link in read_json(links)["cases"].values() if links.exists() else ():
        known |= {str(link["patient"]), str(link["visit"])}
    for page in (private / "changes").glob("*.html"):
        for value in map(html.unescape, _PATIENT_ROW.findall(page.read_text(encoding="utf-8"))):
            known |= {value, *re.split(r"[\^= ]+", value)}
    return frozenset(known)


class Overrules:
    """Used while the workspace is held: one writer at a time."""

    def __init__(self, workspace: Workspace) -> None:
        self._file: Path = workspace.folder / "overrules.jsonl"
        self._private: Path = workspace.home / "secrets" / "data" / workspace.dataset

    @property
    def head(self) -> str | None:
        """The hash of the last entry; it says all the others. None without one. Raises CannotProceed where the chain is
        broken."""
        last = self._read()[0].last
        return None if last is None else last.sha256

    def add(self, case: str, verdict: Verdict, *, by: str, reason: str, inputs: str, at: datetime) -> None:
        """On disk before it has an effect. Raises CannotProceed without a name or a reason, and for a reason that names
        a patient whom the import knows."""
        from msfl.imaging.deidentify.leaks import names_somebody

        if not reason.strip() or not by.strip():
            raise CannotProceed("A verdict is overruled by somebody, for a reason: say both.")
        if names_somebody(reason, known_identifiers(self._private)):
            raise CannotProceed(
                "The reason holds a name, a number or a date of a patient of this dataset, and it would be kept in the "
                "report and in the log. Nothing was done. Say what is to be seen in the image, and name nobody."
            )
        chain, _ = self._read()
        fields = {"verdict": verdict.value, "reason": reason.strip(), "inputs": inputs}
        entry = append(chain.last, at, by.strip(), "overrule", case, fields)
        before = self._file.read_bytes() if self._file.exists() else b""
        write_whole(self._file, before + entry.to_line())

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
