"""The demo's patients: deterministic, well formed, and different from site to site."""

import hashlib
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from msfl.imaging.datasets import check_dataset
from msfl.imaging.oracle import oracle_threshold_dice
from msfl.imaging.synth import DEMO_CASES, DEMO_SITES, SiteStyle, generate_site
from msfl.imaging.synth.anatomy import Person, grid, person, smooth_noise
from msfl.imaging.synth.lesions import draw_lesions
from msfl.imaging.synth.scanner import scan

COARSE = 4.0  # mm: everything but the looks
SITE = DEMO_SITES[0]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def patient() -> Person:
    return person(np.random.default_rng(5), COARSE)


def test_a_generated_site_passes_the_check_and_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    generate_site(
        tmp_path / "one", SITE, seed=3, n_train=2, n_test=1, spacing_mm=COARSE, progress=lambda *n: seen.append(n)
    )
    generate_site(tmp_path / "two", SITE, seed=3, n_train=2, n_test=1, spacing_mm=COARSE)
    generate_site(tmp_path / "other", SITE, seed=4, n_train=2, n_test=1, spacing_mm=COARSE)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    report = check_dataset(tmp_path / "one")
    assert [problem.line() for problem in report.problems] == []
    assert (report.channel_names, report.spacing_median_mm) == (("FLAIR", "T1w"), (COARSE,) * 3)
    assert (report.train_cases, report.test_cases) == (("A_001", "A_002"), ("A_003",))
    one, two, other = (digests(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one["imagesTs/A_003_0000.nii.gz"] != other["imagesTs/A_003_0000.nii.gz"]


def test_several_at_once_give_the_same_bytes(tmp_path: Path) -> None:
    for jobs in (1, 3):
        generate_site(tmp_path / str(jobs), SITE, seed=3, n_train=2, n_test=1, spacing_mm=COARSE, jobs=jobs)
    one, several = (sorted(f for f in (tmp_path / str(jobs)).rglob("*") if f.is_file()) for jobs in (1, 3))
    assert [f.read_bytes() for f in one] == [f.read_bytes() for f in several]


def test_a_test_case_does_not_change_with_the_number_of_training_cases(tmp_path: Path) -> None:
    for n_train in (0, 1):
        generate_site(tmp_path / str(n_train), SITE, seed=3, n_train=n_train, n_test=1, spacing_mm=COARSE)
    first, second = (digests(tmp_path / name) for name in "01")
    assert first["labelsTs/A_001.nii.gz"] == second["labelsTs/A_002.nii.gz"]


def test_files_are_int16_ras_with_one_geometry(tmp_path: Path) -> None:
    generate_site(tmp_path / "s", SITE, seed=0, n_train=0, n_test=1, spacing_mm=COARSE)
    image = nib.load(tmp_path / "s/imagesTs/A_001_0000.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(image.get_sform(), image.get_qform())
    assert (image.header["sform_code"], image.header["qform_code"]) == (4, 4)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_a_dataset_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(FileExistsError, match="already holds a dataset"):
        generate_site(tmp_path, SITE, seed=0, n_train=0, n_test=1, spacing_mm=COARSE)
    assert (tmp_path / "dataset.json").read_text() == "{}"


@pytest.mark.parametrize("change", [{"n_test": -1}, {"seed": -1}, {"spacing_mm": 0.3}, {"spacing_mm": 9.0}])
def test_senseless_sizes_are_refused_before_anything_is_written(tmp_path: Path, change: dict[str, float]) -> None:
    arguments = {"seed": 0, "n_train": 0, "n_test": 1, "spacing_mm": COARSE} | change
    with pytest.raises(ValueError, match=r"negative|outside"):
        generate_site(tmp_path / "s", SITE, **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


def test_tissue_fractions_add_up_and_the_brain_has_a_humans_size(patient: Person) -> None:
    total = patient.csf + patient.gm + patient.wm
    np.testing.assert_allclose(total, 1, atol=1e-5)
    litres = patient.brain.sum() * COARSE**3 / 1e6
    assert 1.2 < litres < 2.3
    assert patient.brain[patient.ventricle_mm < -1].all()


def test_two_people_differ() -> None:
    one, two = (person(np.random.default_rng(seed), COARSE) for seed in (1, 2))
    overlap = 2 * (one.brain & two.brain).sum() / (one.brain.sum() + two.brain.sum())
    assert 0.85 < overlap < 0.985
    assert np.corrcoef(one.wm[one.brain], two.wm[one.brain])[0, 1] < 0.9


@pytest.mark.parametrize("load_ml", [8, 25])
def test_lesions_reach_the_load_within_the_brain_and_outside_the_fluid(patient: Person, load_ml: float) -> None:
    extent = draw_lesions(np.random.default_rng(1), patient, load_ml).extent
    drawn = extent > 0.5
    assert load_ml <= drawn.sum() * COARSE**3 / 1000 < 1.4 * load_ml + 1
    assert patient.brain[drawn].all()
    assert (patient.csf[drawn] < 0.6).all()
    assert 0 <= extent.min() <= extent.max() <= 1


def test_lesions_are_bright_on_flair_and_dark_on_t1w(patient: Person) -> None:
    taken = scan(np.random.default_rng(1), patient, draw_lesions(np.random.default_rng(1), patient, 20), SITE)
    white = (patient.wm > 0.9) & (taken.label == 0)
    lesion = taken.label > 0
    assert 1.15 < taken.flair[lesion].mean() / taken.flair[white].mean() < 1.5
    assert 0.6 < taken.t1w[lesion].mean() / taken.t1w[white].mean() < 0.92
    assert (taken.flair[~patient.brain] == 0).all()


def test_a_generous_annotator_draws_more_of_the_same_lesions(patient: Person) -> None:
    lesions = draw_lesions(np.random.default_rng(1), patient, 20)
    tight, generous = (
        scan(np.random.default_rng(2), patient, lesions, replace(SITE, outline=outline)) for outline in (0.64, 0.36)
    )
    np.testing.assert_array_equal(tight.flair, generous.flair)
    assert (generous.label >= tight.label).all()
    assert generous.label.sum() > 1.15 * tight.label.sum()


def test_the_demos_sites_differ_in_everything_a_federation_has_to_cope_with() -> None:
    assert [site.name for site in DEMO_SITES] == ["site-a", "site-b", "site-c"] == list(DEMO_CASES)
    for name in ("load_ml", "flair_grey", "gamma", "shading", "noise", "blur_mm", "outline", "units"):
        assert len({getattr(site, name) for site in DEMO_SITES}) == 3, name


@pytest.mark.parametrize("sigma", [0.5, 2.0, 7.0])
def test_smooth_noise_has_unit_deviation_and_the_smoothness_asked_for(sigma: float) -> None:
    field = smooth_noise(np.random.default_rng(0), (40, 44, 48), sigma)
    assert field.shape == (40, 44, 48)
    assert abs(float(field.mean())) < 1e-3
    assert float(field.std()) == pytest.approx(1, abs=1e-3)
    neighbour = float((field[1:] * field[:-1]).mean())
    # a Gaussian-smoothed field correlates with itself at distance d as exp(-d²/4σ²)
    assert neighbour == pytest.approx(np.exp(-1 / (4 * sigma**2)), abs=0.3)


def test_the_grid_covers_the_field_of_view() -> None:
    shape, affine = grid(2.0)
    assert shape == (81, 98, 79)
    np.testing.assert_array_equal(affine @ [0, 0, 0, 1], [-80, -112, -68, 1])


@pytest.mark.slow
@pytest.mark.parametrize("site", DEMO_SITES, ids=lambda site: site.name)
def test_a_threshold_alone_neither_solves_nor_fails_the_demos_test_cases(site: SiteStyle, tmp_path: Path) -> None:
    generate_site(tmp_path / site.name, site, seed=0, n_train=0, n_test=4)
    dices = []
    for path in sorted((tmp_path / site.name / "labelsTs").iterdir()):
        label = np.asanyarray(nib.load(path).dataobj)
        case = path.name.removesuffix(".nii.gz")
        flair = np.asanyarray(nib.load(tmp_path / site.name / "imagesTs" / f"{case}_0000.nii.gz").dataobj)
        dices.append(oracle_threshold_dice(flair, label))
        _, n = ndimage.label(label, np.ones((3, 3, 3)))
        assert n >= 5
    assert 0.2 <= np.mean(dices) <= 0.65
