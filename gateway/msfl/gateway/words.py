"""`msfl gateway revoke|clock|root …`: what a custodian says about trust at this site, beside a serving gateway or not.

    revoke            holds when the command returns; the serving gateway ends what rests on it within seconds
    clock             this machine's clock is right now, and was ahead before
    root new|sign     make the next site root, and sign it: enough custodians of the root in force, and of the next
    root take         hand it to the gateway, which takes it up within a second, or at its next start

The gateway writes each of them into its audit log. Nothing here has to do with the centre.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from msfl.gateway.home import enrolled, write
from msfl.gateway.memory import Memory
from msfl.gateway.standing import next_of
from msfl.policies.documents import DatasetRef, Digest, KeyId, Member, SiteRoot, format_utc
from msfl.policies.encoding import MAX_BYTES, Malformed, encode, load_json
from msfl.policies.envelope import MAX_ENVELOPE_BYTES, SITE_ROOT, Signed, add_signature, sign
from msfl.policies.keys import BadKey, KeyPair
from msfl.policies.passphrase import secret_for
from msfl.policies.refusals import CannotProceed, Refusal, Refused
from msfl.policies.trust import next_site_root

HomeOption = Annotated[Path, typer.Option("--home", help="The gateway's folder.")]
By = Annotated[str, typer.Option(help="Your name.")]
root = typer.Typer(help="Change who signs policies at this site.", no_args_is_help=True)
_KEY, _DIGEST, _POLICY = (TypeAdapter[str](t) for t in (KeyId, Digest, DatasetRef))


def revoke(
    home: HomeOption,
    by: By,
    release: Annotated[str, typer.Option(help="The digest of an image.")] = "",
    key: Annotated[str, typer.Option(help="A key id: a publisher's, a reviewer's, a custodian's.")] = "",
    policy: Annotated[str, typer.Option(help="The id of a policy of this site.")] = "",
) -> None:
    """Never again at this site, for good: no run begins on it, and what runs on it ends within seconds."""
    asked = [(kind, name) for kind, name in (("release", release), ("key", key), ("policy", policy)) if name]
    if len(asked) != 1:
        raise typer.BadParameter("name one thing: --release DIGEST, --key ID or --policy ID")
    ((kind, name),) = asked
    what = f"{enrolled(home).settings().site}/{name}" if kind == "policy" else name
    try:
        {"release": _DIGEST, "key": _KEY, "policy": _POLICY}[kind].validate_python(what)
    except ValidationError as error:
        raise CannotProceed(f"{name!r} is no {kind}: {error.errors()[0]['msg']}") from error
    site, now = enrolled(home), datetime.now(UTC)
    memory = Memory(site.memory_file)
    memory.say(kind, what, by)
    memory.close()
    typer.echo(f"revoked here: {kind} {what}")
    policies = site.policies(now)[0]
    match kind:
        case "policy":
            here = {policy.id for policy in policies}
        case "release":
            here = {digest for policy in policies for allowed in policy.document.releases for digest in allowed.digests}
        case _:
            return
    if name not in here:
        what = f"no policy {name} is in force" if kind == "policy" else "no policy in force names this digest"
        typer.echo(f"note: {what} here; there is {', '.join(sorted(here)) or 'none'}. Look at its spelling")


def clock(home: HomeOption, by: By) -> None:
    """Say that this machine's clock is right now, after it was ahead: what it showed then does not count."""
    memory, now = Memory(enrolled(home).memory_file), format_utc(datetime.now(UTC))
    memory.say("clock", now, by)
    memory.close()
    typer.echo(f"the gateway takes {now} for right")


@root.command()
def new(
    home: HomeOption,
    custodian: Annotated[list[Path], typer.Option(help="NAME.public.json (`msfl policy keys`); repeat for each.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("site-root.json"),
    threshold: Annotated[int, typer.Option(min=1, help="How many different people must sign a policy.")] = 1,
    days: Annotated[int, typer.Option(min=1, help="Days in force.")] = 730,
) -> None:
    """Write the next site root, which names exactly the custodians given here. Then: `root sign`."""
    current = _current(home)
    try:
        members = tuple(load_json(_read(file), Member, str(file)) for file in custodian)
        document = SiteRoot(
            site=current.site,
            version=current.version + 1,
            custodians=members,
            threshold=threshold,
            expires=datetime.now(UTC) + timedelta(days=days),
        )
    except ValidationError as error:
        raise CannotProceed(f"the next site root cannot be made: {error.errors()[0]['msg']}") from error
    except Malformed as error:
        raise CannotProceed(f"the next site root cannot be made: {error}") from error
    write(out, encode(document), 0o644)
    typer.echo(f"wrote {out}, version {document.version}; sign it: msfl gateway root sign {out} --key …")


@root.command(name="sign")
def sign_(
    file: Annotated[Path, typer.Argument(help="The next root (JSON), or its envelope.")],
    key: Annotated[Path, typer.Option(help="A custodian's private key (PEM).")],
    passphrase: Annotated[bool, typer.Option(help="Ask for the key's passphrase.")] = False,
) -> None:
    """Sign it; given an envelope, add one more custodian's signature."""
    secret = secret_for(passphrase, os.environ)
    out = file.with_suffix(".dsse")
    if file != out and out.exists():
        raise CannotProceed(f"{out} is there already, signed: to add a signature, name it instead of {file}")
    try:
        pair, data = KeyPair.from_pem(_read(key), secret), _read(file)
        envelope = add_signature(data, SITE_ROOT, pair) if file == out else sign(data, SITE_ROOT, [pair])
    except (Malformed, BadKey) as error:
        raise CannotProceed(f"{file} is not signed: {error}") from error
    write(out, envelope, 0o644)
    document = load_json(Signed.parse(envelope, SITE_ROOT, str(out)).payload_of_kind(), SiteRoot, str(out))
    people = ", ".join(m.person for m in document.custodians)
    typer.echo(f"signed with key {pair.id[:16]}…: {out}, version {document.version}, which names {people}")


@root.command()
def take(
    file: Annotated[Path, typer.Argument(help="The next root, signed.")],
    home: HomeOption,
) -> None:
    """Put it in force: signed by enough custodians of the root in force and of its own, version one higher."""
    site, envelope = enrolled(home), _read(file)
    if file.suffix == ".json":
        raise CannotProceed(f"{file} is not signed yet: msfl gateway root sign {file} --key …, then take the envelope")
    found = next_site_root(site.site_root_file.read_bytes(), envelope, site.settings().site)
    if isinstance(found, Refusal):
        raise Refused(found)
    write(next_of(site.site_root_file), envelope)
    typer.echo(f"the gateway takes up version {found.document.version} of the site root")


def _current(home: Path) -> SiteRoot:
    site = enrolled(home)
    try:
        data = site.site_root_file.read_bytes()
        return load_json(Signed.parse(data, SITE_ROOT, "site root").payload_of_kind(), SiteRoot, "site root")
    except (OSError, Malformed) as error:
        raise CannotProceed(f"{site.site_root_file} cannot be read: {error}") from error


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(max(MAX_BYTES, MAX_ENVELOPE_BYTES) + 1)
    except OSError as error:
        raise CannotProceed(f"{file}: {error.strerror}") from error
