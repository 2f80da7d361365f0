"""Verdicts: figures and limits in, a sentence out. Nothing here opens an image."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msfl.imaging.quality.limits import QualityLimits, default_limits, said
from msfl.imaging.quality.verdict import Finding, Overruled, Verdict, also, judge, site_scores, unmeasured
from msfl.imaging.quality.words import FIGURES
from msfl.policies.encoding import Malformed, load_yaml

LIMITS = default_limits()
GOOD = {
    "FLAIR.spacing_min": 1.0, "FLAIR.spacing_max": 1.0, "T1w.spacing_min": 0.95, "T1w.spacing_max": 1.05,
    "T1w.snr": 8.0, "FLAIR.snr": 1.4, "T1w.cjv": 0.5, "pair.overlap": 0.98, "pair.volume_similarity": 0.99,
    "lesion.volume": 8.0, "lesion.outside": 0.0, "lesion.other_labels": 0.0, "T1w.fber": None,
}  # fmt: skip


def test_a_good_case_passes() -> None:
    checked = judge("c1", GOOD, LIMITS)
    assert checked.verdict is checked.final is Verdict.PASS
    assert checked.findings == ()


@pytest.mark.parametrize(
    ("figure", "value", "verdict", "limit", "word"),
    [
        ("FLAIR.spacing_max", 3.0, Verdict.FAIL, "at most 1.1 mm", "voxels"),
        ("T1w.spacing_min", 0.72, Verdict.FAIL, "at least 0.9 mm", "voxels of T1w"),
        ("FLAIR.cut_top", 3.0, Verdict.WARN, "at most 1 cm²", "outside the FLAIR image"),
        ("FLAIR.cut_top", 20.0, Verdict.FAIL, "at most 5 cm²", "outside the FLAIR image"),
        ("pair.volume_similarity", 0.94, Verdict.WARN, "at least 0.95", "one brain"),
        ("pair.overlap", 0.5, Verdict.FAIL, "at least 0.9", "one brain"),
        ("pair.shared_mirrored", 1.4, Verdict.FAIL, "at most 1", "mirrored"),
        ("pair.flair_below_t1w", -0.3, Verdict.FAIL, "at least 0", "swapped"),
        ("lesion.other_labels", 2.0, Verdict.FAIL, "at most 0", "labels"),
        ("lesion.volume", 0.0, Verdict.WARN, "at least 0.05 ml", "empty"),
        ("T1w.motion", 0.8, Verdict.WARN, "at most 0.5", "moved"),
    ],
)
def test_a_bad_figure_is_found(figure: str, value: float, verdict: Verdict, limit: str, word: str) -> None:
    checked = judge("c1", GOOD | {figure: value}, LIMITS)
    assert checked.verdict is verdict
    (finding,) = checked.findings
    assert (finding.figure, finding.value, finding.limit) == (figure, value, limit)
    assert word in finding.sentence


def test_what_cannot_be_computed_decides_nothing() -> None:
    assert judge("c1", dict.fromkeys(FIGURES), LIMITS).verdict is Verdict.PASS


def test_the_worst_finding_decides() -> None:
    checked = judge("c1", GOOD | {"FLAIR.snr": 0.5, "FLAIR.spacing_max": 4.0}, LIMITS)
    assert [f.verdict for f in checked.findings] == [Verdict.FAIL, Verdict.WARN]
    assert checked.verdict is Verdict.FAIL


@given(st.dictionaries(st.sampled_from(sorted(FIGURES)), st.floats(-1e6, 1e6) | st.none()))
def test_every_finding_says_what_where_and_why(figures: dict[str, float | None]) -> None:
    for finding in judge("c1", figures, LIMITS).findings:
        assert finding.sentence.endswith((".", "?"))
        assert finding.limit
        assert finding.value == figures[finding.figure]


def test_every_limit_has_words_for_the_side_it_is_on() -> None:
    for name, limit in LIMITS.figures.items():
        for good in (limit.warn, limit.fail):
            if good is not None and good.min is not None:
                assert FIGURES[name].low, name
            if good is not None and good.max is not None:
                assert FIGURES[name].high, name


def test_what_fails_a_case_is_said_first_and_nothing_is_said_twice() -> None:
    mirrored = {"pair.shared": 1.035, "pair.volume_similarity": 0.94, "pair.shared_mirrored": 1.2}
    checked = judge("c1", GOOD | mirrored, LIMITS)
    assert [f.verdict for f in checked.findings] == [Verdict.FAIL, Verdict.WARN, Verdict.WARN]
    fails, warns = checked.said
    assert "mirrored" in fails[0].sentence
    assert {f.figure for f in warns} == {"pair.shared", "pair.volume_similarity"}
    twice = Finding(Verdict.FAIL, "twin.same_image", 1.0, "", "The same image.")
    assert also(judge("c1", GOOD | {"FLAIR.cut_top": 3.0}, LIMITS), twice).findings[0] == twice


def test_every_sentence_about_an_image_names_it() -> None:
    for name, words in FIGURES.items():
        image = name.partition(".")[0]
        if image in ("FLAIR", "T1w"):
            assert all(image in said for said in (words.low, words.high) if said), name


@given(st.sampled_from(sorted(LIMITS.figures)), st.floats(-100, 2500))
def test_a_figure_reads_as_it_was_judged(name: str, value: float) -> None:
    read = float(said(name, value, LIMITS).split()[0])
    verdicts = [judge("c1", {name: one}, LIMITS).verdict for one in (read, value)]
    assert verdicts[0] is verdicts[1]


def test_a_value_just_below_its_limit_does_not_read_as_the_limit() -> None:
    assert said("pair.overlap", 0.949838, LIMITS) == "0.9498"
    assert said("pair.overlap", 0.98, LIMITS) == "0.980"
    assert said("FLAIR.cut_top", 1.01, LIMITS) == "1.01 cm²"
    scores = {"T1w.snr": 4.02}
    assert "4.02 robust deviations" in judge("c1", {"T1w.snr": 30.0}, LIMITS, scores).findings[0].sentence


def cohort(odd: float) -> dict[str, dict[str, float | None]]:
    values = {f"c{n}": 8.0 + 0.1 * n for n in range(9)} | {"odd": odd}
    return {case: {"T1w.snr": value} for case, value in values.items()}


def test_a_case_unlike_the_sites_others_is_warned_about_inside_absolute_limits() -> None:
    scores = site_scores(cohort(30.0), LIMITS)
    assert scores["odd"]["T1w.snr"] > 20
    checked = judge("odd", {"T1w.snr": 30.0}, LIMITS, scores["odd"])
    assert checked.verdict is Verdict.WARN
    assert "far above what is usual here" in checked.findings[0].sentence
    assert judge("c4", {"T1w.snr": 8.4}, LIMITS, scores["c4"]).verdict is Verdict.PASS


def test_few_cases_are_not_compared() -> None:
    few = dict(list(cohort(30.0).items())[-5:])
    assert all(not scores for scores in site_scores(few, LIMITS).values())


def test_equal_cases_have_no_deviation_to_be_compared_with() -> None:
    assert site_scores({f"c{n}": {"T1w.snr": 8.0} for n in range(12)}, LIMITS)["c3"] == {}


def test_a_persons_decision_stands_beside_the_figures() -> None:
    checked = judge("c1", GOOD | {"FLAIR.cut_top": 20.0}, LIMITS)
    decided = replace(checked, overruled=Overruled(Verdict.PASS, "rita", "2026-11-28T12:00:00Z", "only skull is cut"))
    assert (decided.verdict, decided.final) == (Verdict.FAIL, Verdict.PASS)
    document = decided.to_json()
    assert document["verdict"] == "fail"
    assert document["final"] == "pass"
    assert document["overruled"]["reason"] == "only skull is cut"


def test_a_finding_of_the_whole_dataset_makes_a_verdict_worse_and_never_better() -> None:
    worse = also(judge("c1", GOOD, LIMITS), Finding(Verdict.FAIL, "twin.same_image", 1.0, "", "The same image."))
    assert worse.verdict is Verdict.FAIL
    assert also(worse, Finding(Verdict.WARN, "twin.same_head", 0.9, "", "Alike.")).verdict is Verdict.FAIL


def test_what_could_not_be_measured_fails_with_its_reason() -> None:
    checked = unmeasured("c1", "no_brain", "No brain was found.")
    assert checked.verdict is Verdict.FAIL
    assert checked.findings[0].sentence == "No brain was found."


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (
            "T1w.snr: {warn",
            "T1w.snir: {warn",
            r"there is no figure T1w\.snir; did you mean T1w\.snr\?",
        ),
        ("pair.shared: {", "pair.sharde: {", r"did you mean pair\.shared\?"),
        ("    - pair.shared", "    - pair.sharde", r"did you mean pair\.shared\?"),
        ("{warn: {min: 3}, fail: {min: 1.5}}", "{warn: {}, fail: {min: 1.5}}", "give min, max or both"),
        ("{warn: {min: 3}, fail: {min: 1.5}}", "{wran: {min: 3}}", "wran"),
        ("{warn: {min: 3}, fail: {min: 1.5}}", "{warn: {min: 3, max: 1}}", "min is above max"),
        ("fewest_cases: 8", "fewest_cases: 2", "fewest_cases"),
    ],
)
def test_wrong_limits_are_refused_with_line_and_key(old: str, new: str, word: str) -> None:
    text = files("msfl.imaging.quality").joinpath("limits.yaml").read_text()
    assert old in text
    with pytest.raises(Malformed, match=word) as refused:
        load_yaml(text.replace(old, new, 1).encode(), QualityLimits, "limits.yaml")
    assert refused.value.line == next(n for n, row in enumerate(text.splitlines(), 1) if old in row)
    assert len(str(refused.value)) < 300
