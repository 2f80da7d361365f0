"""Quality control of a dataset: one bad case stops no other, nothing is done twice, people have the last word."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from fakes.disks import filled, small_disk
from fakes.heads import MadeHeadExtractor, SameEverywhere, grid, head, lesion_mask
from msfl.imaging.checks import Volume
from msfl.imaging.custodian import check_quality, overrule
from msfl.imaging.deidentify.changes import Change, as_html
from msfl.imaging.deidentify.nifti import write_volume
from msfl.imaging.hand import do
from msfl.imaging.publishing import usable
from msfl.imaging.quality import control
from msfl.imaging.quality.artefacts import Artefact
from msfl.imaging.quality.artefacts.mai_lab import MaiLab
from msfl.imaging.quality.control import Settings, figures_file
from msfl.imaging.quality.limits import QualityLimits, default_limits
from msfl.imaging.quality.overrule import Overrules
from msfl.imaging.quality.verdict import Checked, Verdict
from msfl.imaging.standard.recipe import Recipe
from msfl.imaging.standard.register import Registration
from msfl.imaging.volume import Mask
from msfl.imaging.workspace import (
    LESION,
    Case,
    Entry,
    JsonObject,
    State,
    Step,
    Workspace,
    read_json,
    write_json,
    write_whole,
)
from msfl.policies.refusals import CannotProceed

pytestmark = pytest.mark.slow
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
SETTINGS = Settings(
    recipe=Recipe(registration=Registration(grids_mm=(9.0, 6.0, 6.0), sampling=(1.0, 1.0, 1.0)), interpolation="linear")
)

OTHER = SETTINGS.model_copy(update={"recipe": SETTINGS.recipe.model_copy(update={"brain": "hd-bet"})})


@pytest.fixture(autouse=True)
def made_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The brains of these heads are found by what knows them."""
    monkeypatch.setattr("msfl.imaging.brain.extractor", lambda name: MadeHeadExtractor())
    monkeypatch.setattr("msfl.imaging.quality.artefacts.detector", lambda mai_lab=None: SameEverywhere())


@pytest.fixture
def limits() -> QualityLimits:
    """The made head has voxels of 3 mm."""
    standard = default_limits()
    figures = {
        name: limit for name, limit in standard.figures.items() if "spacing" not in name and name != "lesion.volume"
    }
    return standard.model_copy(update={"figures": figures})


def imported(home: Path, name: str, *, broken: bool = False, seed: int = 0, lesion: bool = True) -> None:
    case = Workspace.of(home, "ms-trial").case(name)
    on = grid()
    flair = head("FLAIR", on, seed=seed)
    if broken:
        flair = on.like(np.full(on.voxels.shape, np.nan, np.float32))
    with case.filling("raw") as fresh:
        write_volume(flair, fresh / "FLAIR.nii.gz")
        write_volume(head("T1w", on, seed=seed), fresh / "T1w.nii.gz")
        if lesion:
            write_volume(lesion_mask(on), fresh / f"{LESION}.nii.gz")
    write_json(case.folder / "source.json", {"patient": name.split("-")[0], "scanner": {"id": "d1"}, "split": ""})
    case.record(Entry(Step.IMPORT, NOON))


def run(home: Path, limits: QualityLimits) -> dict[str, Checked]:
    found = check_quality(home, "ms-trial", settings=SETTINGS, limits=limits, hands=0, now=NOON)
    return {one.case: one for one in found}


def order(home: Path, settings: Settings) -> JsonObject:
    words = {"do": "measure", "case": "p1-v1", "home": str(home), "dataset": "ms-trial", "at": "2026-11-28T12:00:00Z"}
    return words | {"settings": settings.model_dump(mode="json")}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    imported(tmp_path, "p1-v1", seed=1)
    imported(tmp_path, "p2-v1", broken=True)
    return tmp_path


def test_one_bad_case_stops_no_other_and_says_why(home: Path, limits: QualityLimits) -> None:
    found = run(home, limits)
    workspace = Workspace.of(home, "ms-trial")
    assert found["p2-v1"].verdict is Verdict.FAIL
    assert found["p2-v1"].findings[0].figure == "not_finite"
    assert "NaN" in found["p2-v1"].findings[0].sentence
    assert found["p1-v1"].verdict is not Verdict.FAIL, found["p1-v1"].findings
    assert workspace.case("p1-v1").standing.state is State.CHECKED
    assert workspace.case("p2-v1").standing.state is State.IMPORTED
    assert usable(workspace.case("p1-v1")) in ("pass", "warn")
    assert usable(workspace.case("p2-v1")) not in ("pass", "warn")


def test_what_was_measured_is_not_measured_again_until_something_changes(
    home: Path, limits: QualityLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(home, limits)
    case = Workspace.of(home, "ms-trial").case("p1-v1")
    before = figures_file(case).read_bytes()
    journal = case.journal
    monkeypatch.setattr("msfl.imaging.standard.pipeline.standardise", lambda *_: pytest.fail("measured again"))
    run(home, limits)
    assert figures_file(case).read_bytes() == before
    assert case.journal == journal
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        check_quality(home, "ms-trial", settings=OTHER, limits=limits, hands=0, now=NOON)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class Missing:
    """A tool that is not on this machine, or that turns out not to work."""

    name = "missing 1"

    def __init__(self, works_until: str) -> None:
        self._works_until = works_until

    def ready(self) -> None:
        if self._works_until == "asked":
            raise CannotProceed("The tool is not on this machine.")

    def extract(self, image: Volume, what: str) -> Mask:
        raise CannotProceed("The tool is broken.")

    def detect(self, image: Volume, brain: Mask) -> Mapping[Artefact, float]:
        raise CannotProceed("The tool is broken.")


def everything(case: Case) -> dict[str, bytes]:
    return {str(file.relative_to(case.folder)): file.read_bytes() for file in case.folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("works_until", ["asked", "used"])
@pytest.mark.parametrize("tool", ["msfl.imaging.brain.extractor", "msfl.imaging.quality.artefacts.detector"])
def test_a_tool_that_does_not_work_takes_nothing_away(
    home: Path, limits: QualityLimits, monkeypatch: pytest.MonkeyPatch, tool: str, works_until: str
) -> None:
    run(home, limits)
    case = Workspace.of(home, "ms-trial").case("p1-v1")
    before = everything(case)
    monkeypatch.setattr(tool, lambda *_: Missing(works_until))
    with pytest.raises(CannotProceed, match="The tool is"):
        check_quality(home, "ms-trial", settings=OTHER, limits=limits, hands=0, now=NOON)
    assert everything(case) == before
    assert usable(case) in ("pass", "warn")


@pytest.mark.parametrize("writes", ["pictures.draw", "control.write_json", "report.write_report"])
def test_a_full_disk_stops_all_and_what_was_done_is_kept(
    home: Path, limits: QualityLimits, monkeypatch: pytest.MonkeyPatch, writes: str
) -> None:
    run(home, limits)
    case = Workspace.of(home, "ms-trial").case("p1-v1")
    before = everything(case)

    with monkeypatch.context() as patch:
        patch.setattr(f"msfl.imaging.quality.{writes}", full)
        with pytest.raises(CannotProceed, match=r"is full.* MB more are needed.*What was done is kept.*msfl data qc"):
            check_quality(home, "ms-trial", settings=OTHER, limits=limits, hands=0, now=NOON)
    assert not list(case.folder.rglob("*.new"))
    if writes != "report.write_report":
        assert everything(case) == before
    assert run(home, limits)["p1-v1"].verdict is not Verdict.FAIL


def test_what_a_killed_process_was_writing_goes_with_the_next_run(home: Path, limits: QualityLimits) -> None:
    case = Workspace.of(home, "ms-trial").case("p1-v1")
    (case.folder / ".standard.new").mkdir()
    (case.folder / ".standard.new" / "FLAIR.nii.gz").write_bytes(b"half")
    (case.folder / ".journal.json.new").write_bytes(b"half")
    run(home, limits)
    assert not list(case.folder.rglob("*.new"))


@pytest.mark.system
def test_a_disk_that_is_full_in_a_hand_is_no_crash(home: Path, limits: QualityLimits) -> None:
    folder = home / "datasets" / "ms-trial" / "cases" / "p1-v1"
    files = everything(Case(folder))
    with small_disk(folder, 8):
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        with filled(folder):
            answer = do(order(home, SETTINGS))
        assert answer == {"outcome": "disk_full"}
        assert everything(Case(folder)) == files


def test_other_limits_other_verdicts_without_opening_an_image(home: Path, limits: QualityLimits) -> None:
    run(home, limits)
    tight = QualityLimits.model_validate(
        limits.model_dump() | {"figures": {"T1w.snr": {"fail": {"min": 1000.0}}}}, strict=False
    )
    found = run(home, tight)["p1-v1"]
    assert found.verdict is Verdict.FAIL
    assert read_json(Workspace.of(home, "ms-trial").case("p1-v1").qc)["verdict"] == "fail"


def test_a_person_has_the_last_word_and_it_is_written_down(home: Path, limits: QualityLimits) -> None:
    run(home, limits)
    workspace = Workspace.of(home, "ms-trial")
    overrule(home, "ms-trial", "p1-v1", Verdict.FAIL, by="rita", reason="a wig was worn", limits=limits, now=NOON)
    document = read_json(workspace.case("p1-v1").qc)
    assert document["final"] == "fail"
    assert document["overruled"] == {
        "verdict": "fail",
        "by": "rita",
        "at": "2026-11-28T12:00:00Z",
        "reason": "a wig was worn",
    }
    assert usable(workspace.case("p1-v1")) not in ("pass", "warn", "overruled")
    again = run(home, limits)["p1-v1"]
    assert again.overruled is not None, "a decision outlives the next run"
    assert "a wig was worn" in (workspace.report / "report.html").read_text()
    assert read_json(workspace.report / "qc.json")["overrules_head"] == Overrules(workspace).head


def test_a_decision_that_finds_no_room_leaves_the_log_whole(
    home: Path, limits: QualityLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(home, limits)

    def decide(reason: str) -> Checked:
        return overrule(home, "ms-trial", "p1-v1", Verdict.FAIL, by="rita", reason=reason, limits=limits, now=NOON)

    decide("blurred")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CannotProceed, match="is full"):
            decide("a wig was worn")
    decided = run(home, limits)["p1-v1"].overruled
    assert decided is not None
    assert decided.reason == "blurred"


def test_a_decision_does_not_outlive_the_images_it_was_made_on(home: Path, limits: QualityLimits) -> None:
    run(home, limits)
    overrule(home, "ms-trial", "p1-v1", Verdict.FAIL, by="rita", reason="blurred", limits=limits, now=NOON)
    imported(home, "p1-v1", seed=7)
    assert run(home, limits)["p1-v1"].overruled is None


@pytest.mark.parametrize(("by", "reason"), [("rita", " "), ("", "blurred")])
def test_nobody_overrules_without_a_name_and_a_reason(home: Path, limits: QualityLimits, by: str, reason: str) -> None:
    run(home, limits)
    with pytest.raises(CannotProceed, match="say both"):
        overrule(home, "ms-trial", "p1-v1", Verdict.PASS, by=by, reason=reason, limits=limits, now=NOON)


def test_what_could_not_be_measured_cannot_be_overruled(home: Path, limits: QualityLimits) -> None:
    run(home, limits)
    with pytest.raises(CannotProceed, match="no verdict on p2-v1"):
        overrule(home, "ms-trial", "p2-v1", Verdict.PASS, by="rita", reason="it is fine", limits=limits, now=NOON)


@pytest.mark.parametrize("reason", ["Kowalczyk moved", "patient 4711-88 has a wig", "see visit 20200102", "KOWALCZYK"])
def test_a_reason_names_no_patient_that_the_import_knows(home: Path, limits: QualityLimits, reason: str) -> None:
    run(home, limits)
    private = home / "secrets" / "data" / "ms-trial"
    links = {"cases": {"p1-v1": {"patient": "4711-88", "visit": "20200102", "from": ["/media/export/motion"]}}}
    write_json(private / "links.json", links)
    page = as_html({"FLAIR": (Change("(0010,0010) PatientName", "Kowalczyk^Ewa", "p1"),)})
    write_whole(private / "changes" / "p1-v1.html", page.encode())

    def decide(why: str) -> Checked:
        return overrule(home, "ms-trial", "p1-v1", Verdict.FAIL, by="rita", reason=why, limits=limits, now=NOON)

    with pytest.raises(CannotProceed, match="name nobody"):
        decide(reason)
    assert not (Workspace.of(home, "ms-trial").folder / "overrules.jsonl").exists()
    assert decide("the motion is only in the neck").final is Verdict.FAIL


def test_a_changed_decision_is_noticed(home: Path, limits: QualityLimits) -> None:
    run(home, limits)
    overrule(home, "ms-trial", "p1-v1", Verdict.FAIL, by="rita", reason="blurred", limits=limits, now=NOON)
    log = Workspace.of(home, "ms-trial").folder / "overrules.jsonl"
    log.write_bytes(log.read_bytes().replace(b"blurred", b"perfect"))
    with pytest.raises(CannotProceed, match="was changed"):
        run(home, limits)


def test_the_same_head_under_two_names_is_found(tmp_path: Path, limits: QualityLimits) -> None:
    imported(tmp_path, "p1-v1", seed=1)
    imported(tmp_path, "p2-v1", seed=1)
    found = run(tmp_path, limits)
    assert found["p1-v1"].verdict is found["p2-v1"].verdict is Verdict.FAIL
    assert any("same image as case p2-v1" in finding.sentence for finding in found["p1-v1"].findings)


def test_a_case_without_a_mask_is_told_so_before_it_is_published(tmp_path: Path, limits: QualityLimits) -> None:
    imported(tmp_path, "p1-v1", seed=1, lesion=False)
    found = run(tmp_path, limits)["p1-v1"]
    assert found.verdict is Verdict.WARN
    assert "no lesion mask" in next(f for f in found.findings if f.figure == "no_lesion_mask").sentence
    report = Workspace.of(tmp_path, "ms-trial").report
    assert "no lesion mask: the case can neither train nor test" in (report / "report.html").read_text()
    with (report / "qc.csv").open(newline="") as file:
        assert "no lesion mask" in next(csv.DictReader(file))["sentences"]


def test_the_report_is_one_file_that_loads_nothing(home: Path, limits: QualityLimits) -> None:
    run(home, limits)
    report = Workspace.of(home, "ms-trial").report
    page = (report / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:image/webp|#)""", page)
    assert "://" not in page
    assert page.count("data:image/webp;base64,") == 5, "four pictures of the one case that could be measured, one twice"
    with (report / "qc.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert rows["p2-v1"]["final"] == "fail"
    assert float(rows["p1-v1"]["pair.overlap"]) > 0.9
    assert {case["case"] for case in json.loads((report / "qc.json").read_bytes())["cases"]} == {"p1-v1", "p2-v1"}


def test_a_reason_is_text_in_the_page_and_no_formula_in_the_table(home: Path, limits: QualityLimits) -> None:
    run(home, limits)
    reason = '=HYPERLINK("x")<script>alert(1)</script>'
    overrule(home, "ms-trial", "p1-v1", Verdict.WARN, by="rita", reason=reason, limits=limits, now=NOON)
    report = Workspace.of(home, "ms-trial").report
    assert "<script>alert" not in (report / "report.html").read_text()
    with (report / "qc.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["reason"].startswith("'=")


def test_a_process_that_dies_costs_its_case_only(
    home: Path, limits: QualityLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msfl.imaging.hands.at_work", lambda orders, do, **_: ((n, None) for n in range(len(orders))))
    found = run(home, limits)
    assert {finding.figure for one in found.values() for finding in one.findings} == {"crashed"}
    monkeypatch.undo()
    monkeypatch.setattr("msfl.imaging.brain.extractor", lambda name: MadeHeadExtractor())
    monkeypatch.setattr("msfl.imaging.quality.artefacts.detector", lambda mai_lab=None: SameEverywhere())
    assert run(home, limits)["p1-v1"].verdict is not Verdict.FAIL, "done again, it is fine"


def test_a_tool_that_every_case_needs_and_that_is_not_there_stops_all(home: Path, limits: QualityLimits) -> None:
    settings = SETTINGS.model_copy(update={"mai_lab": home / "no-tool"})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("msfl.imaging.quality.artefacts.detector", lambda mai_lab=None: MaiLab(home / "no-tool"))
        answer = do(order(home, settings))
        assert answer["code"] == control.CANNOT_PROCEED
        with pytest.raises(CannotProceed, match="MAI-Lab tool"):
            run(home, limits)


def test_nothing_imported_nothing_to_check(tmp_path: Path, limits: QualityLimits) -> None:
    with pytest.raises(CannotProceed, match="msfl data import"):
        run(tmp_path, limits)
