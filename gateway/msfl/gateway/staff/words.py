"""`msfl gateway account …` and `msfl gateway page`: accounts of a site's staff, and the page where they log in.

What is said of an account holds when the command returns, for the serving page, too. Passwords are typed: other users
of the machine, and the shell's history, would see an argument.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msfl.gateway.home import Home, enrolled, write
from msfl.policies.documents import format_utc
from msfl.policies.refusals import CannotProceed
from msfl.protos.audit_log import LOG_NAME, AuditLog

if TYPE_CHECKING:
    from msfl.gateway.staff.accounts import Role
    from msfl.gateway.staff.desk import Desk

HomeOption = Annotated[Path, typer.Option("--home", resolve_path=True, help="The gateway's folder.")]
By = Annotated[str, typer.Option(help="Your name.")]
Name = Annotated[str, typer.Argument(help="The person's name; a custodian's as in the site root.")]
account = typer.Typer(help="Who of this site's staff may log in at its page.", no_args_is_help=True)


@account.command()
def add(
    name: Name,
    home: HomeOption,
    by: By,
    role: Annotated[str, typer.Option(help="custodian: may stop and refuse runs. viewer: may look.")] = "viewer",
) -> None:
    """Make an account; its password is asked for twice."""
    with _desk(home) as desk:
        wanted = _role(home, name, role)
        desk.add(name, wanted, _password(), by)
    typer.echo(f"{name} may log in as {wanted}")


@account.command()
def invite(
    name: Name,
    home: HomeOption,
    by: By,
    out: Annotated[Path, typer.Option(help="The file to write; give it to this person, and to nobody else.")],
    role: Annotated[str, typer.Option(help="custodian or viewer, where there is no such account yet.")] = "",
) -> None:
    """Let a person set the password at the page, so that nobody else knows it: a code for one use, within a day."""
    if out.exists():
        raise CannotProceed(f"{out} is there already; name another file")
    with _desk(home) as desk:
        code, until = desk.invite(name, _role(home, name, role) if role else None, by)
    text = f"Open /setup at the page of {Home(home).settings().site}.\nName: {name}\nCode: {code}\n"
    write(out, f"{text}Good once, until {format_utc(until.replace(microsecond=0))}.\n".encode())
    typer.echo(f"wrote {out}; until {name} has used it, an earlier password stays as it is")


@account.command()
def password(name: Name, home: HomeOption, by: By) -> None:
    """Set a new password; all sessions of the account end."""
    with _desk(home) as desk:
        desk.set_password(name, _password(), by)
    typer.echo(f"{name} has a new password, and is logged out everywhere")


@account.command()
def role(
    name: Name, role: Annotated[str, typer.Argument(help="custodian or viewer")], home: HomeOption, by: By
) -> None:
    """Give an account another role."""
    with _desk(home) as desk:
        wanted = _role(home, name, role)
        desk.set_role(name, wanted, by)
    typer.echo(f"{name} is {wanted}")


@account.command()
def lock(name: Name, home: HomeOption, by: By) -> None:
    """Nobody logs in with it until it is unlocked; its sessions end."""
    with _desk(home) as desk:
        desk.lock_account(name, by)
    typer.echo(f"{name} is locked, and logged out everywhere")


@account.command()
def unlock(
    home: HomeOption,
    by: By,
    name: Annotated[str, typer.Argument(help="The person's name.")] = "",
    address: Annotated[str, typer.Option(help="An address that was locked, as the audit log has it.")] = "",
) -> None:
    """Lift a lock: an administrator's, or one for wrong passwords."""
    if bool(name) == bool(address):
        raise typer.BadParameter("name an account, or --address")
    with _desk(home) as desk:
        if name:
            desk.unlock_account(name, by)
        else:
            desk.unlock_address(address, by)
    typer.echo(f"{name or address} may log in again")


@account.command()
def remove(name: Name, home: HomeOption, by: By) -> None:
    """Take an account away; its sessions end."""
    with _desk(home) as desk:
        desk.remove(name, by)
    typer.echo(f"{name} has no account here any more")


@account.command(name="list")
def list_(home: HomeOption, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """All accounts, their roles, and which are locked."""
    with _desk(home) as desk:
        found = []
        for one in desk.accounts():
            until = desk.lock_of(one.name)
            state = "open" if one.password else "no password yet"
            if one.locked or until:
                state = "locked" if one.locked or until is None else f"locked until {format_utc(until.until)}"
            found.append({"name": one.name, "role": one.role.value, "state": state})
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        typer.echo("\n".join("  ".join(one.values()) for one in found) or "nobody has an account here")


def page(
    home: HomeOption,
    host: Annotated[
        str, typer.Option(help="The address to listen at; other than loopback only with --cert.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8780,
    cert: Annotated[Path | None, typer.Option(help="The page's TLS certificate (PEM, with its chain).")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
) -> None:
    """Serve the page for this site's staff: what runs, what waits, what has left; stop a run, keep one away."""
    from msfl.gateway.page.app import Page
    from msfl.gateway.page.serve import listen, serve

    door = listen(host, port, cert, key)
    with _staff(home) as (desk, audit):
        if not desk.accounts():
            typer.echo("nobody has an account here yet: msfl gateway account add NAME")
        typer.echo(f"the page of {Home(home).settings().site}: {door.origins[0]}/")
        serve(Page(Home(home), desk, audit, door.origins, utc_now).app(), door)


def utc_now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def _desk(home: Path) -> Iterator[Desk]:
    with _staff(home) as (desk, _):
        yield desk


@contextmanager
def _staff(home: Path) -> Iterator[tuple[Desk, AuditLog]]:
    from msfl.gateway.staff.book import Book
    from msfl.gateway.staff.desk import Desk
    from msfl.gateway.staff.passwords import Passwords

    site = enrolled(home)
    name = site.settings().site
    with closing(AuditLog(site.audit / LOG_NAME, f"staff {name}")) as audit, closing(Book(site.staff)) as book:
        yield Desk(book, audit, Passwords(), name, utc_now, os.urandom), audit


def _role(home: Path, name: str, role: str) -> Role:
    from msfl.gateway.staff.accounts import Role

    try:
        wanted = Role(role)
    except ValueError:
        raise typer.BadParameter(f"{role!r} is no role: custodian or viewer") from None
    people = Home(home).custodians()
    if wanted is Role.CUSTODIAN and name not in people:
        named = ", ".join(sorted(people)) or "nobody"
        raise CannotProceed(f"the site root does not name {name} as a custodian, but {named}: use that name, or viewer")
    return wanted


def _password() -> str:
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
