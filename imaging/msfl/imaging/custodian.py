"""What a data custodian does with a dataset, as functions: the same as the ``msfl data`` commands, for notebooks.

::

    import_source ─▶ check_quality ─▶ (a look at the report; overrule) ─▶ publish
         │ again, with more visits or corrected ones: what is there stays
         └─ listing: where every case stands

    from msfl.imaging.custodian import import_source
    brought = import_source(Path("home"), "ms-trial", Path("/media/export"))
    for outcome in brought.outcomes: print(outcome.case, outcome.verdict, outcome.reason)

What identifies patients stays in ``<home>/secrets/data/<dataset>/``, mode 0700, and never in the dataset's folder::

    links.json     which case is which patient, where its files lay, and which of them were damaged
    series.csv     what the names of series stand for, by which questions and answers call them
    changes/       before and after of every header that was de-identified
    hands.log      what libraries had to say about damaged files
    unpacked/      zips while they are imported; what a killed import leaves there, the next one removes
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from msfl.imaging.deidentify.keys import Pseudonyms, site_key
from msfl.imaging.faults import Fault, room_on, unusable
from msfl.imaging.hand import do, visit_json
from msfl.imaging.hands import at_work
from msfl.imaging.importing import ImportOptions, Outcome, case_name
from msfl.imaging.publishing import Extent, Finished, LeftOut, read_split, register, site_of, usable
from msfl.imaging.quality.control import CANNOT_PROCEED
from msfl.imaging.quality.control import check_quality as check_quality
from msfl.imaging.quality.control import overrule as overrule
from msfl.imaging.sources.archive import Limits
from msfl.imaging.sources.finding import find
from msfl.imaging.sources.found import Found, Question, Visit
from msfl.imaging.sources.found import LeftOut as Unread
from msfl.imaging.split import Part, Shares, Split
from msfl.imaging.workspace import (
    CHANNELS,
    Case,
    Entry,
    JsonObject,
    Standing,
    State,
    Step,
    Workspace,
    now_utc,
    read_json,
    write_json,
    write_whole,
)
from msfl.policies.documents import DatasetRecord, format_utc
from msfl.policies.refusals import CannotProceed

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, of how many)."""


@dataclass(frozen=True)
class Brought:
    """What an import did; one that found no visit at all is not `ok`. Codes, pseudonyms and sentences: nothing in it
    names a patient or a file of the source."""

    outcomes: tuple[Outcome, ...]
    left_out: tuple[JsonObject, ...]
    questions: tuple[JsonObject, ...]
    notes: tuple[str, ...]
    names: str = ""  # the custodian's own table of what series are called

    @property
    def ok(self) -> bool:
        return (
            bool(self.outcomes)
            and not self.left_out
            and all(o.verdict in ("imported", "unchanged") for o in self.outcomes)
        )


def import_source(
    home: str | Path,
    dataset: str,
    source: str | Path,
    *,
    options: ImportOptions | None = None,
    answers: Mapping[str, str] | None = None,
    hands: int = 2,
    now: datetime | None = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Brought:
    """Bring every visit of `source` into the dataset. One that cannot be used stops no other.

    `answers` says which series is which, by the names in `Brought.questions`. Raises CannotProceed where the source as
    a whole cannot be understood, an answer names no series of it, the disk is full, or while another command works on
    the dataset.
    """
    home, source = Path(home), Path(source)
    workspace, options = Workspace.of(home, dataset), options or ImportOptions()
    at = format_utc(now or now_utc())
    show = progress or _silent
    with room_on(home):
        pseudonyms = Pseudonyms.of(site_key(home), dataset)
        private = private_folder(home, dataset)
    with room_on(home), workspace.held(new=True):
        scratch = private / "unpacked"
        shutil.rmtree(scratch, ignore_errors=True)
        _sweep(workspace.cases())
        try:
            found = find(
                source, scratch, pseudonyms, answers, lambda done, total: show("reading headers", done, total), limits
            )
            _keep_names(private, found, pseudonyms)
            _all_known(answers or {}, found, private)
            links = Links(private, found, pseudonyms)
            links.keep()
            outcomes = _bring_all(workspace, found, pseudonyms, options, private, at, hands, show)
            links.keep(outcomes)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Brought(
        tuple(replace(outcome, files=()) for outcome in outcomes),
        tuple({"files": len(left.files), "code": left.why.code, "reason": left.why.reason} for left in found.left_out),
        tuple(_question(question, pseudonyms) for question in found.questions),
        tuple(found.notes),
        str(private / _NAMES) if found.named else "",
    )


def _bring_all(
    workspace: Workspace,
    found: Found,
    pseudonyms: Pseudonyms,
    options: ImportOptions,
    private: Path,
    at: str,
    hands: int,
    show: Progress,
) -> list[Outcome]:
    cases = [case_name(visit, pseudonyms) for visit in found.visits]
    orders = [
        _order("import", workspace, case, at)
        | {"visit": visit_json(visit), "options": asdict(options), "private": str(private)}
        for case, visit in zip(cases, found.visits, strict=True)
    ]
    outcomes: dict[str, Outcome] = {}
    try:
        show("importing", 0, len(orders))
        with closing(at_work(orders, do, hands=hands, log=_log(workspace.home, workspace.dataset))) as answers:
            for number, answer in answers:
                case = workspace.case(cases[number])
                outcomes[case.id] = _outcome(answer) if answer else _died(case, at)
                show("importing", len(outcomes), len(orders))
    finally:
        _sweep(map(workspace.case, cases))  # whoever interrupts us ends the hands in the middle of a case
    return [outcomes[case] for case in sorted(outcomes)]


def _outcome(answer: JsonObject) -> Outcome:
    """Raises CannotProceed."""
    if answer.get("code") == CANNOT_PROCEED:
        raise CannotProceed(answer["reason"])
    return Outcome(**{**answer, "warnings": tuple(answer["warnings"]), "files": tuple(answer["files"])})


def _sweep(cases: Iterable[Case]) -> None:
    """What an import that was ended leaves behind: files on their way, and a case of which nothing is known."""
    for case in cases:
        shutil.rmtree(case.folder / ".scratch", ignore_errors=True)
        if case.folder.is_dir() and not any(case.folder.iterdir()):
            case.folder.rmdir()


def _all_known(answers: Mapping[str, str], found: Found, private: Path) -> None:
    """Raises CannotProceed: an answer to nothing is a slip of the pen, and the question stays open."""
    if unknown := sorted(set(answers) - {named.name for named in found.named}):
        raise CannotProceed(
            f"No series of this source is called {', '.join(unknown[:5])}. Nothing was done. Correct the answers; what "
            f"each series is called: {private / _NAMES}."
        )


def _died(case: Case, at: str) -> Outcome:
    why = unusable(Fault.CRASHED, "The process that read this case ended.")
    if case.standing.state is not State.FOUND:
        return Outcome(case.id, "kept", why.code, why.reason)
    case.record(Entry.from_json({"step": Step.IMPORT, "at": at, "code": why.code, "reason": why.reason}))
    return Outcome(case.id, "unusable", why.code, why.reason)


def _order(do: str, workspace: Workspace, case: str, at: str) -> JsonObject:
    return {"do": do, "home": str(workspace.home), "dataset": workspace.dataset, "case": case, "at": at}


@dataclass(frozen=True)
class Published:
    """`left_out` says why cases are not part of the dataset; `aside` are new visits of patients of the test set."""

    record: DatasetRecord
    parts: Mapping[str, Part]
    left_out: tuple[LeftOut, ...]
    aside: tuple[str, ...]


def publish(
    home: str | Path,
    dataset: str,
    *,
    site: str = "",
    shares: Shares | None = None,
    extent: Extent = "defaced",
    new_test_set: bool = False,
    description: str = "",
    hands: int = 2,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Published:
    """Finish, split and lay out what quality control let through, and show it to the federation.

    Raises CannotProceed where there is nothing to publish or the frozen test set is not whole, and
    `msfl.imaging.record.NotADataset` where what was laid out is no dataset (too few cases for a test set).
    """
    home = Path(home)
    workspace, at, show = Workspace.of(home, dataset), format_utc(now or now_utc()), progress or _silent
    workspace.must_exist()
    site = site_of(home, site)
    with room_on(home), workspace.held():
        judged = {case.id: usable(case) for case in workspace.cases()}
        left_out = [verdict for verdict in judged.values() if isinstance(verdict, LeftOut)]
        verdicts = {case: verdict for case, verdict in judged.items() if isinstance(verdict, str)}
        if not verdicts:
            raise CannotProceed(f"No case of {dataset} can be published. {_why_none(left_out)}")
        orders = [_order("finish", workspace, case, at) | {"extent": extent} for case in verdicts]
        finished = []
        show("finishing", 0, len(orders))
        for done, (number, answer) in enumerate(at_work(orders, do, hands=hands, log=_log(home, dataset)), 1):
            case = orders[number]["case"]
            answer = answer or {"code": Fault.CRASHED.value, "reason": "The process that finished this case ended."}
            if answer.get("code") == CANNOT_PROCEED:
                raise CannotProceed(answer["reason"])
            if "code" in answer:
                left_out.append(LeftOut(case, answer["code"], answer["reason"]))
            else:
                finished.append(Finished(case, answer["load_ml"], verdicts[case]))
            show("finishing", done, len(orders))
        record, dealt = register(
            workspace,
            finished,
            left_out,
            site=site,
            shares=shares or Shares(),
            new_test_set=new_test_set,
            description=description,
        )
    return Published(record, dealt.cases, tuple(sorted(left_out, key=lambda left: left.case)), dealt.aside)


def _why_none(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return "It has no cases: msfl data import."
    return f"{len(left_out)} were left out; of the first it is said: {left_out[0].reason}"


def _log(home: Path, dataset: str) -> Path:
    return private_folder(home, dataset) / "hands.log"


def _silent(what: str, done: int, total: int) -> None:
    pass


def private_folder(home: str | Path, dataset: str) -> Path:
    """The custodian's own: what links cases to patients."""
    folder = Path(home) / "secrets" / "data" / dataset
    for part in (folder.parent.parent, folder.parent, folder):
        part.mkdir(parents=True, exist_ok=True, mode=0o700)  # of parents that it makes, mkdir forgets the mode
    return folder


_NAMES: Final = "series.csv"


@dataclass(frozen=True)
class Links:
    """Which case is which patient. Links of earlier imports stay; a case that came in earlier and is damaged in this
    source keeps where it came from."""

    private: Path
    found: Found
    pseudonyms: Pseudonyms

    def keep(self, outcomes: Iterable[Outcome] = ()) -> None:
        """Before anything is imported, for what is new, and afterwards, for what became of it."""
        file = self.private / "links.json"
        links: JsonObject = read_json(file) if file.exists() else {"cases": {}}
        by_case = {outcome.case: outcome for outcome in outcomes}
        for visit in self.found.visits:
            case = case_name(visit, self.pseudonyms)
            link = self._link(visit, by_case.get(case))
            match by_case.get(case):
                case None:
                    links["cases"].setdefault(case, link)
                case Outcome(verdict="kept"):
                    links["cases"][case]["damaged_in"] = link
                case _:
                    links["cases"][case] = link
        links["left_out"] = [self._left(left) for left in self.found.left_out]
        write_json(file, links)

    def _link(self, visit: Visit, outcome: Outcome | None) -> JsonObject:
        folders = {file.parent for file in visit.seen or visit.files}
        link = {"patient": visit.patient, "visit": visit.day, "from": sorted(map(self.found.origin, folders))}
        if outcome is None or not outcome.code:
            return link
        files = [self.found.origin(Path(file)) for file in outcome.files]
        return link | {"code": outcome.code, "files": files}

    def _left(self, left: Unread) -> JsonObject:
        files = [self.found.origin(file) for file in left.files]
        return {"code": left.why.code, "reason": left.why.reason, "files": files}


def _keep_names(private: Path, found: Found, pseudonyms: Pseudonyms) -> None:
    """What the names of series stand for in this source, as a table."""
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["series", "case", "number", "description", "files", "where"])
    for named in sorted(found.named, key=lambda named: (named.patient, named.day, named.number)):
        case = _case_of(named.patient, named.day, pseudonyms)
        where = found.origin(named.files[0] if len(named.files) == 1 else named.files[0].parent)
        rows.writerow([_cell(cell) for cell in (named.name, case, named.number, named.what, len(named.files), where)])
    write_whole(private / _NAMES, table.getvalue().encode("utf-8-sig"))


def _cell(value: object) -> str:
    """What a header says is text, also where a spreadsheet would take it for a formula."""
    return f"'{value}" if str(value).startswith(("=", "+", "-", "@", "\t", "\r")) else str(value)


def _case_of(patient: str, day: str, pseudonyms: Pseudonyms) -> str:
    return case_name(Visit("dicom", patient, day), pseudonyms)


def _question(question: Question, pseudonyms: Pseudonyms) -> JsonObject:
    case = _case_of(question.patient, question.day, pseudonyms)
    return {"case": case, "image": question.role, "choices": dict(question.choices)}


@dataclass(frozen=True)
class Listed:
    """`verdict` is that of quality control, `finding` its first reason; `part` is where the case is in what was
    published: train, validation, test, or aside (a new visit of a patient of the test set)."""

    case: str
    standing: Standing
    channels: tuple[str, ...]
    lesion: bool
    warnings: tuple[str, ...] = ()  # of the import, by their words: `msfl.imaging.faults.WARNINGS`
    verdict: str = ""
    finding: str = ""
    part: str = ""


def listing(home: str | Path, dataset: str) -> Sequence[Listed]:
    """Where every case of the dataset stands, sorted by name. Raises CannotProceed where there is no such dataset."""
    workspace = Workspace.of(Path(home), dataset)
    workspace.must_exist()
    split = read_split(workspace)
    return [
        Listed(
            case.id,
            case.standing,
            tuple(n for n in CHANNELS if case.raw(n).exists()),
            case.has_lesion,
            _warnings(case),
            *_verdict(case),
            _part(workspace, case, split),
        )
        for case in workspace.cases()
    ]


def _warnings(case: Case) -> tuple[str, ...]:
    if case.standing.state is State.FOUND:
        return ()
    return (*case.source.get("deidentified", {}).get("warnings", ()), *case.source.get("warnings", ()))


def _verdict(case: Case) -> tuple[str, str]:
    """Of quality control, after a person's decision, and why: the first finding that is as bad as the verdict."""
    if case.standing.state is not State.CHECKED or not case.qc.exists():
        return "", ""
    checked = read_json(case.qc)
    if overruled := checked.get("overruled"):
        return str(checked["final"]), f"Overruled: {overruled['reason']}"
    said = [str(found["sentence"]) for found in checked.get("findings", ()) if found["verdict"] == checked["final"]]
    return str(checked["final"]), next(iter(said), "")


def _part(workspace: Workspace, case: Case, split: Split) -> str:
    if case.standing.state is State.FOUND:
        return ""
    part = split.parts.get(case.patient)
    published = ((workspace.nnunet / f"images{end}" / f"{case.id}_0000.nii.gz").exists() for end in ("Tr", "Ts"))
    if part is not None and any(published):
        return part.value
    return "aside" if part is Part.TEST and split.frozen and case.id not in split.frozen else ""
