"""`msfl job` and `msfl login`: the SDK from a terminal."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from msfl.policies.encoding import read_yaml
from msfl.policies.identity import mint_token
from msfl.policies.keys import KeyPair
from msfl.sdk.client import BadJob, connect
from msfl.sdk.credentials import Credentials

app = typer.Typer(help="Look at your runs, and end them.", no_args_is_help=True)
console = Console(highlight=False)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
RunArgument = Annotated[str, typer.Argument(help="The run's id.")]


@app.command(name="list")
def list_(as_json: AsJson = False) -> None:
    """Your runs."""
    rows = connect().runs()
    if as_json:
        console.print_json(json.dumps(rows))
        return
    table = Table("run", "name", "phase", "rounds")
    for row in rows:
        table.add_row(row["run_id"], row["name"], row["phase"], str(row["rounds"]))
    console.print(table)


@app.command()
def submit(
    job: Annotated[Path, typer.Argument(help="YAML or JSON with the arguments of `run_federated`.", exists=True)],
    explain: Annotated[bool, typer.Option(help="Only ask the sites; start nothing.")] = False,
) -> None:
    """Submit a job, or have every site say what it would answer."""
    arguments, _ = read_yaml(job.read_bytes(), job.name)
    if not isinstance(arguments, dict):
        raise BadJob(f"{job} must hold the arguments of run_federated, as `name: value`")
    client = connect()
    if not explain:
        console.print(client.run_federated(**arguments).run_id)
        return
    for site, answer in client.explain(client.job(**arguments)).items():
        refusal = answer.get("refusal") or {}
        console.print(f"{site}: {answer['standing']} {refusal.get('code', '')} {refusal.get('message', '')}".rstrip())


@app.command()
def watch(run: RunArgument) -> None:
    """Follow a run until it ends."""
    connect().run(run).watch()


@app.command()
def show(run: RunArgument) -> None:
    """Everything known of a run, as JSON."""
    console.print_json(json.dumps(connect().run(run).state()))


@app.command()
def abort(run: RunArgument) -> None:
    """End a run; its sites stop their workers."""
    state = connect().run(run).abort()
    console.print(f"run {run} is {state['phase']}")


def login(
    issuer_key: Annotated[Path, typer.Option(help="Key of the embedded issuer (this machine only).")],
    issuer: Annotated[str, typer.Option(help="The issuer's name, as in the federation root.")],
    audience: Annotated[str, typer.Option(help="The audience, as in the federation root.")],
    endpoint: Annotated[str, typer.Option(help="host:port of the orchestrator.")],
    ca: Annotated[Path, typer.Option(help="The federation's CA certificate.")],
    user: Annotated[str, typer.Option(help="Your e-mail address.")],
    organisation: Annotated[str, typer.Option(help="Your organisation's domain.")],
    out: Annotated[Path | None, typer.Option(help="Credentials file; your own when not given.")] = None,
) -> None:
    """Get a token from the embedded issuer. For one machine only: whoever holds the issuer's key can be any user."""
    key = KeyPair.generate()
    minted = mint_token(
        KeyPair.from_pem(issuer_key.read_bytes()),
        issuer,
        audience,
        user,
        user,
        organisation,
        key.thumbprint,
        datetime.now(UTC),
    )
    file = out or Credentials.default_file()
    Credentials(endpoint, ca.read_text(), minted, key.to_pem().decode(), user).write(file)
    console.print(f"logged in as {user} until the token expires in 8 hours; credentials are in {file}")
