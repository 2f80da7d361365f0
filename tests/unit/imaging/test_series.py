"""Which series is which: header values as scanners of several makers write them, and what contradicts itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from msfl.imaging.sources.series import SeriesFacts, Weighting, choose, needs_a_person, recognise
from msfl.imaging.sources.weighting import Tissues, weighting_of

GR, SE, IR = frozenset({"GR", "IR"}), frozenset({"SE", "IR"}), frozenset({"IR"})
PRIMARY = ("ORIGINAL", "PRIMARY", "M", "ND")


def facts(
    text: str = "",
    tr: float | None = None,
    te: float | None = None,
    ti: float | None = None,
    flip: float | None = None,
    scanning: frozenset[str] = frozenset(),
    **more: object,
) -> SeriesFacts:
    made = SeriesFacts(text, tr, te, ti, flip, scanning, image_type=PRIMARY, slices=176, slice_mm=1.0, three_d=True)
    return replace(made, **more)  # type: ignore[arg-type]


# fmt: off
KNOWN = {
    "Siemens MPRAGE": (facts("t1_mprage_sag_p2_iso *tfl3d1_16ns", 2300, 2.98, 900, 9, GR), Weighting.T1W),
    "Philips T1 TFE": (facts("sT1W_3D_TFE", 8.1, 3.7, None, 8, frozenset({"GR"})), Weighting.T1W),
    "GE BRAVO": (facts("Ax T1 BRAVO", 8.2, 3.2, 450, 12, GR), Weighting.T1W),
    "T1 spin echo": (facts("t1_se_tra", 550, 12, None, 90, frozenset({"SE"}), slices=30), Weighting.T1W),
    "Siemens SPACE FLAIR": (facts("t2_space_dark-fluid_sag *spcir", 5000, 388, 1800, 120, SE), Weighting.FLAIR),
    "a 3D FLAIR called t2_space": (facts("t2_space_sag", 5000, 388, 1800, 120, SE), Weighting.FLAIR),
    "GE CUBE FLAIR": (facts("Sag CUBE T2 FLAIR", 6000, 120, 1750, 90, SE), Weighting.FLAIR),
    "Philips VISTA FLAIR": (facts("3D Brain VIEW FLAIR", 4800, 340, 1650, 90, SE), Weighting.FLAIR),
    "2D TIRM": (facts("t2_tirm_tra_dark-fluid", 9000, 87, 2500, 150, SE, slices=40), Weighting.FLAIR),
    "physics alone, MPRAGE": (facts("", 2300, 2.98, 900, 9, GR), Weighting.T1W),
    "physics alone, FLAIR": (facts("", 9000, 110, 2500, 150, SE), Weighting.FLAIR),
    "words alone, FLAIR": (facts("sag_FLAIR_3D"), Weighting.FLAIR),
    "words alone, T1": (facts("anat-T1w"), Weighting.T1W),
    "T1 with contrast by its header": (
        facts("t1_mprage", 2300, 2.98, 900, 9, GR, contrast_agent=True), Weighting.T1W_CONTRAST
    ),
    "T1 with contrast by its name": (facts("t1_mprage_sag_KM", 2300, 2.98, 900, 9, GR), Weighting.T1W_CONTRAST),
    "T1 + Gd": (facts("Ax T1 +Gd", 550, 12, None, 90, frozenset({"SE"})), Weighting.T1W_CONTRAST),
    "T1 before contrast": (facts("t1_mprage_pre_contrast", 2300, 2.98, 900, 9, GR), Weighting.T1W),
    "T2": (facts("t2_tse_tra", 5000, 100, None, 150, frozenset({"SE"})), Weighting.OTHER),
    "PD": (facts("pd+t2_tse_tra", 3000, 12, None, 150, frozenset({"SE"})), Weighting.OTHER),
    "diffusion": (facts("ep2d_diff_tra_ADC", 5000, 90, None, 90, frozenset({"EP"})), Weighting.OTHER),
    "DIR": (facts("spc_dir_sag_iso", 7500, 320, 3000, 120, SE), Weighting.OTHER),
    "spinal cord": (facts("t1_tse_sag_HWS cervical", 600, 10, None, 150, frozenset({"SE"})), Weighting.OTHER),
    "localizer": (facts("AAHead", 3.2, 1.4, None, 8, frozenset({"GR"}), image_type=("LOCALIZER",)), Weighting.OTHER),
    "MIP": (facts("t1_mprage", 2300, 2.98, 900, 9, GR, image_type=("DERIVED", "PRIMARY", "MIP")), Weighting.OTHER),
    "three slices": (facts("t1_mprage", 2300, 2.98, 900, 9, GR, slices=3), Weighting.OTHER),
    "T1 FLAIR is no FLAIR": (facts("Ax T1 FLAIR", 2000, 24, 750, 160, SE), Weighting.OTHER),
    "called FLAIR, timed as MPRAGE": (facts("flair_sag", 2300, 2.98, 900, 9, GR), Weighting.UNSURE),
    "called T1, timed as FLAIR": (facts("t1w 3d", 9000, 110, 2500, 150, SE), Weighting.UNSURE),
    "silent": (facts(""), Weighting.UNKNOWN),
    "a name that says nothing": (facts("Series 4711"), Weighting.UNKNOWN),
}
# fmt: on


@pytest.mark.parametrize("name", KNOWN)
def test_a_series_is_recognised(name: str) -> None:
    given, expected = KNOWN[name]
    judged = recognise(given)
    assert judged.weighting is expected, judged.why


def test_the_reason_quotes_no_free_text() -> None:
    assert "Kowalczyk" not in recognise(facts("t1 mprage for Kowalczyk", 2300, 2.98, 900, 9, GR)).why


def judged(**series: SeriesFacts) -> dict[str, tuple[SeriesFacts, Weighting]]:
    return {name: (f, recognise(f).weighting) for name, f in series.items()}


MPRAGE = facts("t1_mprage", 2300, 2.98, 900, 9, GR)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (MPRAGE, replace(MPRAGE, three_d=False, slice_mm=4.0)),
        (MPRAGE, replace(MPRAGE, image_type=("DERIVED", "PRIMARY", "MPR"))),
        (replace(MPRAGE, image_type=(*PRIMARY, "NORM")), MPRAGE),
        (MPRAGE, replace(MPRAGE, slice_mm=1.6)),
    ],
)
def test_the_better_of_two_is_taken_for_a_reason(better: SeriesFacts, worse: SeriesFacts) -> None:
    series = judged(a=worse, b=better, c=facts("flair", 9000, 110, 2500))
    assert choose(series, Weighting.T1W) == ("b",)
    assert not needs_a_person(series, ("b",), Weighting.T1W)


def test_two_equals_and_what_contradicts_itself_are_for_a_person() -> None:
    series = judged(a=MPRAGE, b=MPRAGE)
    assert choose(series, Weighting.T1W) == ("a", "b")
    assert needs_a_person(series, ("a", "b"), Weighting.T1W)
    with_contrast = judged(a=replace(MPRAGE, contrast_agent=True))
    assert choose(with_contrast, Weighting.T1W) == ("a",)
    assert needs_a_person(with_contrast, ("a",), Weighting.T1W)
    assert choose(with_contrast, Weighting.FLAIR) == ()


@pytest.mark.parametrize(
    ("tissues", "weighting"),
    [
        # As measured on `MSFL_TEST_DATA`: the whole heads, a raw 2D pair and a stripped pair.
        (Tissues(123.7, 95.2, 0.0), Weighting.T1W),
        (Tissues(101.2, 112.6, 0.0), Weighting.FLAIR),
        (Tissues(341.5, 301.0, 0.0), Weighting.T1W),
        (Tissues(262.4, 266.8, 0.0), Weighting.FLAIR),
        (Tissues(1392.6, 1405.5, 0.0), Weighting.FLAIR),
        (Tissues(100.0, 140.0, 400.0), Weighting.OTHER),  # T2w
        (Tissues(100.0, 130.0, 98.0), Weighting.UNKNOWN),  # PD: fluid as bright as white matter
        (Tissues(100.0, 95.0, 10.0), Weighting.UNKNOWN),
    ],
)
def test_brightness_of_tissues_tells_the_contrast(tissues: Tissues, weighting: Weighting) -> None:
    assert weighting_of(tissues) is weighting
