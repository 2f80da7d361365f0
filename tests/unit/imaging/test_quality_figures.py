"""Figures: MRIQC's formulas on values that can be worked out by hand, and faults put into a made head."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fakes.heads import MadeHeadExtractor, SameEverywhere, grid, head, lesion_mask
from msfl.imaging.checks import Volume
from msfl.imaging.quality import signal as s
from msfl.imaging.quality.agreement import agreement, depth, shared
from msfl.imaging.quality.geometry import geometry
from msfl.imaging.quality.lesions import lesions
from msfl.imaging.quality.measure import measure
from msfl.imaging.quality.twins import fingerprint, twins
from msfl.imaging.quality.words import FIGURES
from msfl.imaging.standard.pipeline import Raw, Standard, standardise
from msfl.imaging.standard.recipe import Recipe
from msfl.imaging.standard.register import Rigid

FIND = MadeHeadExtractor()
RNG = np.random.default_rng(3)


def pair(on: Volume | None = None, seed: int = 0) -> tuple[Raw, Standard]:
    """A pair that needs no registration."""
    on = on or grid()
    raw = Raw(head("FLAIR", on, seed=seed), head("T1w", on, seed=seed), lesion_mask(on))
    return raw, standard_of(raw)


def standard_of(raw: Raw) -> Standard:
    flair, t1w = FIND.extract(raw.flair, "FLAIR"), FIND.extract(raw.t1w, "T1w")
    return Standard(raw.flair, raw.t1w, raw.lesion, flair, t1w, Rigid(np.eye(4)), flair, t1w)


# ------------------------------------------------------------------------------------------------ signal


def test_snr_is_mriqcs() -> None:
    region = np.array([90.0, 110.0] * 500, dtype=np.float32)
    assert s.snr(region) == pytest.approx(100 / (10 * math.sqrt(1000 / 999)))
    assert s.snr(region[:50]) is None
    assert s.snr(np.full(500, 7, np.float32)) is None


def test_snrd_is_dietrichs() -> None:
    air = np.abs(RNG.normal(0, 5, 200_000) + 1j * RNG.normal(0, 5, 200_000)).astype(np.float32)
    assert s.snrd(np.full(500, 100, np.float32), float(air.std())) == pytest.approx(100 / 5 * 0.6551 * 1.5264, rel=0.02)


def test_cnr_and_cjv() -> None:
    wm, gm = (RNG.normal(mean, 4, 50_000).astype(np.float32) for mean in (120, 80))
    assert s.cjv(wm, gm) == pytest.approx(8 / 40, rel=0.02)
    assert s.cnr(wm, gm, 2.0) == pytest.approx(40 / math.sqrt(4 + 16 + 16), rel=0.02)
    assert s.cnr(wm, gm, None) is None


def test_entropy_is_one_when_all_voxels_are_equal_and_zero_when_one_has_all() -> None:
    assert s.efc(np.full(1000, 5, np.float32)) == pytest.approx(1)
    assert s.efc(np.array([9.0] + [0.0] * 999, np.float32)) == pytest.approx(0, abs=1e-6)


def test_fber_compares_medians_of_energy() -> None:
    assert s.fber(np.full(10, 20, np.float32), np.full(10, 2, np.float32)) == pytest.approx(100)
    assert s.fber(np.full(10, 20, np.float32), np.zeros(10, np.float32)) is None


def test_where_air_was_cut_away_what_needs_it_is_not_computable() -> None:
    _, made = pair()
    parts = s.tissue(made.t1w, made.brain)
    whole = s.signal(made.t1w, made.brain, parts, fluid_is_signal=False)
    bare = s.signal(made.t1w.like(np.where(made.brain, made.t1w.voxels, 0)), made.brain, parts, fluid_is_signal=False)
    assert None not in whole.values()
    assert {name for name, value in bare.items() if value is None} == {"snrd", "cnr", "fber"}


def test_tissues_of_a_made_head_are_told_apart() -> None:
    _, made = pair()
    parts = s.tissue(made.t1w, made.brain)
    for mask, value in ((parts.csf, 25), (parts.gm, 80), (parts.wm, 120)):
        assert np.median(made.t1w.voxels[mask]) == pytest.approx(value, abs=6)


def test_noise_lowers_snr() -> None:
    on = grid()
    clean = head("T1w", on)
    brain = FIND.extract(clean, "T1w")
    parts = s.tissue(clean, brain)
    noisy = s.signal(head("T1w", on, noise=20.0), brain, parts, fluid_is_signal=False)["snr"]
    assert noisy < s.signal(clean, brain, parts, fluid_is_signal=False)["snr"]  # type: ignore[operator]


# ------------------------------------------------------------------------------------------------ geometry


def test_a_whole_head_touches_nothing() -> None:
    raw, made = pair()
    found = geometry(raw.flair, made.brain)
    assert (found["cut_top"], found["cut_side"], found["cut_bottom"]) == (0, 0, 0)
    assert found["spacing_min"] == found["spacing_max"] == pytest.approx(3)
    assert found["brain_length"] == pytest.approx(168, abs=7)
    assert found["brain"] == pytest.approx(4 / 3 * math.pi * 5.8 * 8.4 * 7.0, rel=0.06)


@pytest.mark.parametrize(
    ("cut", "figure"),
    [
        (np.s_[:, :, :40], "cut_top"),
        (np.s_[:, :, 16:], "cut_bottom"),
        (np.s_[:, 20:, :], "cut_side"),
        (np.s_[:45, :, :], "cut_side"),
    ],
)
def test_a_head_that_is_cut_off_shows_where(cut: tuple[slice, ...], figure: str) -> None:
    raw, made = pair()
    found = geometry(Volume(raw.flair.voxels[cut], raw.flair.affine), made.brain[cut])
    assert found[figure] > 20
    assert all(found[other] == 0 for other in {"cut_top", "cut_side", "cut_bottom"} - {figure})


def test_obliquity_is_the_largest_angle() -> None:
    from fakes.heads import rigid

    on = grid()
    oblique = Volume(on.voxels, rigid((12, 0, 0), (0, 0, 0)) @ on.affine)
    assert geometry(oblique, np.ones(on.voxels.shape, bool))["obliquity"] == pytest.approx(12, abs=0.1)


# ------------------------------------------------------------------------------------------------ agreement


@pytest.mark.slow
def test_a_pair_agrees() -> None:
    found = agreement(*pair())
    assert found["volume_similarity"] > 0.98  # type: ignore[operator]
    assert found["overlap"] > 0.97  # type: ignore[operator]
    assert found["shared"] > 1.05  # type: ignore[operator]
    assert found["shared_mirrored"] < 0.95  # type: ignore[operator]
    assert found["t1w_depth"] > 1 > found["flair_depth"]  # type: ignore[operator]


@pytest.mark.slow
def test_left_and_right_that_do_not_agree_are_found() -> None:
    raw, _ = pair()
    flipped = Raw(raw.flair, raw.t1w.like(raw.t1w.voxels[::-1].copy()), raw.lesion)
    made = standardise(flipped, Recipe(interpolation="linear"), FIND)
    assert agreement(flipped, made)["shared_mirrored"] > 1  # type: ignore[operator]


@pytest.mark.slow
def test_swapped_images_are_found() -> None:
    raw, made = pair()
    found = measure(Raw(raw.t1w, raw.flair, None), standard_of(Raw(raw.t1w, raw.flair, None)), SameEverywhere())
    assert found.figures["pair.flair_below_t1w"] < 0  # type: ignore[operator]
    assert depth(raw.t1w, made.brain) > 1 > depth(raw.flair, made.brain)  # type: ignore[operator]


def test_shared_information_knows_a_function_from_chance() -> None:
    on = grid((20, 20, 20))
    a = on.like(RNG.uniform(0, 1, on.voxels.shape).astype(np.float32))
    b = on.like(RNG.uniform(0, 1, on.voxels.shape).astype(np.float32))
    inside = np.ones(on.voxels.shape, bool)
    assert shared(a, a.like(1 - a.voxels), inside, bins=16) > 1.9
    assert shared(a, b, inside, bins=16) < 1.01


# ------------------------------------------------------------------------------------------------ lesions


def of_mask(mask: np.ndarray) -> dict[str, float | None]:
    raw, made = pair()
    wm = s.tissue(made.t1w, made.brain).wm
    return dict(lesions(raw.flair.like(mask), raw.flair, made.brain, wm))


def test_a_mask_of_a_lesion_is_in_the_brain_and_bright() -> None:
    found = of_mask(lesion_mask(grid()).voxels)
    assert found["count"] == 1
    assert found["outside"] == found["other_labels"] == found["tiny"] == 0
    assert found["volume"] == found["largest"] == pytest.approx(4 / 3 * math.pi * 0.8**3, rel=0.1)
    assert found["brightness"] == pytest.approx(150 / 85, rel=0.1)


def test_an_empty_mask_has_no_volume_and_no_brightness() -> None:
    found = of_mask(np.zeros(grid().voxels.shape, np.uint8))
    assert found["volume"] == 0
    assert found["brightness"] is None


def test_masks_that_are_none_are_found() -> None:
    mask = lesion_mask(grid()).voxels
    assert of_mask(mask * np.uint8(3))["other_labels"] == 1
    assert of_mask(np.roll(mask, 20, axis=0))["outside"] > 0.5  # type: ignore[operator]
    assert of_mask(mask[::-1].copy())["brightness"] < 1.3  # type: ignore[operator]


def test_specks_are_counted() -> None:
    fine = Volume(np.zeros((40, 40, 40), np.uint8), np.diag([1.0, 1, 1, 1]))
    fine.voxels[10:14, 10:14, 10:14] = 1
    fine.voxels[20, 20, 20] = fine.voxels[30, 30, 30] = 1
    brain = np.ones(fine.voxels.shape, bool)
    found = lesions(fine, fine.like(np.ones(brain.shape, np.float32)), brain, brain)
    assert (found["count"], found["tiny"]) == (3, 2)


# ------------------------------------------------------------------------------------------------ all of it


@pytest.mark.slow
def test_every_figure_has_words() -> None:
    found = measure(*pair(), SameEverywhere(0.25))
    assert set(found.figures) == set(FIGURES)
    assert found.figures["T1w.motion"] == 0.25
    without = replace(pair()[1], lesion=None)
    assert not any(name.startswith("lesion.") for name in measure(pair()[0], without, SameEverywhere()).figures)


def test_a_fingerprint_knows_a_head_again() -> None:
    first, again = (np.array(fingerprint(pair(seed=seed)[1])) for seed in (1, 2))
    other = np.array(fingerprint(standard_of(Raw(head("FLAIR", grid()), mirrored(head("T1w", grid())), None))))
    assert np.corrcoef(first, again)[0, 1] > np.corrcoef(first, other)[0, 1]


def test_the_same_image_twice_is_found_and_two_visits_of_one_patient_are_not() -> None:
    anatomy = {p: RNG.integers(-100, 100, 600) for p in ("p1", "p2", "p3")}
    prints = {
        f"{p}-{visit}": tuple((anatomy[p] + RNG.integers(-30, 30, 600)).tolist()) for p in anatomy for visit in "ab"
    }
    prints["p3-c"] = prints["p3-a"]
    patients = {case: case[:2] for case in prints} | {"p2-b": "p9"}
    found = {(pair_.first, pair_.second): pair_.same_image for pair_ in twins(prints, patients)}
    assert found == {("p2-a", "p2-b"): False, ("p3-a", "p3-c"): True}


def mirrored(image: Volume) -> Volume:
    return image.like(image.voxels[::-1].copy())
