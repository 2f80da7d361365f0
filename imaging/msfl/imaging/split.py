"""Who trains, who validates, who tests: by patient, never by scan, and once said it stays said.

A patient's scans look alike, so all of them are on one side. Patients are sorted by scanner and lesion load and dealt
out along that order: whenever the test set lags half a patient behind its share, the next one is its own; then the same
for validation among those who are left. So every part has its share of every scanner and of small and large loads,
without bins that somebody has to choose::

    scanner, load   d1 0.3 ml   d1 2 ml   d1 5 ml   d1 30 ml   d2 1 ml   d2 8 ml   …
                    train       test      train     validation train     test

What was assigned earlier keeps its place; only what is new is dealt out. From the first publication on the test set is
frozen: nobody joins it any more and nobody leaves it, so that models of different years meet the same test. A new visit
of a test patient can be neither test nor training: it is set aside. Everything here is pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from msfl.imaging.workspace import JsonObject


class Part(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True)
class Shares:
    """Of patients; the rest trains."""

    validation: float = 0.1
    test: float = 0.25

    def __post_init__(self) -> None:
        if not (0 <= self.validation < 1 and 0 <= self.test < 1 and self.validation + self.test < 1):
            raise ValueError(
                "the shares of validation and test are from 0 to 1, and something must be left to train on"
            )

    def of(self, part: Part) -> float:
        rest = 1 - self.validation - self.test
        return {Part.TRAIN: rest, Part.VALIDATION: self.validation, Part.TEST: self.test}[part]


@dataclass(frozen=True)
class Member:
    """One case that could be used. `load_ml` is the volume of its lesions; `given` what its source has decided."""

    case: str
    patient: str
    scanner: str = ""
    load_ml: float = 0.0
    given: str = ""


@dataclass(frozen=True)
class Split:
    """`parts` is by patient; `frozen` holds the cases of the test set, once it was published."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()

    def to_json(self) -> JsonObject:
        return {
            "parts": {patient: part.value for patient, part in self.parts.items()},
            "frozen_test": list(self.frozen),
        }

    @classmethod
    def from_json(cls, value: JsonObject) -> Split:
        parts = {str(patient): Part(part) for patient, part in value["parts"].items()}
        return cls(parts, tuple(map(str, value["frozen_test"])))


@dataclass(frozen=True)
class Dealt:
    """`cases` says for every case that is used which part it is in; `aside` lists new visits of test patients and
    `missing` the cases of the frozen test set that are not there (any more)."""

    split: Split
    cases: Mapping[str, Part]
    aside: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def deal(members: Sequence[Member], before: Split, shares: Shares) -> Dealt:
    """Assign every patient of `members`. Cases in any order give the same answer."""
    patients = _patients(members)
    parts = dict(before.parts)
    if not before.frozen:
        said = {
            p: part for p, (_, _, given) in patients.items() if (part := _given(given)) is not None and p not in parts
        }
        tested = {p: parts.get(p, said.get(p)) for p in patients}
        tests = _every_so_often(shares.test, {p: None if t is None else t is Part.TEST for p, t in tested.items()})
        parts.update({p: Part.TEST for p in tests})
    rest = {
        p: None if p not in parts else parts[p] is Part.VALIDATION for p in patients if parts.get(p) is not Part.TEST
    }
    validates = _every_so_often(shares.validation / (1 - shares.test), rest)
    parts.update({p: Part.VALIDATION if p in validates else Part.TRAIN for p in rest if p not in parts})
    cases = {member.case: parts[member.patient] for member in sorted(members, key=lambda m: m.case)}
    aside: tuple[str, ...] = ()
    if before.frozen:
        aside = tuple(c for c, part in cases.items() if part is Part.TEST and c not in before.frozen)
        cases = {c: part for c, part in cases.items() if c not in aside}
    missing = tuple(sorted(set(before.frozen) - set(cases)))
    return Dealt(Split(dict(sorted(parts.items())), before.frozen), cases, aside, missing)


def frozen(dealt: Dealt) -> Split:
    """The split as it is from its publication on."""
    if dealt.split.frozen:
        return dealt.split
    return Split(dealt.split.parts, tuple(c for c, part in dealt.cases.items() if part is Part.TEST))


def hash_of_test_set(split: Split) -> str:
    """Of the frozen test set: SHA-256 of the sorted names of its cases, one a line."""
    listing = "".join(f"{case}\n" for case in sorted(split.frozen))
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def _given(given: str) -> Part | None:
    """A source that says "train" means: not the test set. Who of them validates is still open."""
    return Part(given) if given else None


def _every_so_often(share: float, chosen: Mapping[str, bool | None]) -> set[str]:
    """Those of the sequence that are taken, so that the number taken never strays far from its share; `chosen` holds
    what is decided already."""
    lag, taken = 0.0, set()
    for name, decided in chosen.items():
        lag += share
        if decided or (decided is None and lag >= 0.5):
            taken.add(name)
            lag -= 1
    return taken


def _patients(members: Sequence[Member]) -> dict[str, tuple[str, float, str]]:
    """Scanner, load and given part of every patient, in the order of dealing. A patient with several visits counts with
    the scanner of the first and the mean load; one visit that was given to the test set takes the others along."""
    found: dict[str, list[Member]] = {}
    for member in sorted(members, key=lambda m: m.case):
        found.setdefault(member.patient, []).append(member)
    described = {}
    for patient, visits in found.items():
        given = {visit.given for visit in visits}
        said = Part.TEST if Part.TEST in given else Part.TRAIN if Part.TRAIN in given else ""
        described[patient] = (visits[0].scanner, sum(v.load_ml for v in visits) / len(visits), str(said))
    return dict(sorted(described.items(), key=lambda item: (item[1][0], item[1][1], item[0])))
