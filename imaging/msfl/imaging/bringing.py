"""``msfl data import`` and ``msfl data list``: visits come in, questions are asked, and where every case stands.

What is printed names no patient and no file; `custodian` says where that is kept.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from msfl.imaging.terminal import AsJson, errors, extra, print_problems, with_progress

if TYPE_CHECKING:
    from msfl.imaging.custodian import Brought

_WORDS = {"lesion": "lesion mask"}
"""What a person is asked for."""


def import_(
    source: Annotated[Path, typer.Argument(help="Folder, zip or CSV: DICOM, BIDS, NIfTI or nnU-Net raw.", exists=True)],
    dataset: Annotated[str, typer.Option(help="The dataset's id, as policies will name it.")],
    home: Annotated[Path | None, typer.Option(help="The gateway's folder; the dataset lies in it.")] = None,
    series: Annotated[
        Path | None, typer.Option(help="CSV `series,image` that answers what an earlier import asked.", exists=True)
    ] = None,
    dates: Annotated[str, typer.Option(help="shift: each patient's dates move alike; remove.")] = "shift",
    keep_device: Annotated[bool, typer.Option(help="Keep serial number and station name of the scanner.")] = False,
    max_slice_mm: Annotated[float, typer.Option(min=0.5, help="Thicker slices are refused.")] = 6.0,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Processes at once.")] = 2,
    out: Annotated[
        Path | None, typer.Option(help="Only check an nnU-Net raw folder where it lies, and write its record here.")
    ] = None,
    site: Annotated[str, typer.Option(help="With --out: the site's id.")] = "",
    generated: Annotated[bool, typer.Option(help="With --out: the images were made, not taken.")] = False,
    description: Annotated[str, typer.Option(help="With --out: a sentence for the report.")] = "",
    as_json: AsJson = False,
) -> None:
    """Bring visits into a dataset: recognised, de-identified, checked. One bad visit stops no other; run it again."""
    if out is not None:
        _record_in_place(source, dataset, out, site, generated, description)
        return
    if home is None:
        raise typer.BadParameter("say --home, the gateway's folder (or --out, to check a folder where it lies)")
    if dates not in ("shift", "remove"):
        raise typer.BadParameter("it is shift or remove", param_hint="--dates")
    with extra():
        from msfl.imaging.custodian import import_source
        from msfl.imaging.deidentify.headers import Options
        from msfl.imaging.importing import ImportOptions

    options = ImportOptions(Options("shift" if dates == "shift" else "remove", keep_device), max_slice_mm)
    answers = _answers(series) if series else {}
    brought = with_progress(
        lambda show: import_source(home, dataset, source, options=options, answers=answers, hands=jobs, progress=show)
    )
    if brought.questions and not as_json and sys.stdin.isatty():
        answers = answers | _ask(brought)
        brought = with_progress(
            lambda show: import_source(
                home, dataset, source, options=options, answers=answers, hands=jobs, progress=show
            )
        )
    console = Console(soft_wrap=True, highlight=False)
    if as_json:
        console.print_json(json.dumps({"ok": brought.ok} | asdict(brought)))
    else:
        _print_brought(console, brought, home, dataset)
    raise typer.Exit(0 if brought.ok else 1)


def _print_brought(console: Console, brought: Brought, home: Path, dataset: str) -> None:
    from msfl.imaging.faults import WARNINGS

    for outcome in brought.outcomes:
        if outcome.code:
            console.print(
                f"{outcome.case}: {outcome.verdict}: {outcome.code}: {outcome.reason}", style="red", markup=False
            )
        for warning in outcome.warnings:
            console.print(f"{outcome.case}: {warning}: {WARNINGS[warning]}", style="yellow", markup=False)
    for left in brought.left_out:
        console.print(f"{left['files']} files left out: {left['code']}: {left['reason']}", style="red", markup=False)
    for question in brought.questions:
        console.print(
            f"{question['case']}: which is the {_WORDS.get(question['image'], question['image'])}?",
            style="yellow",
            markup=False,
        )
        for name, label in question["choices"].items():
            console.print(f"    {name}  {label}", markup=False)
    if brought.names and any(outcome.code == "ambiguous" for outcome in brought.outcomes):
        console.print(f"Which series these are, and where they lie: {brought.names}.", style="yellow", markup=False)
    for note in brought.notes:
        console.print(note, style="yellow", markup=False)
    counts = Counter(outcome.verdict for outcome in brought.outcomes)
    console.print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "No visit was found.")
    if brought.left_out or any(outcome.code for outcome in brought.outcomes):
        links = home / "secrets" / "data" / dataset / "links.json"
        console.print(f"Which patients and files these are: {links} (yours alone).", markup=False)


def _answers(file: Path) -> dict[str, str]:
    """Raises CannotProceed."""
    from msfl.policies.refusals import CannotProceed

    answers = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        name, _, image = (part.strip() for part in line.partition(","))
        if not line.strip() or (number == 1 and name == "series"):
            continue
        if image not in ("FLAIR", "T1w", "lesion", "ignore"):
            raise CannotProceed(f"{file}, line {number}: {image!r} must be FLAIR, T1w, lesion or ignore.")
        answers[name] = image
    return answers


def _ask(brought: Brought) -> dict[str, str]:
    answers: dict[str, str] = {}
    errors().print(f"Which series these are, and where they lie: {brought.names}.", markup=False, highlight=False)
    for question in brought.questions:
        errors().print(
            f"{question['case']}: which is the {_WORDS.get(question['image'], question['image'])}?", markup=False
        )
        choices = [([name], f"{name}  {label}") for name, label in question["choices"].items()]
        if question["image"] == "lesion":  # a tool may write an object for each lesion
            choices.append((list(question["choices"]), "all of them together"))
        for number, (_, label) in enumerate(choices, 1):
            errors().print(f"    {number}  {label}", markup=False)
        while (chosen := typer.prompt("Number, or 0 for none", type=int, default=0, err=True)) not in range(
            len(choices) + 1
        ):
            errors().print(f"It is a number from 0 to {len(choices)}.", highlight=False)
        if chosen:
            answers |= dict.fromkeys(choices[chosen - 1][0], str(question["image"]))
    return answers


def _record_in_place(source: Path, dataset: str, out: Path, site: str, generated: bool, description: str) -> None:
    from msfl.imaging.record import NotADataset, make_record
    from msfl.imaging.workspace import write_whole
    from msfl.policies.encoding import encode

    if not site:
        raise typer.BadParameter("say --site, the site's id", param_hint="--site")
    if not source.is_dir():
        raise typer.BadParameter("with --out it must be a folder in nnU-Net's raw layout", param_hint="SOURCE")
    try:
        made = make_record(
            source,
            site=site,
            dataset_id=dataset,
            kind="generated" if generated else "user",
            description=description,
        )
    except NotADataset as error:
        print_problems(error)
        raise typer.Exit(1) from error
    write_whole(out, encode(made))


def list_(
    dataset: Annotated[str, typer.Argument(help="The dataset's id.")],
    home: Annotated[Path, typer.Option(help="The gateway's folder.", exists=True)],
    as_json: AsJson = False,
) -> None:
    """Say where every case of a dataset stands, and what stopped it."""
    with extra():
        from msfl.imaging.custodian import listing
        from msfl.imaging.faults import WARNINGS

    listed = listing(home, dataset)
    rows = [
        {
            "case": one.case,
            "state": one.standing.state.value,
            "channels": list(one.channels),
            "lesion_mask": one.lesion,
            "code": one.standing.failed.code if one.standing.failed else "",
            "reason": one.standing.failed.reason if one.standing.failed else "",
            "warnings": list(one.warnings),
            "verdict": one.verdict,
            "finding": one.finding,
            "part": one.part,
        }
        for one in listed
    ]
    console = Console(soft_wrap=True, highlight=False)
    if as_json:
        console.print_json(json.dumps({"dataset": dataset, "cases": rows}))
        return
    columns = ("state", "verdict", "part", "mask", "what stopped it, or was found")
    table = Table(Column("case", no_wrap=True), *columns, title=f"{dataset}: {len(rows)} cases")
    for one in listed:
        failed = one.standing.failed
        said = [f"{failed.code}: {failed.reason}"] if failed else [one.finding] if one.finding else []
        said += [f"{warning}: {WARNINGS[warning]}" for warning in one.warnings]
        cells = (one.case, one.standing.state.value, one.verdict, one.part, "yes" if one.lesion else "no")
        table.add_row(*cells, Text("\n".join(said)))
    console.print(table)
