"""Two parties with audit logs on disk, which show each other how they stand: a centre and any number of sites.

Time moves by a second with each thing that happens, so that exports are later than what they hold.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from msfl.policies.audit_files import Exported, Verdict, read_export, verify_files
from msfl.protos.audit_log import LOG_NAME, AuditLog
from msfl.protos.notary import Notary, export_of


class Time:
    def __init__(self) -> None:
        self.now = datetime(2026, 12, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class Party:
    """`name` is that of the log: `site:site-a`, `centre:demo`."""

    def __init__(self, root: Path, name: str, time: Time) -> None:
        self.name = name
        self.folder = root / name.replace(":", "-") / "audit"
        self.time = time
        self.open()

    def twin(self, root: Path) -> Party:
        """The same party, its key included, from here on living a second life."""
        shutil.copytree(self.folder, root / self.name.replace(":", "-") / "audit")
        return Party(root, self.name, self.time)

    @property
    def file(self) -> Path:
        return self.folder / LOG_NAME

    def open(self) -> None:
        self.log = AuditLog(self.file, self.name)
        self.notary = Notary(self.log, self.folder, self.name, self.time)

    def close(self) -> None:
        self.log.close()
        self.notary.close()

    def work(self, entries: int, run: str = "run-1") -> None:
        for n in range(entries):
            self.log.write(self.time(), "task begins", run, {"task": f"train/{n}", "size": str(self.log.size)})

    def lines(self) -> list[bytes]:
        return self.file.read_bytes().splitlines(keepends=True)

    def exported(self) -> Exported:
        return read_export(export_of(self.folder, self.time()), f"{self.name}.jsonl")


def meet(site: Party, centre: Party) -> None:
    """What one exchange over the line does: each keeps what the other shows."""
    assert centre.notary.take(site.name, site.notary.show()) is None
    assert site.notary.take(centre.name, centre.notary.show()) is None


def verified(*parties: Party) -> Verdict:
    return verify_files([party.exported() for party in parties])


def federation(root: Path, sites: int = 2, rounds: int = 3) -> Iterator[list[Party]]:
    """A centre and sites after some rounds, all of them exchanged; the centre is the first."""
    time = Time()
    parties = [Party(root, "centre:demo", time), *(Party(root, f"site:site-{c}", time) for c in "abcdef"[:sites])]
    for _ in range(rounds):
        for party in parties:
            party.work(4)
        for site in parties[1:]:
            meet(site, parties[0])
    yield parties
    for party in parties:
        party.close()
