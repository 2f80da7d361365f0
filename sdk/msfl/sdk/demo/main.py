"""`msfl demo`: three hospitals and a centre on this machine, from made-up or given data to a report, in one command.

    data ▸ check ▸ release built, signed, reviewed ▸ centre ▸ sites join, custodians sign ▸ run_federated ▸ report

It uses what everybody else uses: the same commands, the same SDK call as a notebook. Only the folders are neighbours.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console

import msfl.sdk as msfl
from msfl.runtime.process import ProcessRuntime
from msfl.sdk.demo.federation import DemoSite, Federation, user_sites
from msfl.sdk.demo.interrupt import Interrupts
from msfl.sdk.demo.processes import CommandFailed, Processes
from msfl.sdk.reporting import FEDAVG, NNUNET

JsonObject: TypeAlias = dict[str, Any]

GENERATED = (
    DemoSite("site-a", "ms-trial", None, "Synthetic lesions on the MNI152 anatomy, style of site A."),
    DemoSite("site-b", "ms-cohort", None, "Synthetic lesions on the MNI152 anatomy, style of site B."),
    DemoSite("site-c", "ms-clinic", None, "Synthetic lesions on the MNI152 anatomy, style of site C."),
)
MNI152 = "Fonov et al., Unbiased average age-appropriate atlases, NeuroImage 2011;54:313-327 (MNI152 2009a template)"
NILEARN = "nilearn, which carries the template: nilearn.github.io"
# What the profile `demo` does on the user's own data, where five minutes are not enough: as the benchmark reports it.
OWN_DATA_ROUNDS = 25
OWN_DATA_CONFIG: JsonObject = {"batches_per_epoch": 30, "convs_per_stage": 0, "validation_fraction": 0.2}


def demo(
    data: Annotated[Path | None, typer.Option(help="One folder per site in nnU-Net raw layout.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run's folder below runs/.")] = "demo",
    release: Annotated[str, typer.Option(help="`nnunet`, `logistic`, or a folder with a release.yaml.")] = "nnunet",
    profile: Annotated[str, typer.Option(help="`demo` for a CPU, `full` for stock nnU-Net.")] = "demo",
    rounds: Annotated[int | None, typer.Option(help="Rounds; the profile's own when not given.")] = None,
    batches: Annotated[int | None, typer.Option(help="Batches per epoch.")] = None,
    seed: Annotated[int, typer.Option(help="Of data, weights, batches and split.")] = 1,
    baseline: Annotated[bool, typer.Option(help="Also train each site's own model with the same budget.")] = True,
    runs: Annotated[Path, typer.Option(help="Where the run's folder goes.")] = Path("runs"),
    setting: Annotated[list[str] | None, typer.Option(help="key=value of the release's config; repeatable.")] = None,
) -> None:
    """The whole federation on this machine: three sites, a centre, a run, a report."""
    console = Console(highlight=False)
    folder = _fresh(runs, name)
    processes = Processes(folder / "logs")
    interrupts = Interrupts(processes.close)
    began = time.monotonic()
    try:
        page = _demo(
            console, folder, processes, began,
            data=data, release=release, profile=profile, rounds=rounds, batches=batches, seed=seed,
            baseline=baseline, setting=setting or [],
        )  # fmt: skip
    except BaseException as error:  # Whatever it is, nothing is left running; then it goes its way.
        interrupted = interrupts.heard() or isinstance(error, KeyboardInterrupt)
        processes.close()
        if interrupted:
            shutil.rmtree(folder)
            console.print("\nstopped; nothing is left running, and the unfinished run's folder is gone")
            raise typer.Exit(130) from None
        if isinstance(error, CommandFailed | ValueError):
            console.print(f"[red]the demo cannot go on[/red]: {error}", soft_wrap=True)
            console.print(f"logs are in {folder / 'logs'}")
            raise typer.Exit(1) from error
        raise
    interrupts.heard()
    processes.close()
    console.print(f"\n[bold]report[/bold]  {page}\n[bold]model[/bold]   {folder / 'model.zip'}", soft_wrap=True)
    console.print(f"everything else, keys and signed documents included, is in {folder}")


def _demo(
    console: Console,
    folder: Path,
    processes: Processes,
    began: float,
    *,
    data: Path | None,
    release: str,
    profile: str,
    rounds: int | None,
    batches: int | None,
    seed: int,
    baseline: bool,
    setting: list[str],
) -> Path:
    now = datetime.now(UTC).replace(microsecond=0)
    sites = GENERATED if data is None else user_sites(data)
    if data is not None:
        rounds = rounds or (OWN_DATA_ROUNDS if profile == "demo" else None)
    protections = ProcessRuntime().protections()
    console.print(f"isolation of workers: [bold]{protections.isolation.value}[/bold]. {protections.detail[0]}")
    federation = Federation(folder, processes, sites, protections.isolation, rounds_max=max(rounds or 0, 60))
    timings: dict[str, float] = {}

    def step(said: str, phase: str, action: Callable[[], None]) -> None:
        start = time.monotonic()
        console.print(said)
        action()
        timings[phase] = round(timings.get(phase, 0.0) + time.monotonic() - start, 3)

    # The release is built and the centre prepared while the sites make and check their data.
    with ThreadPoolExecutor() as pool:
        console.print("building, signing and reviewing the release; starting the centre …")
        prepared = pool.submit(_prepare_centre, federation, release, now)
        if data is None:
            step("sites generate their data …", "data", lambda: federation.make_data(seed))
        step("sites check their data …", "check", federation.check_data)
        step("waiting for the release …", "release", prepared.result)
    federation.serve_centre()
    step("sites join, custodians sign their policies …", "join", lambda: federation.join_sites(now))
    client = msfl.connect(credentials=federation.write_credentials(now))
    refs = [f"{site.name}/{site.dataset}" for site in sites]
    step("gateways come on the line …", "line", lambda: _until_present(client, refs, processes))

    config: JsonObject = {}
    if data is not None and (release, profile) == ("nnunet", "demo"):
        config |= OWN_DATA_CONFIG
    config |= {key: _value(text) for key, _, text in (pair.partition("=") for pair in setting)}
    if batches is not None:
        config["batches_per_epoch"] = batches
    assert federation.statement is not None
    run = msfl.run_federated(
        release=federation.statement.ref,
        datasets=refs,
        evaluate_only=[f"{s.name}/{s.dataset}" for s in sites if not s.trains],
        rounds=rounds,
        profile=profile,
        config=config,
        baseline="local" if baseline else None,
        seed=seed,
        name="demo",
    )
    console.print(f"run {run.run_id}: {federation.statement.ref}, profile {profile}")
    try:
        run.watch()
    except (msfl.SiteRefusal, msfl.RunEnded):
        _write(run, folder, federation, timings, began, processes)
        raise
    return _write(run, folder, federation, timings, began, processes)


def _prepare_centre(federation: Federation, recipe: str, now: datetime) -> None:
    federation.publish_release(recipe, now)
    federation.start_centre(now)


def _until_present(client: msfl.Client, refs: list[str], processes: Processes) -> None:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        if (dead := processes.ended()) is not None:
            raise CommandFailed(f"{dead} ended: {processes.last_words(dead)}")
        if set(refs) <= {row["ref"] for row in client.datasets() if row["present"]}:
            return
        time.sleep(0.2)
    raise CommandFailed("not every gateway came on the line within a minute; logs/ says why")


def _write(
    run: msfl.Run, folder: Path, federation: Federation, timings: dict[str, float], began: float, processes: Processes
) -> Path:
    """The report, the model, and copies of the audit logs, all in the run's folder."""
    overlays = _overlays(federation, run.run_id)
    state = run.state()
    if state["phase"] == "finished":
        run.export_nnunet(folder / "model.zip")
    audit = folder / "audit"
    audit.mkdir(exist_ok=True)
    for site in federation.sites:
        shutil.copyfile(federation.home(site.name) / "audit" / "log.jsonl", audit / f"{site.name}.jsonl")
    generated = all(site.data is None for site in federation.sites)
    told = sorted({site.description for site in federation.sites if site.description})
    report = run.report(
        folder,
        overlays=overlays,
        data={
            "kind": "generated" if generated else "user",
            "description": " ".join(told) or "The user's own data.",
        },
        datasets={site: _facts(record) for site, record in federation.records.items()},
        timings=timings | {"total": round(time.monotonic() - began, 3)},
        peak_rss_mib=processes.peaks(),
        environment=_environment(),
        citations=(NNUNET, FEDAVG, MNI152, NILEARN) if generated else (NNUNET, FEDAVG),
    )
    return report.path


def _facts(record: Any) -> JsonObject:
    return {
        "dataset_version": record.version,
        "n_test": record.n_test,
        "spacing": list(record.spacing_mm) or None,
        "channel_names": list(record.channel_names),
        "description": record.description,
    }


def _overlays(federation: Federation, run_id: str) -> dict[str, Path]:
    """The pictures that the sites drew and kept; the demo may show them, because all sites are yours."""
    wanted = {s.name: federation.home(s.name) / "figures" / run_id / "overlay.png" for s in federation.sites}
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up and not all(path.exists() for path in wanted.values()):
        time.sleep(0.2)
    return {site: path for site, path in wanted.items() if path.exists()}


def _environment() -> JsonObject:
    found: JsonObject = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("msfl", "torch", "nnunetv2"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _fresh(runs: Path, name: str) -> Path:
    """A folder that did not exist before: what a run leaves is never overwritten."""
    for candidate in (name, *(f"{name}-{i}" for i in range(2, 10_000))):
        try:
            (runs / candidate).mkdir(parents=True)
        except FileExistsError:
            continue
        return (runs / candidate).resolve()
    raise ValueError(f"{runs} is full of runs called {name}")


def _value(text: str) -> bool | int | float | str:
    match text:
        case "true" | "false":
            return text == "true"
        case _:
            for kind in (int, float):
                try:
                    return kind(text)
                except ValueError:
                    continue
            return text
