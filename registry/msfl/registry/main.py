"""The `msfl registry` commands.

    command    does                                                              signed by
    init       makes an empty registry, a folder in the OCI image layout
    build      builds a release and says its digest; writes nothing
    push       builds, pushes the image, attaches the publisher's statement      publisher
    review     attaches a reviewer's approve or reject of exactly that statement reviewer
    publish    checks statement and reviews against the federation root
    list       lists what the registry holds

A release is named by a folder with a release.yaml, or as one that comes with msfl (`nnunet`); what is pushed is named
`name:version`. Keys are PEM files; an encrypted one is opened with the passphrase in MSFL_KEY_PASSPHRASE.
Exit code: 0 done, 1 failed, 2 usage, 3 refused by governance. With `--json` the answer is one JSON object.
"""

import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from msfl.policies.keys import KeyPair
    from msfl.policies.refusals import Refusal
    from msfl.registry.build import BuiltRelease
    from msfl.registry.interface import Registry

app = typer.Typer(name="registry", help="Build, push, review and publish releases.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Release = Annotated[str, typer.Argument(help="A folder with a release.yaml, or the name of a built-in release.")]
Ref = Annotated[str, typer.Argument(help="name:version, or sha256:…")]
RegistryAt = Annotated[str, typer.Option("--registry", help="A folder, or https://host/repository.")]
AccessFile = Annotated[
    Path | None,
    typer.Option("--access", help="A JSON file with user, password, ca and hosts of the registry.", dir_okay=False),
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
Days = Annotated[int, typer.Option("--valid-days", min=1, max=3650, help="Days until the signed word expires.")]


@app.callback()
def registry() -> None:
    """Build, push, review and publish releases."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make.", file_okay=False)], as_json: AsJson = False
) -> None:
    """Make an empty registry: a folder in the OCI image layout."""
    from msfl.registry.oci_layout import LayoutRegistry

    LayoutRegistry.create(folder)
    _say(as_json, f"{folder} is a registry.", registry=str(folder))


@app.command()
def build(
    release: Release,
    base: Base = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the image to this OCI layout folder.", file_okay=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build a release and say its digest. The same code, packages and base always give the same digest."""
    from msfl.registry.oci_layout import LayoutRegistry
    from msfl.registry.publish import AlreadyPublished, push_release

    with _built(release, base) as built:
        if out is not None:
            try:
                push_release(LayoutRegistry.create(out), built)
            except AlreadyPublished as error:
                _fail(f"{out}: {error}; or name another folder")
        below = f" on {built.base.name or 'the base'} ({built.base.digest})" if built.base else ""
        _say(
            as_json,
            f"{built.ref} is {built.digest}{below}: {built.size / 1e6:.1f} MB, "
            f"{len(built.environment.distributions)} distributions locked as {built.environment.sha256}.",
            release=built.ref,
            digest=built.digest,
            bytes=built.size,
            self_contained=built.base is not None,
            base={"name": built.base.name, "digest": built.base.digest} if built.base else None,
            environment_sha256=built.environment.sha256,
            distributions={name: d.version for name, d in built.environment.distributions.items()},
        )


@app.command()
def push(
    release: Release,
    registry: RegistryAt,
    key: Key,
    publisher: Annotated[str, typer.Option(help="The publisher's name in the federation root.")],
    base: Base = None,
    valid_days: Days = 365,
    access: AccessFile = None,
    as_json: AsJson = False,
) -> None:
    """Build a release, push its image, and attach the statement signed with the publisher's key."""
    from msfl.policies.encoding import encode
    from msfl.policies.envelope import RELEASE_STATEMENT, sign
    from msfl.registry.publish import AlreadyPublished, push_release, submit_statement

    pair, opened, issued = _key(key), _open(registry, access), _now()
    with _built(release, base) as built:
        statement = built.statement(
            publisher=publisher, commit=_commit(), issued=issued, expires=issued + timedelta(days=valid_days)
        )
        try:
            digest = push_release(opened, built)
        except AlreadyPublished as error:
            _fail(str(error))
    submit_statement(opened, digest, sign(encode(statement), RELEASE_STATEMENT, [pair]))
    _say(
        as_json,
        f"Pushed {statement.ref} as {digest}, signed by {publisher}.",
        release=statement.ref,
        digest=digest,
        key=pair.id,
    )


@app.command()
def review(
    ref: Ref,
    registry: RegistryAt,
    key: Key,
    reviewer: Annotated[str, typer.Option(help="The reviewer's name in the federation root.")],
    reject: Annotated[bool, typer.Option("--reject", help="Reject instead of approve.")] = False,
    comment: Annotated[str, typer.Option(help="Why.")] = "",
    valid_days: Days = 365,
    access: AccessFile = None,
    as_json: AsJson = False,
) -> None:
    """Attach a signed approval, or rejection, of exactly the statement that is attached now."""
    from msfl.policies.documents import Review
    from msfl.policies.encoding import encode
    from msfl.policies.envelope import RELEASE_STATEMENT, REVIEW, Signed, sign
    from msfl.registry.interface import NotInRegistry
    from msfl.registry.publish import add_review, statements_of

    pair, opened = _key(key), _open(registry, access)
    digest = _digest(opened, ref)
    try:
        statement, _ = statements_of(opened, digest)
    except NotInRegistry as error:
        _fail(f"{error}. There is nothing to review yet; the publisher pushes it with: msfl registry push")
    issued = _now()
    word = Review(
        digest=digest,
        statement_sha256=Signed.parse(statement, RELEASE_STATEMENT).sha256,
        verdict="reject" if reject else "approve",
        comment=comment,
        reviewer=reviewer,
        issued=issued,
        expires=issued + timedelta(days=valid_days),
    )
    add_review(opened, digest, sign(encode(word), REVIEW, [pair]))
    _say(
        as_json,
        f"{reviewer}: {word.verdict} {digest}.",
        digest=digest,
        verdict=word.verdict,
        statement_sha256=word.statement_sha256,
    )


@app.command()
def publish(
    ref: Ref,
    registry: RegistryAt,
    root: Annotated[Path, typer.Option(help="The signed federation root.", exists=True, dir_okay=False)],
    access: AccessFile = None,
    as_json: AsJson = False,
) -> None:
    """Check that statement and reviews satisfy the federation root: what every site will check again by itself."""
    from msfl.policies.encoding import sha256_of
    from msfl.policies.refusals import Refusal
    from msfl.policies.trust import trust_federation_root
    from msfl.registry.publish import publication

    opened = _open(registry, access)
    digest = _digest(opened, ref)
    envelope = root.read_bytes()
    trusted_root = trust_federation_root(envelope, sha256_of(envelope), _now())
    if isinstance(trusted_root, Refusal):
        _refuse(as_json, trusted_root)
    release = publication(opened, digest, trusted_root, _now())
    if isinstance(release, Refusal):
        _refuse(as_json, release)
    _say(
        as_json,
        f"{release.statement.ref} is published: {digest}, reviewed by {', '.join(release.reviewers) or 'nobody'}.",
        release=release.statement.ref,
        digest=digest,
        publisher=release.publisher,
        reviewers=list(release.reviewers),
    )


@app.command("list")
def list_(registry: RegistryAt, access: AccessFile = None, as_json: AsJson = False) -> None:
    """List the releases that the registry holds, with how many papers are attached to each."""
    from msfl.registry.publish import REVIEW_TYPE, STATEMENT_TYPE, list_releases

    opened = _open(registry, access)
    rows = [
        {
            "release": ref,
            "digest": digest,
            "statements": len(opened.referrers(digest, STATEMENT_TYPE)),
            "reviews": len(opened.referrers(digest, REVIEW_TYPE)),
        }
        for ref, digest in list_releases(opened)
    ]
    lines = [f"{r['release']}  {r['digest']}  {r['statements']} statements, {r['reviews']} reviews" for r in rows]
    _say(as_json, "\n".join(lines) or f"{registry} holds no release.", releases=rows)


# ------------------------------------------------------------------------------------------- what commands share


@contextmanager
def _built(release: str, base: str | None) -> Iterator["BuiltRelease"]:
    """The layers of a base lie in files that are gone after the block."""
    from msfl.policies.encoding import Malformed
    from msfl.registry.base import BadBase, read_base
    from msfl.registry.build import BadRelease, build_release, find_recipe
    from msfl.registry.environment import BadEnvironment

    with tempfile.TemporaryDirectory(prefix="msfl-base-") as folder:
        try:
            recipe, below = find_recipe(release), None
            if base is not None:
                with Console(stderr=True).status(f"Reading the base {base} and packing its layers …"):
                    below = read_base(base, Path(folder))
            with Console(stderr=True).status("Locking the environment and building …"):
                built = build_release(recipe, Path(sysconfig.get_paths()["purelib"]), base=below)
        except (BadRelease, BadBase, BadEnvironment, Malformed) as error:
            _fail(str(error))
        yield built


def _open(location: str, access: Path | None) -> "Registry":
    from msfl.registry.location import BadLocation, open_registry

    try:
        return open_registry(location, access)
    except BadLocation as error:
        _fail(str(error))


def _digest(opened: "Registry", ref: str) -> str:
    from msfl.registry.interface import NotInRegistry
    from msfl.registry.publish import resolve_release

    if ref.startswith("sha256:"):
        return ref
    try:
        return resolve_release(opened, ref)
    except NotInRegistry as error:
        _fail(f"{error}. See what there is: msfl registry list")


def _key(path: Path) -> "KeyPair":
    from msfl.policies.keys import BadKey, KeyPair

    passphrase = os.environ.get("MSFL_KEY_PASSPHRASE")
    try:
        return KeyPair.from_pem(path.read_bytes(), passphrase.encode() if passphrase else None)
    except BadKey as error:
        _fail(f"{path}: {error}. An encrypted key needs its passphrase in MSFL_KEY_PASSPHRASE.")


def _commit() -> str:
    """The commit of msfl's own code, or "unknown" when it is not run from its repository."""
    git, here = shutil.which("git"), Path(__file__)
    if git is None:
        return "unknown"
    answer = "unknown"
    for question in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
        asked = subprocess.run([git, "-C", str(here.parent), *question], capture_output=True, text=True, check=False)
        if asked.returncode != 0:
            return "unknown"
        answer = asked.stdout.strip()
    return answer


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _say(as_json: bool, text: str, **fields: object) -> None:
    if as_json:
        Console(soft_wrap=True).print_json(json.dumps(fields))
    else:
        Console(soft_wrap=True).print(text, markup=False, highlight=False)


def _refuse(as_json: bool, refusal: "Refusal") -> NoReturn:
    _say(as_json, f"Refused ({refusal.code.value}): {refusal.message}", refused=refusal.to_json())
    raise typer.Exit(3)


def _fail(why: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(why, style="red", markup=False, highlight=False)
    raise typer.Exit(1)
