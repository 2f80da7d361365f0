import pytest
from hypothesis import given
from hypothesis import strategies as st

from msfl.learning.splits import split_cases

CASES = [f"A_{i:03d}" for i in range(20)]


def test_the_split_depends_on_seed_and_names_alone() -> None:
    train, validation = split_cases(CASES, 1, 0.2)
    assert split_cases(reversed(CASES), 1, 0.2) == (train, validation)
    assert len(validation) == 4
    assert sorted((*train, *validation)) == CASES
    assert split_cases(CASES, 2, 0.2) != (train, validation)


def test_a_pinned_split_never_changes_between_versions() -> None:
    # By hand: for i in 0 1 2 3 4 5; do printf "12345:A_00$i" | sha256sum; done, the two lowest.
    assert split_cases(CASES[:6], 12345, 0.34)[1] == ("A_000", "A_003")


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (10, 2)])
def test_few_cases_still_leave_something_to_train_on(n: int, expected: int) -> None:
    train, validation = split_cases(CASES[:n], 7, 0.2)
    assert (len(train), len(validation)) == (n - expected, expected)


def test_no_validation_is_a_choice() -> None:
    assert split_cases(CASES, 1, 0.0) == (tuple(CASES), ())


def test_a_dataset_that_was_divided_by_patient_keeps_its_division() -> None:
    train, validation = split_cases(CASES, 1, 0.2, named={"A_003", "A_004"})
    assert validation == ("A_003", "A_004")
    assert sorted((*train, *validation)) == CASES
    assert split_cases(CASES, 9, 0.7, named={"A_003", "A_004"}) == (train, validation)
    assert split_cases(CASES, 1, 0.2, named=()) == (tuple(CASES), ())
    assert split_cases(CASES, 1, 0.0, named={"A_003"}) == (tuple(CASES), ())


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_senseless_fraction_is_an_error(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        split_cases(CASES, 1, fraction)


@given(st.sets(st.text(min_size=1), max_size=30), st.integers(), st.floats(0, 0.999))
def test_every_case_is_on_exactly_one_side(cases: set[str], seed: int, fraction: float) -> None:
    train, validation = split_cases(cases, seed, fraction)
    assert sorted((*train, *validation)) == sorted(cases)
    assert train or not cases
