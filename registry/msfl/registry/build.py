"""From a release's recipe and the installed code to an image: no daemon, no base image, the same bytes every time.

    release.yaml ── strict ──▶ Recipe ──┬─ code, found where Python finds it ──────▶ layer 2
                                        └─ requires ── lock_environment ───────────▶ layer 1  msfl-environment.json
    config (entry point, labels, diff_ids) + manifest ──▶ digest ──▶ ReleaseStatement, to be signed by the publisher

Sorted names, no times, no owners: who builds the same code with the same packages gets the same digest, and can so
check a published release without trusting who built it. The image is a plain OCI image; `skopeo copy` moves it.
"""

from __future__ import annotations

import importlib
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from msfl.policies.documents import (
    Bound,
    ConfigKey,
    ConfigValue,
    Document,
    ReleaseResources,
    ReleaseStatement,
    Slug,
    Task,
    Text,
    Version,
)
from msfl.policies.encoding import canonical_json, load_yaml, sha256_of
from msfl.registry.environment import FILE_NAME, EnvironmentLock, lock_environment
from msfl.registry.interface import CONFIG, LAYER, LAYER_KIND, MANIFEST, Descriptor
from msfl.registry.layer import write_layer
from msfl.registry.pull import ENVIRONMENT_LABEL, NAME_LABEL, VERSION_LABEL

RECIPE_NAME = "release.yaml"
_ARCHITECTURES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64"}
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")

CodePath = Annotated[str, StringConstraints(pattern=r"^msfl(?:/[A-Za-z_][A-Za-z0-9_]*)+(?:\.py)?$", max_length=200)]


class BadRelease(ValueError):
    """The recipe cannot be built here. The message says what is missing and what to do."""


class Recipe(Document):
    """`release.yaml`, written by hand. `code` names packages and modules by path: `msfl/learning`, `msfl/x/y.py`."""

    api_version: Literal["msfl/v1"] = "msfl/v1"
    kind: Literal["Release"] = "Release"
    name: Slug
    version: Version
    entrypoint: tuple[str, ...] = Field(min_length=1)
    code: tuple[CodePath, ...] = Field(min_length=1)
    requires: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = Field(min_length=1)
    profiles: Mapping[Slug, Mapping[ConfigKey, ConfigValue]] = Field(min_length=1)
    config: Mapping[ConfigKey, Bound]
    outputs: Mapping[str, Any]
    resources: ReleaseResources = ReleaseResources()
    description: Text = ""


@dataclass(frozen=True)
class BuiltRelease:
    """An image in memory: `layers` are compressed, `digest` is the manifest's."""

    recipe: Recipe
    environment: EnvironmentLock
    layers: tuple[bytes, ...]
    config: bytes
    manifest: bytes

    @property
    def digest(self) -> str:
        return sha256_of(self.manifest)

    @property
    def ref(self) -> str:
        return f"{self.recipe.name}:{self.recipe.version}"

    def statement(self, *, publisher: str, commit: str, issued: datetime, expires: datetime) -> ReleaseStatement:
        """What the publisher is to sign: `sign(encode(statement), RELEASE_STATEMENT, [key])`."""
        return ReleaseStatement(
            name=self.recipe.name,
            version=self.recipe.version,
            digest=self.digest,
            commit=commit,
            publisher=publisher,
            entrypoint=self.recipe.entrypoint,
            environment_sha256=self.environment.sha256,
            tasks=self.recipe.tasks,
            profiles=self.recipe.profiles,
            config=self.recipe.config,
            outputs=self.recipe.outputs,
            resources=self.recipe.resources,
            description=self.recipe.description,
            issued=issued,
            expires=expires,
        )


def find_recipe(release: str) -> Path:
    """The `release.yaml` of a folder, or of a release that comes with msfl (`nnunet`). Raises BadRelease."""
    candidates = [Path(release) / RECIPE_NAME]
    if release.isidentifier():
        candidates += [portion / "learning" / release / RECIPE_NAME for portion in _namespace()]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted(p.parent.name for portion in _namespace() for p in portion.glob(f"learning/*/{RECIPE_NAME}"))
    raise BadRelease(f"{release} is neither a folder with a {RECIPE_NAME} nor one of: {', '.join(known) or 'none'}")


def build_release(
    recipe_path: Path,
    site_packages: Path,
    *,
    environment: EnvironmentLock | None = None,
    namespace: tuple[Path, ...] | None = None,
) -> BuiltRelease:
    """Read the recipe, collect its code, lock its environment (or take `environment`), and assemble the image.

    `namespace` are the folders that make up the package msfl; as Python finds them when not given.
    Raises Malformed for the recipe, BadRelease, BadEnvironment.
    """
    recipe = load_yaml(recipe_path.read_bytes(), Recipe, str(recipe_path))
    code = collect_code(recipe.code, namespace or _namespace())
    _check_entrypoint(recipe, code)
    lock = environment or lock_environment(recipe.requires, site_packages)
    packed = [write_layer({FILE_NAME: lock.to_bytes()}), write_layer(code)]
    labels = {NAME_LABEL: recipe.name, VERSION_LABEL: recipe.version, ENVIRONMENT_LABEL: lock.sha256}
    config = canonical_json(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Entrypoint": list(recipe.entrypoint), "Labels": labels, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in packed]},
            "history": [{"created_by": "msfl: environment lock"}, {"created_by": "msfl: code"}],
        }
    )
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor(CONFIG, sha256_of(config), len(config)).to_json(),
            "layers": [
                Descriptor(LAYER, sha256_of(layer), len(layer), annotations={LAYER_KIND: kind}).to_json()
                for kind, (layer, _) in zip(("environment", "code"), packed, strict=True)
            ],
            "annotations": labels,
        }
    )
    return BuiltRelease(recipe, lock, tuple(layer for layer, _ in packed), config, manifest)


def collect_code(paths: tuple[str, ...], namespace: tuple[Path, ...]) -> dict[str, bytes]:
    """Name in the image → bytes, for every file below `paths`. Raises BadRelease."""
    code: dict[str, bytes] = {}
    for name in paths:
        inside = name.removeprefix("msfl/")
        found = [portion / inside for portion in namespace if (portion / inside).exists()]
        if len(found) != 1:
            where = "nowhere" if not found else " and ".join(map(str, found))
            raise BadRelease(f"the recipe names {name}, which is installed {where}; it must be there exactly once")
        for path in [found[0]] if found[0].is_file() else sorted(found[0].rglob("*")):
            if path.is_symlink():
                raise BadRelease(f"{path} is a symbolic link; an image holds plain files only")
            inner = path.relative_to(found[0]).as_posix()
            if path.is_dir() or "__pycache__" in path.parts or path.name.startswith(".") or path.suffix == ".pyc":
                continue
            code[name if inner == "." else f"{name}/{inner}"] = path.read_bytes()
    return code


def _check_entrypoint(recipe: Recipe, code: Mapping[str, bytes]) -> None:
    match recipe.entrypoint:
        case ("python", "-m", module) if _MODULE.fullmatch(module):
            path = module.replace(".", "/")
            if f"{path}/__main__.py" not in code and f"{path}.py" not in code:
                raise BadRelease(f"the entry point {module} is not among the recipe's code; add its package to code")
        case other:
            raise BadRelease(f"the entry point is {list(other)}; it must be [python, -m, <module>]")


def _namespace() -> tuple[Path, ...]:
    return tuple(dict.fromkeys(Path(portion).resolve() for portion in importlib.import_module("msfl").__path__))
