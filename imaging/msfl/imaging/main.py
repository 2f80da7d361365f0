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

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from msfl.imaging import bringing, judging
from msfl.imaging.terminal import AsJson, errors, progress, show

app = typer.Typer(name="data", help="From scanner to dataset.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """From scanner to dataset: import, check, publish; or make demo data."""


app.command(name="import")(bringing.import_)
app.command(name="list")(bringing.list_)
app.command()(judging.qc)
app.command()(judging.publish)


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
        errors().print(f"{out / taken[0]} already holds a dataset. Choose another folder or remove it.", style="red")
        raise typer.Exit(1)
    written = []
    with progress() as bar:
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
                progress=partial(show, bar, step),
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

    with progress() as bar:
        step = bar.add_task("checking", total=None)
        report = check_dataset(folder, progress=partial(show, bar, step))
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
