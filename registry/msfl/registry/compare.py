"""What changed from one release to another, for who reviews the second: pure, from two statements and two images.

code            files that came, went or changed, with lines
dependencies    distributions that came, went or changed version; same version with other files is told, too
settings        config bounds, wider or narrower, in the words of `policies.changes`; defaults; keys
outputs         what may newly leave a site is wider; everything else a site can notice: tasks, resources, base
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from msfl.policies.changes import Change, Way, bound_changes, bounds_in_words
from msfl.policies.documents import Bound, ReleaseStatement
from msfl.registry.release_image import ReleaseImage


@dataclass(frozen=True)
class FileChange:
    name: str
    what: Literal["added", "removed", "changed"]
    lines_added: int
    lines_removed: int


@dataclass(frozen=True)
class DependencyChange:
    """`before` or `after` is empty for one that came or went; equal versions have other files."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Comparison:
    code: tuple[FileChange, ...]
    dependencies: tuple[DependencyChange, ...]
    changes: tuple[Change, ...]

    @property
    def nothing(self) -> bool:
        return not (self.code or self.dependencies or self.changes)


def compare(
    old: ReleaseStatement, new: ReleaseStatement, old_image: ReleaseImage, new_image: ReleaseImage
) -> Comparison:
    found = [*_config(old, new), *_outputs(old, new), *_tasks(old, new), *_resources(old, new)]
    found += _surroundings(old, new, old_image, new_image)
    ordered = tuple(sorted(found, key=lambda change: list(Way).index(change.way)))
    return Comparison(tuple(_code(old_image.code, new_image.code)), tuple(_dependencies(old_image, new_image)), ordered)


def code_diff(old: Mapping[str, bytes], new: Mapping[str, bytes], names: Iterable[str]) -> Iterator[str]:
    """Unified diff, without line ends; a file that is not text is only named."""
    for name in names:
        before, after = _lines(old.get(name, b"")), _lines(new.get(name, b""))
        if before is None or after is None:
            yield f"{name} is not text"
        else:
            yield from difflib.unified_diff(before, after, f"a/{name}", f"b/{name}", lineterm="")


def _code(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> Iterator[FileChange]:
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        delta = list(code_diff(old, new, [name]))
        added = sum(line.startswith("+") for line in delta[2:])
        removed = sum(line.startswith("-") for line in delta[2:])
        what: Literal["added", "removed", "changed"] = (
            "added" if before is None else "removed" if after is None else "changed"
        )
        yield FileChange(name, what, added, removed)


def _lines(data: bytes) -> list[str] | None:
    try:
        return data.decode().splitlines()
    except UnicodeDecodeError:
        return None


def _dependencies(old: ReleaseImage, new: ReleaseImage) -> Iterator[DependencyChange]:
    before, after = old.lock.distributions, new.lock.distributions
    for name in sorted(before.keys() | after.keys()):
        a, b = before.get(name), after.get(name)
        if a != b:
            yield DependencyChange(name, a.version if a else "", b.version if b else "")


def _config(old: ReleaseStatement, new: ReleaseStatement) -> Iterator[Change]:
    for key in [*old.config, *(key for key in new.config if key not in old.config)]:
        field, before, after = f"config.{key}", old.config.get(key), new.config.get(key)
        if before is None and after is not None:
            yield Change(Way.WIDER, field, f"jobs that set {key}: {_words(after)}")
        elif after is None:
            yield Change(Way.NARROWER, field, f"jobs that set {key}")
        elif before is not None and before != after:
            if before.type != after.type:
                yield Change(Way.OTHER, field, f"{key} is of type {after.type} instead of {before.type}")
            yield from bound_changes(field, key, before, after)
    for profile in [*old.profiles, *(p for p in new.profiles if p not in old.profiles)]:
        yield from _profile(profile, old.profiles.get(profile), new.profiles.get(profile))


def _words(bound: Bound) -> str:
    return bounds_in_words(bound) or f"any {bound.type}"


def _profile(name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Iterator[Change]:
    if old is None or new is None:
        yield Change(Way.OTHER, "profiles", f"the profile {name} {'came' if old is None else 'went'}")
        return
    for key in sorted(old.keys() | new.keys()):
        if repr(old.get(key)) != repr(new.get(key)):
            what = f"{key} is {new.get(key, 'unset')} instead of {old.get(key, 'unset')}, where a job does not set it"
            yield Change(Way.OTHER, f"profiles.{name}", what)


def _outputs(old: ReleaseStatement, new: ReleaseStatement) -> Iterator[Change]:
    before, after = _leaves("outputs", _plain(old.outputs)), _leaves("outputs", _plain(new.outputs))
    named = {_field(path) for path in after.keys() - before.keys()} - {_field(path) for path in before}
    gone = {_field(path) for path in before.keys() - after.keys()} - {_field(path) for path in after}
    for name in sorted(filter(None, named)):
        yield Change(Way.WIDER, "outputs", f"{name} to leave a site")
    for name in sorted(filter(None, gone)):
        yield Change(Way.NARROWER, "outputs", f"{name} to leave a site")
    for path in sorted(before.keys() | after.keys()):
        if path.endswith(".additionalProperties") and before.get(path) is False and after.get(path) is not False:
            yield Change(Way.WIDER, path, "fields of any name to leave a site")
        elif before.get(path) != after.get(path) and _field(path) not in named | gone:
            said = (json.dumps(x.get(path)) if path in x else "nothing" for x in (after, before))
            yield Change(Way.OTHER, path, "{} instead of {}".format(*said))


def declared_fields(outputs: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """For each verb the fields that its schema names, without those that only hold others."""
    found: dict[str, tuple[str, ...]] = {}
    for verb, output in outputs.items():
        names = {_field(path).partition(".")[2] for path in _leaves(f"outputs.{verb}", _plain(output))} - {""}
        found[verb] = tuple(sorted(n for n in names if not any(other.startswith(f"{n}.") for other in names)))
    return found


def _field(path: str) -> str:
    """`train.incoming.val_dice` of `outputs.train.document.properties.incoming.properties.val_dice.type`."""
    parts = path.split(".")
    verb, names = parts[1] if len(parts) > 1 else "", []
    for above, name in pairwise(parts[2:]):
        if above == "properties":
            names.append(name)
    return ".".join([verb, *names]) if names else ""


def _leaves(path: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _leaves(f"{path}.{key}", inner).items()}
    return {} if value == {} and path.endswith(".properties") else {path: value}


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {str(k): _plain(v) for k, v in value.items()}
        case list() | tuple():
            return [_plain(v) for v in value]
        case _:
            return value


def _tasks(old: ReleaseStatement, new: ReleaseStatement) -> Iterator[Change]:
    for task in new.tasks:
        if task not in old.tasks:
            yield Change(Way.WIDER, "tasks", f"the task {task}")
    for task in old.tasks:
        if task not in new.tasks:
            yield Change(Way.NARROWER, "tasks", f"the task {task}")


def _resources(old: ReleaseStatement, new: ReleaseStatement) -> Iterator[Change]:
    for name, unit in (("gpus", "GPUs"), ("memory_gib", "GiB of memory")):
        a, b = getattr(old.resources, name), getattr(new.resources, name)
        if a != b:
            yield Change(Way.OTHER, f"resources.{name}", f"it needs {b} {unit} instead of {a}")


def _surroundings(
    old: ReleaseStatement, new: ReleaseStatement, old_image: ReleaseImage, new_image: ReleaseImage
) -> Iterator[Change]:
    for field in ("name", "entrypoint", "publisher", "commit"):
        if (a := getattr(old, field)) != (b := getattr(new, field)):
            yield Change(Way.OTHER, field, f"{_shown(b)} instead of {_shown(a)}")
    if old_image.lock.python != new_image.lock.python:
        yield Change(Way.OTHER, "python", f"{new_image.lock.python} instead of {old_image.lock.python}")
    if old_image.base_digest != new_image.base_digest:
        a, b = (f"{i.base_name or 'a base'} {i.base_digest}".strip() if i.base_digest else "none" for i in (
            old_image, new_image,
        ))  # fmt: skip
        yield Change(Way.OTHER, "base", f"{b} instead of {a}")
    if old.materials and new.materials and old.materials.model_card != new.materials.model_card:
        yield Change(Way.OTHER, "model_card", "the model card has other words")


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
