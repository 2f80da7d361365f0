"""control: quality control of a whole dataset, from what was imported to verdicts and the report.

    check_quality ──at_work──▶ hands: measure_case (slow, per case; kept while files and settings are the same)
          └──▶ judge all cases together (pure) ──▶ qc.json per case ──▶ report/

One case that cannot be worked on, or on which a process dies, stops no other: it fails, with its reason. A tool that is
not there and a full disk stop all. What was there of a case before stays until all that takes its place is written:
figures lie in `standard/`, beside the images they were taken of. Limits may change, and people overrule, without any
image being opened again.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from msfl.imaging.faults import NO_ROOM, Fault, unusable
from msfl.imaging.quality.limits import QualityLimits, default_limits
from msfl.imaging.quality.overrule import Overrules
from msfl.imaging.quality.verdict import Checked, Finding, Verdict, also, judge, site_scores, unmeasured
from msfl.imaging.quality.words import NO_LESION_MASK
from msfl.imaging.standard.recipe import Recipe
from msfl.imaging.workspace import (
    LESION,
    Case,
    Entry,
    JsonObject,
    State,
    Step,
    Unusable,
    Workspace,
    now_utc,
    read_json,
    write_json,
)
from msfl.policies.documents import format_utc
from msfl.policies.encoding import sha256_of
from msfl.policies.refusals import CannotProceed

Progress = Callable[[str, int, int], None]

CANNOT_PROCEED = "cannot_proceed"
_GROWTH: Final = 1.5
"""What is made of a case over what was imported: 1.15 where the scans have air around the head set to zero, more where
they have not."""

MEASURES = "1"
"""Raised when figures are measured differently, so that old ones are measured again."""


class Settings(BaseModel):
    """What is done to every case, the same way. `mai_lab` is the folder of the MAI-Lab tool, where a site has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Recipe = Recipe()
    mai_lab: Path | None = None


# ------------------------------------------------------------------- a case


def figures_file(case: Case) -> Path:
    return case.steps.with_name("figures.json")


def measure_case(case: Case, settings: Settings, at: datetime) -> JsonObject:
    """Standardise and measure, unless that was done with the same files and settings. Raises Unusable, which the
    journal then knows of, CannotProceed; `{"outcome": "disk_full"}` where there was no room for what was made."""
    try:
        return _measure_case(case, settings, at)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return {"outcome": "disk_full"}


def _measure_case(case: Case, settings: Settings, at: datetime) -> JsonObject:
    from msfl.imaging.brain import extractor
    from msfl.imaging.quality.artefacts import detector
    from msfl.imaging.quality.measure import measure
    from msfl.imaging.quality.pictures import draw
    from msfl.imaging.standard.pipeline import inputs_sha256, read_raw, standardise, write_standard

    inputs = sha256_of(f"{inputs_sha256(case, settings.recipe)} {settings.mai_lab} {MEASURES}".encode())
    if _is_measured(case) and read_json(figures_file(case))["inputs"] == inputs:
        return {"outcome": "kept"}
    brain, artefacts = extractor(settings.recipe.brain), detector(settings.mai_lab)
    brain.ready()
    artefacts.ready()
    try:
        raw = read_raw(case)
        made = standardise(raw, settings.recipe, brain)
        found = measure(raw, made, artefacts)
        with case.filling("standard") as standard, case.filling("pictures") as pictures:
            draw(pictures, raw, made)
            write_standard(standard, case, raw, made, settings.recipe, brain.name)
            facts = {"detector": artefacts.name, "figures": dict(found.figures), "fingerprint": list(found.fingerprint)}
            write_json(standard / figures_file(case).name, {"inputs": inputs} | facts)
            # Before the images change: an old verdict must never stand beside new ones.
            case.record(Entry(Step.STANDARDISE, at, inputs=inputs))
    except Unusable as error:
        case.record(Entry(Step.STANDARDISE, at, error.code, error.reason, inputs))
        raise
    return {"outcome": "measured"}


# ------------------------------------------------------------------ the dataset


def check_quality(
    home: str | Path,
    dataset: str,
    *,
    settings: Settings | None = None,
    limits: QualityLimits | None = None,
    hands: int = 2,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> tuple[Checked, ...]:
    """Every case that was imported, by name. Raises CannotProceed where there is none, where a tool that all cases need
    does not work, or while another command works on the dataset."""
    from msfl.imaging.hand import do
    from msfl.imaging.hands import at_work

    workspace, at, show = Workspace.of(Path(home), dataset), now or now_utc(), progress or _silent
    settings = settings or Settings()
    with workspace.held(), _with_room_for(workspace) as left:
        cases = [case for case in workspace.cases() if case.standing.state is not State.FOUND]
        if not cases:
            raise CannotProceed(f"No case of {dataset} was imported. Do that first: msfl data import.")
        left.update(case.id for case in cases)
        for case in cases:
            case.sweep()
        given = settings.model_dump(mode="json")
        names = {"home": str(home), "dataset": dataset, "at": format_utc(at), "settings": given}
        orders = [{"do": "measure", "case": case.id} | names for case in cases]
        workspace.report.mkdir(exist_ok=True, mode=0o700)
        show("measuring", 0, len(orders))
        for done, (number, answer) in enumerate(
            at_work(orders, do, hands=hands, log=workspace.report / "hands.log"), 1
        ):
            if answer is None:
                why = unusable(Fault.CRASHED, "The process that measured this case ended.")
                cases[number].record(Entry(Step.STANDARDISE, at, why.code, why.reason))
            elif answer.get("code") == CANNOT_PROCEED:
                raise CannotProceed(answer["reason"])
            elif answer.get("outcome") == "disk_full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left.discard(cases[number].id)
            show("measuring", done, len(orders))
        return _conclude(workspace, cases, limits or default_limits(), at, show)


def overrule(
    home: str | Path,
    dataset: str,
    case_id: str,
    verdict: Verdict,
    *,
    by: str,
    reason: str,
    limits: QualityLimits | None = None,
    now: datetime | None = None,
) -> Checked:
    """A person decides otherwise; kept in the dataset's own chained log. Raises CannotProceed for a case that quality
    control has not looked at, or that could not be measured, and without a reason."""
    workspace, at = Workspace.of(Path(home), dataset), now or now_utc()
    with workspace.held(), _with_room_for(workspace):
        case = workspace.case(case_id)
        if not case.qc.exists() or case.standing.state is not State.CHECKED:
            raise CannotProceed(
                f"Quality control has no verdict on {case_id} that could be overruled: msfl data qc {dataset}."
            )
        Overrules(workspace).add(
            case_id, verdict, by=by, reason=reason, inputs=read_json(figures_file(case))["inputs"], at=at
        )
        cases = [case for case in workspace.cases() if case.standing.state is not State.FOUND]
        concluded = _conclude(workspace, cases, limits or default_limits(), at, _silent)
    return next(one for one in concluded if one.case == case_id)


@contextmanager
def _with_room_for(workspace: Workspace) -> Iterator[set[str]]:
    """Takes the names of the cases that are still to be measured. Where the disk is full, what was half written is
    taken away and CannotProceed says how much room is missing."""
    left: set[str] = set()
    try:
        yield left
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        cases = workspace.cases()
        for case in cases:
            case.sweep()
        free = shutil.disk_usage(workspace.folder).free
        takes = {case.id: int(_GROWTH * _bytes_in(case.raw(LESION).parent)) for case in cases}
        new = sum(takes[case.id] for case in cases if case.id in left and not case.steps.exists())
        # and the largest once more: until it is whole, what is made anew lies beside what was there
        missing = max(new + max(takes.values(), default=0) - free, min(takes.values(), default=0))
        raise CannotProceed(
            f"The disk that {workspace.folder} lies on is full, or your share of it: {_mb(free)} are free, and for "
            f"{_still(len(left))} about {_mb(missing)} more are needed. What was done is kept, and nothing is half "
            f"written. Make room, then run it again: msfl data qc {workspace.dataset}."
        ) from error


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else 0


def _mb(size: int) -> str:
    return f"{max(1, round(size / 1e6))} MB" if size else "0 MB"


def _still(number: int) -> str:
    return {0: "the report", 1: "the case still to be measured"}.get(number, f"the {number} cases still to be measured")


def _conclude(
    workspace: Workspace, cases: list[Case], limits: QualityLimits, at: datetime, show: Progress
) -> tuple[Checked, ...]:
    from msfl.imaging.quality.report import write_report

    measured = {case.id: read_json(figures_file(case)) for case in cases if _is_measured(case)}
    scores = site_scores({case: facts["figures"] for case, facts in measured.items()}, limits)
    verdicts: dict[str, Checked] = {}
    for case in cases:
        if case.id in measured:
            found = judge(case.id, measured[case.id]["figures"], limits, scores[case.id])
            verdicts[case.id] = _without_mask(case, found)
        else:
            failed = case.standing.failed
            verdicts[case.id] = unmeasured(case.id, *((failed.code, failed.reason) if failed else ("not_measured", "")))
    _add_twins(verdicts, {case.id: case for case in cases}, measured)
    decided = Overrules(workspace).decisions()
    for case_id, facts in measured.items():
        if (decision := decided.get((case_id, facts["inputs"]))) is not None:
            verdicts[case_id] = replace(verdicts[case_id], overruled=decision)
    for case in cases:
        document = verdicts[case.id].to_json() | {"limits_sha256": sha256_of(limits.model_dump_json().encode())}
        if case.id in measured and (not case.qc.exists() or read_json(case.qc) != document):
            write_json(case.qc, document)
        elif case.id not in measured:
            case.qc.unlink(missing_ok=True)
        if case.id in measured and case.standing.state is not State.CHECKED:
            case.record(Entry(Step.QUALITY, at, inputs=measured[case.id]["inputs"]))
    show("writing the report", 0, 1)
    concluded = tuple(verdicts[case.id] for case in cases)
    write_report(workspace, concluded, limits, at)
    show("writing the report", 1, 1)
    return concluded


def _is_measured(case: Case) -> bool:
    return case.standing.state in (State.STANDARD, State.CHECKED) and figures_file(case).exists()


def _without_mask(case: Case, checked: Checked) -> Checked:
    if case.has_lesion:
        return checked
    sentence = (
        "There is no lesion mask: the case can neither train nor test and is not published. Add a mask, import again."
    )
    return also(checked, Finding(Verdict.WARN, NO_LESION_MASK, None, "", sentence))


def _add_twins(verdicts: dict[str, Checked], cases: Mapping[str, Case], measured: Mapping[str, JsonObject]) -> None:
    from msfl.imaging.quality.twins import twins

    patients = {name: cases[name].patient for name in measured if (cases[name].folder / "source.json").exists()}
    for pair in twins({name: tuple(facts["fingerprint"]) for name, facts in measured.items()}, patients):
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if pair.same_image:
                sentence = f"This is the same image as case {other}. Keep one of them: a patient counts only once."
                finding = Finding(Verdict.FAIL, "twin.same_image", pair.likeness, "", sentence)
            else:
                sentence = (
                    f"This looks like the head of case {other}, which is said to be of another patient. If it is the "
                    "same person, give both the same patient before the dataset is split."
                )
                finding = Finding(Verdict.WARN, "twin.same_head", pair.likeness, "", sentence)
            verdicts[one] = also(verdicts[one], finding)


def _silent(what: str, done: int, total: int) -> None:
    pass
