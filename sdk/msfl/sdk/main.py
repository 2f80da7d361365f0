"""`msfl`: one command, its sub-commands found through the entry point group `msfl.commands`.

Each part brings its own (`msfl.orchestrator.main:app`, …), so nothing here imports a sibling, a hospital that installs
only the gateway has only the gateway's commands, and `msfl gateway serve` loads nothing but the gateway.

Exit codes: 0 done, 1 failed, 2 usage, 3 refused by governance.
"""

from __future__ import annotations

import errno
import logging
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import TextIO

import structlog
import typer
from rich.console import Console
from rich.markup import escape

from msfl.policies.refusals import CannotProceed, Refused
from msfl.sdk.client import RefusedByGovernance
from msfl.sdk.parent import end_with_parent
from msfl.sdk.run import SiteRefusal

GROUP = "msfl.commands"
DONE, FAILED, REFUSED = 0, 1, 3
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_SUMMARY = "Federated nnU-Net; every hospital keeps the last word on what runs on its data."


def main() -> None:
    """The console script."""
    end_with_parent()
    log_to(sys.stderr)
    errors = Console(stderr=True)
    try:
        _app(sys.argv[1:])()
    except (Refused, RefusedByGovernance, SiteRefusal) as refused:
        what = refused.refusal.message if isinstance(refused, Refused) else str(refused)
        errors.print(f"[red]refused[/red]: {escape(what)}", soft_wrap=True, highlight=False)
        sys.exit(REFUSED)
    except CannotProceed as error:
        errors.print(f"[red]failed[/red]: {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(FAILED)
    except OSError as error:
        # A file that is not there, may not be opened, or has no room is no bug. What names no file may be one.
        if error.filename is None and error.errno not in _NO_ROOM:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        errors.print(f"[red]failed[/red]: {escape(where)}{error.strerror}", soft_wrap=True, highlight=False)
        sys.exit(FAILED)


def log_to(file: TextIO) -> None:
    """One JSON object a line; a bug's traceback is in its line, for whoever runs the service."""
    logging.basicConfig(level=logging.WARNING)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=file),
    )


def _app(arguments: list[str]) -> typer.Typer:
    """Load the sub-command that is asked for, or all of them for help."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    asked = next((a for a in arguments if not a.startswith("-")), None)
    app = typer.Typer(help=_SUMMARY, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_nothing)
    for name in [asked] if asked in found else sorted(found):
        _add(app, found[name])
    return app


def _add(app: typer.Typer, point: EntryPoint) -> None:
    try:
        command = point.load()
    except ModuleNotFoundError as error:
        # A part whose extra is not installed: its command says so, the others work.
        missing = error.name or "?"
        extra = point.name

        def unavailable() -> None:
            raise typer.BadParameter(f"`msfl {extra}` needs the package {missing}: pip install 'msfl[{extra}]'")

        command = unavailable
        unavailable.__doc__ = f"(not installed: pip install 'msfl[{point.name}]')"
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=point.name)
    else:
        app.command(name=point.name)(command)


def _nothing() -> None:
    pass


if __name__ == "__main__":
    main()
