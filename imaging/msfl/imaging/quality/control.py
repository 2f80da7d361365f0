"""control: quality control of a whole dataset, from what was imported to verdicts and the report.

    check_quality ──at_work──▶ hands: measure_case (slow, per case; kept while files and settings are the same)
          └──▶ judge all cases together (pure) ──▶ qc.json per case ──▶ report/

One case that cannot be worked on, or on which a process dies, stops no other: it fails, with its reason. Limits may
change, and people overrule, without any image being opened again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from msfl.imaging.faults import Fault, unusable
from msfl.imaging.quality.limits import QualityLimits, default_limits
from msfl.imaging.quality.overrule import Overrules
from msfl.imaging.quality.verdict import Checked, Finding, Verdict, also, judge, site_scores, unmeasured
from msfl.imaging.standard.recipe import Recipe
from msfl.imaging.workspace import (
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

MEASURES = "1"
"""Raised when figures are measured differently, so that old ones are measured again."""


class Settings(BaseModel):
    """What is done to every case, the same way. `mai_lab` is the folder of the MAI-Lab tool, where a site has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Recipe = Recipe()
    mai_lab: Path | None = None


# ------------------------------------------------------------------- a case


def figures_file(case: Case) -> Path:
    return case.folder / "figures.json"


def measure_case(case: Case, settings: Settings, at: datetime) -> JsonObject:
    """Standardise and measure, unless that was done with the same files and settings. Raises Unusable, which the
    journal then knows of, CannotProceed."""
    from msfl.imaging.brain import extractor
    from msfl.imaging.quality.artefacts import detector
    from msfl.imaging.quality.measure import measure
    from msfl.imaging.quality.pictures import draw
    from msfl.imaging.standard.pipeline import inputs_sha256, standardise_case

    inputs = sha256_of(f"{inputs_sha256(case, settings.recipe)} {settings.mai_lab} {MEASURES}".encode())
    file = figures_file(case)
    if file.exists() and case.standing.state in (State.STANDARD, State.CHECKED) and read_json(file)["inputs"] == inputs:
        return {"outcome": "kept"}
    file.unlink(missing_ok=True)
    try:
        raw, made = standardise_case(case, settings.recipe, extractor(settings.recipe.brain))
    except Unusable as error:
        case.record(Entry(Step.STANDARDISE, at, error.code, error.reason, inputs))
        raise
    case.record(Entry(Step.STANDARDISE, at, inputs=inputs))
    tool = detector(settings.mai_lab)
    try:
        found = measure(raw, made, tool)
    except Unusable as error:
        case.record(Entry(Step.QUALITY, at, error.code, error.reason, inputs))
        raise
    draw(case, raw, made)
    facts = {"detector": tool.name, "figures": dict(found.figures), "fingerprint": list(found.fingerprint)}
    write_json(file, {"inputs": inputs} | facts)
    return {"outcome": "measured"}


# ------------------------------------------------------------------ the dataset


def check_quality(
    home: Path,
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

    workspace, at, show = Workspace.of(home, dataset), now or now_utc(), progress or _silent
    settings = settings or Settings()
    with workspace.held():
        cases = [case for case in workspace.cases() if case.standing.state is not State.FOUND]
        if not cases:
            raise CannotProceed(f"No case of {dataset} was imported. Do that first: msfl data import.")
        given = settings.model_dump(mode="json")
        names = {"home": str(home), "dataset": dataset, "at": format_utc(at), "settings": given}
        orders = [{"do": "measure", "case": case.id} | names for case in cases]
        show("measuring", 0, len(orders))
        for done, (number, answer) in enumerate(
            at_work(orders, do, hands=hands, log=workspace.report / "hands.log"), 1
        ):
            if answer is None:
                why = unusable(Fault.CRASHED, "The process that measured this case ended.")
                cases[number].record(Entry(Step.STANDARDISE, at, why.code, why.reason))
            elif answer.get("code") == CANNOT_PROCEED:
                raise CannotProceed(answer["reason"])
            show("measuring", done, len(orders))
        return _conclude(workspace, cases, limits or default_limits(), at, show)


def overrule(
    home: Path,
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
    workspace, at = Workspace.of(home, dataset), now or now_utc()
    with workspace.held():
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


def _conclude(
    workspace: Workspace, cases: list[Case], limits: QualityLimits, at: datetime, show: Progress
) -> tuple[Checked, ...]:
    from msfl.imaging.quality.report import write_report

    measured = {case.id: read_json(figures_file(case)) for case in cases if _is_measured(case)}
    scores = site_scores({case: facts["figures"] for case, facts in measured.items()}, limits)
    verdicts: dict[str, Checked] = {}
    for case in cases:
        if case.id in measured:
            verdicts[case.id] = judge(case.id, measured[case.id]["figures"], limits, scores[case.id])
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
