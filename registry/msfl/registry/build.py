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
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

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
from msfl.registry.base import ARCHITECTURES, BaseImage
from msfl.registry.base_python import lock_base
from msfl.registry.environment import FILE_NAME, EnvironmentLock, lock_environment
from msfl.registry.interface import CONFIG, LAYER, LAYER_KIND, MANIFEST, Descriptor
from msfl.registry.layer import write_layer
from msfl.registry.pull import ENVIRONMENT_LABEL, NAME_LABEL, VERSION_LABEL

RECIPE_NAME = "release.yaml"
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
# Own code lies in the image's root folder: none of it may lie in, or import in place of, what is there already.
_ROOT_FOLDERS = frozenset(
    {
        *("bin", "boot", "dev", "etc", "home", "in", "lib", "lib32", "lib64", "libx32", "media", "mnt", "msfl", "opt"),
        *("out", "proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var"),
    }
)
_SETTINGS = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1", "PYTHONPATH": "/"}


def _not_the_namespace(path: str) -> str:
    if path in ("msfl", "msfl.py"):
        raise ValueError("name the parts of msfl that the release needs, such as msfl/learning/contract.py")
    return path


CodePath = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(?:/[A-Za-z_][A-Za-z0-9_]*)*(?:\.py)?$", max_length=200),
    AfterValidator(_not_the_namespace),
]


class BadRelease(ValueError):
    """The recipe cannot be built here. The message says what is missing and what to do."""


class Recipe(Document):
    """`release.yaml`, written by hand. `code` names packages and modules by path: those of msfl as Python finds them
    (`msfl/learning`, `msfl/x/y.py`), all others in the folder of the recipe (`my_model`)."""

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
    base: BaseImage | None = None,
    environment: EnvironmentLock | None = None,
    namespace: tuple[Path, ...] | None = None,
) -> BuiltRelease:
    """Read the recipe, collect its code, lock the environment of `site_packages`, or of `base` where there is one (or
    take `environment`), and assemble the image.

    `namespace` are the folders that make up the package msfl; as Python finds them when not given.
    Raises Malformed for the recipe, BadRelease, BadEnvironment, BadBase.
    """
    recipe = load_yaml(recipe_path.read_bytes(), Recipe, str(recipe_path))
    code = collect_code(recipe.code, namespace or _namespace(), recipe_path.parent)
    _check_entrypoint(recipe, code)
    if environment is None:
        environment = lock_base(recipe.requires, base) if base else lock_environment(recipe.requires, site_packages)
    _check_names(code, environment, base)
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


def collect_code(paths: tuple[str, ...], namespace: tuple[Path, ...], folder: Path) -> dict[str, bytes]:
    """Name in the image → bytes, for every file below `paths`, of msfl or of `folder`. Raises BadRelease."""
    code: dict[str, bytes] = {}
    for name in paths:
        found = _find_code(name, namespace, folder)
        for path in [found] if found.is_file() else sorted(found.rglob("*")):
            inner = path.relative_to(found).as_posix()
            if "__pycache__" in path.parts or path.name.startswith(".") or path.suffix == ".pyc":
                continue
            if path.is_symlink():
                raise BadRelease(f"{path} is a symbolic link; an image holds plain files only")
            if path.is_dir():
                continue
            if not path.is_file():
                raise BadRelease(f"{path} is neither a file nor a folder; an image holds plain files only")
            code[name if inner == "." else f"{name}/{inner}"] = path.read_bytes()
    return code


def _find_code(name: str, namespace: tuple[Path, ...], folder: Path) -> Path:
    if not name.startswith("msfl/"):
        below = Path(folder)
        for part in name.split("/"):
            below /= part
            # A name cannot hold `..`; a link is the only way out of the folder that is left.
            if below.is_symlink():
                raise BadRelease(f"{below} is a symbolic link; the code of a release lies in its own folder")
        if not below.exists():
            raise BadRelease(
                f"the recipe names {name}, and there is no {below}; code that is not msfl's lies beside it"
            )
        return below
    inside = name.removeprefix("msfl/")
    found = [portion / inside for portion in namespace if (portion / inside).exists()]
    if len(found) != 1:
        where = "nowhere" if not found else " and ".join(map(str, found))
        raise BadRelease(f"the recipe names {name}, which is installed {where}; it must be there exactly once")
    if found[0].is_symlink():
        raise BadRelease(f"{found[0]} is a symbolic link; an image holds plain files only")
    return found[0]


def _check_names(code: Mapping[str, bytes], environment: EnvironmentLock, base: BaseImage | None) -> None:
    """Own code comes first when Python looks: it must not stand in the place of anything else."""
    locked = {path.split("/")[0].split(".")[0] for d in environment.distributions.values() for path in d.files}
    taken = {
        "a module of Python itself": frozenset(sys.stdlib_module_names),
        "a package that the release requires": frozenset(locked),
        "a folder of the image's operating system": _ROOT_FOLDERS | (base.contents.top if base else frozenset()),
    }
    for name in sorted({path.split("/")[0] for path in code} - {"msfl"}):
        for what, names in taken.items():
            if name.removesuffix(".py") in names or name in names:
                raise BadRelease(f"the recipe's code {name} has the name of {what}; give it another name")


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
