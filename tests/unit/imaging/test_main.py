"""The ``msfl data`` commands, as a custodian types them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msfl.imaging.main import app
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
