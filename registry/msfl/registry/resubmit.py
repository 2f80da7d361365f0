"""A release that its publisher submitted before, submitted once more: what a new statement would change. Pure.

    same        nothing but its dates: a new statement would only make every review one of an earlier statement
    papers      SBOM, model card, description or commit: a new statement, which asks for new reviews
    release     settings, outputs, tasks, resources, who publishes: what the version stands for, so a new version

The image is the same in all three: with another one the registry has the version already (`publish.AlreadyPublished`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from msfl.policies.documents import ReleaseStatement

_DATES = frozenset({"issued", "expires"})
_PAPERS = frozenset({"materials", "description", "commit", "api_version"})


class Differs(StrEnum):
    SAME = "same"
    PAPERS = "papers"
    RELEASE = "release"


@dataclass(frozen=True)
class Difference:
    """`fields` of the statement, dates left out."""

    kind: Differs
    fields: tuple[str, ...]


def difference(before: ReleaseStatement, after: ReleaseStatement) -> Difference:
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    fields = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name) and name not in _DATES)
    if not fields:
        return Difference(Differs.SAME, ())
    of_the_release = tuple(name for name in fields if name not in _PAPERS)
    return Difference(Differs.RELEASE, of_the_release) if of_the_release else Difference(Differs.PAPERS, tuple(fields))
