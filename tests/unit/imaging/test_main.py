"""The ``msfl data`` commands, as a custodian types them."""

import json
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fakes.scanners import FLAIR, T1W, Patient, Scanner, head
from fakes.workspaces import checked_case, checked_cohort
from msfl.imaging.faults import ADVICE, WARNINGS, Fault
from msfl.imaging.main import app
from msfl.imaging.quality.limits import default_limits
from msfl.imaging.quality.verdict import Checked, Overruled, Verdict, judge
from msfl.imaging.workspace import Workspace, write_json
from msfl.policies.refusals import CannotProceed

RUN = CliRunner()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    options = ["--site", "site-c", "--train", "1", "--test", "1", "--spacing", "4"]
    done = RUN.invoke(app, ["synth", str(out), *options, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["sites"] == [
        {"site": "site-c", "folder": str(out / "site-c"), "train": 1, "test": 1}
    ]
    return out


def test_made_data_is_ready(made: Path) -> None:
    done = RUN.invoke(app, ["check", str(made / "site-c")])
    assert done.exit_code == 0
    assert "site-c: ready" in done.stdout
    assert "FLAIR, T1w" in done.stdout


def test_check_as_json_tells_the_version(made: Path) -> None:
    answer = json.loads(RUN.invoke(app, ["check", str(made / "site-c"), "--json"]).stdout)
    assert answer["ok"] is True
    assert answer["version"].startswith("sha256:")
    assert answer["train_cases"] == ["C_001"]


def test_bad_data_exits_1_with_one_line_per_problem(tmp_path: Path) -> None:
    done = RUN.invoke(app, ["check", str(tmp_path)])
    assert done.exit_code == 1
    assert "dataset.json cannot be used: it cannot be opened" in done.stdout
    answer = json.loads(RUN.invoke(app, ["check", str(tmp_path), "--json"]).stdout)
    assert answer["ok"] is False
    assert answer["version"] is None
    assert [problem["code"] for problem in answer["problems"]] == ["dataset_json_invalid"]


def test_a_folder_in_use_is_left_alone(made: Path) -> None:
    done = RUN.invoke(app, ["synth", str(made), "--site", "site-c"])
    assert done.exit_code == 1
    assert "already holds a dataset" in done.stderr


def test_an_unknown_site_is_a_usage_error(tmp_path: Path) -> None:
    done = RUN.invoke(app, ["synth", str(tmp_path), "--site", "site-z"])
    assert done.exit_code == 2


@pytest.mark.parametrize(
    "words",
    [["--brain", "magic"], ["--overrule", "p1-v1", "--verdict", "good"], ["--limits", "nowhere.yaml"], ["--jobs", "0"]],
)
def test_quality_control_asked_wrongly_is_a_usage_error(tmp_path: Path, words: list[str]) -> None:
    assert RUN.invoke(app, ["qc", "ms-trial", "--home", str(tmp_path), *words]).exit_code == 2


def test_wrong_limits_stop_quality_control_before_it_begins(tmp_path: Path) -> None:
    limits = tmp_path / "limits.yaml"
    limits.write_text("api_version: msfl/v1\nkind: QualityLimits\nfigures: {T1w.snir: {}}\n")
    done = RUN.invoke(app, ["qc", "ms-trial", "--home", str(tmp_path), "--limits", str(limits)])
    assert isinstance(done.exception, CannotProceed)
    assert "limits.yaml:1" in str(done.exception)
    assert "sites_own" in str(done.exception)
    assert not (tmp_path / "datasets").exists()


def test_quality_control_of_nothing_says_what_to_do_first(tmp_path: Path) -> None:
    done = RUN.invoke(app, ["qc", "ms-trial", "--home", str(tmp_path)])
    assert isinstance(done.exception, CannotProceed)
    assert "msfl data import" in str(done.exception)


def qc_says(home: Path, monkeypatch: pytest.MonkeyPatch, checked: Checked) -> str:
    monkeypatch.setattr("msfl.imaging.quality.control.check_quality", lambda *_, **__: (checked,))
    return RUN.invoke(app, ["qc", "ms-trial", "--home", str(home)]).stdout


def test_what_fails_a_case_is_never_the_one_that_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {
        "FLAIR.cut_top": 2.0, "FLAIR.cut_side": 2.0, "T1w.cut_top": 2.0, "T1w.motion": 0.8,
        "pair.volume_similarity": 0.94, "pair.overlap": 0.94, "pair.shared": 1.035, "pair.shared_mirrored": 1.2,
    }  # fmt: skip
    said = qc_says(tmp_path, monkeypatch, judge("p1-v1", figures, default_limits()))
    assert "p1-v1: fail: Left and right of T1w and FLAIR do not agree: one of them is mirrored." in said
    assert said.count("lies outside the FLAIR image") == 1
    assert "And 3 more in the report." in said


def test_who_overruled_a_verdict_is_said_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = judge("p1-v1", {"FLAIR.spacing_max": 1.2}, default_limits())
    decided = replace(found, overruled=Overruled(Verdict.PASS, "rita", "2026-11-28T12:00:00Z", "agreed with the study"))
    said = qc_says(tmp_path, monkeypatch, decided)
    assert 'p1-v1: pass instead of fail, as rita decided ("agreed with the study"). What was found: The voxels' in said


def test_every_option_that_an_advice_names_is_there() -> None:
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    options = {option for command in commands for parameter in command.params for option in parameter.opts}
    assert {word for advice in ADVICE.values() for word in re.findall(r"--[a-z-]+", advice)} <= options


def series(folder: Path, *contrasts: Mapping[str, object]) -> None:
    scanner = Scanner(Patient())
    for seed, contrast in enumerate(contrasts):
        voxels, affine = head(seed=seed)
        scanner.scan(voxels, affine, folder, contrast)


@pytest.mark.slow
def test_import_asks_and_the_answer_is_a_file(tmp_path: Path) -> None:
    series(tmp_path / "source", FLAIR, T1W, T1W)
    command = ["import", str(tmp_path / "source"), "--dataset", "ms-trial", "--home", str(tmp_path / "home")]
    asked = RUN.invoke(app, [*command, "--json"])
    assert asked.exit_code == 1
    answer = json.loads(asked.stdout)
    assert [(o["verdict"], o["code"]) for o in answer["outcomes"]] == [("unusable", "ambiguous")]
    (question,) = answer["questions"]
    assert question["case"] == answer["outcomes"][0]["case"]
    assert question["image"] == "T1w"
    second = list(question["choices"])[1]
    (tmp_path / "series.csv").write_text(f"series,image\n{second},T1w\n")
    settled = RUN.invoke(app, [*command, "--series", str(tmp_path / "series.csv")])
    assert settled.exit_code == 0, settled.output
    assert "1 imported" in settled.stdout
    listed = json.loads(RUN.invoke(app, ["list", "ms-trial", "--home", str(tmp_path / "home"), "--json"]).stdout)
    assert listed["cases"][0] | {"case": ""} == {
        "case": "", "state": "imported", "channels": ["FLAIR", "T1w"], "lesion_mask": False, "code": "", "reason": "",
        "warnings": [], "verdict": "", "finding": "", "part": "",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.system
def test_on_a_terminal_the_question_is_asked_and_answered_at_once(tmp_path: Path) -> None:
    series(tmp_path / "source", FLAIR, T1W, T1W)
    options = ["--dataset", "ms-trial", "--home", str(tmp_path / "home"), "--jobs", "1"]
    command = [sys.executable, "-c", "from msfl.imaging.main import app; app()", "import", str(tmp_path / "source")]
    ours, theirs = pty.openpty()
    with open(theirs, "rb+", buffering=0) as terminal:
        process = subprocess.Popen([*command, *options], stdin=terminal, stdout=terminal, stderr=terminal)
    shown, typed = b"", [b"1\n", b"7\n"]  # there is no seventh series
    with open(ours, "rb+", buffering=0) as screen:
        while True:
            try:
                shown += screen.read(4096)
            except OSError:  # the other side was closed: the command has ended
                break
            if typed and shown.count(b"0 for none") > 2 - len(typed):
                screen.write(typed.pop())
    assert process.wait() == 0, shown.decode()
    assert "which is the T1w?" in shown.decode()
    assert "It is a number from 0 to 2." in shown.decode()
    assert "1 imported" in shown.decode()


def test_an_answer_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "series.csv").write_text("x12345678,T2w\n")
    command = ["import", str(tmp_path / "source"), "--dataset", "ms-trial", "--home", str(tmp_path / "home")]
    done = RUN.invoke(app, [*command, "--series", str(tmp_path / "series.csv")])
    assert isinstance(done.exception, CannotProceed)
    assert "line 1" in str(done.exception)


@pytest.mark.parametrize(
    "options", [[], ["--home", "h", "--dates", "keep"], ["--out", "r.json"]], ids=["no home", "dates", "no site"]
)
def test_import_says_what_is_missing(tmp_path: Path, options: list[str]) -> None:
    assert RUN.invoke(app, ["import", str(tmp_path), "--dataset", "d", *options]).exit_code == 2


def test_an_empty_source_is_said(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    command = ["import", str(tmp_path / "source"), "--dataset", "ms-trial", "--home", str(tmp_path / "home")]
    done = RUN.invoke(app, command)
    assert done.exit_code == 1
    assert "Looked for: DICOM" in done.stdout
    assert "Seen: no file." in done.stdout
    assert "No visit was found" in done.stdout


def test_a_table_without_a_line_is_said(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("patient,flair,t1w\n")
    command = ["import", str(tmp_path / "list.csv"), "--dataset", "ms-trial", "--home", str(tmp_path / "home")]
    done = RUN.invoke(app, command)
    assert done.exit_code == 1
    assert "a first line and no other" in done.stdout


@pytest.mark.parametrize("command", [["list"], ["qc"], ["publish", "--site", "site-a"]], ids=lambda c: c[0])
def test_a_dataset_that_nobody_made_is_an_error_and_makes_nothing(tmp_path: Path, command: list[str]) -> None:
    checked_case(Workspace.of(tmp_path, "ms-trial"), "p0-s1")
    done = RUN.invoke(app, [*command, "ms-trail", "--home", str(tmp_path)])
    assert isinstance(done.exception, CannotProceed)
    assert "There is ms-trial." in str(done.exception)
    assert [folder.name for folder in (tmp_path / "datasets").iterdir()] == ["ms-trial"]
    assert not (tmp_path / "secrets").exists()


@pytest.mark.slow
def test_the_list_has_verdicts_their_reasons_and_who_tests(tmp_path: Path) -> None:
    workspace = checked_cohort(tmp_path, 8)
    failed = checked_case(workspace, "pf-s1", verdict="fail")
    findings = [{"verdict": "warn", "sentence": "It is a bit dark."}, {"verdict": "fail", "sentence": "It moved."}]
    write_json(failed.qc, {"verdict": "fail", "final": "fail", "overruled": None, "findings": findings})
    RUN.invoke(app, ["publish", "ms-trial", "--home", str(tmp_path), "--site", "site-a", "--jobs", "1"])
    tested = next(iter((workspace.nnunet / "imagesTs").iterdir())).name.partition("_")[0]
    again = f"{tested.partition('-')[0]}-s2"
    checked_case(workspace, again)
    command = ["list", "ms-trial", "--home", str(tmp_path)]
    rows = {row["case"]: row for row in json.loads(RUN.invoke(app, [*command, "--json"]).stdout)["cases"]}
    assert (rows["pf-s1"]["verdict"], rows["pf-s1"]["finding"], rows["pf-s1"]["part"]) == ("fail", "It moved.", "")
    assert (rows[tested]["part"], rows[again]["part"]) == ("test", "aside")
    assert sorted(row["part"] for row in rows.values()) == ["", "aside", *["test"] * 2, *["train"] * 5, "validation"]
    assert "It moved." in RUN.invoke(app, command).stdout


@pytest.mark.slow
def test_publish_shows_what_was_checked_and_says_what_was_left_out(tmp_path: Path) -> None:
    workspace = checked_cohort(tmp_path, 8)
    checked_case(workspace, "pf-s1", verdict="fail")
    command = ["publish", "ms-trial", "--home", str(tmp_path), "--site", "site-a", "--jobs", "1"]
    done = RUN.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "pf-s1: left out: quality_failed" in done.stdout
    assert "site-a/ms-trial is published: 5 training, 1 validation, 2 test cases" in done.stdout
    answer = json.loads(RUN.invoke(app, [*command, "--json"]).stdout)
    assert (answer["dataset"], answer["train"], answer["validation"], answer["test"]) == ("site-a/ms-trial", 5, 1, 2)
    assert answer["test_set"].startswith("sha256:")
    assert RUN.invoke(app, [*command, "--test-share", "0.9", "--validation-share", "0.2"]).exit_code == 2


@pytest.mark.slow
def test_too_few_cases_to_publish_are_problems_in_lines(tmp_path: Path) -> None:
    checked_case(Workspace.of(tmp_path, "ms-trial"), "p0-s1")
    done = RUN.invoke(app, ["publish", "ms-trial", "--home", str(tmp_path), "--site", "site-a", "--jobs", "1"])
    assert done.exit_code == 1
    assert "no test cases" in done.stderr


def test_a_site_without_the_extra_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("msfl.imaging.custodian")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "msfl.imaging.deidentify.keys", None)
    done = RUN.invoke(app, ["list", "ms-trial", "--home", str(tmp_path)])
    assert isinstance(done.exception, CannotProceed)
    assert "pip install 'msfl[data]'" in str(done.exception)


def test_every_code_that_is_shown_is_explained() -> None:
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    codes = {*Fault, *WARNINGS, "not_checked", "quality_failed", "no_lesion_mask"}
    assert [code for code in sorted(codes) if f"`{code}`" not in text] == []
