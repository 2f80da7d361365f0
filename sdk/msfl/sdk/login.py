"""`msfl login` and `msfl issuer`: from a federation's welcome file to credentials, and an identity provider's keys.

msfl login WELCOME               a code to type in any browser (device login)
msfl login WELCOME --browser     the browser on this machine
msfl login WELCOME --machine     MSFL_CLIENT_ID and MSFL_CLIENT_SECRET: no person, no browser
msfl login --issuer-key …        the embedded issuer, for one machine only

msfl issuer show URL             the entry of a provider for a federation root: its keys, pinned
msfl issuer sign URL             its keys of now, signed by a steward, for `msfl orchestrator issuer-keys`
"""

from __future__ import annotations

import json
import os
import time
import webbrowser
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from msfl.policies.documents import IssuerKeys, IssuerKeySet, Jwk
from msfl.policies.encoding import Malformed, encode
from msfl.policies.envelope import Signed, add_signature, sign
from msfl.policies.identity import EMBEDDED_ISSUER, mint_token
from msfl.policies.issuers import ISSUER_KEY_SET
from msfl.policies.jwk import signature_keys
from msfl.policies.keys import BadKey, KeyPair, passphrase_of
from msfl.sdk import oidc
from msfl.sdk.credentials import Credentials, Login
from msfl.sdk.oidc import Application, LoginFailed

console = Console(highlight=False, soft_wrap=True)
issuer_app = typer.Typer(help="Keys of an identity provider, for the federation root.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
_WELCOME = {"endpoint", "ca", "issuer", "client_id", "scope", "parameters"}


def login(
    welcome: Annotated[
        Path | None, typer.Argument(help="The federation's file, from its operator.", show_default=False)
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Log in with the browser on this machine.")] = False,
    machine: Annotated[bool, typer.Option("--machine", help="MSFL_CLIENT_ID and MSFL_CLIENT_SECRET log in.")] = False,
    issuer_key: Annotated[Path | None, typer.Option(help="Key of the embedded issuer (this machine only).")] = None,
    issuer: Annotated[str, typer.Option(help="Embedded issuer: its name in the federation root.")] = EMBEDDED_ISSUER,
    audience: Annotated[str, typer.Option(help="Embedded issuer: the audience in the federation root.")] = "",
    endpoint: Annotated[str, typer.Option(help="Embedded issuer: host:port of the orchestrator.")] = "",
    ca: Annotated[Path | None, typer.Option(help="Embedded issuer: the federation's CA certificate.")] = None,
    user: Annotated[str, typer.Option(help="Embedded issuer: your e-mail address.")] = "",
    organisation: Annotated[str, typer.Option(help="Embedded issuer: your organisation's domain.")] = "",
    out: Annotated[Path | None, typer.Option(help="Credentials file; your own when not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Log in at the federation's identity provider; the token is bound to a key that stays on this machine.

    The key of your earlier credentials is kept, so that runs which it has signed can be resumed.
    """
    file = out or Credentials.default_file()
    key = Credentials.read(file).key_pair if file.exists() else KeyPair.generate()
    if welcome is not None and issuer_key is None:
        made = _log_in(_read_welcome(welcome), key, browser=browser, machine=machine)
    elif issuer_key is not None and welcome is None and audience and endpoint and ca is not None and user:
        console.print("[yellow]The embedded issuer is for one machine only: its key's holder can be any user.[/yellow]")
        pem, now = KeyPair.from_pem(issuer_key.read_bytes(), passphrase_of("", os.environ)), datetime.now(UTC)
        token = mint_token(pem, issuer, audience, user, user, organisation, key.thumbprint, now)
        made = Credentials(endpoint, ca.read_text(), token, key.to_pem().decode(), user)
    else:
        raise typer.BadParameter(
            "give the welcome file of your federation; or, for a federation on this machine alone, --issuer-key, "
            "--audience, --endpoint, --ca and --user"
        )
    made.write(file)
    if as_json:
        console.print_json(json.dumps({"user": made.user, "credentials": str(file)}))
        return
    console.print(f"logged in as {made.user}; credentials are in {file}")


def _log_in(welcome: dict[str, object], key: KeyPair, *, browser: bool, machine: bool) -> Credentials:
    parameters = welcome["parameters"]
    assert isinstance(parameters, dict)
    client_id, secret = str(welcome["client_id"]), ""
    if machine:
        client_id, secret = os.environ.get("MSFL_CLIENT_ID", ""), os.environ.get("MSFL_CLIENT_SECRET", "")
        if not client_id or not secret:
            raise LoginFailed("MSFL_CLIENT_ID and MSFL_CLIENT_SECRET must be set to log in as a machine")
    app = Application(
        provider=oidc.discover(str(welcome["issuer"]), oidc.https),
        client_id=client_id,
        scope=str(welcome["scope"]),
        parameters={str(k): str(v) for k, v in parameters.items()},
        key=key,
        http=oidc.https,
        secret=secret,
    )
    if machine:
        tokens = oidc.client_credentials(app)
    elif browser:
        tokens = oidc.browser_login(app, _open)
    else:
        tokens = oidc.device_login(app, _show, time.sleep)
    way = "machine" if machine else "person"
    empty = Login(app.provider.issuer, client_id, app.scope, app.parameters, way)
    said = oidc.said_in(tokens.token)
    pem, name = key.to_pem().decode(), str(said.get("email") or said.get("sub") or "somebody")
    made = Credentials(str(welcome["endpoint"]), str(welcome["ca"]), "", pem, name, empty).with_tokens(tokens)
    if not made.bound:
        console.print(
            f"[yellow]{app.provider.issuer} did not bind the token to your key: sites whose policy requires a proof "
            "will refuse your jobs. `msfl login --browser` binds it through the ID token.[/yellow]"
        )
    return made


def _read_welcome(file: Path) -> dict[str, object]:
    try:
        read = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise LoginFailed(
            f"{file} cannot be read ({error}): ask the federation's operator for its welcome file"
        ) from error
    if not isinstance(read, dict) or set(read) != _WELCOME or not isinstance(read["parameters"], dict):
        raise LoginFailed(f"{file} is no welcome file of a federation: it holds {', '.join(sorted(_WELCOME))}")
    return read


def _show(address: str, code: str) -> None:
    console.print(f"Open {address} in any browser and confirm the code [bold]{code}[/bold]")


def _open(address: str) -> None:
    console.print(f"Log in on the page that opens, or open it yourself: {address}", markup=False)
    webbrowser.open(address)


@issuer_app.command()
def show(
    url: Annotated[str, typer.Argument(help="The provider's issuer URL.")],
    audience: Annotated[str, typer.Option(help="The audience of this federation's access tokens.")],
    client: Annotated[list[str], typer.Option(help="An application whose tokens count.")],
    organisation_claim: Annotated[str, typer.Option(help="The claim that names an organisation.")] = "organisation",
) -> None:
    """Read a provider's keys at the provider and print the entry that pins them, for a federation root."""
    entry = IssuerKeys(
        issuer=url, audience=audience, jwks=_keys_at(url), clients=tuple(client), organisation_claim=organisation_claim
    )
    typer.echo(encode(entry).decode())


@issuer_app.command(name="sign")
def sign_(
    url: Annotated[str, typer.Argument(help="The provider's issuer URL.")],
    federation: Annotated[str, typer.Option(help="The federation's short name.")],
    version: Annotated[int, typer.Option(help="Higher than that of the last set.")],
    key: Annotated[Path, typer.Option(help="A steward's key.", exists=True)],
    out: Annotated[Path, typer.Option(help="The signed key set; an existing one gets one more signature.")],
    days: Annotated[int, typer.Option(help="How long it is good, at most 35.")] = 30,
) -> None:
    """Read a provider's keys at the provider and sign them as what its tokens are checked with.

    A second steward's signature is given only when the provider's keys are, for that steward too, the same.
    """
    pair = KeyPair.from_pem(key.read_bytes(), passphrase_of("", os.environ))
    keys, now = _keys_at(url), datetime.now(UTC).replace(microsecond=0)
    if out.exists():
        envelope = out.read_bytes()
        try:
            there = ISSUER_KEY_SET.load(Signed.parse(envelope, ISSUER_KEY_SET, out.name).payload_of_kind(), out.name)
        except Malformed as error:
            raise LoginFailed(str(error)) from error
        if (there.issuer, there.federation, there.version, there.jwks) != (url, federation, version, keys):
            raise LoginFailed(f"{out} says something else than {url} says now: compare them before you sign")
        out.write_bytes(add_signature(envelope, ISSUER_KEY_SET, pair))
    else:
        try:
            made = IssuerKeySet(
                federation=federation, issuer=url, version=version, jwks=keys, issued=now, expires=now + timedelta(days)
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        out.write_bytes(sign(encode(made), ISSUER_KEY_SET, [pair]))
    console.print(f"{out}: version {version} of {len(keys)} keys, signed by {pair.id[:16]}")
    for jwk in keys:
        console.print(f"{jwk.alg} {jwk.key_id}: if it leaks, msfl federation revoke --key-id takes it out at once")


def _keys_at(url: str) -> tuple[Jwk, ...]:
    provider = oidc.discover(url, oidc.https)
    answer = oidc.https(provider.jwks_uri, None, {})
    try:
        return tuple(Jwk.model_validate(key) for key in signature_keys(answer.body))
    except (Malformed, BadKey) as error:
        raise LoginFailed(f"{provider.jwks_uri}: {error}") from error
