"""A dataset on its way from scanner to publication, as a folder: who it is, what was done to it, what comes next.

::

    <home>/datasets/<id>/
        workspace.json             what the dataset is made of: channels, options of the import
        cases/<case>/
            journal.json           what was done to this case, when, and with what outcome
            source.json            where it comes from, without a word that identifies anybody
            raw/                   FLAIR.nii.gz  T1w.nii.gz  lesion.nii.gz (where there is one)
            standard/              FLAIR.nii.gz  T1w.nii.gz  lesion.nii.gz  brain.nii.gz  steps.json
            qc.json                the verdict of quality control
            final/                 FLAIR, T1w and lesion as they are published: without a face
        report/                    for the custodian's eyes
        split.json                 who trains, who validates, who tests
        nnunet/                    what is published: nnU-Net's raw layout

A case is one visit of one patient. Its name is a pseudonym and so is safe to show::

    found ──import──▶ imported ──standardise──▶ standard ──quality──▶ checked
      └──────────────────┴── a step fails: the journal keeps code and reason; the step can be asked for again

The journal alone says where a case stands (`stands`, pure), so a process that died is taken up where it stopped, and
one bad case stops nobody else. Every JSON file is written whole; a folder of images is filled under another name first
(`filling`), so that nothing is ever half there.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeAlias

from msfl.policies.documents import format_utc, parse_utc
from msfl.policies.refusals import CannotProceed

JsonObject: TypeAlias = dict[str, Any]

CHANNELS: Final = ("FLAIR", "T1w")
"""The images of a case, in the order of nnU-Net's channels."""
LESION: Final = "lesion"
BRAIN: Final = "brain"

_DATASET = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")  # as policies name it
_CASE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


class Step(StrEnum):
    """What is done to a case, in this order."""

    IMPORT = "import"
    STANDARDISE = "standardise"
    QUALITY = "quality"


class State(StrEnum):
    FOUND = "found"
    IMPORTED = "imported"
    STANDARD = "standard"
    CHECKED = "checked"


_AFTER: Final[Mapping[Step, State]] = {
    Step.IMPORT: State.IMPORTED,
    Step.STANDARDISE: State.STANDARD,
    Step.QUALITY: State.CHECKED,
}


@dataclass(frozen=True)
class Entry:
    """One line of a case's journal. `code` is empty when the step was done; `reason` says what was found, for people,
    and names no patient, file or path; `inputs` is the digest of what the step worked on, if it keeps one."""

    step: Step
    at: datetime
    code: str = ""
    reason: str = ""
    inputs: str = ""

    @property
    def done(self) -> bool:
        return not self.code

    def to_json(self) -> JsonObject:
        return asdict(self) | {"step": self.step.value, "at": format_utc(self.at)}

    @classmethod
    def from_json(cls, value: JsonObject) -> Entry:
        return cls(**{**value, "step": Step(value["step"]), "at": parse_utc(value["at"])})


@dataclass(frozen=True)
class Standing:
    """Where a case stands: the last state that was reached, and what went wrong since, if anything."""

    state: State = State.FOUND
    failed: Entry | None = None


def stands(journal: Sequence[Entry]) -> Standing:
    """A step that is done again takes back all later ones: they worked on what was there before."""
    now = Standing()
    for entry in journal:
        now = (
            Standing(_AFTER[entry.step])
            if entry.done
            else Standing(min(now.state, _before(entry.step), key=_rank), entry)
        )
    return now


def _before(step: Step) -> State:
    return {Step.IMPORT: State.FOUND, Step.STANDARDISE: State.IMPORTED, Step.QUALITY: State.STANDARD}[step]


def _rank(state: State) -> int:
    return list(State).index(state)


@dataclass(frozen=True)
class Case:
    """The folder of one case. Nothing here opens an image."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    def raw(self, name: str) -> Path:
        """`name` is a channel or LESION; the file need not be there."""
        return self.folder / "raw" / f"{name}.nii.gz"

    def standard(self, name: str) -> Path:
        """`name` is a channel, LESION or BRAIN; the file need not be there."""
        return self.folder / "standard" / f"{name}.nii.gz"

    @property
    def steps(self) -> Path:
        """What standardising did, with parameters and hashes."""
        return self.folder / "standard" / "steps.json"

    @property
    def qc(self) -> Path:
        return self.folder / "qc.json"

    @property
    def has_lesion(self) -> bool:
        """An expert's mask came with the case."""
        return self.raw(LESION).exists()

    @property
    def source(self) -> JsonObject:
        return read_json(self.folder / "source.json")

    @property
    def patient(self) -> str:
        """The patient's pseudonym, the same at every visit."""
        return str(self.source["patient"])

    # ---------------------------------------------------------------- journal

    @property
    def journal(self) -> tuple[Entry, ...]:
        file = self.folder / "journal.json"
        return tuple(map(Entry.from_json, read_json(file)["entries"])) if file.exists() else ()

    @property
    def standing(self) -> Standing:
        return stands(self.journal)

    def record(self, entry: Entry) -> None:
        entries = [e.to_json() for e in (*self.journal, entry)]
        write_json(self.folder / "journal.json", {"entries": entries})

    @contextmanager
    def filling(self, part: str) -> Iterator[Path]:
        """An empty folder that takes the place of `part` ("raw", "standard") when the block ends without exception."""
        fresh = self.folder / f".{part}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            yield fresh
            for file in fresh.iterdir():
                _sync(file)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        swap_in(fresh, self.folder / part)

    def sweep(self) -> None:
        """Take away what a killed process was filling; nobody fills meanwhile."""
        for fresh in self.folder.glob(".*.new"):
            if fresh.is_dir():
                shutil.rmtree(fresh)
            else:
                fresh.unlink()


@dataclass(frozen=True)
class Workspace:
    """The folder of one dataset: `Workspace.of(home, "ms-trial")`."""

    folder: Path

    @classmethod
    def of(cls, home: Path, dataset: str) -> Workspace:
        """Raises CannotProceed for a name that policies could not use."""
        if not _DATASET.fullmatch(dataset) or len(dataset) > 64 or dataset.endswith((".json", ".path")):
            raise CannotProceed(
                f"{dataset!r} cannot be the name of a dataset. Use small letters and digits, with . _ or - in between."
            )
        return cls(home / "datasets" / dataset)

    @property
    def dataset(self) -> str:
        return self.folder.name

    @property
    def home(self) -> Path:
        return self.folder.parent.parent

    @property
    def report(self) -> Path:
        return self.folder / "report"

    @property
    def nnunet(self) -> Path:
        return self.folder / "nnunet"

    @property
    def split(self) -> Path:
        return self.folder / "split.json"

    @property
    def settings(self) -> JsonObject:
        file = self.folder / "workspace.json"
        return read_json(file) if file.exists() else {}

    def case(self, case_id: str) -> Case:
        """Raises CannotProceed for what no case is called; its folder need not be there."""
        if not _CASE.fullmatch(case_id):
            raise CannotProceed(f"{case_id!r} is not the name of a case. `msfl data list` shows them.")
        return Case(self.folder / "cases" / case_id)

    def cases(self) -> tuple[Case, ...]:
        """Sorted by name."""
        folders = (self.folder / "cases").glob("*/")
        return tuple(Case(folder) for folder in sorted(folders) if _CASE.fullmatch(folder.name))

    @property
    def exists(self) -> bool:
        """Something was imported into it, or was tried to be."""
        return (self.folder / "cases").is_dir()

    def must_exist(self) -> None:
        """Raises CannotProceed for a dataset that nobody made: its name may be misspelt."""
        if not self.exists:
            there = sorted(folder.parent.name for folder in self.folder.parent.glob("*/cases"))
            has = f"There is {', '.join(there)}." if there else "There is no other, either."
            raise CannotProceed(f"There is no dataset {self.dataset} in {self.home}. {has} Make it: msfl data import.")

    @contextmanager
    def held(self, new: bool = False) -> Iterator[None]:
        """Only one command at a time changes a dataset; one that is not there is made only where it may be `new`.
        Raises CannotProceed while another command holds it."""
        if not new:
            self.must_exist()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CannotProceed(
                    f"Another command works on the dataset {self.dataset} ({self.folder}). Wait until it has ended."
                ) from None
            yield


class Unusable(Exception):
    """This case cannot be used: not a bug, but a fact about the data, for the journal. `code` is from a closed
    vocabulary (`msfl.imaging.faults`, or the step's own); `reason` says what, why and what to do, and names no
    patient, file or path; `files` are named in the custodian's own list only."""

    files: tuple[Path, ...] = ()

    def __init__(self, code: str, reason: str, figures: Mapping[str, float] | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.code, self.reason, self.figures = code, reason, dict(figures or {})


def now_utc() -> datetime:
    return datetime.now(UTC)


def read_json(file: Path) -> JsonObject:
    """Raises CannotProceed where a file of the workspace was damaged by hand."""
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise CannotProceed(f"{file} is not JSON ({error}). Remove it and run the step again.") from error
    if not isinstance(value, dict):
        raise CannotProceed(f"{file} is not a JSON object. Remove it and run the step again.")
    return value


def write_json(file: Path, value: JsonObject, mode: int = 0o600) -> None:
    """Sorted keys: same content, same bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(file, text.encode(), mode)


def write_whole(file: Path, data: bytes, mode: int = 0o600) -> None:
    """Whole or not at all: a torn file never takes a good one's place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as target:
        target.write(data)
        target.flush()
        os.fsync(target.fileno())
    temporary.replace(file)
    _sync(file.parent)


def swap_in(fresh: Path, place: Path) -> None:
    """`fresh` takes the place of the folder `place`, which may be there; a reader finds the old one or the new one."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    _sync(fresh)
    if place.exists():
        place.rename(old)
    fresh.rename(place)
    _sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
