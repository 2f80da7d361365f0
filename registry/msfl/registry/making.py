"""`msfl registry init | build | push`: from a recipe to an image in a registry, with nobody's signature yet."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from msfl.registry.terminal import AccessFile, AsJson, Base, RegistryAt, Release, fail, note, open_at, say

if TYPE_CHECKING:
    from msfl.registry.build import BuiltRelease
    from msfl.registry.interface import Registry


def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make.", file_okay=False)], as_json: AsJson = False
) -> None:
    """Make an empty registry: a folder in the OCI image layout."""
    from msfl.registry.oci_layout import LayoutRegistry

    LayoutRegistry.create(folder)
    say(as_json, f"{folder} is a registry.", registry=str(folder))


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

    with built_release(release, base) as built:
        if out is not None:
            put(LayoutRegistry.create(out), built, f"{out} is taken; name another folder: ")
        below = f" on {built.base.name or 'the base'} ({built.base.digest})" if built.base else ""
        say(
            as_json,
            f"{built.ref} is {built.digest}{below}: {built.size / 1e6:.1f} MB, "
            f"{len(built.environment.distributions)} distributions locked as {built.environment.sha256}."
            + (
                "" if built.base else " Without --base it runs on hosts with exactly these packages, not in containers."
            ),
            release=built.ref,
            digest=built.digest,
            bytes=built.size,
            self_contained=built.base is not None,
            base={"name": built.base.name, "digest": built.base.digest} if built.base else None,
            environment_sha256=built.environment.sha256,
            distributions={name: d.version for name, d in built.environment.distributions.items()},
        )


def push(
    release: Release, registry: RegistryAt, base: Base = None, access: AccessFile = None, as_json: AsJson = False
) -> None:
    """Build a release and push its image. Nobody may run it before it is submitted and reviewed."""
    opened = open_at(registry, access)
    with built_release(release, base) as built:
        digest = put(opened, built)
        say(as_json, f"Pushed {built.ref} as {digest}.", release=built.ref, digest=digest)


def put(registry: Registry, built: BuiltRelease, prefix: str = "") -> str:
    from msfl.registry.publish import AlreadyPublished, push_release

    try:
        return push_release(registry, built)
    except AlreadyPublished as error:
        fail(f"{prefix}{error}")


@contextmanager
def built_release(release: str, base: str | None) -> Iterator[BuiltRelease]:
    """The layers of a base lie in files that are gone after the block."""
    from msfl.policies.encoding import Malformed
    from msfl.registry.base import BadBase, read_base
    from msfl.registry.build import BadRelease, build_release, find_recipe
    from msfl.registry.environment import BadEnvironment

    with tempfile.TemporaryDirectory(prefix="msfl-base-") as folder:
        try:
            recipe, below = find_recipe(release), None
            if base is not None:
                with Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True) as shown:
                    step = shown.add_task(f"reading the base {base}", total=None)
                    below = read_base(
                        base, Path(folder), lambda done, total: shown.update(step, completed=done, total=total)
                    )
            with Console(stderr=True).status("Locking the environment and building …"):
                built = build_release(recipe, Path(sysconfig.get_paths()["purelib"]), base=below)
        except BadEnvironment as error:
            fail(str(error) if base is None else f"in the base {base}: {error}")
        except (BadRelease, BadBase, Malformed) as error:
            fail(str(error))
        yield built


def commit_of(recipe: Path) -> str:
    """The commit in which the recipe and all that lies beside it stand as they are, or "unknown"."""
    git, folder = shutil.which("git"), recipe.resolve().parent
    if git is None:
        return "unknown"

    def ask(*question: str) -> str | None:
        asked = subprocess.run([git, "-C", str(folder), *question], capture_output=True, text=True, check=False)
        return asked.stdout.strip() if asked.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", recipe.name) is None:
        return "unknown"
    if ask("status", "--porcelain", "--", "."):
        note(f"{folder} has changes that are not committed, so the statement names no commit.")
        return "unknown"
    return ask("rev-parse", "HEAD") or "unknown"
