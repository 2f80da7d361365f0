"""`msfl gateway`: for the staff of a site. Enrol once, serve, confirm or refuse runs, read the audit log."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console
from rich.table import Column, Table

from msfl.gateway import answers, words
from msfl.gateway.home import Home, enrolled
from msfl.gateway.memory import Memory
from msfl.gateway.staff import words as staff_words
from msfl.gateway.status import status
from msfl.policies.audit import verify
from msfl.policies.encoding import visible
from msfl.policies.refusals import CannotProceed, Code, Refusal, Refused
from msfl.policies.trust import Revoked, TrustedFederationRoot, separate_roles, trust_confirmation
from msfl.policies.words import federation_in_words
from msfl.protos.audit_log import LOG_NAME, AuditLog, read_entries, read_lines
from msfl.runtime.choice import RuntimeChoice, RuntimeKind
from msfl.runtime.options import EngineOption, OciRuntimeOption, RuntimeOption

app = typer.Typer(help="Run the gateway of a site.", no_args_is_help=True)
audit_app = typer.Typer(help="Verify the chain of the audit log and show it.", invoke_without_command=True)
app.add_typer(audit_app, name="audit")
app.command()(status)
app.command()(words.revoke)
app.command()(words.clock)
app.add_typer(words.root, name="root")
app.add_typer(staff_words.account, name="account")
app.command()(staff_words.page)
console = Console()
# Absolute: a sandbox starts in another folder.
HomeOption = Annotated[Path, typer.Option("--home", resolve_path=True, help="The gateway's folder.")]
RunArgument = Annotated[str, typer.Argument(help="The run's id, as `msfl gateway pending` shows it.")]


@app.command()
def enrol(
    token_file: Annotated[Path, typer.Argument(metavar="FILE", help="The registration token that the operator made.")],
    home: HomeOption,
    custodian: Annotated[str, typer.Option(help="Who signs this site's policies.")] = "",
    custodian_key: Annotated[Path | None, typer.Option(help="The custodian's key (`msfl policy keys`).")] = None,
    again: Annotated[bool, typer.Option("--again", help="Only a new key and certificate; all else stays.")] = False,
    registry: Annotated[
        str, typer.Option(help="Where this site finds the registry, if not where the token says.")
    ] = "",
    runtime: RuntimeOption = None,
    engine: EngineOption = None,
    oci_runtime: OciRuntimeOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="You accept the federation root; do not ask.")] = False,
) -> None:
    """Join a federation: makes the site's TLS key and its own trust root, and uses the token up.

    Shows whom the federation root names (publishers, reviewers, identity providers, keepers), and asks.
    """
    from msfl.gateway.enrol import EnrolmentFailed, enrol_again
    from msfl.gateway.enrol import enrol as join
    from msfl.policies.keys import BadKey, KeyPair, passphrase_of
    from msfl.protos.registration import BadToken, RegistrationToken

    try:
        token = RegistrationToken.decode(token_file.read_text(errors="replace"))
        token = replace(token, registry=registry or token.registry)
        if again:
            enrol_again(token, home, datetime.now(UTC))
        elif not custodian or custodian_key is None:
            raise typer.BadParameter("a site that joins needs --custodian and --custodian-key")
        else:
            if not yes and not sys.stdin.isatty():
                raise typer.BadParameter("nobody can be asked here whether the federation root is accepted: say --yes")
            key = KeyPair.from_pem(custodian_key.read_bytes(), passphrase_of("", os.environ))
            chosen = RuntimeChoice().but(runtime, engine, oci_runtime)
            join(token, home, {custodian: key}, datetime.now(UTC), lambda root: _accepted(root, yes=yes), chosen)
    except BadKey as error:
        raise CannotProceed(f"{custodian_key}: {error}. The token is not used up") from error
    except (BadToken, EnrolmentFailed) as error:
        console.print(f"[red]not enrolled[/red]: {error}", soft_wrap=True)
        raise typer.Exit(1) from error
    done = "has a new certificate of" if again else "has joined"
    console.print(f"{token.site} {done} {token.federation}; its home is {home}")


def _accepted(root: TrustedFederationRoot, *, yes: bool) -> bool:
    for line in federation_in_words(root.document, root.sha256):
        typer.echo(line)
    try:
        return yes or typer.confirm("Are these the people whom this site relies on for what may run?")
    except typer.Abort:  # The answer says that the token is used up.
        return False


@app.command()
def serve(
    home: HomeOption,
    runtime: RuntimeOption = None,
    engine: EngineOption = None,
    oci_runtime: OciRuntimeOption = None,
) -> None:
    """Stay on the line with the orchestrator until stopped. Dials out only; listens nowhere.

    Workers run in what the site's settings say, or as said here, for this time.

    Ended by a service manager (SIGTERM) it leaves its workers at work for a minute, for the gateway that comes after;
    ended by hand (Ctrl-C) it ends them.
    """
    from msfl.gateway.alone import alone

    with alone(enrolled(home).root):
        _serve(home, runtime, engine, oci_runtime)


def _serve(home: Path, runtime: RuntimeKind | None, engine: str | None, oci_runtime: str | None) -> None:
    from msfl.gateway.agent import Agent
    from msfl.gateway.judge import Judge
    from msfl.gateway.ledger import Ledger
    from msfl.gateway.link import Link
    from msfl.gateway.membership import dial_as
    from msfl.gateway.memory import Memory
    from msfl.gateway.site_run import utc_now
    from msfl.gateway.standing import Standing
    from msfl.gateway.surroundings import Surroundings
    from msfl.gateway.witness import Witness
    from msfl.protos.allocator import keep_memory
    from msfl.protos.notary import Notary
    from msfl.protos.software import SOFTWARE
    from msfl.registry.cache import ImageCache
    from msfl.registry.location import open_registry

    keep_memory()
    site = enrolled(home)
    settings = site.settings()
    registry = open_registry(settings.registry, site.registry_access)
    contained = settings.runtime.but(runtime, engine, oci_runtime).open(f"gateway {settings.site} {home}")
    ledger = Ledger(site.ledger_file)
    audit, link = AuditLog(site.audit / LOG_NAME, f"gateway {settings.site}"), Link(dial_as(site))
    threading.excepthook = partial(_end_of_a_thread, audit)
    notary = Notary(audit, site.audit, f"site:{settings.site}", utc_now)
    memory = Memory(site.memory_file)
    said = read_entries(site.audit / LOG_NAME)
    memory.recall(said)
    ledger.recall(said, settings.site)
    standing = Standing(site, memory, audit)
    around = Surroundings(
        home=site,
        judge=Judge(
            site,
            registry,
            ledger,
            contained.protections().isolation,
            standing,
            whole_images=contained.whole_images,
        ),
        ledger=ledger,
        audit=audit,
        registry=registry,
        images=ImageCache(site.images, settings.images_bytes),
        runtime=contained,
        link=link,
        witness=Witness(notary, link, audit, settings.federation, utc_now),
        clock=utc_now,
        standing=standing,
    )
    agent = Agent(around, SOFTWARE)
    for number, by_hand in ((signal.SIGTERM, False), (signal.SIGINT, True)):
        stop = partial(agent.stop, end_workers=by_hand)
        signal.signal(number, lambda *_, stop=stop: threading.Thread(target=stop).start())
    agent.serve()


@app.command()
def doctor(home: HomeOption, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Say what is wrong with clock, certificates, disk, line and versions, and how to mend it. Exit code 1: bad."""
    from msfl.gateway.doctor import examine, measure
    from msfl.protos.health import healthy, report, worst_first

    findings = worst_first(examine(measure(home, datetime.now(UTC))))
    typer.echo(report(findings, as_json=as_json))
    raise typer.Exit(0 if healthy(findings) else 1)


def _end_of_a_thread(audit: AuditLog, ended: threading.ExceptHookArgs) -> None:
    """A bug that ends a thread ends the process: its runs are durable, and go on when it is started again; a run whose
    thread is gone would stand still while the gateway looks alive."""
    name = ended.thread.name if ended.thread is not None else "?"
    error = (ended.exc_type, ended.exc_value or ended.exc_type(), ended.exc_traceback)
    structlog.get_logger().critical("a thread died of a bug; the gateway ends", thread=name, exc_info=error)
    try:
        audit.write(datetime.now(UTC), "gateway ends", name, {"code": "bug", "error": ended.exc_type.__name__})
    finally:
        os._exit(70)  # EX_SOFTWARE


@app.command()
def pending(
    home: HomeOption,
    job: Annotated[str, typer.Option(metavar="RUN", help="Print this run's job, for `msfl policy explain`.")] = "",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Runs that wait for the custodian."""
    site = enrolled(home)
    if job:
        typer.echo(json.dumps(answers.waiting(site, job)["job"], indent=1))
        return
    waiting = site.pending()
    if as_json:
        console.print_json(json.dumps(waiting))
        return
    table = Table(Column("run", no_wrap=True), "user", "release", "dataset", "rounds", "job")
    for run_id, shown in waiting.items():
        asks = shown["job"]
        who, data = shown["asked"]["user"], ", ".join(asks["datasets"])
        table.add_row(run_id, who, asks["release"], data, str(asks["rounds"]), asks["name"])
    console.print(table if waiting else "no run waits for you")


@app.command()
def confirm(
    run: RunArgument,
    home: HomeOption,
    key: Annotated[Path, typer.Option(help="Your key (PEM); the site's trust root names you.")],
    passphrase: Annotated[bool, typer.Option(help="Ask for the key's passphrase.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="You have read it; do not ask.")] = False,
) -> None:
    """Show what would run and what may leave, and sign it: the run begins at this site."""
    from msfl.gateway.confirmations import confirmation, in_words, signed
    from msfl.policies.encoding import Malformed
    from msfl.policies.keys import BadKey, KeyPair
    from msfl.policies.passphrase import secret_for

    site = enrolled(home)
    shown = answers.waiting(site, run)
    try:
        asked = confirmation(shown["asked"])
    except Malformed as error:
        what = f"what is asked for {run} cannot be read ({error}); refuse it, and have its user submit it anew"
        raise CannotProceed(what) from error
    for line in in_words(asked, shown["last"]):
        typer.echo(line)
    secret = secret_for(passphrase, os.environ)
    try:
        pair = KeyPair.from_pem(key.read_bytes(), secret)
    except (OSError, BadKey) as error:
        raise CannotProceed(f"{key}: {error}") from error
    if not yes and not typer.confirm(f"Let {run} begin at {asked.site}?"):
        typer.echo(f"not signed: {run} still waits; `msfl gateway refuse {run}` keeps it away")
        raise typer.Exit(1)
    now = datetime.now(UTC).replace(microsecond=0)
    envelope = signed(asked.model_copy(update={"issued": now}), pair, site.confirmed(run))
    root, federation = site.site_root(now), site.federation_root(now)
    if isinstance(root, Refusal):
        raise Refused(root)
    if isinstance(federation, Refusal):
        raise Refused(federation)
    people = trust_confirmation(envelope, asked, root, now, revoked=_revoked(site))
    if isinstance(people, Refusal):
        if people.code is not Code.TOO_FEW_SIGNERS:
            raise Refused(people)
    elif twice := separate_roles(f"The yes to {run}", people, (asked.publisher, *asked.reviewers), root, federation):
        raise Refused(twice)
    site.confirm(run, envelope)
    console.print(f"signed {run}; {people.message}" if isinstance(people, Refusal) else f"confirmed {run}")


@app.command()
def refuse(run: RunArgument, home: HomeOption, by: Annotated[str, typer.Option(help="Your name.")]) -> None:
    """Keep a run away from this site."""
    answers.decline(enrolled(home), run, by)
    console.print(f"refused {run}")


def _revoked(site: Home) -> Revoked:
    memory = Memory(site.memory_file)
    found = memory.revoked()
    memory.close()
    return found


@app.command()
def stop(run: RunArgument, home: HomeOption, by: Annotated[str, typer.Option(help="Your name.")]) -> None:
    """End a running run at this site: its worker within seconds, for good. The run goes on without the site."""
    answers.stop(enrolled(home), run, by)
    console.print(f"asked the gateway to stop {run}")


@audit_app.callback()
def audit(
    context: typer.Context,
    home: Annotated[Path | None, typer.Option("--home", help="The gateway's folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Verify the chain of the audit log and show it."""
    if context.invoked_subcommand is not None:
        return
    if home is None:
        raise typer.BadParameter("say --home, the gateway's folder")
    lines = read_lines(enrolled(home).audit / LOG_NAME)
    broken = verify(lines)
    if as_json:
        console.print_json(json.dumps([json.loads(line) for line in lines]))
    else:
        for line in lines:  # Whole, at any width: names and hashes are what an entry is read for.
            entry = json.loads(line)
            fields = ", ".join(f"{k}={visible(str(v))}" for k, v in entry["fields"].items() if v)
            typer.echo(f"{entry['at']}  {entry['action']}  {visible(entry['object'])}\n    {fields}")
    if broken is not None:
        console.print(f"[red]the chain is broken[/red]: {broken.why}")
        raise typer.Exit(1)
    console.print(f"the chain of {len(lines)} entries is whole")


@audit_app.command()
def sent(
    run: Annotated[str, typer.Argument(help="The run's id.")],
    home: HomeOption,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Everything that left this site for a run: what, when, how much, its hash, and what was held back."""
    from msfl.gateway.sent import departures, in_words

    chain = read_entries(enrolled(home).audit / LOG_NAME)
    left = departures(chain, run)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in left], indent=1))
    elif left:
        typer.echo("\n".join(in_words(left, run)))
    if not left:
        console.print(f"[red]nothing has left for a run {run}[/red]; `msfl gateway audit` shows all runs")
        raise typer.Exit(1)
