"""The lock of a whole Python environment: which files a release's dependencies consist of, and whether they still do.

A release image carries its own code, but not torch. Instead it carries a lock: the closure of its requirements over
the installed distributions, each with its version and the sha256 of each of its files. Before every start the host's
`site-packages` is hashed anew, in full, against that lock; no cache can answer for the files.

    locked distribution …                   Mismatch.kind
    not installed                           missing
    installed in another version            version
    installed twice                         twice
    a file is gone                          absent
    a file has other bytes, or is a link    changed
    a file beside it can be imported        extra       `numpy/x.so` would win over the locked `numpy/x.py`
    another Python                          python      (distribution "python")

Not locked: files outside site-packages (scripts carry the path of their interpreter), and what the installer writes
for itself (RECORD, INSTALLER, …), because two honest installations differ there. Byte-code caches are not locked
either: compiling 26 000 files anew would cost every start more than a minute; who can write them can also write the
interpreter. Distributions outside the closure are not checked; a process of the release does not find them
(`runtime.launcher`).
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

FILE_NAME = "msfl-environment.json"
MAX_LOCK_BYTES = 64 * 1024 * 1024

Kind: TypeAlias = Literal["missing", "version", "twice", "absent", "changed", "extra", "python"]

_FORMAT = "msfl-environment/v1"
_OF_THE_INSTALLER = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"})
_IMPORTABLE = (".py", ".so", ".pyc")
_HEX = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 20
_BATCH = 256


class BadEnvironment(ValueError):
    """The environment cannot be locked, or bytes are not a lock. The message says which distribution and why."""


@dataclass(frozen=True)
class LockedDistribution:
    """One installed distribution: `files` maps a path inside site-packages (POSIX) to the hex sha256 of its bytes."""

    version: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class EnvironmentLock:
    python: str  # "cpython-311-x86_64-linux-gnu", from the interpreter's own ABI tag
    distributions: Mapping[str, LockedDistribution]

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same environment gives the same bytes."""
        document = {
            "format": _FORMAT,
            "python": self.python,
            "distributions": {
                name: {"version": d.version, "files": dict(d.files)} for name, d in self.distributions.items()
            },
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @property
    def packages(self) -> frozenset[str]:
        """The names that `import` finds of it in site-packages: `numpy`, `typing_extensions`, `_cffi_backend`."""
        tops = {path.partition("/")[0] for d in self.distributions.values() for path in d.files}
        return frozenset(top.partition(".")[0] for top in tops if not top.endswith((".dist-info", ".data", ".pth")))

    @property
    def sha256(self) -> str:
        return "sha256:" + hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> EnvironmentLock:
        """Raises BadEnvironment for anything that is not exactly a lock with paths that stay inside."""
        try:
            raw: Any = json.loads(data)
            if raw["format"] != _FORMAT or set(raw) != {"format", "python", "distributions"}:
                raise BadEnvironment(f"the environment lock is not of format {_FORMAT}")
            lock = cls(
                python=str(raw["python"]),
                distributions={
                    str(name): LockedDistribution(str(d["version"]), {str(p): str(h) for p, h in d["files"].items()})
                    for name, d in raw["distributions"].items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, BadEnvironment):
                raise
            raise BadEnvironment("the environment lock is not the JSON document it should be") from error
        for name, distribution in lock.distributions.items():
            for path, digest in distribution.files.items():
                if not _stays_inside(path) or not _HEX.fullmatch(digest):
                    raise BadEnvironment(
                        f"the environment lock lists a path or hash of {name} that cannot be: {path!r}"
                    )
        return lock


@dataclass(frozen=True)
class Mismatch:
    """One way in which a distribution differs from the lock; `detail` is for people, with the first file's name."""

    distribution: str
    kind: Kind
    detail: str


def python_tag() -> str:
    """The ABI that compiled files must fit, and the platform: `cpython-311-x86_64-linux-gnu`."""
    return str(sysconfig.get_config_var("SOABI") or f"{sys.implementation.cache_tag}-{platform.machine()}")


def lock_environment(requires: Iterable[str], site_packages: Path) -> EnvironmentLock:
    """Lock the closure of `requires` (PEP 508 strings) as installed in `site_packages`.

    Every file is hashed as it lies there. Raises BadEnvironment when a requirement is not installed, not met by the
    installed version, or when a file differs from what the distribution's own RECORD says: an environment that is
    already altered must not become the reference.
    """
    installed = {name: found[0] for name, found in _installed(site_packages).items()}

    def hash_all(files: list[tuple[str, str]]) -> list[str | None]:
        return _hash_all(site_packages, [path for _, path in files])

    return lock_installed(requires, installed, hash_all, python_tag())


def lock_installed(
    requires: Iterable[str],
    installed: Mapping[str, importlib.metadata.Distribution],
    hash_all: Callable[[list[tuple[str, str]]], list[str | None]],
    python: str,
    markers: Mapping[str, str] | None = None,
) -> EnvironmentLock:
    """The same for distributions that lie elsewhere: in a base image. `hash_all` takes (distribution, path in its
    site-packages) and gives hex sha256, or None where there is no such file. `markers` are of that Python."""
    closure = _closure(requires, installed, markers or {})
    recorded = {name: dict(_recorded(installed[name])) for name in closure}
    files = sorted((name, path) for name, paths in recorded.items() for path in paths)
    hashes = dict(zip(files, hash_all(files), strict=True))
    locked: dict[str, LockedDistribution] = {}
    for name in sorted(closure):
        found_files: dict[str, str] = {}
        for path, expected in sorted(recorded[name].items()):
            found = hashes[name, path]
            if found is None or (expected is not None and found != expected):
                raise BadEnvironment(
                    f"{path} of {name} {installed[name].version} is not what its distribution recorded at "
                    f"installation; reinstall it (pip install --force-reinstall {name}) and build again"
                )
            found_files[path] = found
        locked[name] = LockedDistribution(installed[name].version, found_files)
    return EnvironmentLock(python, locked)


def verify_environment(lock: EnvironmentLock, site_packages: Path) -> tuple[Mismatch, ...]:
    """Every way in which `site_packages` differs from the lock, ordered by distribution; empty when it is the same."""
    mismatches: list[Mismatch] = []
    if lock.python != python_tag():
        mismatches.append(Mismatch("python", "python", f"the release needs {lock.python}, here is {python_tag()}"))
    installed = _installed(site_packages)
    owner: dict[str, str] = {}
    for name, wanted in lock.distributions.items():
        match installed.get(name, []):
            case []:
                mismatches.append(Mismatch(name, "missing", f"{name} {wanted.version} is not installed"))
            case [one] if one.version != wanted.version:
                mismatches.append(Mismatch(name, "version", f"{name} is {one.version}, not {wanted.version}"))
            case [_]:
                owner |= dict.fromkeys(wanted.files, name)
            case several:
                versions = ", ".join(sorted(d.version for d in several))
                mismatches.append(Mismatch(name, "twice", f"{name} is installed more than once: {versions}"))
    paths = sorted(owner)
    wrong: dict[tuple[str, Kind], list[str]] = {}
    for path, found in zip(paths, _hash_all(site_packages, paths), strict=True):
        name = owner[path]
        if found is None:
            wrong.setdefault((name, "absent"), []).append(path)
        elif found != lock.distributions[name].files[path]:
            wrong.setdefault((name, "changed"), []).append(path)
    for name, path in _extra(owner, site_packages):
        wrong.setdefault((name, "extra"), []).append(path)
    for (name, kind), where in wrong.items():
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        mismatches.append(Mismatch(name, kind, f"{name}: {where[0]}{more} {_SENTENCE[kind]}"))
    return tuple(sorted(mismatches, key=lambda m: (m.distribution, m.kind)))


_SENTENCE: Mapping[str, str] = {
    "absent": "is not there",
    "changed": "does not have the bytes that were reviewed",
    "extra": "is not in the lock but could be imported",
}


def pack(lock: EnvironmentLock) -> bytes:
    """The lock as it is kept outside images: gzip, reproducible."""
    return gzip.compress(lock.to_bytes(), 9, mtime=0)


def _installed(site_packages: Path) -> dict[str, list[importlib.metadata.Distribution]]:
    found: dict[str, list[importlib.metadata.Distribution]] = {}
    for distribution in importlib.metadata.distributions(path=[str(site_packages)]):
        found.setdefault(canonicalize_name(distribution.name), []).append(distribution)
    return found


def _closure(
    requires: Iterable[str], installed: Mapping[str, importlib.metadata.Distribution], markers: Mapping[str, str]
) -> set[str]:
    todo = [(requirement, "the release") for requirement in requires]
    done: set[tuple[str, frozenset[str]]] = set()
    while todo:
        text, wanted_by = todo.pop()
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise BadEnvironment(f"{wanted_by} requires {text!r}, which is no requirement: {error}") from error
        name = canonicalize_name(requirement.name)
        extras = frozenset(requirement.extras)
        if (name, extras) in done:
            continue
        distribution = installed.get(name)
        if distribution is None:
            raise BadEnvironment(f"{wanted_by} requires {name}, which is not installed; install it and build again")
        if not requirement.specifier.contains(distribution.version, prereleases=True):
            raise BadEnvironment(
                f"{wanted_by} requires {text!r}, but {name} {distribution.version} is installed; install that version"
            )
        done.add((name, extras))
        for child in distribution.requires or []:
            marker = Requirement(child).marker
            if marker is None or any(marker.evaluate({**markers, "extra": extra}) for extra in extras | {""}):
                todo.append((child, name))
    return {name for name, _ in done}


def _recorded(distribution: importlib.metadata.Distribution) -> Iterator[tuple[str, str | None]]:
    """Path → hex sha256 or None when RECORD carries none. Raises BadEnvironment without a RECORD."""
    record = distribution.read_text("RECORD")
    if record is None:
        raise BadEnvironment(f"{distribution.name} was installed without a RECORD; reinstall it with pip")
    for row in csv.reader(record.splitlines()):
        path, digest = PurePosixPath(row[0]).as_posix(), row[1] if len(row) > 1 else ""
        if _is_locked(path):
            yield path, _unpadded_to_hex(digest[7:]) if digest.startswith("sha256=") else None


def _is_locked(path: str) -> bool:
    parts = PurePosixPath(path).parts
    if not _stays_inside(path) or "__pycache__" in parts:
        return False
    return not (len(parts) == 2 and parts[0].endswith(".dist-info") and parts[1] in _OF_THE_INSTALLER)


def _stays_inside(path: str) -> bool:
    return bool(path) and not path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def _unpadded_to_hex(value: str) -> str:
    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()


def _hash_all(site_packages: Path, paths: list[str]) -> list[str | None]:
    """Hex sha256 of each file, None where there is no regular file. hashlib works outside the interpreter lock.

    In batches: a future per file costs more than hashing a small file does.
    """
    root = f"{site_packages}/"
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="msfl-hash") as pool:
        return [h for hashed in pool.map(lambda batch: [_hash(root + p) for p in batch], batches) for h in hashed]


def _hash(path: str) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        digest = hashlib.sha256()
        while block := os.read(descriptor, _BLOCK):
            digest.update(block)
        return digest.hexdigest()
    finally:
        os.close(descriptor)


def _extra(owner: Mapping[str, str], site_packages: Path) -> Iterator[tuple[str, str]]:
    """Files that Python could import in place of, or inside, a locked package, and that no lock lists."""
    packages = {path.split("/")[0]: name for path, name in owner.items() if re.fullmatch(r"[^/]+/__init__\.py", path)}
    modules = {
        path.split(".")[0]: name for path, name in owner.items() if "/" not in path and path.endswith(_IMPORTABLE)
    }
    top = {**modules, **packages}
    for entry in sorted(os.scandir(site_packages), key=lambda e: e.name):
        name = top.get(entry.name if entry.is_dir() else entry.name.split(".")[0])
        if name is None:
            continue
        if entry.name in packages:
            for folder, folders, files in os.walk(entry.path):
                folders[:] = [f for f in folders if f != "__pycache__"]
                inside = os.path.relpath(folder, site_packages)
                for file in files:
                    if file.endswith(_IMPORTABLE) and f"{inside}/{file}" not in owner:
                        yield name, f"{inside}/{file}"
        elif entry.name not in owner and (entry.is_dir() or entry.name.endswith(_IMPORTABLE)):
            yield name, entry.name
