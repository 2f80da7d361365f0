"""What the `msfl registry` commands share: their options, how they open things, how they answer, how they end.

Exit code: 0 done, 1 failed, 2 usage, 3 refused by governance. With `--json` the answer is one JSON object.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from msfl.policies.keys import KeyPair
    from msfl.policies.refusals import Refusal
    from msfl.policies.trust import Revoked, TrustedFederationRoot
    from msfl.registry.interface import Registry

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Release = Annotated[str, typer.Argument(help="A folder with a release.yaml, or the name of a built-in release.")]
Ref = Annotated[str, typer.Argument(help="name:version, sha256:…, or the version alone where there is one name.")]
RegistryAt = Annotated[str, typer.Option("--registry", help="A folder, or https://host/repository.")]
AccessFile = Annotated[
    Path | None,
    typer.Option(
        "--access",
        help="A JSON file with user, password, ca and hosts of the registry.",
        exists=True,  # A gateway may have none; a file that somebody names and that is not there is a mistake.
        dir_okay=False,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="Build a self-contained image on this one: a name for the engine at DOCKER_HOST, an OCI layout folder, or "
        "a file of `docker save`.",
    ),
]
Key = Annotated[Path, typer.Option(help="The signer's Ed25519 private key, a PEM file.", exists=True, dir_okay=False)]
Publisher = Annotated[str, typer.Option(help="The publisher's name in the federation root.")]
Days = Annotated[int, typer.Option("--valid-days", min=1, max=3650, help="Days until the signed word expires.")]
_ROOT_HELP = "The signed federation root, or the centre's trust folder, whose revocation list then counts, too."
Root = Annotated[Path, typer.Option("--root", help=_ROOT_HELP, exists=True)]
MaybeRoot = Annotated[Path | None, typer.Option("--root", help=_ROOT_HELP, exists=True)]


def open_at(location: str, access: Path | None) -> Registry:
    from msfl.registry.location import BadLocation, open_registry

    try:
        return open_registry(location, access)
    except BadLocation as error:
        fail(str(error))


def digest_of(opened: Registry, ref: str) -> str:
    """Of `name:version`, of a version where the registry has it under one name only, or the digest itself; of an image
    that is there."""
    from msfl.registry.interface import NotInRegistry, checked_digest
    from msfl.registry.publish import list_releases, resolve_release

    try:
        if ref.startswith("sha256:"):
            digest = checked_digest(ref)
            opened.get_manifest(digest)
            return digest
        if ":" in ref:
            return resolve_release(opened, ref)
        found = [digest for name, digest in list_releases(opened) if name.endswith(f":{ref}")]
    except (NotInRegistry, ValueError) as error:
        fail(f"{error}. See what there is: msfl registry list")
    if len(found) != 1:
        how_many = f"{len(found)} releases have" if found else "No release has"
        fail(f"{how_many} the version {ref}; name it as name:version. See: msfl registry list")
    return found[0]


def key_in(path: Path) -> KeyPair:
    from msfl.policies.keys import BadKey, KeyPair, passphrase_of

    try:
        return KeyPair.from_pem(path.read_bytes(), passphrase_of("", os.environ))
    except BadKey as error:
        fail(f"{path}: {error}")


def root_at(as_json: bool, path: Path) -> tuple[TrustedFederationRoot, Revoked]:
    """The root, and what the federation has revoked, where `path` is a trust folder with a list."""
    from msfl.policies.encoding import sha256_of
    from msfl.policies.refusals import Refusal
    from msfl.policies.trust import NOTHING_REVOKED, Revoked, trust_federation_root, trust_revocations

    file = path / "federation-root.dsse" if path.is_dir() else path
    try:
        envelope = file.read_bytes()
    except OSError as error:
        fail(f"{path} holds no federation root: {error.strerror}")
    root = trust_federation_root(envelope, sha256_of(envelope), now())
    if isinstance(root, Refusal):
        refused(as_json, root)
    listed = path / "revocations.dsse"
    if not path.is_dir() or not listed.is_file():
        return root, NOTHING_REVOKED
    revoked = trust_revocations(listed.read_bytes(), root)
    if isinstance(revoked, Refusal):
        refused(as_json, revoked)
    document = revoked.document
    return root, Revoked(*map(frozenset, (document.keys, document.releases, document.policies, document.sites)))


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def say(as_json: bool, text: str, **fields: object) -> None:
    if as_json:
        Console(soft_wrap=True).print_json(json.dumps(fields))
    else:
        Console(soft_wrap=True).print(text, markup=False, highlight=False)


def note(text: str) -> None:
    """Beside the answer, for people."""
    Console(stderr=True, soft_wrap=True).print(text, style="yellow", markup=False, highlight=False)


def refused(as_json: bool, refusal: Refusal) -> NoReturn:
    say(as_json, f"Refused ({refusal.code.value}): {refusal.message}", refused=refusal.to_json())
    raise typer.Exit(3)


def fail(why: str, code: int = 1) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(why, style="red", markup=False, highlight=False)
    raise typer.Exit(code)
