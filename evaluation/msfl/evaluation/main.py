"""`msfl report RUN`: draw a run's figures and page again from its report.json.

    exit 0   drawn        exit 1   no report there, or not a valid one

Nothing heavy is imported until the command runs: the `msfl` program loads every part's commands at start-up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder: the one that holds report.json.")],
    as_json: Annotated[bool, typer.Option("--json", help="Say the result as one JSON object.")] = False,
) -> None:
    """Draw a run's figures and report.html again from its report.json."""
    from msfl.evaluation.report import BadReport, read_report, render

    folder = run_folder.parent if run_folder.name == "report.json" else run_folder
    console = Console(highlight=False, soft_wrap=True)
    try:
        record = read_report(folder)
        (folder / "figures").mkdir(exist_ok=True)
        page = render(record, folder)
    except FileNotFoundError as error:
        problem = f"{error.filename} does not exist; name the folder that a finished run left, such as runs/demo"
    except BadReport as error:
        problem = f"the report in {folder} cannot be drawn: {error}; report.json must be as the run left it"
    else:
        said = json.dumps({"report": str(page)}) if as_json else str(page)
        console.print(said, markup=False)
        return
    if as_json:
        console.print(json.dumps({"error": problem}), markup=False)
    else:
        Console(stderr=True, highlight=False, soft_wrap=True).print(problem, markup=False)
    raise typer.Exit(1)
