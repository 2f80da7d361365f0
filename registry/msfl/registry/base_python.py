"""The Python inside a base image, found without running it: where `python` is, which packages it would import.

    PATH of the base ─▶ python, through its links ─┬─ pyvenv.cfg beside it ─▶ that environment's site-packages
                                                   └─ none ─▶ dist-packages of /usr/local and /usr, site-packages
    _sysconfigdata_*.py ─▶ the ABI tag             distributions, from the first folder that has them ─▶ the lock

The release's code is started with PYTHONPATH=/, before anything the base holds, so a base must not hold msfl itself.
"""

from __future__ import annotations

import importlib.metadata
import platform
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.utils import canonicalize_name

from msfl.registry.base import BadBase, BaseImage, Contents
from msfl.registry.environment import EnvironmentLock, lock_installed

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VERSION = re.compile(r"python(\d+)\.(\d+)$")
_SETTING = re.compile(r"^\s*([a-z-]+)\s*=\s*(.*?)\s*$", re.MULTILINE)
_SOABI = re.compile(rb"""['"]SOABI['"]:\s*['"]([A-Za-z0-9_.-]+)['"]""")


@dataclass(frozen=True)
class BasePython:
    """`tag` as `environment.python_tag` gives it; `packages` are folders, in the order in which Python looks."""

    tag: str
    version: str  # "3.11"
    full_version: str
    packages: tuple[str, ...]

    @property
    def markers(self) -> dict[str, str]:
        """Of PEP 508, where they differ from those of the Python that reads this."""
        return {
            "python_version": self.version,
            "python_full_version": self.full_version,
            "implementation_version": self.full_version,
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
        }


def python_of(base: BaseImage) -> BasePython:
    """Raises BadBase when the base has no `python` on its PATH."""
    contents = base.contents
    start, real = _executable(contents, base.environment.get("PATH", _DEFAULT_PATH))
    venv = posixpath.dirname(posixpath.dirname(start))
    settings = _settings(contents, f"{venv}/pyvenv.cfg")
    found = _VERSION.search(real)
    version = ".".join(found.groups()) if found else ".".join(settings.get("version", "").split(".")[:2])
    if not version:
        raise BadBase(f"which Python /{real} of the base is cannot be told from its name; name it pythonX.Y")
    prefix = posixpath.dirname(posixpath.dirname(real))
    own = f"{venv}/lib/python{version}/site-packages"
    folders: tuple[str, ...] = (
        f"usr/local/lib/python{version}/dist-packages",
        "usr/lib/python3/dist-packages",
        f"{prefix}/lib/python{version}/site-packages",
    )
    if settings:
        folders = (own, *(folders if settings.get("include-system-site-packages") == "true" else ()))
    packages = tuple(dict.fromkeys(contents.resolve(folder) for folder in folders))
    full = settings.get("version") or base.environment.get("PYTHON_VERSION") or platform.python_version()
    return BasePython(
        _tag(contents, prefix, version),
        version,
        full if full.startswith(f"{version}.") else f"{version}.0",
        tuple(folder for folder in packages if folder in contents.folders),
    )


def lock_base(requires: Iterable[str], base: BaseImage) -> EnvironmentLock:
    """The lock of what `requires` needs, as it lies in the base. Raises BadBase, BadEnvironment."""
    python = python_of(base)
    for folder in python.packages:
        if any(name.startswith(f"{folder}/msfl/") for name in base.contents.hashes):
            raise BadBase(f"the base has msfl installed in /{folder}; a release brings its own: pip uninstall msfl")
    installed = distributions_of(base.contents, python.packages)

    def hash_all(files: list[tuple[str, str]]) -> list[str | None]:
        return [base.contents.hashes.get(f"{installed[name].folder}/{path}") for name, path in files]

    return lock_installed(requires, installed, hash_all, python.tag, python.markers)


def distributions_of(contents: Contents, folders: Iterable[str]) -> dict[str, DistributionInBase]:
    found: dict[str, DistributionInBase] = {}
    for folder in folders:
        here = [n for n in contents.kept if n.startswith(folder + "/") and n.endswith(".dist-info/METADATA")]
        for metadata in sorted(n for n in here if n.count("/") == folder.count("/") + 2):
            distribution = DistributionInBase(contents, folder, posixpath.dirname(metadata))
            found.setdefault(canonicalize_name(distribution.name), distribution)
    return found


class DistributionInBase(importlib.metadata.Distribution):
    """A distribution as its `.dist-info` in the base describes it."""

    def __init__(self, contents: Contents, folder: str, info: str) -> None:
        self._contents = contents
        self.folder = folder
        self._info = info

    def read_text(self, filename: str) -> str | None:
        data = self._contents.kept.get(f"{self._info}/{filename}")
        return None if data is None else data.decode("utf-8", "replace")

    def locate_file(self, path: object) -> object:  # type: ignore[override]
        raise NotImplementedError("a distribution in a base lies on no disk")


def _executable(contents: Contents, path: str) -> tuple[str, str]:
    """Where `python` stands on the PATH, and the file behind its links."""
    for folder in path.split(":"):
        start = posixpath.join(contents.resolve(folder), "python")
        real = contents.resolve(start)
        if real in contents.files:
            return start, real
    raise BadBase(
        f"the base has no `python` on its PATH ({path}); a release is started as `python -m …`, so install Python, or "
        "link /usr/local/bin/python to it"
    )


def _settings(contents: Contents, name: str) -> Mapping[str, str]:
    return dict(_SETTING.findall(contents.kept.get(name, b"").decode("utf-8", "replace")))


def _tag(contents: Contents, prefix: str, version: str) -> str:
    folder = contents.resolve(f"{prefix}/lib/python{version}")
    for name, data in sorted(contents.kept.items()):
        if name.startswith(f"{folder}/_sysconfigdata_") and (found := _SOABI.search(data)):
            return found.group(1).decode()
    return f"cpython-{version.replace('.', '')}-{platform.machine()}-linux-gnu"
