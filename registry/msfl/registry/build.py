"""From a release's recipe and its code to an image: the same bytes every time, with or without a base image below.

    base, if any ── read_base ─────────────────────────────────────────────────────▶ base layers
    release.yaml ── strict ──▶ Recipe ──┬─ requires ── lock of this Python, or the base's ─▶ environment layer
                                        └─ code: msfl's, and the release folder's own ─────▶ code layer
    config (entry point, labels, diff_ids) + manifest ──▶ digest ──▶ ReleaseStatement, to be signed by the publisher

Without a base, an image holds msfl's two layers only, and runs on a host whose Python is the locked one. With a base it
is self-contained: a container engine can start it; the two layers of msfl, marked by `msfl.layer`, lie on top.

Sorted names, no times, no owners: who builds the same code with the same packages gets the same digest, and can so
check a published release without trusting who built it. The image is a plain OCI image; `skopeo copy` moves it.
"""

from __future__ import annotations

import importlib
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from msfl.policies.documents import (
    BaseName,
    Bound,
    ConfigKey,
    ConfigValue,
    Document,
    Materials,
    ReleaseResources,
    ReleaseStatement,
    Slug,
    Task,
    Text,
    Version,
)
from msfl.policies.encoding import canonical_json, load_yaml, sha256_of
from msfl.registry.base import ARCHITECTURES, BaseImage
from msfl.registry.base_python import lock_base
from msfl.registry.environment import FILE_NAME, EnvironmentLock, lock_environment
from msfl.registry.interface import CONFIG, LAYER, LAYER_KIND, MANIFEST, Descriptor
from msfl.registry.layer import write_layer
from msfl.registry.model_card import ModelCard
from msfl.registry.pull import ENVIRONMENT_LABEL, NAME_LABEL, VERSION_LABEL
from msfl.registry.sbom import write_sbom

RECIPE_NAME = "release.yaml"
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_SETTINGS = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1", "PYTHONPATH": "/"}


CodePath = Annotated[str, StringConstraints(pattern=r"^msfl(?:/[A-Za-z_][A-Za-z0-9_]*)+(?:\.py)?$", max_length=200)]


class BadRelease(ValueError):
    """The recipe cannot be built here. The message says what is missing and what to do."""


class Recipe(Document):
    """`release.yaml`, written by hand. `code` names packages and modules by path: `msfl/learning`, `msfl/x/y.py`. Own
    code lies in the folder `msfl` beside the recipe: `msfl/my_model`, imported as `msfl.my_model`."""

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
    """An image, not yet anywhere: `layers` are msfl's own, compressed; those of `base` lie in its files."""

    recipe: Recipe
    environment: EnvironmentLock
    layers: tuple[bytes, ...]
    config: bytes
    manifest: bytes
    base: BaseImage | None = None

    def blobs(self) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Everything that the manifest names, by digest."""
        for layer in self.base.layers if self.base else ():
            yield layer.digest, layer.chunks()
        for blob in (*self.layers, self.config):
            yield sha256_of(blob), [blob]

    @property
    def size(self) -> int:
        own = sum(map(len, (*self.layers, self.config, self.manifest)))
        return own + sum(layer.size for layer in (self.base.layers if self.base else ()))

    @property
    def digest(self) -> str:
        return sha256_of(self.manifest)

    @property
    def ref(self) -> str:
        return f"{self.recipe.name}:{self.recipe.version}"

    def sbom(self) -> bytes:
        return write_sbom(self.recipe.name, self.recipe.version, self.digest, self.environment, self.base)

    def materials(self, sbom: bytes, card: ModelCard) -> Materials:
        below = BaseName(name=self.base.name, digest=self.base.digest) if self.base else None
        return Materials(sbom=sha256_of(sbom), model_card=sha256_of(card.data), base=below)

    def statement(
        self,
        *,
        publisher: str,
        commit: str,
        issued: datetime,
        expires: datetime,
        materials: Materials | None = None,
    ) -> ReleaseStatement:
        """What the publisher is to sign: `sign(encode(statement), RELEASE_STATEMENT, [key])`."""
        return ReleaseStatement(
            api_version="msfl/v2" if materials else "msfl/v1",
            materials=materials,
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
    base: BaseImage | None = None,
    environment: EnvironmentLock | None = None,
    namespace: tuple[Path, ...] | None = None,
) -> BuiltRelease:
    """Read the recipe, collect its code, lock the environment of `site_packages`, or of `base` where there is one (or
    take `environment`), and assemble the image.

    `namespace` are the folders that make up the package msfl; as Python finds them when not given. The folder `msfl`
    beside the recipe, if there is one, is another: all of a release's code lies below /msfl in the image, so that none
    of it can stand in the place of Python, of a required package or of the system.
    Raises Malformed for the recipe, BadRelease, BadEnvironment, BadBase.
    """
    recipe = load_yaml(recipe_path.read_bytes(), Recipe, str(recipe_path))
    code = collect_code(recipe.code, (*(namespace or _namespace()), recipe_path.parent / "msfl"))
    _check_entrypoint(recipe, code)
    if environment is None:
        environment = lock_base(recipe.requires, base) if base else lock_environment(recipe.requires, site_packages)
    return _assemble(recipe, environment, code, base)


def _assemble(
    recipe: Recipe, environment: EnvironmentLock, code: Mapping[str, bytes], base: BaseImage | None
) -> BuiltRelease:
    below = base.layers if base else ()
    packed = {"environment": write_layer({FILE_NAME: environment.to_bytes()}), "code": write_layer(code)}
    labels = {NAME_LABEL: recipe.name, VERSION_LABEL: recipe.version, ENVIRONMENT_LABEL: environment.sha256}
    settings = {**(base.environment if base else {}), **_SETTINGS}
    config = canonical_json(
        {
            "architecture": base.architecture if base else ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {
                "Entrypoint": list(recipe.entrypoint),
                "Env": [f"{name}={value}" for name, value in sorted(settings.items())],
                "Labels": labels,
                "WorkingDir": "/",
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": [*(layer.diff_id for layer in below), *(diff_id for _, diff_id in packed.values())],
            },
            "history": [
                *({"created_by": "base image"} for _ in below),
                {"created_by": "msfl: environment lock"},
                {"created_by": "msfl: code"},
            ],
        }
    )
    own = [
        Descriptor(LAYER, sha256_of(layer), len(layer), annotations={LAYER_KIND: kind})
        for kind, (layer, _) in packed.items()
    ]
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor(CONFIG, sha256_of(config), len(config)).to_json(),
            "layers": [*(layer.to_descriptor().to_json() for layer in below), *(d.to_json() for d in own)],
            "annotations": {**labels, **(base.annotations if base else {})},
        }
    )
    return BuiltRelease(recipe, environment, tuple(layer for layer, _ in packed.values()), config, manifest, base)


def collect_code(paths: tuple[str, ...], namespace: tuple[Path, ...]) -> dict[str, bytes]:
    """Name in the image → bytes, for every file below `paths`. Raises BadRelease."""
    code: dict[str, bytes] = {}
    for name in paths:
        found = _find_code(name, tuple(dict.fromkeys(portion.absolute() for portion in namespace)))
        for path in [found] if found.is_file() else sorted(found.rglob("*")):
            inner = path.relative_to(found).as_posix()
            if path.is_symlink():
                raise BadRelease(f"{path} is a symbolic link; an image holds plain files only")
            if path.is_dir() or "__pycache__" in path.parts or path.name.startswith(".") or path.suffix == ".pyc":
                continue
            if not path.is_file():
                raise BadRelease(f"{path} is neither a file nor a folder; an image holds plain files only")
            code[name if inner == "." else f"{name}/{inner}"] = path.read_bytes()
    return code


def _find_code(name: str, namespace: tuple[Path, ...]) -> Path:
    inside = name.removeprefix("msfl/")
    found = [portion / inside for portion in namespace if (portion / inside).exists()]
    if len(found) != 1:
        where = "nowhere" if not found else " and ".join(map(str, found))
        raise BadRelease(f"the recipe names {name}, which is installed {where}; it must be there exactly once")
    (path,) = found
    portion = next(portion for portion in namespace if portion / inside == path)
    for above in (portion, *(portion.joinpath(*inside.split("/")[:n]) for n in range(1, inside.count("/") + 2))):
        if above.is_symlink():
            raise BadRelease(f"{above} is a symbolic link, which leads out of the folder of the code")
    return path


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
