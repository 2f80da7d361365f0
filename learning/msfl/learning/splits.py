"""Which training cases a site holds back for validation: decided by seed and case name, and by nothing else.

    rank of a case = SHA-256("<seed>:<case>")        the cases of lowest rank are the validation cases

A hash instead of a shuffle: the answer does not depend on the order of a directory listing or on a library's random
generator. The number of validation cases is exact, not a matter of luck: `round(fraction · n)`, at least one when
there are three cases or more, and never so many that nothing is left to train on. Test cases have their own folder
and are not touched here.

A dataset whose patients came several times cannot be divided by case: two scans of one patient must not lie on both
sides. Its custodian has divided it by patient, and `dataset.json` names the cases that validate (`validation`); then
neither seed nor size of the fraction matter, only whether there is to be validation at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

FEWEST_FOR_VALIDATION = 3


def split_cases(
    cases: Iterable[str], seed: int, fraction: float, named: Collection[str] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`(train, validation)`, each sorted by name. A `fraction` of 0 means no validation; `named` are the cases that the
    dataset itself holds back, None where it says nothing. Raises ValueError."""
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction must be in [0, 1), not {fraction}")
    names = sorted(set(cases))
    if named is not None and fraction > 0:
        return tuple(n for n in names if n not in named), tuple(n for n in names if n in named)
    if fraction == 0 or len(names) < FEWEST_FOR_VALIDATION:
        return tuple(names), ()
    n_val = min(max(1, round(fraction * len(names))), len(names) - 1)
    ranked = sorted(names, key=lambda case: hashlib.sha256(f"{seed}:{case}".encode()).digest())
    return tuple(sorted(ranked[n_val:])), tuple(sorted(ranked[:n_val]))
