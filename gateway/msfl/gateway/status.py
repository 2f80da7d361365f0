"""`msfl gateway status`: what runs here, what waits for the custodian, which policies are in force. Changes nothing.

It reads the gateway's folder, as the page for staff does (`page/views.py`), so it answers whether a gateway serves or
not. Exit code 0; whether the site is healthy, `msfl gateway doctor` says.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from msfl.gateway.home import enrolled
from msfl.protos.audit_log import LOG_NAME, read_entries


def status(
    home: Annotated[Path, typer.Option("--home", resolve_path=True, help="The gateway's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """What runs here, what waits for the custodian, which policies are in force."""
    from msfl.gateway.page import views

    site = enrolled(home)
    running = views.running(site, read_entries(site.audit / LOG_NAME))
    waiting = views.waiting(site)
    policies, untrusted = views.policies(site, datetime.now(UTC))
    if as_json:
        answer = {
            "site": site.settings().site,
            "running": [asdict(run) for run in running],
            "waiting": [asdict(run) for run in waiting],
            "policies": [asdict(policy) for policy in policies],
            "not_trusted": [refusal.to_json() for refusal in untrusted],
        }
        typer.echo(json.dumps(answer, indent=1))
        return
    for run in running:
        by = f"; {run.stopped_by} has asked to stop it" if run.stopped_by else ""
        typer.echo(
            f"running  {run.run}: {run.doing} since {run.since}, {run.release} for {run.user} on {run.dataset}{by}"
        )
    for parked in waiting:
        typer.echo(f"waiting  {parked.run}: {parked.release} for {parked.user} on {parked.dataset}; {parked.command}")
    if not running and not waiting:
        typer.echo("nothing runs here, and no run waits for you")
    for policy in policies:
        left = f", {policy.left} left" if policy.left and policy.state == "in force" else ""
        typer.echo(
            f"policy   {policy.id} version {policy.version}: {policy.state}{left}; {policy.mode}; spent {policy.spent}"
        )
    for refusal in untrusted:
        typer.echo(f"policy   not trusted: {refusal.message}")
    if not policies and not untrusted:
        typer.echo("no policy: every run is refused; `msfl policy new` makes one")
