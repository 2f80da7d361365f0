"""The split: by patient, in equal shares of scanners and loads, and what was said once stays said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msfl.imaging.split import Dealt, Member, Part, Shares, Split, deal, frozen, hash_of_test_set

SHARES = Shares()
PATIENTS = st.integers(0, 60).map(lambda n: f"p{n:02d}")


@st.composite
def cohorts(draw: st.DrawFn, prefix: str = "") -> list[Member]:
    visits = draw(st.lists(st.tuples(PATIENTS, st.integers(0, 3)), unique=True, max_size=60))
    scanners = {f"p{n:02d}": f"d{n % 3}" for n in range(61)}
    return [Member(f"{prefix}{p}-s{n}", f"{prefix}{p}", scanners[p], draw(st.floats(0, 60))) for p, n in visits]


def by_patient(dealt: Dealt, members: Sequence[Member]) -> dict[str, set[Part]]:
    parts: dict[str, set[Part]] = {}
    for member in members:
        if member.case in dealt.cases:
            parts.setdefault(member.patient, set()).add(dealt.cases[member.case])
    return parts


@given(cohorts())
def test_all_scans_of_a_patient_are_on_one_side(members: list[Member]) -> None:
    dealt = deal(members, Split(), SHARES)
    assert all(len(parts) == 1 for parts in by_patient(dealt, members).values())
    assert set(dealt.cases) == {m.case for m in members}
    assert dealt.aside == dealt.missing == ()


@given(cohorts(), st.randoms())
def test_the_order_of_the_cases_does_not_matter(members: list[Member], random: Random) -> None:
    shuffled = list(members)
    random.shuffle(shuffled)
    assert deal(shuffled, Split(), SHARES) == deal(members, Split(), SHARES)


@given(st.integers(1, 400), st.floats(0.0, 0.45), st.floats(0.05, 0.45))
def test_every_part_has_its_share(patients: int, validation: float, test: float) -> None:
    members = [Member(f"p{n:03d}-s", f"p{n:03d}", "d", float(n)) for n in range(patients)]
    counts = Counter(deal(members, Split(), Shares(validation, test)).cases.values())
    for part, share in ((Part.VALIDATION, validation), (Part.TEST, test)):
        assert abs(counts[part] - share * patients) < 2, (part, counts)


@given(cohorts())
def test_every_scanner_has_its_share_of_the_test_set(members: list[Member]) -> None:
    dealt = deal(members, Split(), SHARES)
    scanner = {m.patient: m.scanner for m in sorted(members, key=lambda m: m.case, reverse=True)}
    for name in set(scanner.values()):
        patients = [p for p in scanner if scanner[p] == name]
        tests = sum(dealt.split.parts[p] is Part.TEST for p in patients)
        assert abs(tests - SHARES.test * len(patients)) < 3


def test_small_and_large_loads_are_on_every_side() -> None:
    members = [Member(f"p{n:03d}-s", f"p{n:03d}", "d", 0.1 * 1.05**n) for n in range(100)]
    dealt = deal(members, Split(), SHARES)
    for part in Part:
        loads = [m.load_ml for m in members if dealt.cases[m.case] is part]
        low, high = sum(v < 1 for v in loads), sum(v >= 1 for v in loads)
        assert 0.35 < low / (low + high) < 0.65, part


@given(cohorts(), cohorts(prefix="q"))
def test_what_was_assigned_keeps_its_place_when_more_come(members: list[Member], more: list[Member]) -> None:
    first = deal(members, Split(), SHARES)
    then = deal([*members, *more], first.split, SHARES)
    assert first.split.parts.items() <= then.split.parts.items()
    assert first.cases.items() <= then.cases.items()


@given(cohorts(), cohorts(), cohorts(prefix="q"))
def test_a_frozen_test_set_neither_grows_nor_shrinks(
    members: list[Member], visits: list[Member], more: list[Member]
) -> None:
    first = frozen(deal(members, Split(), SHARES))
    later = {m.case: m for m in (*visits, *more, *members)}
    then = deal(list(later.values()), first, SHARES)
    tests = {case for case, part in then.cases.items() if part is Part.TEST}
    if first.frozen:
        assert tests == set(first.frozen)
        assert then.missing == ()
        known = {m.patient for m in members if m.case in first.frozen}
        assert all(later[case].patient in known for case in then.aside)
        assert not {later[case].patient for case, part in then.cases.items() if part is not Part.TEST} & known
    assert hash_of_test_set(frozen(then)) == hash_of_test_set(first) or not first.frozen


def test_a_case_that_left_the_frozen_test_set_is_missed() -> None:
    members = [Member(f"p{n}-s", f"p{n}", "d", float(n)) for n in range(8)]
    first = frozen(deal(members, Split(), SHARES))
    gone = first.frozen[0]
    assert deal([m for m in members if m.case != gone], first, SHARES).missing == (gone,)


def test_what_the_source_has_decided_is_kept() -> None:
    members = [Member(f"p{n}-s", f"p{n}", "d", float(n), "test" if n < 6 else "train") for n in range(12)]
    dealt = deal(members, Split(), SHARES)
    assert {c for c, part in dealt.cases.items() if part is Part.TEST} == {f"p{n}-s" for n in range(6)}
    assert Part.VALIDATION in dealt.cases.values()


def test_one_visit_in_the_test_set_takes_the_others_along() -> None:
    members = [Member("p-s1", "p", given="train"), Member("p-s2", "p", given="test")]
    assert set(deal(members, Split(), SHARES).cases.values()) == {Part.TEST}


def test_a_share_of_nothing_gets_nobody() -> None:
    members = [Member(f"p{n}-s", f"p{n}") for n in range(20)]
    assert set(deal(members, Split(), Shares(0.0, 0.0)).cases.values()) == {Part.TRAIN}


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.0, 1.0)])
def test_shares_leave_something_to_train_on(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="left to train on"):
        Shares(validation, test)


@given(cohorts())
def test_a_split_is_read_as_it_was_written(members: list[Member]) -> None:
    split = frozen(deal(members, Split(), SHARES))
    assert Split.from_json(split.to_json()) == split


def test_the_hash_can_be_recomputed_by_hand() -> None:
    assert hash_of_test_set(Split({}, ("b", "a"))) == (
        # printf 'a\nb\n' | sha256sum
        "sha256:911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2"
    )
