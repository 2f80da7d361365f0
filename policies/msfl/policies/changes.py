"""What a new version of a policy newly allows, and no longer allows, in plain words: pure, for `msfl policy diff`.

    old, new ──field by field, each knows which way is wider──▶ Change(newly allows | no longer allows | otherwise)

A custodian who signs version 4 has read version 3; what is dangerous is what became wider without being noticed. Every
field of the document is compared here, and one that is neither wider nor narrower is still told (`otherwise`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from msfl.policies.documents import AllowedRelease, AssetPolicy, Limits, PolicyLimits, format_utc, seconds


class Way(StrEnum):
    WIDER = "newly allows"
    NARROWER = "no longer allows"
    OTHER = "otherwise"


@dataclass(frozen=True)
class Change:
    way: Way
    field: str
    what: str

    def __str__(self) -> str:
        return f"{self.way.value}: {self.what} ({self.field})"


def changes(old: AssetPolicy, new: AssetPolicy) -> tuple[Change, ...]:
    """Wider first, then narrower, then the rest. Two versions of one policy, or any two."""
    found = [*_head(old, new), *_who(old, new), *_releases(old, new), *_config(old.config, new.config)]
    found += [*_data_and_outputs(old, new), *_protection(old, new), *_limits(old, new)]
    return tuple(sorted(found, key=lambda change: list(Way).index(change.way)))


def _head(old: AssetPolicy, new: AssetPolicy) -> Iterator[Change]:
    for field in ("id", "purpose"):
        if (a := getattr(old, field)) != (b := getattr(new, field)):
            yield Change(Way.OTHER, field, f"{a!r} became {b!r}")
    if new != old and new.version <= old.version:
        yield Change(Way.OTHER, "version", f"version {new.version} does not supersede version {old.version}")
    if old.not_before != new.not_before:
        way = Way.WIDER if new.not_before < old.not_before else Way.NARROWER
        yield Change(way, "not_before", f"from {format_utc(new.not_before)} instead of {format_utc(old.not_before)}")
    if old.expires != new.expires:
        way = Way.WIDER if new.expires > old.expires else Way.NARROWER
        yield Change(way, "expires", f"until {format_utc(new.expires)} instead of {format_utc(old.expires)}")


def _who(old: AssetPolicy, new: AssetPolicy) -> Iterator[Change]:
    yield from _set("datasets", "the dataset", old.datasets, new.datasets)
    for field in ("users", "organisations"):
        before, after = getattr(old.beneficiaries, field), getattr(new.beneficiaries, field)
        where = f"beneficiaries.{field}"
        if before and not after:
            yield Change(Way.WIDER, where, f"{field} of any name")
        elif after and not before:
            yield Change(Way.NARROWER, where, f"{field} other than {', '.join(after)}")
        else:
            yield from _set(where, field[:-1], before, after)
    for field in ("users", "organisations", "digests"):
        before, after = getattr(old.refuse, field), getattr(new.refuse, field)
        yield from _set(f"refuse.{field}", "what was refused by name:", after, before)


def _releases(old: AssetPolicy, new: AssetPolicy) -> Iterator[Change]:
    before, after = _grants(old.releases), _grants(new.releases)
    for grant in [*before, *(g for g in after if g not in before)]:
        what = "{3} by {0} {1}, image {2}".format(*grant)
        if grant not in before:
            yield Change(Way.WIDER, "releases", what)
        elif grant not in after:
            yield Change(Way.NARROWER, "releases", what)
        elif before[grant] != after[grant]:
            way = Way.WIDER if after[grant] < before[grant] else Way.NARROWER
            yield Change(way, "releases", f"{what} with {after[grant]} reviewers instead of {before[grant]}")


def _grants(releases: Iterable[AllowedRelease]) -> dict[tuple[str, str, str, str], int]:
    """(name, version, digest, task) with the reviewers that it needs. Where several entries name it, the strictest."""
    found: dict[tuple[str, str, str, str], int] = {}
    for entry in releases:
        for version in entry.versions:
            for digest in entry.digests:
                for task in entry.tasks:
                    grant = (entry.name, version, digest, task)
                    found[grant] = max(entry.reviewers.minimum, found.get(grant, 0))
    return found


def _config(old: Mapping[str, PolicyLimits], new: Mapping[str, PolicyLimits]) -> Iterator[Change]:
    for key in [*old, *(key for key in new if key not in old)]:
        field = f"config.{key}"
        if key not in old:
            yield Change(Way.WIDER, field, f"jobs that set {key}: {bounds_in_words(new[key])}")
        elif key not in new:
            yield Change(Way.NARROWER, field, f"jobs that set {key}, so every job whose release knows it")
        elif old[key] != new[key]:
            yield from bound_changes(field, key, old[key], new[key])


def bound_changes(field: str, key: str, old: Limits, new: Limits) -> Iterator[Change]:
    """What a config key newly may be, and no longer may be; of a policy, or of a release."""
    for side, larger_is_wider in (("min", False), ("max", True)):
        before, after = getattr(old, side), getattr(new, side)
        if before == after:
            continue
        wider = after is None or (before is not None and (after > before) is larger_is_wider)
        what = f"{key} with {_bound(side, after)} instead of {_bound(side, before)}"
        yield Change(Way.WIDER if wider else Way.NARROWER, field, what)
    if old.enum is None or new.enum is None:
        if old.enum != new.enum:
            way = Way.WIDER if new.enum is None else Way.NARROWER
            yield Change(way, field, f"{key}: {bounds_in_words(new)}, instead of {bounds_in_words(old)}")
    else:
        # By type and value: True is not 1, and 1.0 is 1.
        yield from _set(field, f"{key} =", map(repr, old.enum), map(repr, new.enum))
    if repr(old.const) != repr(new.const):
        way = Way.WIDER if new.const is None else Way.NARROWER if old.const is None else Way.OTHER
        yield Change(way, field, f"{key}: {bounds_in_words(new)}, instead of {bounds_in_words(old)}")
    if old.nullable != new.nullable:
        yield Change(Way.WIDER if new.nullable else Way.NARROWER, field, f"{key} left unset")


def _bound(side: str, value: float | None) -> str:
    return f"no {side}" if value is None else f"{side} {value}"


def _data_and_outputs(old: AssetPolicy, new: AssetPolicy) -> Iterator[Change]:
    yield from _set("splits.train", "training cases to serve", old.splits.train, new.splits.train)
    yield from _set("splits.test", "test cases to serve", old.splits.test, new.splits.test)
    before, after = old.outputs.weights, new.outputs.weights
    mib = (0 if before is None else before.max_mib, 0 if after is None else after.max_mib)
    yield from _number("outputs.weights.max_mib", "{} MiB of weights to leave in one update", *mib)
    yield from _switch("outputs.local_model", "this site's own model to leave", old.outputs, new.outputs)
    yield from _set("outputs.metrics", "the metric", old.outputs.metrics, new.outputs.metrics)
    yield from _switch("outputs.per_case_metrics", "metrics of single cases to leave", old.outputs, new.outputs)


def _protection(old: AssetPolicy, new: AssetPolicy) -> Iterator[Change]:
    a, b = old.privacy, new.privacy
    yield from _number("privacy.min_cases.train", "{} training cases", a.min_cases.train, b.min_cases.train, -1)
    yield from _number("privacy.min_cases.metrics", "{} test cases", a.min_cases.metrics, b.min_cases.metrics, -1)
    yield from _number("privacy.min_sites", "{} sites", a.min_sites, b.min_sites, -1)
    if a.secure_aggregation != b.secure_aggregation:
        # Only `required` refuses anything today.
        way = Way.OTHER
        if a.secure_aggregation == "required":
            way = Way.WIDER
        elif b.secure_aggregation == "required":
            way = Way.NARROWER
        what = f"secure aggregation {b.secure_aggregation} instead of {a.secure_aggregation}"
        yield Change(way, "privacy.secure_aggregation", what)
    if a.epsilon_total != b.epsilon_total:
        old_total, new_total = a.epsilon_total, b.epsilon_total
        wider = new_total is None or (old_total is not None and new_total > old_total)
        what = f"a privacy budget of {new_total or 'none'} instead of {old_total or 'none'}"
        yield Change(Way.WIDER if wider else Way.NARROWER, "privacy.epsilon_total", what)
    if old.isolation != new.isolation:
        way = Way.WIDER if new.isolation < old.isolation else Way.NARROWER
        yield Change(way, "isolation", f"isolation {new.isolation.value} instead of {old.isolation.value}")
    if old.proof != new.proof:
        way = Way.WIDER if new.proof == "optional" else Way.NARROWER
        yield Change(way, "proof", "jobs that the user has not signed")


def _limits(old: AssetPolicy, new: AssetPolicy) -> Iterator[Change]:
    a, b = old.resources, new.resources
    yield from _number("resources.gpus", "{} GPUs", a.gpus, b.gpus)
    yield from _number("resources.memory_gib", "{} GiB of memory", a.memory_gib, b.memory_gib)
    if seconds(a.wall_time) != seconds(b.wall_time):
        way = Way.WIDER if seconds(b.wall_time) > seconds(a.wall_time) else Way.NARROWER
        yield Change(way, "resources.wall_time", f"{b.wall_time} per run instead of {a.wall_time}")
    if old.approval.mode != new.approval.mode:
        way = Way.WIDER if new.approval.mode == "auto" else Way.NARROWER
        yield Change(way, "approval.mode", "runs that you have not confirmed")
    unasked = (old.approval.auto_for, new.approval.auto_for)
    yield from _set("approval.auto_for", "without your confirmation, runs of", *unasked)
    yield from _number("approval.max_runs", "{} runs in all", old.approval.max_runs, new.approval.max_runs)
    yield from _number("approval.max_rounds", "{} rounds in all", old.approval.max_rounds, new.approval.max_rounds)


def _set(field: str, what: str, old: Iterable[str], new: Iterable[str]) -> Iterator[Change]:
    """More entries allow more."""
    before, after = list(old), list(new)
    for entry in after:
        if entry not in before:
            yield Change(Way.WIDER, field, f"{what} {entry}")
    for entry in before:
        if entry not in after:
            yield Change(Way.NARROWER, field, f"{what} {entry}")


def _number(field: str, what: str, old: int, new: int, sense: int = 1) -> Iterator[Change]:
    """`sense` 1: at most so many, more allow more; -1: at least so many are needed, fewer allow more."""
    if old != new:
        way = Way.WIDER if (new - old) * sense > 0 else Way.NARROWER
        most = "up to" if sense > 0 else "runs with only"
        yield Change(way, field, f"{most} {what.format(max(old, new) if sense > 0 else min(old, new))}")


def _switch(field: str, what: str, old: Any, new: Any) -> Iterator[Change]:
    name = field.rpartition(".")[2]
    if getattr(old, name) != getattr(new, name):
        yield Change(Way.WIDER if getattr(new, name) else Way.NARROWER, field, what)


def bounds_in_words(limits: Limits) -> str:
    parts = []
    if limits.const is not None:
        parts.append(f"exactly {limits.const}")
    if limits.enum is not None:
        parts.append(f"one of {', '.join(map(str, limits.enum))}")
    if limits.min is not None:
        parts.append(f"at least {limits.min}")
    if limits.max is not None:
        parts.append(f"at most {limits.max}")
    return ", ".join(parts) + (", or none" if limits.nullable else "")
