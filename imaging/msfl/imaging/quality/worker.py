"""worker: a process that takes cases, one after the other: standardise, measure, draw. `batch` starts it and feeds it.

In, a JSON line each: first the settings, then the folder of a case. Out, a JSON line per case: what became of it. What
people need to know of a case that cannot be used is an outcome; a bug ends the process, with its traceback on standard
error, and `batch` goes on with another.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from msfl.imaging.brain import extractor
from msfl.imaging.quality.artefacts import detector
from msfl.imaging.quality.measure import MEASURES, measure
from msfl.imaging.quality.pictures import draw
from msfl.imaging.standard.pipeline import inputs_sha256, standardise_case
from msfl.imaging.standard.recipe import Recipe
from msfl.imaging.workspace import Case, Entry, Step, Unusable, now_utc, read_json, write_json
from msfl.policies.encoding import sha256_of
from msfl.policies.refusals import CannotProceed


class Settings(BaseModel):
    """What is done to every case, the same way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Recipe = Recipe()
    mai_lab: Path | None = None
    again: bool = False
    """Also what was done already, with the same files and the same settings."""


def figures_file(case: Case) -> Path:
    return case.folder / "figures.json"


def digest(case: Case, settings: Settings) -> str:
    """What the figures depend on."""
    return sha256_of(f"{inputs_sha256(case, settings.recipe)} {settings.mai_lab} {MEASURES}".encode())


def is_done(case: Case, settings: Settings) -> bool:
    file = figures_file(case)
    return file.exists() and case.steps.exists() and read_json(file)["inputs"] == digest(case, settings)


def work(case: Case, settings: Settings) -> dict[str, Any]:
    """One case, from what was imported to its figures; the journal knows of it. Raises CannotProceed."""
    if not settings.again and is_done(case, settings):
        return {"outcome": "kept"}
    inputs = digest(case, settings)
    try:
        raw, made = standardise_case(case, settings.recipe, extractor(settings.recipe.brain))
    except Unusable as error:
        figures_file(case).unlink(missing_ok=True)
        case.record(Entry(Step.STANDARDISE, now_utc(), error.code, error.reason, inputs))
        return {"outcome": "unusable", "code": error.code, "reason": error.reason}
    case.record(Entry(Step.STANDARDISE, now_utc(), inputs=inputs))
    tool = detector(settings.mai_lab)
    found = measure(raw, made, tool)
    draw(case, raw, made)
    facts = {"inputs": inputs, "detector": tool.name, "figures": dict(found.figures), "fingerprint": list(found.fingerprint)}
    write_json(figures_file(case), facts)
    return {"outcome": "done"}


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries may print; only answers belong there
    settings = Settings.model_validate_json(sys.stdin.readline(), strict=False)
    for line in sys.stdin:
        try:
            answer = work(Case(Path(json.loads(line))), settings)
        except CannotProceed as error:
            answer = {"outcome": "cannot", "reason": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
