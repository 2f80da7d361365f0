"""What a data custodian does with a dataset, as functions: the same as the ``msfl data`` commands, for notebooks.

::

    import_source ─▶ check_quality ─▶ (a look at the report; overrule) ─▶ publish
         │ again, with more visits or corrected ones: what is there stays
         └─ listing: where every case stands

    from msfl.imaging.custodian import import_source
    brought = import_source(Path("home"), "ms-trial", Path("/media/export"))
    for outcome in brought.outcomes: print(outcome.case, outcome.verdict, outcome.reason)

What identifies patients stays in ``<home>/secrets/data/<dataset>/``, mode 0700, and never in the dataset's folder::

    links.json     which case is which patient, and where its files lay
    changes/       before and after of every header that was de-identified
    hands.log      what libraries had to say about damaged files
    unpacked/      zips while they are imported; what a killed import leaves there, the next one removes
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from msfl.imaging.deidentify.keys import Pseudonyms, site_key
from msfl.imaging.faults import Fault, unusable
from msfl.imaging.hand import do, visit_json
from msfl.imaging.hands import at_work
from msfl.imaging.importing import ImportOptions, Outcome, case_name
from msfl.imaging.publishing import Extent, Finished, LeftOut, register, site_of, usable
from msfl.imaging.quality.control import check_quality as check_quality
from msfl.imaging.quality.control import overrule as overrule
from msfl.imaging.sources.archive import Limits
from msfl.imaging.sources.finding import find
from msfl.imaging.sources.found import Found, Question
from msfl.imaging.sources.found import LeftOut as Unread
from msfl.imaging.split import Part, Shares
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
)
from msfl.policies.documents import DatasetRecord, format_utc
from msfl.policies.refusals import CannotProceed

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, of how many)."""


@dataclass(frozen=True)
class Brought:
    """What an import did. Codes, pseudonyms and sentences: nothing in it names a patient or a file, but for
    `questions`, whose patient is there so that a person can answer."""

    outcomes: tuple[Outcome, ...]
    left_out: tuple[JsonObject, ...]
    questions: tuple[JsonObject, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.left_out and all(o.verdict in ("imported", "unchanged") for o in self.outcomes)


def import_source(
    home: Path,
    dataset: str,
    source: Path,
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
    a whole cannot be understood, or while another command works on the dataset.
    """
    workspace, options = Workspace.of(home, dataset), options or ImportOptions()
    at = format_utc(now or now_utc())
    show = progress or _silent
    pseudonyms = Pseudonyms.of(site_key(home), dataset)
    private = private_folder(home, dataset)
    with workspace.held():
        scratch = private / "unpacked"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            found = find(
                source, scratch, pseudonyms, answers, lambda done, total: show("reading headers", done, total), limits
            )
            _keep_links(private, found, pseudonyms)
            outcomes = _bring_all(workspace, found, pseudonyms, options, private, at, hands, show)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Brought(
        tuple(outcomes),
        tuple({"files": len(left.files), "code": left.why.code, "reason": left.why.reason} for left in found.left_out),
        tuple(_question(question, pseudonyms) for question in found.questions),
        tuple(found.notes),
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
    show("importing", 0, len(orders))
    for number, answer in at_work(orders, do, hands=hands, log=_log(workspace.home, workspace.dataset)):
        case = workspace.case(cases[number])
        outcomes[case.id] = Outcome(**{**answer, "warnings": tuple(answer["warnings"])}) if answer else _died(case, at)
        show("importing", len(outcomes), len(orders))
    return [outcomes[case] for case in sorted(outcomes)]


def _died(case: Case, at: str) -> Outcome:
    why = unusable(Fault.CRASHED, "The process that read this case ended.")
    if case.standing.state is not State.FOUND:
        return Outcome(case.id, "kept", why.code, why.reason)
    case.record(Entry.from_json({"step": Step.IMPORT, "at": at, "code": why.code, "reason": why.reason}))
    shutil.rmtree(case.folder / ".scratch", ignore_errors=True)
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
    home: Path,
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
    workspace, at, show = Workspace.of(home, dataset), format_utc(now or now_utc()), progress or _silent
    site = site_of(home, site)
    with workspace.held():
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


def private_folder(home: Path, dataset: str) -> Path:
    """The custodian's own: what links cases to patients."""
    folder = home / "secrets" / "data" / dataset
    for part in (folder.parent.parent, folder.parent, folder):
        part.mkdir(parents=True, exist_ok=True, mode=0o700)  # of parents that it makes, mkdir forgets the mode
    return folder


def _keep_links(private: Path, found: Found, pseudonyms: Pseudonyms) -> None:
    """Which case is which patient: links of earlier imports stay."""
    file = private / "links.json"
    links: JsonObject = read_json(file) if file.exists() else {"cases": {}}
    for visit in found.visits:
        folders = sorted({str(f.parent) for f in visit.files})
        links["cases"][case_name(visit, pseudonyms)] = {"patient": visit.patient, "visit": visit.day, "from": folders}
    links["left_out"] = [_left(left) for left in found.left_out]
    write_json(file, links)


def _left(left: Unread) -> JsonObject:
    return {"code": left.why.code, "reason": left.why.reason, "files": [str(file) for file in left.files]}


def _question(question: Question, pseudonyms: Pseudonyms) -> JsonObject:
    patient = pseudonyms.patient(question.patient)
    case = f"{patient}-{pseudonyms.visit(patient, question.day)}"
    return {"case": case, "image": question.role, "choices": dict(question.choices)}


@dataclass(frozen=True)
class Listed:
    case: str
    standing: Standing
    channels: tuple[str, ...]
    lesion: bool
    warnings: tuple[str, ...] = ()  # of the import: `burned_in_text`


def listing(home: Path, dataset: str) -> Sequence[Listed]:
    """Where every case of the dataset stands, sorted by name."""
    return [
        Listed(
            case.id, case.standing, tuple(n for n in CHANNELS if case.raw(n).exists()), case.has_lesion, _warnings(case)
        )
        for case in Workspace.of(home, dataset).cases()
    ]


def _warnings(case: Case) -> tuple[str, ...]:
    if case.standing.state is State.FOUND:
        return ()
    return tuple(case.source.get("deidentified", {}).get("warnings", ()))
