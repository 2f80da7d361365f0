"""The ``msfl data`` commands: make demo data, check a dataset.

==========  =============================================================  ==========================
command     does                                                           exit code
==========  =============================================================  ==========================
``synth``   writes the demo's synthetic sites as nnU-Net raw folders       1 when a folder is taken
``check``   says what a dataset holds and, line by line, what is wrong     1 when anything is wrong
``import``  checks a dataset and writes its record                         1 when anything is wrong
``publish`` shows a dataset to the federation through the site's gateway   1 when the record is unreadable
==========  =============================================================  ==========================

Exit code 2 is a usage error. With ``--json`` the answer goes to standard output as one JSON object; progress always
goes to standard error. numpy and nibabel are imported by the command that needs them: ``msfl --help`` stays fast.
"""

import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

app = typer.Typer(name="data", help="Make, check and describe datasets.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.callback()
def data() -> None:
    """Make, check and describe datasets."""


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder that receives one folder per site.", file_okay=False)],
    site: Annotated[list[str] | None, typer.Option(help="Only this site; may be given again.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    train: Annotated[int | None, typer.Option(min=0, help="Training cases per site; else the demo's number.")] = None,
    test: Annotated[int | None, typer.Option(min=0, help="Test cases per site; else the demo's number.")] = None,
    spacing: Annotated[float | None, typer.Option(min=1, max=4, help="Voxel size in mm; else the demo's.")] = None,
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
    source: Annotated[Path, typer.Argument(help="nnU-Net raw folder of one site.", exists=True, file_okay=False)],
    site: Annotated[str, typer.Option(help="The site's id.")],
    dataset: Annotated[str, typer.Option(help="The dataset's id, as policies will name it.")],
    out: Annotated[Path, typer.Option(help="Where the record goes (JSON).")],
    generated: Annotated[bool, typer.Option(help="The images were made, not taken.")] = False,
    description: Annotated[str, typer.Option(help="A sentence for the report.")] = "",
) -> None:
    """Check a dataset and write its record: what `msfl data publish` shows. The images stay where they are."""
    from msfl.imaging.record import NotADataset, make_record
    from msfl.imaging.workspace import write_whole
    from msfl.policies.encoding import encode

    try:
        made = make_record(
            source,
            site=site,
            dataset_id=dataset,
            kind="generated" if generated else "user",
            description=description,
        )
    except NotADataset as error:
        for problem in error.report.problems:
            _errors().print(problem.line(), style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error
    write_whole(out, encode(made))


@app.command()
def publish(
    record: Annotated[Path, typer.Option(help="The dataset's record (`msfl data import`).", exists=True)],
    data: Annotated[Path, typer.Option(help="Where the data lie; they are only ever read.", exists=True)],
    home: Annotated[Path, typer.Option(help="The gateway's folder.", exists=True)],
) -> None:
    """Show a checked dataset to the federation. What may run on it, policies say."""
    from msfl.imaging.record import publish_record

    published = publish_record(record, data, home)
    Console(soft_wrap=True, highlight=False).print(
        f"{published.ref} is published: {published.n_train} training, {published.n_test} test cases"
    )


def _errors() -> Console:
    return Console(stderr=True, soft_wrap=True)


def _progress() -> AbstractContextManager[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"), TimeRemainingColumn())
    return Progress(*columns, console=_errors(), transient=True)


def _show(bar: Progress, step: TaskID, done: int, total: int) -> None:
    bar.update(step, completed=done, total=total)
