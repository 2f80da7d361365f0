"""`msfl job`: the SDK from a terminal."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

from msfl.policies.encoding import Malformed, read_yaml
from msfl.sdk.client import BadJob, Client, attach, connect
from msfl.sdk.main import REFUSED
from msfl.sdk.words import paused_words, said

JsonObject: TypeAlias = dict[str, Any]
app = typer.Typer(help="Submit, follow, hold and end your runs.", no_args_is_help=True)
console = Console(highlight=False)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
RunArgument = Annotated[str, typer.Argument(help="The run's id.")]


@app.command(name="list")
def list_(as_json: AsJson = False) -> None:
    """Your runs."""
    rows = connect().runs()
    if as_json:
        _print_json(rows)
        return
    table = Table("run", "name", "phase", "rounds")
    for row in rows:
        table.add_row(row["run_id"], row["name"], _phase(row), str(row["rounds"]))
    console.print(table)


@app.command()
def submit(
    job: Annotated[Path, typer.Argument(help="YAML or JSON with the arguments of `run_federated`.", exists=True)],
    explain: Annotated[bool, typer.Option(help="Only ask the sites; start nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job, or have every site say what it would answer."""
    try:
        arguments, _ = read_yaml(job.read_bytes(), job.name)
    except Malformed as error:
        raise BadJob(str(error)) from error
    if not isinstance(arguments, dict):
        raise BadJob(f"{job} must hold the arguments of run_federated, as `name: value`")
    known = [name for name in inspect.signature(Client.job).parameters if name != "self"]
    if unknown := sorted(set(arguments) - set(known)):
        raise BadJob(f"{job} sets {', '.join(unknown)}; the arguments of run_federated are {', '.join(known)}")
    if missing := [name for name in ("release", "datasets") if name not in arguments]:
        raise BadJob(f"{job} does not say {' and '.join(missing)}")
    client = connect()
    if not explain:
        run_id = client.run_federated(**arguments).run_id
        if as_json:
            _print_json({"run_id": run_id})
        else:
            console.print(run_id)
        return
    spec = client.job(**arguments)
    answers = client.explain(spec)
    if as_json:
        _print_json(answers)
    else:
        for site, answer in answers.items():
            refusal = answer.get("refusal") or {}
            said = f"{site}: {answer['standing']} {refusal.get('code', '')} {refusal.get('message', '')}"
            console.print(said.rstrip())
    refused = [site for site, answer in answers.items() if answer.get("refusal")]
    if len(answers) - len(refused) < spec.min_sites:
        raise typer.Exit(REFUSED)


@app.command()
def watch(run: RunArgument, as_json: AsJson = False) -> None:
    """Follow a run until it ends, from its beginning; --json: one event per line."""
    found = attach(run)
    if not as_json:
        found.watch()
        return
    for kind, event in found.events():
        # Not through the console, which would fold the line.
        sys.stdout.write(json.dumps({"kind": kind, **event}, allow_nan=False) + "\n")
        sys.stdout.flush()
    found.wait()


@app.command()
def show(run: RunArgument, as_json: AsJson = False) -> None:
    """How a run stands; --json: everything known of it."""
    state = attach(run).state()
    if as_json:
        _print_json(state)
        return
    for line in told_state(state):
        console.print(line, markup=False, soft_wrap=True)


@app.command()
def pause(run: RunArgument, as_json: AsJson = False) -> None:
    """Hold a run: what the sites have begun they finish, and no new step begins."""
    _say(attach(run).pause(), as_json)


@app.command()
def resume(run: RunArgument, as_json: AsJson = False) -> None:
    """Let a paused run go on, or take an aborted or failed one up again; its sites decide afresh."""
    _say(attach(run).resume(), as_json)


@app.command()
def abort(run: RunArgument, as_json: AsJson = False) -> None:
    """End a run; its sites stop their workers. `resume` can take it up again."""
    _say(attach(run).abort(), as_json)


def told_state(state: JsonObject) -> list[str]:
    """How a run stands, in a few lines."""
    spec, rounds = state["spec"], state["rounds"]
    reason = f": {state['reason']}" if state["reason"] else ""
    lines = [f"run {state['run_id']} ({spec['name']}) is {_phase(state)}{reason}"]
    if state["paused"]:
        lines.append(f"{paused_words(state['pause_reason'])}; `msfl job resume {state['run_id']}` lets it go on")
    if state["step"] is not None:
        waiting = ", ".join(state["step"]["waiting"])
        lines.append(f"now: {state['step']['task_id']}" + (f", at {waiting}" if waiting else ", at the centre"))
    if state["waiting_for_sites"]:
        lines.append(f"waits for {', '.join(state['waiting_for_sites'])}: {spec['min_sites']} sites are needed")
    if state["waiting_for"]:
        lines.append(f"waits for {said(state['waiting_for'])}")
    for site, member in state["sites"].items():
        away = ", away" if member["absent"] else ""
        code = f": {said(member['code'])} ({member['code']})" if member["code"] else ""
        lines.append(f"  {site}: {member['standing']}{away}{code}")
    dice = rounds[-1]["validation_dice"] if rounds else None
    shown = "" if dice is None else f", validation Dice {dice:.3f}, best round {state['best_round']}"
    lines.append(f"rounds: {len(rounds)} of {spec['rounds']}{shown}")
    return lines


def _say(state: JsonObject, as_json: bool) -> None:
    if as_json:
        _print_json(state)
    else:
        console.print(f"run {state['run_id']} is {_phase(state)}")


def _phase(run: JsonObject) -> str:
    return f"{run['phase']}, paused" if run["paused"] else str(run["phase"])


def _print_json(value: object) -> None:
    console.print_json(json.dumps(value, allow_nan=False))
