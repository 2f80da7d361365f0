"""`msfl registry new`, then `try`: a release of one's own through every task, in its own processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from msfl.gateway.try_release import try_
from msfl.learning.new import new

pytestmark = [pytest.mark.system, pytest.mark.slow]


def run(command: Any, *arguments: object) -> tuple[int, str, str]:
    app = typer.Typer()
    app.command()(command)
    said = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    return said.exit_code, said.stdout, said.stderr


@pytest.fixture
def release(tmp_path: Path) -> Path:
    assert run(new, tmp_path / "my-model")[0] == 0
    return tmp_path / "my-model"


def test_a_new_release_works_and_says_what_would_leave(release: Path) -> None:
    code, said, errors = run(try_, release, "--json")
    assert code == 0, errors
    found = json.loads(said)
    assert {one["task"] for one in found["sent"]} == {
        "fingerprint", "prepare", "train/1", "train/2", "validate", "baseline", "evaluate/test"
    }  # fmt: skip
    trained = next(one for one in found["sent"] if one["task"] == "train/2")
    assert trained["tensors"] == {"coefficients": [1, 6], "intercepts": [1]}
    assert trained["document"]["incoming"]["val_dice"] is not None
    assert found["unused"] == []
    assert "train_loss" in found["progress"]
    assert found["figures"] == ["overlay.png"]
    assert found["exported_bytes"] > 0


def test_a_name_that_a_fingerprint_carries_is_blocked(release: Path) -> None:
    code = release / "msfl/my_model/fingerprint.py"
    text = code.read_text()
    code.write_text(
        text.replace('"n_cases": len(site.train_cases),', '"n_cases": len(site.train_cases), "who": "Ada",')
    )
    status, said, _ = run(try_, release)
    assert status == 3
    assert "BLOCKED in fingerprint at site-a" in said
    assert "'who' was unexpected" in said


def test_a_bug_is_shown_with_its_words(release: Path) -> None:
    code = release / "msfl/my_model/model.py"
    text = code.read_text()
    code.write_text(
        text.replace("prepared = self._ready()\n        if not site", "prepared = 1 / 0\n        if not site")
    )
    status, _, errors = run(try_, release)
    assert status == 1
    assert "ZeroDivisionError" in errors


def test_a_package_that_was_not_required_is_named(release: Path) -> None:
    recipe = release / "release.yaml"
    recipe.write_text(recipe.read_text().replace("requires: [numpy, scipy, nibabel, ", "requires: [numpy, nibabel, "))
    status, _, errors = run(try_, release)
    assert status == 1
    assert "scipy is installed here, but a release finds only what it requires" in errors
