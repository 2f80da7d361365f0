"""``msfl data qc`` and ``msfl data publish``: each case is judged, by figures or a person, and what passed is shown."""

from __future__ import annotations

import getpass
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from msfl.imaging.terminal import AsJson, extra, print_problems, with_progress

if TYPE_CHECKING:
    from msfl.imaging.quality.verdict import Checked


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
        checked = with_progress(
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
    with extra():
        from msfl.imaging import custodian
        from msfl.imaging.record import NotADataset
        from msfl.imaging.split import Part, Shares

    try:
        published = with_progress(
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
        print_problems(error)
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
