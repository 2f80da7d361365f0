"""From what a job asks to the config the worker is handed: nothing else is ever decided on, and nothing else runs.

    release profile (defaults) ◀── overlaid by ── job.config ◀── joined by ── rounds, strategy, seed, profile
                                        │
                   every key in the release's closed table, every value of its type and inside its bounds

The release's table may narrow the four run keys too; where it does not, `RUN_KEYS` holds. Types are strict: a bool is
no integer, an integer given for a number becomes that float, NaN and infinity are nothing. `violation` is the one
comparison of a value with limits; release and policy both use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msfl.policies.documents import Bound, ConfigValue, JobSpec, Limits, ReleaseStatement
from msfl.policies.refusals import Code, JsonObject, Refusal, refuse

RUN_KEYS: Mapping[str, Bound] = {
    "profile": Bound(type="string"),
    "rounds": Bound(type="integer", min=1),
    "seed": Bound(type="integer", min=0, max=2**32 - 1),
    "strategy": Bound(type="string"),
}

_ELEMENT = {"integers": "integer", "numbers": "number", "strings": "string"}


def resolve_config(spec: JobSpec, statement: ReleaseStatement) -> JsonObject | Refusal:
    """The complete config, keys sorted."""
    defaults = statement.profiles.get(spec.profile)
    if defaults is None:
        known = ", ".join(sorted(statement.profiles))
        what = f"{statement.ref} has no profile {spec.profile!r} (it has {known})."
        return refuse(Code.PROFILE_UNKNOWN, what, profile=spec.profile, known=known)
    if taken := sorted(key for key in spec.config if key in RUN_KEYS):
        what = f"The job's config sets {', '.join(taken)}, which has its own field in the job."
        return refuse(Code.CONFIG_KEY_UNKNOWN, what, key=taken[0])
    run: dict[str, ConfigValue] = {
        "profile": spec.profile,
        "rounds": spec.rounds,
        "seed": spec.seed,
        "strategy": spec.strategy,
    }
    return _checked({**defaults, **spec.config, **run}, statement, spec.profile)


def config_bounds(release: ReleaseStatement) -> dict[str, Bound]:
    """Every key that a resolved config of this release can have, sorted, with the release's own bounds."""
    return dict(sorted({**RUN_KEYS, **release.config}.items()))


def profile_flaws(statement: ReleaseStatement) -> tuple[Refusal, ...]:
    """What is wrong with the release's own profiles; a publisher looks before signing."""
    checked = (_checked(values, statement, name) for name, values in sorted(statement.profiles.items()))
    return tuple(result for result in checked if isinstance(result, Refusal))


def unbounded(statement: ReleaseStatement) -> tuple[str, ...]:
    """Settings that may be anything of their type: what nobody bounded, no reviewer can judge."""
    return tuple(
        key
        for key, bound in sorted(statement.config.items())
        if bound.type != "boolean"
        and (bound.enum, bound.const) == (None, None)
        and (bound.type.startswith("string") or bound.min is None or bound.max is None)
    )


def _checked(asked: Mapping[str, ConfigValue], statement: ReleaseStatement, profile: str) -> JsonObject | Refusal:
    resolved: JsonObject = {}
    for key in sorted(asked):
        bound = statement.config.get(key) or RUN_KEYS.get(key)
        if bound is None:
            what = f"{statement.ref} knows no config key {key!r}."
            return refuse(Code.CONFIG_KEY_UNKNOWN, what, key=key, known=", ".join(sorted(statement.config)))
        value = typed(asked[key], bound)
        why = f"is not of type {bound.type}" if isinstance(value, WrongType) else violation(value, bound)
        if why is not None:
            what = f"config.{key} = {asked[key]!r} {why} in {statement.ref}."
            return refuse(Code.CONFIG_VALUE_INVALID, what, key=key, value=repr(asked[key]))
        # Lists, as JSON has them, so that a config is equal to itself after a journey through a file.
        resolved[key] = list(value) if isinstance(value, tuple) else value
    if missing := sorted(key for key in statement.config if key not in resolved and key not in RUN_KEYS):
        what = f"The profile {profile!r} of {statement.ref} leaves {', '.join(missing)} unset."
        return refuse(Code.CONFIG_VALUE_INVALID, what, key=missing[0])
    return resolved


class WrongType:
    """What `typed` returns for a value that is not of the bound's type."""


_WRONG = WrongType()


def typed(value: object, bound: Bound) -> ConfigValue | WrongType:
    """The value as exactly the bound's type."""
    if value is None:
        return None if bound.nullable else _WRONG
    if bound.type not in _ELEMENT:
        return _scalar(value, bound.type)
    if not isinstance(value, tuple | list):
        return _WRONG
    elements = tuple(_scalar(element, _ELEMENT[bound.type]) for element in value)
    if any(isinstance(element, WrongType) for element in elements):
        return _WRONG
    return elements  # type: ignore[return-value]  # homogeneous by the line above


def _scalar(value: object, kind: str) -> bool | int | float | str | WrongType:
    match kind:
        case "boolean":
            return value if isinstance(value, bool) else _WRONG
        case "string":
            return value if isinstance(value, str) else _WRONG
        case "integer":
            if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
                return value
        case "number" if isinstance(value, int | float) and not isinstance(value, bool):
            # A larger integer has no float; infinity and NaN compare to nothing.
            return float(value) if abs(value) < 2**1000 else _WRONG
    return _WRONG


def violation(value: object, limits: Limits) -> str | None:
    """Why the value is outside the limits (a phrase such as "is above 60"), or None when it is inside."""
    if value is None:
        return None if limits.nullable else "is null"
    if limits.const is not None and not _same(value, limits.const):
        return f"is not {limits.const!r}"
    if not isinstance(value, _LIST):
        return _outside(value, limits)
    return next((why for element in value if (why := _outside(element, limits)) is not None), None)


# Tuples, not unions: this is asked for every value of every config, and isinstance is faster with them.
_LIST = (tuple, list)
_NUMBER = (int, float)


def _outside(element: object, limits: Limits) -> str | None:
    smallest, largest, enum = limits.min, limits.max, limits.enum
    if enum is not None:
        for allowed in enum:
            if _same(element, allowed):
                break
        else:
            return f"is not one of {', '.join(map(str, enum))}"
    if smallest is None and largest is None:
        return None
    if isinstance(element, bool) or not isinstance(element, _NUMBER):
        return "is not a number"
    if isinstance(element, float) and not math.isfinite(element):
        return "is not finite"
    if smallest is not None and element < smallest:
        return f"is below {smallest}"
    if largest is not None and element > largest:
        return f"is above {largest}"
    return None


def _same(left: object, right: object) -> bool:
    """Equal, and neither a bool that passes for a number."""
    if isinstance(left, _LIST) and isinstance(right, _LIST):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    return isinstance(left, bool) == isinstance(right, bool) and left == right
