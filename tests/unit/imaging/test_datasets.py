"""Bad data gets one clear line, before anything is trained on it."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from msfl.imaging.datasets import ProblemCode, check_dataset, dataset_files, dataset_version

SHAPE = (5, 6, 4)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def write(path: Path, values: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.nifti1.Nifti1Image(values, affine).to_filename(path)


def image(seed: int) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(1, 900, SHAPE).astype(np.int16)


def label(value: int = 1) -> NDArray[np.uint8]:
    values = np.zeros(SHAPE, np.uint8)
    values[2, 2:4, 1] = value
    return values


def describe(site: Path, **changes: object) -> None:
    content: dict[str, object] = {
        "name": "clinic",
        "channel_names": {"0": "FLAIR", "1": "T1w"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (site / "dataset.json").write_text(json.dumps(content | changes))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    for seed, (split, case) in enumerate((("Tr", "C_001"), ("Tr", "C_002"), ("Ts", "C_003"))):
        for channel in range(2):
            write(folder / f"images{split}" / f"{case}_{channel:04d}.nii.gz", image(10 * seed + channel))
        write(folder / f"labels{split}" / f"{case}.nii.gz", label())
    describe(folder)
    return folder


def test_a_good_dataset_is_described_and_has_no_problems(site: Path) -> None:
    report = check_dataset(site)
    assert report.ok
    assert report.problems == ()
    assert (report.name, report.channel_names) == ("clinic", ("FLAIR", "T1w"))
    assert report.labels == {"background": 0, "lesion": 1}
    assert (report.train_cases, report.test_cases) == (("C_001", "C_002"), ("C_003",))
    assert report.spacing_median_mm == (2.0, 2.0, 3.0)


def test_a_site_without_training_images_is_evaluate_only(site: Path) -> None:
    shutil.rmtree(site / "imagesTr")
    shutil.rmtree(site / "labelsTr")
    describe(site, numTraining=0)
    report = check_dataset(site)
    assert report.ok
    assert (report.train_cases, report.test_cases) == ((), ("C_003",))


def test_channels_are_ordered_by_index_and_a_lesion_free_case_is_fine(site: Path) -> None:
    describe(site, channel_names={"1": "T1w", "0": "FLAIR"})
    write(site / "labelsTr/C_001.nii.gz", np.zeros(SHAPE, np.uint8))
    report = check_dataset(site)
    assert report.ok
    assert report.channel_names == ("FLAIR", "T1w")


def test_affines_may_differ_by_rounding(site: Path) -> None:
    write(site / "labelsTr/C_001.nii.gz", label(), AFFINE + np.diag([0, 0, 0.0009, 0]))
    assert check_dataset(site).ok


def test_progress_counts_every_file(site: Path) -> None:
    seen: list[tuple[int, int]] = []
    check_dataset(site, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 9) for i in range(1, 10)]


def with_nan(site: Path) -> None:
    values = image(1).astype(np.float32)
    values[0, 0, 0] = np.nan
    write(site / "imagesTr/C_001_0000.nii.gz", values)


def with_link(site: Path) -> None:
    outside = site.parent / "elsewhere.nii.gz"
    shutil.move(site / "imagesTr/C_001_0000.nii.gz", outside)
    (site / "imagesTr/C_001_0000.nii.gz").symlink_to(outside)


def truncated(site: Path) -> None:
    path = site / "imagesTr/C_001_0001.nii.gz"
    path.write_bytes(path.read_bytes()[:-60])


def in_both_splits(site: Path) -> None:
    for old, new in (("images{}/C_002_0000", "images{}/C_001_0000"), ("images{}/C_002_0001", "images{}/C_001_0001")):
        shutil.move(site / f"{old.format('Tr')}.nii.gz", site / f"{new.format('Ts')}.nii.gz")
    shutil.move(site / "labelsTr/C_002.nii.gz", site / "labelsTs/C_001.nii.gz")


def lost(site: Path) -> None:
    describe(site, numTraining=30)


def boundless(site: Path) -> None:
    path = site / "imagesTr/C_001_0000.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = (32767).to_bytes(2, "little") * 3  # dim[1..3] of the NIfTI header
    path.write_bytes(gzip.compress(content))


def looping(site: Path) -> None:
    path = site / "imagesTr/C_001_0000.nii.gz"
    path.unlink()
    path.symlink_to(path)


def untested(site: Path) -> None:
    for part in ("imagesTs", "labelsTs"):
        shutil.rmtree(site / part)


def emptied(site: Path) -> None:
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        shutil.rmtree(site / part)


BAD: list[tuple[str, Callable[[Path], object], ProblemCode, str, str]] = [
    (
        "missing channel",
        lambda s: (s / "imagesTr/C_001_0001.nii.gz").unlink(),
        ProblemCode.MISSING_CHANNEL,
        "C_001",
        "imagesTr/C_001_0001.nii.gz (T1w) is not there",
    ),
    (
        "channel nobody named",
        lambda s: write(s / "imagesTr/C_001_0002.nii.gz", image(99)),
        ProblemCode.UNEXPECTED_CHANNEL,
        "C_001",
        "is channel 2, dataset.json names 2",
    ),
    (
        "label missing",
        lambda s: (s / "labelsTr/C_002.nii.gz").unlink(),
        ProblemCode.LABEL_MISSING,
        "C_002",
        "labelsTr/C_002.nii.gz",
    ),
    (
        "label without image",
        lambda s: write(s / "labelsTs/C_009.nii.gz", label()),
        ProblemCode.IMAGE_MISSING,
        "C_009",
        "no image of it",
    ),
    (
        "label shape",
        lambda s: write(s / "labelsTr/C_001.nii.gz", label()[:-1]),
        ProblemCode.SHAPE_DIFFERS,
        "C_001",
        "labelsTr/C_001.nii.gz is 4×6×4",
    ),
    (
        "label affine",
        lambda s: write(s / "labelsTr/C_001.nii.gz", label(), np.diag([2.0, 2.0, 3.1, 1.0])),
        ProblemCode.AFFINE_DIFFERS,
        "C_001",
        "up to 0.1 apart",
    ),
    (
        "second channel affine",
        lambda s: write(s / "imagesTs/C_003_0001.nii.gz", image(7), AFFINE @ np.diag([-1.0, 1, 1, 1])),
        ProblemCode.AFFINE_DIFFERS,
        "C_003",
        "imagesTs/C_003_0001",
    ),
    (
        "unexpected value",
        lambda s: write(s / "labelsTr/C_001.nii.gz", label(7)),
        ProblemCode.UNEXPECTED_LABEL,
        "C_001",
        "holds 7; dataset.json allows 0, 1",
    ),
    (
        "probabilities as label",
        lambda s: write(s / "labelsTr/C_001.nii.gz", label() * np.float32(0.5)),
        ProblemCode.LABEL_NOT_INTEGER,
        "C_001",
        "2 voxels such as 0.5",
    ),
    ("NaN", with_nan, ProblemCode.NOT_FINITE, "C_001", "1 voxels that are NaN"),
    (
        "nothing in it",
        lambda s: write(s / "imagesTr/C_001_0000.nii.gz", np.zeros(SHAPE, np.int16)),
        ProblemCode.CONSTANT_IMAGE,
        "C_001",
        "holds 0 everywhere",
    ),
    (
        "zero bytes",
        lambda s: (s / "imagesTs/C_003_0000.nii.gz").write_bytes(b""),
        ProblemCode.UNREADABLE,
        "C_003",
        "imagesTs/C_003_0000.nii.gz",
    ),
    ("truncated", truncated, ProblemCode.UNREADABLE, "C_001", "imagesTr/C_001_0001.nii.gz"),
    (
        "not an image",
        lambda s: (s / "labelsTr/C_001.nii.gz").write_bytes(gzip.compress(b"hello" * 200)),
        ProblemCode.UNREADABLE,
        "C_001",
        "labelsTr/C_001.nii.gz",
    ),
    ("promises terabytes", boundless, ProblemCode.UNREADABLE, "C_001", "imagesTr/C_001_0000.nii.gz"),
    ("link to itself", looping, ProblemCode.UNREADABLE, "C_001", "imagesTr/C_001_0000.nii.gz"),
    (
        "time series",
        lambda s: write(s / "imagesTr/C_001_0000.nii.gz", np.stack([image(1), image(2)], -1)),
        ProblemCode.NOT_3D,
        "C_001",
        "has shape 5×6×4×2",
    ),
    (
        "sheared axes",
        lambda s: write(s / "imagesTr/C_001_0000.nii.gz", image(0), AFFINE + np.eye(4, k=1) * [1, 1, 0, 0]),
        ProblemCode.AFFINE_INVALID,
        "C_001",
        "not at right angles",
    ),
    (
        "same case in both splits",
        in_both_splits,
        ProblemCode.DUPLICATE_CASE,
        "C_001",
        "in imagesTr and in imagesTs",
    ),
    (
        "same patient under two names",
        lambda s: shutil.copy(s / "imagesTr/C_001_0000.nii.gz", s / "imagesTs/C_003_0000.nii.gz"),
        ProblemCode.DUPLICATE_IMAGE,
        "C_003",
        "byte for byte imagesTr/C_001_0000.nii.gz of case C_001",
    ),
    (
        "no test cases",
        untested,
        ProblemCode.NO_TEST_CASES,
        "",
        "imagesTs is empty",
    ),
    (
        "nothing at all",
        emptied,
        ProblemCode.NO_CASES,
        "",
        "neither imagesTr nor imagesTs",
    ),
    (
        "lost cases",
        lost,
        ProblemCode.COUNT_DIFFERS,
        "",
        "numTraining 30, imagesTr holds 2",
    ),
    (
        "name without channel",
        lambda s: write(s / "imagesTr/C_004.nii.gz", image(4)),
        ProblemCode.UNEXPECTED_FILE,
        "",
        "imagesTr/C_004.nii.gz",
    ),
    ("link out of the folder", with_link, ProblemCode.OUTSIDE_FOLDER, "C_001", "imagesTr/C_001_0000.nii.gz"),
]


@pytest.mark.parametrize(("spoil", "code", "case", "detail"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_data_gives_its_code_and_one_clear_line(
    site: Path, spoil: Callable[[Path], object], code: ProblemCode, case: str, detail: str
) -> None:
    spoil(site)
    problems = [problem for problem in check_dataset(site).problems if problem.code is code]
    assert len(problems) == 1
    (problem,) = problems
    assert problem.case == case
    assert detail in problem.detail
    line = problem.line()
    assert "\n" not in line
    assert detail in line
    assert line.startswith(f"case {case}: " if case else "dataset: ")
    assert line.endswith(".")


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe", "not JSON"),
        (b" " * (1 << 21), "larger than 1 MiB"),
        (b"[" * 500_000, "not JSON"),
    ],
)
def test_an_unusable_dataset_json_is_said_so(site: Path, content: bytes, detail: str) -> None:
    (site / "dataset.json").write_bytes(content)
    (problem,) = check_dataset(site).problems
    assert problem.code is ProblemCode.DATASET_JSON_INVALID
    assert detail in problem.line()


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"channel_names": {"0": "FLAIR", "2": "T1w"}}, "channel_names"),
        ({"channel_names": {}}, "channel_names"),
        ({"channel_names": {"0": ["FLAIR"]}}, "not text"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions are not supported"),
        ({"labels": {"background": False, "lesion": True}}, "whole numbers"),
        ({"labels": {"lesion": 1}}, "background 0"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "each used once"),
        ({"file_ending": ".png"}, "file_ending is '.png'"),
        ({"numTraining": "2"}, "numTraining"),
    ],
)
def test_a_wrong_field_in_dataset_json_is_named(site: Path, changes: dict[str, object], detail: str) -> None:
    describe(site, **changes)
    (problem,) = check_dataset(site).problems
    assert problem.code is ProblemCode.DATASET_JSON_INVALID
    assert detail in problem.detail


def test_a_folder_without_dataset_json_is_said_so(tmp_path: Path) -> None:
    (problem,) = check_dataset(tmp_path).problems
    assert problem.line() == (
        "dataset: dataset.json cannot be used: it cannot be opened (No such file or directory). Correct dataset.json."
    )


def test_everything_wrong_is_reported_at_once(site: Path) -> None:
    (site / "imagesTr/C_001_0001.nii.gz").unlink()
    write(site / "labelsTr/C_002.nii.gz", label(9))
    with_nan_at = image(3).astype(np.float32)
    with_nan_at[0] = np.inf
    write(site / "imagesTs/C_003_0000.nii.gz", with_nan_at)
    assert {problem.code for problem in check_dataset(site).problems} == {
        ProblemCode.MISSING_CHANNEL,
        ProblemCode.UNEXPECTED_LABEL,
        ProblemCode.NOT_FINITE,
    }


def test_checking_changes_nothing(site: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in site.rglob("*") if path.is_file()}
    (site / "labelsTr/C_002.nii.gz").chmod(0o444)
    check_dataset(site)
    dataset_files(site)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in site.rglob("*") if path.is_file()}


def test_version_is_that_of_the_files_that_belong(site: Path) -> None:
    files = dataset_files(site)
    assert sorted(files) == list(files)
    assert len(files) == 10
    assert files.keys() >= {"dataset.json", "imagesTr/C_001_0000.nii.gz", "labelsTs/C_003.nii.gz"}
    version = dataset_version(files)

    (site / "notes.txt").write_text("nothing to do with it")
    (site / "imagesTr/.DS_Store").write_text("neither this")
    assert dataset_version(dataset_files(site)) == version

    write(site / "labelsTs/C_003.nii.gz", label(0))
    assert dataset_version(dataset_files(site)) != version


def test_version_depends_on_names_and_content_only() -> None:
    assert dataset_version({"b": "1", "a": "2"}) == dataset_version({"a": "2", "b": "1"})
    assert dataset_version({"a": "1", "b": "2"}) != dataset_version({"a": "2", "b": "1"})
    # printf '1  a\n' | sha256sum
    assert dataset_version({"a": "1"}) == "sha256:252d2c1c62a4102df33de759273c226463a775871683139e426c67c46d3eca96"


def test_a_folder_that_is_no_dataset_has_no_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be opened"):
        dataset_files(tmp_path)
