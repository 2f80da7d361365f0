"""`msfl orchestrator`: for the operator of the centre, who runs it and has no power to approve anything for a site."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from msfl.orchestrator.home import CentreHome, FederationSettings
from msfl.policies.encoding import sha256_of
from msfl.policies.refusals import CannotProceed, Refusal, Refused
from msfl.policies.trust import trust_federation_root
from msfl.policies.words import root_in_a_line
from msfl.runtime.choice import RuntimeChoice
from msfl.runtime.options import EngineOption, OciRuntimeOption, RuntimeOption

app = typer.Typer(help="Run the centre of a federation.", no_args_is_help=True)
token_app = typer.Typer(help="Registration tokens.", no_args_is_help=True)
site_app = typer.Typer(help="Members: list, freeze, unfreeze.", no_args_is_help=True)
app.add_typer(token_app, name="token")
app.add_typer(site_app, name="site")
console = Console(soft_wrap=True, highlight=False)
# Absolute: a sandbox starts in another folder.
HomeOption = Annotated[Path, typer.Option("--home", resolve_path=True, help="The orchestrator's folder.")]
SiteArgument = Annotated[str, typer.Argument(help="The site, as `msfl orchestrator site list` shows it.")]


@app.command()
def init(
    home: HomeOption,
    federation: Annotated[str, typer.Option(help="Short name of the federation.")],
    root: Annotated[Path, typer.Option(help="The signed federation root: publishers, reviewers, issuers.")],
    registry: Annotated[
        str, typer.Option(help="The registry: a folder in the OCI image layout, or https://host/repository.")
    ],
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port for people and enrolment.")] = 8443,
    link_port: Annotated[int, typer.Option(help="Port for gateways.")] = 8444,
    name: Annotated[list[str] | None, typer.Option(help="Names the server certificate is for.")] = None,
    people_from: Annotated[
        list[str] | None, typer.Option(help="Addresses people may call from (CIDR); this machine when not given.")
    ] = None,
    proxy: Annotated[
        list[str] | None, typer.Option(help="Proxies whose x-forwarded-for counts (CIDR); none when not given.")
    ] = None,
    runtime: RuntimeOption = None,
    engine: EngineOption = None,
    oci_runtime: OciRuntimeOption = None,
) -> None:
    """Make the keys of a new federation."""
    from msfl.orchestrator.doors.addresses import LOOPBACK, Callers
    from msfl.orchestrator.keyring.keyring import Keyring
    from msfl.protos.certificates import Identity

    centre, now = CentreHome(home), datetime.now(UTC)
    envelope = root.read_bytes()
    trusted = trust_federation_root(envelope, sha256_of(envelope), now)
    if isinstance(trusted, Refusal):
        raise Refused(trusted)
    if trusted.document.federation != federation:
        raise typer.BadParameter(f"{root} is the root of {trusted.document.federation}: say so with --federation")
    allowed, proxies = tuple(people_from or LOOPBACK), tuple(proxy or ())
    try:
        Callers.of(allowed, proxies)
    except ValueError as error:
        raise typer.BadParameter(f"{error}: give a range like 10.20.0.0/16") from error
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    keyring = Keyring.create(centre.keyring, federation, now)
    key, certificate = keyring.server_certificate(tuple(name or ("localhost", "127.0.0.1")), now)
    centre.write_tls(Identity(key, certificate), keyring.ca_pem)
    centre.federation_root.parent.mkdir(exist_ok=True)
    centre.federation_root.write_bytes(envelope)
    chosen = RuntimeChoice().but(runtime, engine, oci_runtime)
    settings = FederationSettings(federation, host, port, link_port, _location(registry), allowed, proxies, chosen)
    centre.write_settings(settings)
    first = centre.federation_root.parent / "roots" / f"{trusted.document.version}.dsse"
    first.parent.mkdir(exist_ok=True)
    first.write_bytes(envelope)
    console.print(f"{home} is ready. {root_in_a_line(trusted.document, trusted.sha256)}")


def _location(registry: str) -> str:
    """A folder by its whole path: sites and services are started from anywhere."""
    return registry if "://" in registry else str(Path(registry).resolve())


@app.command()
def keyring(home: HomeOption) -> None:
    """Serve the keyring, the only holder of the centre's keys, on a unix socket."""
    from msfl.orchestrator.keyring.process import serve_keyring

    serve_keyring(CentreHome(home))


@app.command()
def serve(
    home: HomeOption,
    runtime: RuntimeOption = None,
    engine: EngineOption = None,
    oci_runtime: OciRuntimeOption = None,
) -> None:
    """Serve people and gateways until stopped. The keyring must be running.

    Aggregators run in what the federation's settings say, or as said here, for this time.
    """
    from msfl.orchestrator.serve import serve_orchestrator

    centre = CentreHome(home)
    serve_orchestrator(centre, centre.settings().runtime.but(runtime, engine, oci_runtime))


@app.command()
def welcome(
    home: HomeOption,
    out: Annotated[Path, typer.Option(help="The file to hand to people.")],
    endpoint: Annotated[str, typer.Option(help="host:port that people dial; the served one when not given.")] = "",
    issuer: Annotated[str, typer.Option(help="The identity provider; needed when the root names several.")] = "",
    client: Annotated[str, typer.Option(help="The application people log in with; else the root's first.")] = "",
    scope: Annotated[str, typer.Option(help="What to ask the provider for.")] = "openid email offline_access",
    parameter: Annotated[
        list[str] | None, typer.Option(help="name=value sent to the provider; else resource=<audience>.")
    ] = None,
) -> None:
    """Write what `msfl login` needs: where the federation is, its CA, its identity provider. There is no secret in it.

    An embedded issuer has no login page and is for one machine only: a federation without another has no such file.
    """
    import json

    centre, now = CentreHome(home), datetime.now(UTC)
    settings, envelope = centre.settings(), centre.federation_root.read_bytes()
    root = trust_federation_root(envelope, sha256_of(envelope), now)
    if isinstance(root, Refusal):
        raise Refused(root)
    found = [i for i in root.document.issuers if i.clients and issuer in ("", i.issuer)]
    if len(found) != 1:
        named = ", ".join(i.issuer for i in root.document.issuers if i.clients) or "none"
        raise typer.BadParameter(f"name one identity provider with --issuer; the federation root has: {named}")
    (named_issuer,) = found
    pairs = [text.partition("=") for text in parameter or [f"resource={named_issuer.audience}"]]
    document = {
        "endpoint": endpoint or f"{settings.host}:{settings.port}",
        "ca": centre.ca_pem.decode(),
        "issuer": named_issuer.issuer,
        "client_id": client or named_issuer.clients[0],
        "scope": scope,
        "parameters": {name: value for name, _, value in pairs if name},
    }
    out.write_text(json.dumps(document, indent=1))
    console.print(f"{out}: people log in with `msfl login {out}`")


@app.command(name="issuer-keys")
def issuer_keys(home: HomeOption, file: Annotated[Path, typer.Argument(exists=True)]) -> None:
    """Take the keys of an identity provider, signed by its stewards; they go to every site with its next heartbeat."""
    centre, now = CentreHome(home), datetime.now(UTC)
    envelope = centre.federation_root.read_bytes()
    root = trust_federation_root(envelope, sha256_of(envelope), now)
    if isinstance(root, Refusal):
        raise Refused(root)
    for refusal in centre.key_sets.take([file.read_bytes()], root):
        raise Refused(refusal)
    for keys in centre.key_sets.trusted(root):
        now_in_force = keys.document
        until = f"{now_in_force.expires:%Y-%m-%d}"
        console.print(f"{now_in_force.issuer}: version {now_in_force.version}, good until {until}")


@app.command()
def doctor(home: HomeOption, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Say what is wrong with clock, certificates, disk, ports, store, sites, and how to mend it. Exit code 1: bad."""
    from msfl.orchestrator.doctor import examine, measure
    from msfl.protos.health import healthy, report, worst_first

    findings = worst_first(examine(measure(home, datetime.now(UTC))))
    typer.echo(report(findings, as_json=as_json))
    raise typer.Exit(0 if healthy(findings) else 1)


@app.command()
def certificate(
    home: HomeOption,
    name: Annotated[list[str] | None, typer.Option(help="Names it is for; else those of the old one.")] = None,
) -> None:
    """Make a new server certificate, good for a year. Restart `msfl orchestrator serve` to use it."""
    from msfl.orchestrator.keyring.client import KeyringClient, KeyringDown, KeyringFull
    from msfl.orchestrator.keyring.keyring import Keyring, held
    from msfl.protos.certificates import Identity, certificate_facts

    centre = CentreHome(home)
    keyring = Keyring(centre.keyring)
    names = tuple(name or certificate_facts(centre.server().certificate_pem, keyring.ca_pem).names)
    try:
        made = KeyringClient(centre.keyring_socket, patience_s=0.0).server_certificate(names)
    except KeyringFull:
        raise
    except KeyringDown:
        # It does not run: then this process is the keyring, for a moment.
        with held(centre.keyring):
            made = Identity(*keyring.server_certificate(names, datetime.now(UTC)))
    centre.write_tls(made, keyring.ca_pem)
    until = certificate_facts(made.certificate_pem, keyring.ca_pem).not_after
    console.print(
        f"the new certificate, for {', '.join(names)}, is good until {until:%Y-%m-%d}; restart the orchestrator"
    )


@token_app.command("create")
def create_token(
    site: Annotated[str, typer.Argument(help="The site that may join with it.")],
    home: HomeOption,
    out: Annotated[Path | None, typer.Option(help="The file to write; else SITE.token.")] = None,
    hours: Annotated[float, typer.Option(help="How long it may be used, at most 72.")] = 24.0,
    cidr: Annotated[list[str] | None, typer.Option(help="Addresses the site may call from, now and later.")] = None,
) -> None:
    """Issue a registration token: one file, one site, one use. Hand it over by another way than the network."""
    from msfl.orchestrator.keyring.client import KeyringClient

    centre, file, now = CentreHome(home), out or Path(f"{site}.token"), datetime.now(UTC)
    envelope = centre.federation_root.read_bytes()
    root = trust_federation_root(envelope, sha256_of(envelope), now)
    if isinstance(root, Refusal):
        raise Refused(root)
    settings, ranges = centre.settings(), tuple(cidr or ("127.0.0.0/8",))
    if file.exists():
        raise CannotProceed(f"{file} is there already: give another name with --out")
    token = KeyringClient(centre.keyring_socket).token(
        federation=settings.federation,
        site=site,
        endpoint=f"{settings.host}:{settings.port}",
        link_endpoint=f"{settings.host}:{settings.link_port}",
        registry=settings.registry,
        federation_root_sha256=sha256_of(envelope),
        hours=hours,
        cidrs=ranges,
    )
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
        target.write(token + "\n")
    console.print(
        f"{file}: {site} may join once with it, within {hours:g} h, from {', '.join(ranges)}; then it may call from "
        f"there only. There: msfl gateway enrol {file.name} --home HOME …"
    )
    shown = root_in_a_line(root.document, root.sha256)
    console.print(f"What they are shown there, and should hear from you by another way: {shown}")


@site_app.command("freeze")
def freeze_site(
    site: SiteArgument,
    home: HomeOption,
    why: Annotated[str, typer.Option(help="The reason; it stays in the keyring.")],
    by: Annotated[str, typer.Option(help="Your name.")],
) -> None:
    """Refuse a site's certificates from now on: its open streams are cut within seconds. Its runs go on without it."""
    from msfl.orchestrator.keyring.client import KeyringClient

    if not KeyringClient(CentreHome(home).keyring_socket).freeze(site, why, by):
        raise CannotProceed(f"{site} is no site of this federation; msfl orchestrator site list shows them")
    console.print(f"{site} is frozen")


@site_app.command("unfreeze")
def unfreeze_site(site: SiteArgument, home: HomeOption, by: Annotated[str, typer.Option(help="Your name.")]) -> None:
    """Let a frozen site call again. If others may hold its key, it enrols anew first: that revokes the old one."""
    from msfl.orchestrator.keyring.client import KeyringClient

    if not KeyringClient(CentreHome(home).keyring_socket).unfreeze(site, by):
        raise CannotProceed(f"{site} is not frozen")
    console.print(f"{site} may call again")


@site_app.command("list")
def list_sites(home: HomeOption, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """The members, where they may call from, and which of them are frozen and why."""
    from msfl.orchestrator.keyring.client import KeyringClient

    standings = KeyringClient(CentreHome(home).keyring_socket).standings()
    if as_json:
        shown = {
            site: {
                "addresses": list(standing.cidrs),
                "revoked_certificates": len(standing.revoked),
                "frozen": None if standing.frozen is None else asdict(standing.frozen),
            }
            for site, standing in standings.items()
        }
        typer.echo(json.dumps(shown))
        return
    table = Table("site", "calls from", "frozen")
    for site, standing in standings.items():
        frozen = standing.frozen
        at = "" if frozen is None else f"{datetime.fromtimestamp(frozen.at, UTC):%Y-%m-%d %H:%M} UTC"
        table.add_row(site, ", ".join(standing.cidrs), "" if frozen is None else f"since {at}: {frozen.why}")
    console.print(table)
