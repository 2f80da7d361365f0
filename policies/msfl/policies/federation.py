"""`msfl federation revoke|timestamp|root|cosign`: for whoever keeps the federation's keys. Needs nothing but a folder.

    FOLDER/  federation-root.dsse   roots/<version>.dsse   revocations.dsse   timestamp.dsse
             the centre's trust/ folder, or a copy of it on the keeper's own machine, from which files are carried over

    revoke ─▶ the next list: the old one and what is new      timestamp ─▶ the newest root and list, for some hours
    root   ─▶ the next root, from a JSON file                 cosign    ─▶ one more keeper's signature
    root --first ─▶ the first root of a federation, before there is a folder: one file, for `msfl orchestrator init`

A document that does not have enough signatures yet waits as `….next.dsse`, where no site sees it; `cosign` adds the
next keeper's, and puts it in its place when it has enough. Order matters after a change of keepers: root, then revoke
(with nothing new, it signs the list again), then timestamp. Exit codes as in `msfl policy`; 3: refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from msfl.policies.documents import FederationRoot, Named, RevocationList, Timestamp, format_utc
from msfl.policies.encoding import MAX_BYTES, Malformed, encode, load_json, sha256_of
from msfl.policies.envelope import (
    FEDERATION_ROOT,
    MAX_ENVELOPE_BYTES,
    REVOCATIONS,
    TIMESTAMP,
    Kind,
    Signed,
    add_signature,
    sign,
)
from msfl.policies.keys import BadKey, KeyPair
from msfl.policies.passphrase import secret_for
from msfl.policies.refusals import Code, Refusal
from msfl.policies.trust import (
    NOTHING_REVOKED,
    Revoked,
    TrustedFederationRoot,
    TrustedRevocations,
    TrustedTimestamp,
    next_federation_root,
    trust_federation_root,
    trust_revocations,
    trust_timestamp,
)
from msfl.policies.words import federation_in_words, root_in_a_line

T = TypeVar("T")
app = typer.Typer(name="federation", help="Revoke, time-stamp, and change the federation's root.", no_args_is_help=True)
TrustOption = Annotated[Path, typer.Option("--trust", help="The folder: the centre's trust/, or a copy of it.")]
KeyOption = Annotated[Path, typer.Option("--key", help="Your private key (PEM).")]
Passphrase = Annotated[bool, typer.Option(help="Ask for the key's passphrase.")]


@dataclass(frozen=True)
class TrustFolder:
    """The federation's documents, as the centre relays them."""

    root: Path

    def federation_root(self) -> TrustedFederationRoot | Refusal:
        """Whoever owns the folder answers for the first root in it; when it expires is for sites to judge."""
        envelope = (self.root / "federation-root.dsse").read_bytes()
        return trust_federation_root(envelope, sha256_of(envelope), datetime.min.replace(tzinfo=UTC))

    def read(self, name: str) -> bytes | None:
        file = self.root / f"{name}.dsse"
        return file.read_bytes() if file.exists() else None

    def write(self, name: str, envelope: bytes) -> Path:
        return write_durably(self.root / f"{name}.dsse", envelope)


def write_durably(file: Path, envelope: bytes) -> Path:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f".{file.name}.new")
    with half.open("wb") as stream:
        stream.write(envelope)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(half, file)
    return file


def next_revocations(
    before: TrustedRevocations | None,
    federation: str,
    now: datetime,
    *,
    keys: tuple[str, ...] = (),
    releases: tuple[str, ...] = (),
    policies: tuple[str, ...] = (),
    sites: tuple[str, ...] = (),
) -> RevocationList:
    """All of the list before, and what is new. Raises pydantic.ValidationError for a name of the wrong form."""
    old = None if before is None else before.document
    return RevocationList(
        federation=federation,
        version=1 if old is None else old.version + 1,
        keys=_union(old.keys if old else (), keys),
        releases=_union(old.releases if old else (), releases),
        policies=_union(old.policies if old else (), policies),
        sites=_union(old.sites if old else (), sites),
        issued=now,
    )


def next_timestamp(
    before: TrustedTimestamp | None,
    root: TrustedFederationRoot,
    revocations: TrustedRevocations,
    now: datetime,
    life: timedelta,
) -> Timestamp:
    """Raises pydantic.ValidationError for a life that is too long."""
    return Timestamp(
        federation=root.document.federation,
        version=1 if before is None else before.document.version + 1,
        root=Named(version=root.document.version, sha256=root.sha256),
        revocations=Named(version=revocations.document.version, sha256=revocations.sha256),
        issued=now,
        expires=now + life,
    )


@app.command()
def revoke(
    trust: TrustOption,
    key: KeyOption,
    key_id: Annotated[list[str] | None, typer.Option(help="A key id: a publisher's, a reviewer's, …")] = None,
    release: Annotated[list[str] | None, typer.Option(help="The digest of an image.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="A policy, as site/policy-id.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="A site.")] = None,
    passphrase: Passphrase = False,
) -> None:
    """Sign the next revocation list: the old one, and what is named here. For good; sites end what runs on it."""
    named = (tuple(names or ()) for names in (key_id, release, policy, site))
    typer.echo(revoke_more(trust, _pair(key, passphrase), *named))


def revoke_more(
    trust: Path,
    pair: KeyPair,
    keys: tuple[str, ...] = (),
    releases: tuple[str, ...] = (),
    policies: tuple[str, ...] = (),
    sites: tuple[str, ...] = (),
) -> str:
    """The same, for whoever has the names: what was done, in words. Ends as the command does."""
    folder, root = TrustFolder(trust), _root(trust)
    old = _old(folder, "revocations", lambda data: trust_revocations(data, root), root)
    try:
        document = next_revocations(
            old if isinstance(old, TrustedRevocations) else None,
            root.document.federation,
            _now(),
            keys=keys,
            releases=releases,
            policies=policies,
            sites=sites,
        )
    except ValueError as error:
        _fail(f"the list cannot be made: {error}", 2)
    left = Revoked(keys=frozenset(document.keys)).without(root.document.keepers)
    if len({keeper.person for keeper in left}) < root.document.threshold:
        _fail("too few keepers would be left to sign the next root; make that first: msfl federation root", 1)
    envelope = sign(encode(document), REVOCATIONS, [pair])
    return _put(folder, "revocations", envelope, _checks(folder, root)["revocations"])


@app.command()
def timestamp(
    trust: TrustOption,
    key: KeyOption,
    hours: Annotated[float, typer.Option(help="How long it is good for, at most 168.")] = 24.0,
    passphrase: Passphrase = False,
) -> None:
    """Sign which root and which revocation list are the newest. Without a fresh one, no site begins a new run."""
    folder, root, pair = TrustFolder(trust), _root(trust), _pair(key, passphrase)
    listed = folder.read("revocations")
    if listed is None:
        _fail(f"{trust} holds no revocation list yet: msfl federation revoke, which may name nothing, makes one", 1)
    revocations = _trusted(trust_revocations(listed, root))
    old = _old(folder, "timestamp", lambda data: trust_timestamp(data, root), root)
    try:
        document = next_timestamp(
            old if isinstance(old, TrustedTimestamp) else None, root, revocations, _now(), timedelta(hours=hours)
        )
    except ValueError as error:
        _fail(f"the timestamp cannot be made: {error}", 2)
    envelope = sign(encode(document), TIMESTAMP, [pair])
    typer.echo(_put(folder, "timestamp", envelope, _checks(folder, root)["timestamp"]))
    typer.echo(f"good until {format_utc(document.expires)}")


@app.command()
def root(
    file: Annotated[Path, typer.Option(help="The root (JSON); with --first also one that waits for a signature.")],
    key: KeyOption,
    trust: Annotated[
        Path | None, typer.Option("--trust", help="Of the next root: the centre's trust/, or a copy of it.")
    ] = None,
    first: Annotated[bool, typer.Option("--first", help="The first root of a federation, which has none yet.")] = False,
    out: Annotated[Path | None, typer.Option(help="With --first: the signed root to write.")] = None,
    passphrase: Passphrase = False,
) -> None:
    """Sign a federation root: the next one (--trust), or the first of a federation (--first --out).

    The next: version one higher, the rest changed as you like. Enough keepers of the root before and of the new one
    must sign the same bytes. The first: version 1, signed by as many of its own keepers as it says.
    """
    if first and out is not None and trust is None:
        typer.echo(_first_root(file, _pair(key, passphrase), out))
        return
    if first or out is not None or trust is None:
        _fail("say --trust FOLDER for the next root of a federation, or --first --out FILE for its first one", 2)
    folder, current, pair = TrustFolder(trust), _root(trust), _pair(key, passphrase)
    payload = _read(file)
    _as_root(payload, file)
    envelope = sign(payload, FEDERATION_ROOT, [pair])
    typer.echo(_put(folder, "federation-root", envelope, _checks(folder, current)["federation-root"]))


def _first_root(file: Path, pair: KeyPair, out: Path) -> str:
    """Nobody vouches for the first root but its own keepers and those who accept it: what is written under `out` is
    complete and was verified as every site will verify it. Until then it waits beside `out`."""
    if out.exists():
        _fail(f"{out} is there already, and a federation has one first root: give another name with --out", 1)
    waits = out.with_name(f"{out.stem}.next{out.suffix}")
    if waits.exists() and waits.resolve() != file.resolve():
        _fail(f"{waits} waits for signatures already: sign that file, or move it away to begin anew", 1)
    given = _read(file, MAX_ENVELOPE_BYTES)
    waiting = b'"payloadType"' in given
    try:
        document = _as_root(
            Signed.parse(given, FEDERATION_ROOT, str(file)).payload_of_kind() if waiting else given, file
        )
        envelope = add_signature(given, FEDERATION_ROOT, pair) if waiting else sign(given, FEDERATION_ROOT, [pair])
    except Malformed as error:
        _fail(str(error), 1)
    if document.version != 1:
        _fail(f"{file}: the first root of a federation has version 1, not {document.version}", 1)
    if pair.id not in {keeper.key_id for keeper in document.keepers}:
        names = ", ".join(dict.fromkeys(keeper.person for keeper in document.keepers))
        _fail(f"{file}: this key is of none of the keepers that it names ({names}); nothing was written", 3)
    found = trust_federation_root(envelope, sha256_of(envelope), _now())
    if isinstance(found, Refusal) and found.code is Code.TOO_FEW_SIGNERS:
        written = write_durably(waits, envelope)
        done = [
            f"{written} waits for further signatures: {found.message}",
            f"The next keeper: msfl federation root --first --file {written} --key … --out {out}",
        ]
    else:
        _trusted(found)
        done = [f"signed {write_durably(out, envelope)}"]
        waits.unlink(missing_ok=True)
    # An envelope cannot be read by eye: who signs it sees here what it says.
    sha256 = Signed.parse(envelope, FEDERATION_ROOT).sha256
    return "\n".join([*done, *federation_in_words(document, sha256)])


def _as_root(payload: bytes, file: Path) -> FederationRoot:
    try:
        return load_json(payload, FederationRoot, str(file))
    except Malformed as error:
        _fail(str(error), 1)


@app.command()
def cosign(trust: TrustOption, key: KeyOption, passphrase: Passphrase = False) -> None:
    """Add your signature to what waits for it."""
    folder, current, pair = TrustFolder(trust), _root(trust), _pair(key, passphrase)
    kinds: dict[str, Kind[Any]] = {
        "federation-root": FEDERATION_ROOT, "revocations": REVOCATIONS, "timestamp": TIMESTAMP
    }  # fmt: skip
    waiting = [name for name in kinds if (trust / f"{name}.next.dsse").exists()]
    if not waiting:
        _fail(f"nothing waits for a signature in {trust}", 1)
    for name in waiting:
        data = folder.read(f"{name}.next")
        assert data is not None
        typer.echo(_put(folder, name, add_signature(data, kinds[name], pair), _checks(folder, current)[name]))


Check = Callable[[bytes], object]


def _checks(folder: TrustFolder, root: TrustedFederationRoot) -> dict[str, Check]:
    current = folder.read("federation-root")
    assert current is not None
    revoked = _revoked(folder)
    return {
        "federation-root": lambda data: next_federation_root(current, data, revoked),
        "revocations": lambda data: trust_revocations(data, root, revoked),
        "timestamp": lambda data: trust_timestamp(data, root),
    }


def _revoked(folder: TrustFolder) -> Revoked:
    """By the list at hand, which was verified when it was put there, under whatever root was in force then."""
    data = folder.read("revocations")
    if data is None:
        return NOTHING_REVOKED
    try:
        signed = Signed.parse(data, REVOCATIONS, "revocation list")
        return Revoked(keys=frozenset(REVOCATIONS.load(signed.payload_of_kind(), signed.file).keys))
    except Malformed as error:
        _fail(str(error), 1)


def _put(folder: TrustFolder, name: str, envelope: bytes, check: Check) -> str:
    found = check(envelope)
    waits = folder.root / f"{name}.next.dsse"
    # The first signature of a rotation may be a new keeper's, whom the old root does not know, or the other way round.
    waiting = {Code.TOO_FEW_SIGNERS} | ({Code.WRONG_SIGNER} if name == "federation-root" else set())
    if isinstance(found, Refusal) and found.code in waiting:
        folder.write(f"{name}.next", envelope)
        return f"{waits} waits for further signatures: {found.message}"
    if isinstance(found, Refusal):
        _fail(found.message, 3)
    if isinstance(found, TrustedFederationRoot):
        before = folder.read("federation-root")
        assert before is not None
        version = found.document.version
        if not (folder.root / f"roots/{version - 1}.dsse").exists():
            folder.write(f"roots/{version - 1}", before)
        folder.write(f"roots/{version}", envelope)
    file = folder.write(name, envelope)
    waits.unlink(missing_ok=True)
    if isinstance(found, TrustedFederationRoot):
        return f"signed {file}\n{root_in_a_line(found.document, found.sha256)}"
    return f"signed {file}"


def _old(folder: TrustFolder, name: str, check: Check, root: TrustedFederationRoot) -> object | None:
    """The document before, or None. One that the root of now does not vouch for was signed under the root before."""
    data = folder.read(name)
    if data is None:
        return None
    found, version = check(data), root.document.version
    before = folder.read(f"roots/{version - 1}")
    if isinstance(found, Refusal) and before is not None:
        earlier = _trusted(trust_federation_root(before, sha256_of(before), datetime.min.replace(tzinfo=UTC)))
        found = trust_revocations(data, earlier) if name == "revocations" else trust_timestamp(data, earlier)
    return _trusted(found)


def _root(trust: Path) -> TrustedFederationRoot:
    try:
        return _trusted(TrustFolder(trust).federation_root())
    except OSError as error:
        first = "the first one of a federation is made with: msfl federation root --first"
        _fail(f"{trust} holds no federation root ({error.strerror}); {first}", 2)


def _trusted(found: T | Refusal) -> T:
    if isinstance(found, Refusal):
        _fail(found.message, 3)
    return found


def _pair(key: Path, passphrase: bool) -> KeyPair:
    secret = secret_for(passphrase, os.environ)
    try:
        return KeyPair.from_pem(_read(key), secret)
    except BadKey as error:
        _fail(f"{key}: {error}", 1)


def _read(file: Path, most: int = MAX_BYTES) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(most + 1)
    except OSError as error:
        _fail(f"{file}: {error.strerror}", 2)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _union(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*old, *new)))


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
