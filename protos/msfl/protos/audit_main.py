"""`msfl audit export|verify`: for auditors, offline, of a site's log and of the centre's alike.

    export --home HOME --out FILE     the log, its key, and every checkpoint its owner keeps, in one file
    verify FILE…                      what the files prove about each other; needs no network, no home, no secret

Exit codes: 0 nothing speaks against the files, and they hold all that another party has seen; 1 they do not hold all of
it: export again what is named; 2 wrong usage: a file that is none; 3 tampered.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from msfl.policies.audit_files import Exported, read_export, to_json, verify_files
from msfl.policies.encoding import Malformed
from msfl.protos.notary import export_of

app = typer.Typer(name="audit", help="Export audit logs, and verify exported ones.", no_args_is_help=True)
NOT_SEEN, TAMPERED = 1, 3


@app.command()
def export(
    home: Annotated[Path, typer.Option("--home", help="The home of a gateway or of an orchestrator, or its keyring/.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write; it must not be there.")],
) -> None:
    """Write the audit log of a gateway or an orchestrator into one file. It holds no secret and no patient data."""
    data = export_of(home / "audit", datetime.now(UTC))
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        _usage(f"{out}: {error.strerror}: give a new file in a folder that is there")
    with os.fdopen(descriptor, "wb") as target:
        target.write(data)
    typer.echo(f"wrote {out}: {len(data)} bytes")


@app.command()
def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Exported logs, as many as you have.")],
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Say whether anything was edited, removed, made anew or told differently to different parties."""
    verdict = verify_files([_read(file) for file in files])
    if as_json:
        typer.echo(json.dumps(to_json(verdict), indent=1))
    else:
        for found in verdict.tampering:
            typer.echo(f"TAMPERED  {found.code}: {found.message}")
        for line in verdict.unseen:
            typer.echo(f"NOT SEEN  {line}")
        for log, n in verdict.entries.items():
            typer.echo(f"{log}: {n} entries{_vouched(n, verdict.vouched[log], verdict.shown[log])}")
        for log in verdict.absent:
            typer.echo(f"{log}: no file of it was given, though others keep its checkpoints")
    if verdict.tampering:
        raise typer.Exit(TAMPERED)
    if verdict.unseen:
        raise typer.Exit(NOT_SEEN)


def _vouched(entries: int, vouched: int, shown: int) -> str:
    if shown > entries:
        confirmed = f"the first {vouched} are" if vouched else "none is"
        return f" of at least {shown}; {confirmed} confirmed by another party's checkpoint"
    if vouched == entries:
        return ", all of them confirmed by another party's checkpoint"
    if vouched:
        return f"; the first {vouched} are confirmed by another party's checkpoint, the rest only by its owner"
    return "; no other file holds a checkpoint of it: that it was not made anew as a whole is not shown"


def _read(file: Path) -> Exported:
    try:
        return read_export(file.read_bytes(), str(file))
    except OSError as error:
        _usage(f"{file}: {error.strerror}")
    except Malformed as error:
        _usage(f"{str(error).splitlines()[0]}: not a file of msfl audit export")


def _usage(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)
