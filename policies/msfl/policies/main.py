"""`msfl policy new|check|explain|sign|keys`: what a custodian does at a terminal. It and `federation` alone
read files here.

    keys ──▶ NAME.key.pem (mode 0600) + NAME.public.json         new ──▶ policy.yaml ──(editor)──▶ check, explain
    sign policy.yaml --key NAME.key.pem ──▶ policy.dsse           sign policy.dsse --key … adds one signature

Exit codes: 0 done, 1 the file is not what it should be, 2 wrong usage. Nothing is overwritten; files are written whole
or not at all.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer
from rich.console import Console

from msfl.policies.documents import AssetPolicy, DatasetRecord, Document, Isolation, Member
from msfl.policies.encoding import MAX_BYTES, Malformed, encode, load_json, load_yaml, sha256_of
from msfl.policies.envelope import (
    ASSET_POLICY,
    MAX_ENVELOPE_BYTES,
    RELEASE_STATEMENT,
    Kind,
    Signed,
    add_signature,
    sign,
)
from msfl.policies.keys import BadKey, KeyPair, encode_public
from msfl.policies.refusals import JsonObject
from msfl.policies.templates import policy_template
from msfl.policies.words import in_words, warnings

D = TypeVar("D", bound=Document)
app = typer.Typer(name="policy", help="Write, check, explain and sign asset policies.", no_args_is_help=True)
_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
PolicyFile = Annotated[Path, typer.Argument(help="A policy: YAML, or its signed envelope.", show_default=False)]


@app.command()
def keys(
    person: Annotated[str, typer.Argument(help="Whose key: a name or address, as the site root will list it.")],
    folder: Annotated[Path, typer.Option(help="Where both files go.")] = Path(),
    passphrase: Annotated[bool, typer.Option(help="Ask for a passphrase that protects the key.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a custodian's key. The private file never leaves this site."""
    secret = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True).encode() if passphrase else None
    pair = KeyPair.generate()
    try:
        member = Member(person=person, key_id=pair.id, public_key=encode_public(pair.public))
    except ValueError:
        _fail(f"{person!r} is no name for a signer: use lower-case letters, digits and . _ + @ -", 2)
    private, public = folder / f"{person}.key.pem", folder / f"{person}.public.json"
    if public.exists():
        _fail(f"{public} exists already; nothing was written.", 1)
    _write(private, pair.to_pem(secret), mode=0o600)
    _write(public, encode(member) + b"\n")
    said = [f"Private key: {private} (mode 0600, keep it here)", f"Public key:  {public}", f"Key id:      {pair.id}"]
    _say(as_json, {"private": str(private), "public": str(public), "key_id": pair.id}, said)


@app.command()
def new(
    release: Annotated[Path, typer.Option(help="The release statement (JSON, or its signed envelope).")],
    dataset: Annotated[Path, typer.Option(help="The dataset record (JSON).")],
    user: Annotated[list[str], typer.Option(help="Who may use the data; repeat for several.")],
    out: Annotated[Path, typer.Option(help="The YAML file to write.")] = Path("policy.yaml"),
    purpose: Annotated[str, typer.Option(help="One line: what the data are used for.")] = "",
    days: Annotated[int, typer.Option(min=1, help="Days in force, from now.")] = 180,
    rounds: Annotated[int, typer.Option(min=1, help="The most rounds of one run.")] = 100,
    reviewers: Annotated[int, typer.Option(min=1, help="Reviewers the release must have.")] = 1,
    isolation: Annotated[Isolation, typer.Option(help="The least isolation accepted.")] = Isolation.SANDBOX,
    auto: Annotated[bool, typer.Option(help="Start runs without asking the custodian.")] = False,
    local_model: Annotated[bool, typer.Option(help="Let this site's own model leave.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a policy for one release and one dataset, to be read, narrowed and signed."""
    statement = _document(release, RELEASE_STATEMENT)
    try:
        record = load_json(_read(dataset, MAX_BYTES), DatasetRecord, str(dataset))
        text = policy_template(
            statement,
            record,
            user,
            datetime.now(UTC),
            purpose=purpose,
            valid_for=timedelta(days=days),
            rounds_max=rounds,
            reviewers=reviewers,
            isolation=isolation,
            mode="auto" if auto else "confirm",
            local_model=local_model,
        )
    except Malformed as error:
        _fail(str(error), 1)
    _write(out, text.encode())
    said = [f"Wrote {out}. Read and narrow it, then: msfl policy check {out} && msfl policy sign {out} --key …"]
    _say(as_json, {"policy": str(out), "sha256": sha256_of(text.encode())}, said)


@app.command()
def check(file: PolicyFile, as_json: AsJson = False) -> None:
    """Say what is wrong with a policy, line by line, and what deserves a second look."""
    try:
        policy, payload = _policy(file)
    except Malformed as error:
        problems = [{"line": p.line, "key": p.key, "what": p.what, "allowed": p.allowed} for p in error.problems]
        _say(as_json, {"file": str(file), "valid": False, "problems": problems}, str(error).splitlines())
        raise typer.Exit(1) from None
    looks = warnings(policy, datetime.now(UTC))
    facts = {"file": str(file), "valid": True, "sha256": sha256_of(payload), "warnings": list(looks)}
    _say(as_json, facts, [f"{file}: valid, {sha256_of(payload)}", *(f"  note: {look}" for look in looks)])


@app.command()
def explain(file: PolicyFile, as_json: AsJson = False) -> None:
    """Say in plain words what a policy allows."""
    try:
        policy, payload = _policy(file)
    except Malformed as error:
        _fail(str(error), 1)
    lines = in_words(policy)
    _say(as_json, {"file": str(file), "sha256": sha256_of(payload), "words": list(lines)}, lines)


@app.command(name="sign")
def sign_(
    file: PolicyFile,
    key: Annotated[Path, typer.Option(help="The custodian's private key (PEM).")],
    out: Annotated[Path | None, typer.Option(help="The envelope to write. Default: FILE with .dsse")] = None,
    passphrase: Annotated[bool, typer.Option(help="Ask for the key's passphrase.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sign exactly these bytes. Given an envelope, add one more custodian's signature to it."""
    secret = typer.prompt("Passphrase", hide_input=True).encode() if passphrase else None
    try:
        pair = KeyPair.from_pem(_read(key, MAX_BYTES), secret)
        policy, payload = _policy(file)
        if _is_envelope(file):
            envelope = add_signature(_read(file, MAX_ENVELOPE_BYTES), ASSET_POLICY, pair)
        else:
            envelope = sign(payload, ASSET_POLICY, [pair])
    except Malformed as error:
        _fail(str(error), 1)
    except BadKey as error:
        _fail(f"{key}: {error}", 1)
    target = out or (file.with_suffix(f".{pair.id[:8]}.json") if _is_envelope(file) else file.with_suffix(".dsse"))
    _write(target, envelope)
    facts = {"envelope": str(target), "policy": policy.id, "sha256": sha256_of(payload), "key_id": pair.id}
    _say(as_json, facts, [f"Signed {policy.id} version {policy.version} with key {pair.id[:16]}…: {target}"])


def _policy(file: Path) -> tuple[AssetPolicy, bytes]:
    """The policy and the exact bytes of its YAML. Raises Malformed."""
    data = _read(file, MAX_ENVELOPE_BYTES)
    payload = Signed.parse(data, ASSET_POLICY, str(file)).payload_of_kind() if _is_envelope(file) else data
    return load_yaml(payload, AssetPolicy, str(file)), payload


def _document(file: Path, kind: Kind[D]) -> D:
    """A document, bare or in its envelope, not verified: a template is a proposal; the gateway verifies."""
    try:
        data = _read(file, MAX_ENVELOPE_BYTES)
        if b'"payloadType"' in data[:MAX_BYTES]:
            data = Signed.parse(data, kind, str(file)).payload_of_kind()
        return kind.load(data, str(file))
    except Malformed as error:
        _fail(str(error), 1)


def _is_envelope(file: Path) -> bool:
    return file.suffix == ".json"


def _read(file: Path, most: int) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(most + 1)
    except OSError as error:
        _fail(f"{file}: {error.strerror}", 2)


def _write(file: Path, data: bytes, mode: int = 0o644) -> None:
    half = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(half, file)  # unlike a rename, this never replaces a file
    except FileExistsError:
        _fail(f"{file} exists already; nothing was written.", 1)
    except OSError as error:
        _fail(f"{file}: {error.strerror}", 2)
    finally:
        half.unlink(missing_ok=True)


def _say(as_json: bool, facts: JsonObject, lines: list[str] | tuple[str, ...]) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for line in lines:
        _out.print(line, markup=False)


def _fail(message: str, code: int) -> NoReturn:
    _err.print(message, markup=False)
    raise typer.Exit(code)
