"""Quality control of a dataset: one bad case stops no other, nothing is done twice, people have the last word."""

from __future__ import annotations

import csv
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from fakes.heads import MadeHeadExtractor, SameEverywhere, grid, head, lesion_mask
from msfl.imaging.deidentify.nifti import write_volume
from msfl.imaging.hand import do
from msfl.imaging.publishing import usable
from msfl.imaging.quality import control
from msfl.imaging.quality.artefacts.mai_lab import MaiLab
from msfl.imaging.quality.control import Settings, check_quality, figures_file
from msfl.imaging.quality.limits import QualityLimits, default_limits
from msfl.imaging.quality.overrule import Overrules
from msfl.imaging.quality.verdict import Checked, Verdict
from msfl.imaging.standard.recipe import Recipe
from msfl.imaging.standard.register import Registration
from msfl.imaging.workspace import LESION, Entry, State, Step, Workspace, read_json, write_json
from msfl.policies.refusals import CannotProceed

pytestmark = pytest.mark.slow
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
SETTINGS = Settings(
    recipe=Recipe(registration=Registration(grids_mm=(9.0, 6.0, 6.0), sampling=(1.0, 1.0, 1.0)), interpolation="linear")
)


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


def imported(home: Path, name: str, *, broken: bool = False, seed: int = 0) -> None:
    case = Workspace.of(home, "ms-trial").case(name)
    on = grid()
    flair = head("FLAIR", on, seed=seed)
    if broken:
        flair = on.like(np.full(on.voxels.shape, np.nan, np.float32))
    with case.filling("raw") as fresh:
        write_volume(flair, fresh / "FLAIR.nii.gz")
        write_volume(head("T1w", on, seed=seed), fresh / "T1w.nii.gz")
        write_volume(lesion_mask(on), fresh / f"{LESION}.nii.gz")
    write_json(case.folder / "source.json", {"patient": name.split("-")[0], "scanner": {"id": "d1"}, "split": ""})
    case.record(Entry(Step.IMPORT, NOON))


def run(home: Path, limits: QualityLimits) -> dict[str, Checked]:
    found = check_quality(home, "ms-trial", settings=SETTINGS, limits=limits, hands=0, now=NOON)
    return {one.case: one for one in found}


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
    other = SETTINGS.model_copy(update={"recipe": Recipe(brain="hd-bet")})
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        check_quality(home, "ms-trial", settings=other, limits=limits, hands=0, now=NOON)


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
    control.overrule(
        home, "ms-trial", "p1-v1", Verdict.FAIL, by="rita", reason="a wig was worn", limits=limits, now=NOON
    )
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


def test_a_decision_does_not_outlive_the_images_it_was_made_on(home: Path, limits: QualityLimits) -> None:
    run(home, limits)
    control.overrule(home, "ms-trial", "p1-v1", Verdict.FAIL, by="rita", reason="blurred", limits=limits, now=NOON)
    imported(home, "p1-v1", seed=7)
    assert run(home, limits)["p1-v1"].overruled is None


@pytest.mark.parametrize(("by", "reason"), [("rita", " "), ("", "blurred")])
def test_nobody_overrules_without_a_name_and_a_reason(home: Path, limits: QualityLimits, by: str, reason: str) -> None:
    run(home, limits)
    with pytest.raises(CannotProceed, match="say both"):
        control.overrule(home, "ms-trial", "p1-v1", Verdict.PASS, by=by, reason=reason, limits=limits, now=NOON)


def test_what_could_not_be_measured_cannot_be_overruled(home: Path, limits: QualityLimits) -> None:
    run(home, limits)
    with pytest.raises(CannotProceed, match="no verdict on p2-v1"):
        control.overrule(
            home, "ms-trial", "p2-v1", Verdict.PASS, by="rita", reason="it is fine", limits=limits, now=NOON
        )


def test_a_changed_decision_is_noticed(home: Path, limits: QualityLimits) -> None:
    run(home, limits)
    control.overrule(home, "ms-trial", "p1-v1", Verdict.FAIL, by="rita", reason="blurred", limits=limits, now=NOON)
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
    control.overrule(home, "ms-trial", "p1-v1", Verdict.WARN, by="rita", reason=reason, limits=limits, now=NOON)
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
    order = {"do": "measure", "case": "p1-v1", "home": str(home), "dataset": "ms-trial", "at": "2026-11-28T12:00:00Z"}
    settings = SETTINGS.model_copy(update={"mai_lab": home / "no-tool"})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("msfl.imaging.quality.artefacts.detector", lambda mai_lab=None: MaiLab(home / "no-tool"))
        answer = do(order | {"settings": settings.model_dump(mode="json")})
        assert answer["code"] == control.CANNOT_PROCEED
        with pytest.raises(CannotProceed, match="MAI-Lab tool"):
            run(home, limits)


def test_nothing_imported_nothing_to_check(tmp_path: Path, limits: QualityLimits) -> None:
    with pytest.raises(CannotProceed, match="msfl data import"):
        run(tmp_path, limits)
