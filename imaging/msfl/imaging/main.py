"""The ``msfl data`` commands: from scanner to dataset, check a dataset, make demo data.

==============  ===============================================================  ===========================
command         does                                                             exit code
==============  ===============================================================  ===========================
``import``      brings visits into a dataset, de-identified; with ``--out``      1 when a visit, or anything
                checks a folder where it lies and writes its record              of it, is unusable, or none is
                                                                                 found
``list``        says where every case stands                                     1 where there is no such dataset
``qc``          standardises, measures, judges, writes the report; overrules     1 when a process died over a case
``publish``     finishes, splits, and shows a dataset to the federation          1 when nothing can be shown
``check``       says what a dataset holds and, line by line, what is wrong       1 when anything is wrong
``synth``       writes the demo's synthetic sites as nnU-Net raw folders         1 when a folder is taken
==============  ===============================================================  ===========================

Exit code 2 is a usage error. With ``--json`` the answer goes to standard output as one JSON object; progress always
goes to standard error. numpy, nibabel and pydicom are imported by the command that needs them: ``msfl --help`` stays
fast. What is printed names no patient and no file; `custodian` says where that is kept.
"""

from __future__ import annotations

import getpass
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from msfl.imaging.custodian import Brought
    from msfl.imaging.quality.verdict import Checked
    from msfl.imaging.record import NotADataset

app = typer.Typer(name="data", help="From scanner to dataset.", no_args_is_help=True)

_WORDS = {"lesion": "lesion mask"}
"""What a person is asked for."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.callback()
def data() -> None:
    """From scanner to dataset: import, check, publish; or make demo data."""


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder that receives one folder per site.", file_okay=False)],
    site: Annotated[list[str] | None, typer.Option(help="Only this site; may be given again.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    train: Annotated[int | None, typer.Option(min=0, help="Training cases per site; else the demo's number.")] = None,
    test: Annotated[int | None, typer.Option(min=0, help="Test cases per site; else the demo's number.")] = None,
    spacing: Annotated[float | None, typer.Option(min=1, max=4, help="Voxel size in mm; else the demo's.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Cases at once; 1 GiB of memory each at 1 mm.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Write synthetic FLAIR and T1w with lesions, one nnU-Net raw folder per site. It is not clinical data."""
    from msfl.imaging.synth import DEFAULT_SPACING_MM, DEMO_CASES, DEMO_SITES, generate_site

    styles = {style.name: style for style in DEMO_SITES}
    names = site or list(styles)
    unknown = [name for name in names if name not in styles]
    if unknown:
        raise typer.BadParameter(f"no site {', '.join(unknown)}; there are {', '.join(styles)}", param_hint="--site")
    taken = [name for name in names if (out / name / "dataset.json").exists()]
    if taken:
        _errors().print(f"{out / taken[0]} already holds a dataset. Choose another folder or remove it.", style="red")
        raise typer.Exit(1)
    written = []
    with _progress() as bar:
        for name in names:
            n_train, n_test = DEMO_CASES[name]
            n_train, n_test = n_train if train is None else train, n_test if test is None else test
            step = bar.add_task(name, total=n_train + n_test)
            generate_site(
                out / name,
                styles[name],
                seed=seed,
                n_train=n_train,
                n_test=n_test,
                spacing_mm=DEFAULT_SPACING_MM if spacing is None else spacing,
                jobs=jobs,
                progress=partial(_show, bar, step),
            )
            written.append({"site": name, "folder": str(out / name), "train": n_train, "test": n_test})
    console = Console(soft_wrap=True)
    if as_json:
        console.print_json(json.dumps({"sites": written}))
    else:
        for row in written:
            console.print(f"{row['folder']}: {row['train']} training and {row['test']} test cases", highlight=False)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="nnU-Net raw folder of one site.", exists=True, file_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Open every file of a dataset and report, one line each, what would break or spoil the training."""
    from msfl.imaging.datasets import check_dataset, dataset_files, dataset_version

    with _progress() as bar:
        step = bar.add_task("checking", total=None)
        report = check_dataset(folder, progress=partial(_show, bar, step))
    version = dataset_version(dataset_files(folder)) if report.ok else None
    console = Console(soft_wrap=True)
    if as_json:
        answer = {
            "ok": report.ok,
            "name": report.name,
            "version": version,
            "channel_names": report.channel_names,
            "labels": dict(report.labels),
            "train_cases": report.train_cases,
            "test_cases": report.test_cases,
            "spacing_median_mm": report.spacing_median_mm,
            "problems": [asdict(problem) | {"line": problem.line()} for problem in report.problems],
        }
        console.print_json(json.dumps(answer))
    elif report.ok:
        spacing = " × ".join(f"{mm:g}" for mm in report.spacing_median_mm or ())
        table = Table(title=f"{report.name}: ready", show_header=False)
        table.add_row("version", str(version))
        table.add_row("channels", ", ".join(report.channel_names))
        table.add_row("labels", ", ".join(f"{name} {value}" for name, value in report.labels.items()))
        table.add_row("training cases", str(len(report.train_cases)) if report.train_cases else "none: evaluate only")
        table.add_row("test cases", str(len(report.test_cases)))
        table.add_row("voxel size", f"{spacing} mm (median)")
        console.print(table)
    else:
        for problem in report.problems:
            console.print(problem.line(), style="red", markup=False, highlight=False)
        console.print(f"{len(report.problems)} problems; nothing was changed.", highlight=False)
    raise typer.Exit(0 if report.ok else 1)


@app.command(name="import")
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
    with _extra():
        from msfl.imaging.custodian import import_source
        from msfl.imaging.deidentify.headers import Options
        from msfl.imaging.importing import ImportOptions

    options = ImportOptions(Options("shift" if dates == "shift" else "remove", keep_device), max_slice_mm)
    answers = _answers(series) if series else {}
    brought = _with_progress(
        lambda show: import_source(home, dataset, source, options=options, answers=answers, hands=jobs, progress=show)
    )
    if brought.questions and not as_json and sys.stdin.isatty():
        answers = answers | _ask(brought)
        brought = _with_progress(
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
    _errors().print(f"Which series these are, and where they lie: {brought.names}.", markup=False, highlight=False)
    for question in brought.questions:
        _errors().print(
            f"{question['case']}: which is the {_WORDS.get(question['image'], question['image'])}?", markup=False
        )
        choices = [([name], f"{name}  {label}") for name, label in question["choices"].items()]
        if question["image"] == "lesion":  # a tool may write an object for each lesion
            choices.append((list(question["choices"]), "all of them together"))
        for number, (_, label) in enumerate(choices, 1):
            _errors().print(f"    {number}  {label}", markup=False)
        while (chosen := typer.prompt("Number, or 0 for none", type=int, default=0, err=True)) not in range(
            len(choices) + 1
        ):
            _errors().print(f"It is a number from 0 to {len(choices)}.", highlight=False)
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
        _print_problems(error)
        raise typer.Exit(1) from error
    write_whole(out, encode(made))


@app.command(name="list")
def list_(
    dataset: Annotated[str, typer.Argument(help="The dataset's id.")],
    home: Annotated[Path, typer.Option(help="The gateway's folder.", exists=True)],
    as_json: AsJson = False,
) -> None:
    """Say where every case of a dataset stands, and what stopped it."""
    with _extra():
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


@app.command()
def qc(
    dataset: Annotated[str, typer.Argument(help="The dataset's id.")],
    home: Annotated[Path, typer.Option(help="The gateway's folder.", exists=True)],
    limits: Annotated[Path | None, typer.Option(help="Limits (YAML) instead of the default ones.", exists=True)] = None,
    brain: Annotated[str, typer.Option(help="deepbet, synthstrip or hd-bet.")] = "deepbet",
    n4: Annotated[bool, typer.Option("--n4", help="Also divide the coils' shading out (N4).")] = False,
    mai_lab: Annotated[
        Path | None, typer.Option(help="Folder of the MAI-Lab tool, which then looks for artefacts.", exists=True)
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Processes at once; each needs about 1.5 GiB.")] = 2,
    overrule: Annotated[str, typer.Option(help="Decide otherwise on this case; needs --reason.")] = "",
    verdict: Annotated[str, typer.Option(help="With --overrule: pass, warn or fail.")] = "pass",
    reason: Annotated[
        str, typer.Option(help="With --overrule: why. It must name no patient: it is kept in the report and the log.")
    ] = "",
    by: Annotated[str, typer.Option(help="With --overrule: who; else whoever is logged in.")] = "",
    as_json: AsJson = False,
) -> None:
    """Standardise every case, measure its quality, and write the report. What was done is kept; run it again."""
    from msfl.imaging.quality.control import Settings, check_quality
    from msfl.imaging.quality.control import overrule as decide
    from msfl.imaging.quality.limits import read_limits
    from msfl.imaging.quality.verdict import Verdict
    from msfl.imaging.standard.bias import BiasCorrection
    from msfl.imaging.standard.recipe import Recipe
    from msfl.imaging.workspace import Workspace
    from msfl.policies.encoding import Malformed
    from msfl.policies.refusals import CannotProceed

    if brain not in ("deepbet", "synthstrip", "hd-bet"):
        raise typer.BadParameter("it is deepbet, synthstrip or hd-bet", param_hint="--brain")
    if verdict not in set(Verdict):
        raise typer.BadParameter("it is pass, warn or fail", param_hint="--verdict")
    try:
        held = read_limits(limits)
    except Malformed as error:
        raise CannotProceed(f"{error}\nNothing was done. Correct the limits.") from error
    checked: tuple[Checked, ...]
    if overrule:
        who = by or getpass.getuser()
        checked = (decide(home, dataset, overrule, Verdict(verdict), by=who, reason=reason, limits=held),)
    else:
        recipe = Recipe.model_validate({"brain": brain, "bias": BiasCorrection() if n4 else None})
        settings = Settings(recipe=recipe, mai_lab=mai_lab)
        checked = _with_progress(
            lambda show: check_quality(home, dataset, settings=settings, limits=held, hands=jobs, progress=show)
        )
    report = Workspace.of(home, dataset).report / "report.html"
    crashed = any(finding.figure == "crashed" for one in checked for finding in one.findings)
    console = Console(soft_wrap=True, highlight=False)
    if as_json:
        cases = [one.to_json() for one in checked]
        console.print_json(json.dumps({"dataset": dataset, "report": str(report), "cases": cases}))
    else:
        for one in checked:
            colour = {"pass": "green", "warn": "yellow", "fail": "red"}[one.final]
            console.print(_verdict_line(one), style=colour, markup=False)
        counts = Counter(one.final.value for one in checked)
        console.print(", ".join(f"{counts[v]} {v}" for v in ("pass", "warn", "fail") if counts[v]))
        console.print(f"Look at the images before you publish: {report}", markup=False)
    raise typer.Exit(1 if crashed else 0)


def _verdict_line(one: Checked) -> str:
    """All that fails the case; of what is only warned about, two sentences."""
    fails = sum(same[0].verdict == "fail" for same in one.said)
    shown, more = one.said[: max(fails, 2)], len(one.said) - max(fails, 2)
    what = " ".join(same[0].sentence for same in shown) or "Nothing was found wrong."
    what += f" And {more} more in the report." if more > 0 else ""
    if one.overruled is None:
        return f"{one.case}: {one.final.value}: {what}"
    who = f'instead of {one.verdict.value}, as {one.overruled.by} decided ("{one.overruled.reason}")'
    return f"{one.case}: {one.final.value} {who}. What was found: {what}"


@app.command()
def publish(
    home: Annotated[Path, typer.Option(help="The gateway's folder.", exists=True)],
    dataset: Annotated[str, typer.Argument(help="The dataset's id (or --record and --data).")] = "",
    record: Annotated[Path | None, typer.Option(help="A record that was written by import --out.", exists=True)] = None,
    data: Annotated[Path | None, typer.Option(help="Where its data lie; they are only ever read.", exists=True)] = None,
    site: Annotated[str, typer.Option(help="The site's id, where the gateway is not enrolled yet.")] = "",
    test_share: Annotated[float, typer.Option(min=0, max=0.9, help="Of patients, when the test set is made.")] = 0.25,
    validation_share: Annotated[float, typer.Option(min=0, max=0.9, help="Of patients.")] = 0.1,
    extent: Annotated[str, typer.Option(help="defaced, brain (skull off) or head (as it is).")] = "defaced",
    new_test_set: Annotated[bool, typer.Option(help="Give up the frozen test set and draw another one.")] = False,
    description: Annotated[str, typer.Option(help="A sentence for the report.")] = "",
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Processes at once.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show a dataset to the federation: what passed quality control, split by patient. Policies say what may run."""
    console = Console(soft_wrap=True, highlight=False)
    if record is not None and data is not None:
        from msfl.imaging.record import publish_record

        shown = publish_record(record, data, home)
        if as_json:
            answer = {"dataset": shown.ref, "version": shown.version, "train": shown.n_train, "test": shown.n_test}
            console.print_json(json.dumps(answer))
        else:
            console.print(f"{shown.ref} is published: {shown.n_train} training, {shown.n_test} test cases")
        return
    if not dataset:
        raise typer.BadParameter("say which dataset (or --record and --data)")
    if extent not in ("defaced", "brain", "head"):
        raise typer.BadParameter("it is defaced, brain or head", param_hint="--extent")
    if test_share + validation_share >= 1:
        raise typer.BadParameter("nothing would be left to train on", param_hint="--test-share")
    with _extra():
        from msfl.imaging import custodian
        from msfl.imaging.record import NotADataset
        from msfl.imaging.split import Part, Shares

    try:
        published = _with_progress(
            lambda show: custodian.publish(
                home,
                dataset,
                site=site,
                shares=Shares(validation_share, test_share),
                extent=extent,  # type: ignore[arg-type]  # one of the three
                new_test_set=new_test_set,
                description=description,
                hands=jobs,
                progress=show,
            )
        )
    except NotADataset as error:
        _print_problems(error)
        raise typer.Exit(1) from error
    validating = sum(part is Part.VALIDATION for part in published.parts.values())
    made = published.record
    if as_json:
        answer = {
            "dataset": made.ref,
            "version": made.version,
            "test_set": made.test_set,
            "train": made.n_train - validating,
            "validation": validating,
            "test": made.n_test,
            "quality": dict(made.quality),
            "left_out": [asdict(left) for left in published.left_out],
            "aside": list(published.aside),
        }
        console.print_json(json.dumps(answer))
        return
    for left in published.left_out:
        console.print(f"{left.case}: left out: {left.code}: {left.reason}", style="yellow", markup=False)
    for case in published.aside:
        console.print(
            f"{case}: set aside: a new visit of a patient of the frozen test set", style="yellow", markup=False
        )
    parts = f"{made.n_train - validating} training, {validating} validation, {made.n_test} test cases"
    console.print(f"{made.ref} is published: {parts}; version {made.version[:19]}…", markup=False)


T = TypeVar("T")


@contextmanager
def _extra() -> Iterator[None]:
    """What a site without the extra `data` is told. Raises CannotProceed."""
    from msfl.policies.refusals import CannotProceed

    try:
        yield
    except ModuleNotFoundError as error:
        raise CannotProceed(f"This needs the package {error.name}. Run: pip install 'msfl[data]'") from error


def _with_progress(work: Callable[[Callable[[str, int, int], None]], T]) -> T:
    """One bar for each thing that takes long, as they come."""
    with _progress() as bar:
        steps: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in steps:
                steps[what] = bar.add_task(what, total=total)
            bar.update(steps[what], completed=done, total=total)

        return work(show)


def _print_problems(error: NotADataset) -> None:
    for problem in error.report.problems:
        _errors().print(problem.line(), style="red", markup=False, highlight=False)


def _errors() -> Console:
    return Console(stderr=True, soft_wrap=True)


def _progress() -> AbstractContextManager[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"), TimeRemainingColumn())
    return Progress(*columns, console=_errors(), transient=True)


def _show(bar: Progress, step: TaskID, done: int, total: int) -> None:
    bar.update(step, completed=done, total=total)
