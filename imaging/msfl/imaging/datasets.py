"""datasets: is this nnU-Net raw folder fit to train on, and what exactly is in it?

A site's folder holds ``dataset.json`` and, per split, images and labels::

    imagesTr/<case>_0000.nii.gz  <case>_0001.nii.gz ...   one file per channel of dataset.json
    labelsTr/<case>.nii.gz                                one file per case
    imagesTs/  labelsTs/                                  the same for the held-out test cases

A folder without ``imagesTr`` is an evaluate-only site. Test cases are always needed: without them nobody learns
whether the model works here.

``check_dataset`` opens every file once and reports everything that is wrong at once, as data: a ``Problem`` has a code,
the case it belongs to and the detail, and says itself in one line (``Problem.line``). Training on bad data fails late
and unclearly, or worse, it does not fail at all. Nothing is ever changed or repaired here.

``dataset_files`` and ``dataset_version`` give the dataset its identity. The version is the digest of the listing that
``sha256sum dataset.json images??/* labels??/* | LC_ALL=C sort -k2`` prints, so anybody can recompute it by hand.
"""

import hashlib
import json
import math
import os
import re
import statistics
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

__all__ = [
    "DatasetReport", "Problem", "ProblemCode", "Progress", "check_dataset", "dataset_files", "dataset_version",
    "file_sha256",
]  # fmt: skip

Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""

AFFINE_TOLERANCE = 1e-3
"""Largest difference in any entry of two affines (mm) that still counts as the same grid."""

ENDINGS = (".nii.gz", ".nii")
_CASE = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_SPLITS = ("Tr", "Ts")
_DATASET_JSON_LIMIT = 1 << 20
_MOST_VOXELS = 1 << 30  # a damaged header may promise so much that reading would take all memory


class ProblemCode(StrEnum):
    """Every way in which a dataset can be unfit."""

    DATASET_JSON_INVALID = "dataset_json_invalid"
    COUNT_DIFFERS = "count_differs"
    NO_CASES = "no_cases"
    NO_TEST_CASES = "no_test_cases"
    UNEXPECTED_FILE = "unexpected_file"
    OUTSIDE_FOLDER = "outside_folder"
    MISSING_CHANNEL = "missing_channel"
    UNEXPECTED_CHANNEL = "unexpected_channel"
    LABEL_MISSING = "label_missing"
    IMAGE_MISSING = "image_missing"
    DUPLICATE_CASE = "duplicate_case"
    DUPLICATE_IMAGE = "duplicate_image"
    UNREADABLE = "unreadable"
    NOT_3D = "not_3d"
    AFFINE_INVALID = "affine_invalid"
    SHAPE_DIFFERS = "shape_differs"
    AFFINE_DIFFERS = "affine_differs"
    NOT_FINITE = "not_finite"
    CONSTANT_IMAGE = "constant_image"
    LABEL_NOT_INTEGER = "label_not_integer"
    UNEXPECTED_LABEL = "unexpected_label"


# What is said first, and what to do about it.
_WORDS: Mapping[ProblemCode, tuple[str, str]] = {
    ProblemCode.DATASET_JSON_INVALID: ("dataset.json cannot be used", "Correct dataset.json"),
    ProblemCode.COUNT_DIFFERS: (
        "number of training cases differs",
        "Restore the cases or correct dataset.json",
    ),
    ProblemCode.NO_CASES: ("no cases", "Check that this is the dataset's folder and that the images are named so"),
    ProblemCode.NO_TEST_CASES: ("no test cases", "Put held-out cases into imagesTs and labelsTs"),
    ProblemCode.UNEXPECTED_FILE: ("unexpected file", "Rename it or move it out of the folder"),
    ProblemCode.OUTSIDE_FOLDER: ("file outside the dataset", "Copy the file into the folder instead of linking it"),
    ProblemCode.MISSING_CHANNEL: ("missing channel", "Add the file or take the case out"),
    ProblemCode.UNEXPECTED_CHANNEL: ("unexpected channel", "Name the channel in dataset.json or remove the file"),
    ProblemCode.LABEL_MISSING: ("label missing", "Add the label file or take the case out"),
    ProblemCode.IMAGE_MISSING: ("label without images", "Add the images or remove the label file"),
    ProblemCode.DUPLICATE_CASE: ("case in train and test", "Keep the case in one split only"),
    ProblemCode.DUPLICATE_IMAGE: (
        "same image twice",
        "Keep one of the two; count a patient only once",
    ),
    ProblemCode.UNREADABLE: ("file cannot be read", "Export or copy the file again"),
    ProblemCode.NOT_3D: ("not a 3D volume", "Export one 3D volume per channel"),
    ProblemCode.AFFINE_INVALID: ("geometry is unusable", "Export the file again with a valid orientation"),
    ProblemCode.SHAPE_DIFFERS: ("shape differs", "Resample all files of the case to one grid"),
    ProblemCode.AFFINE_DIFFERS: ("affine differs", "Register and resample all files of the case to one grid"),
    ProblemCode.NOT_FINITE: ("values are not finite", "Export the file again without NaN or infinity"),
    ProblemCode.CONSTANT_IMAGE: ("image is empty", "Export the file again"),
    ProblemCode.LABEL_NOT_INTEGER: (
        "label is not integer",
        "Threshold the label to the values of dataset.json",
    ),
    ProblemCode.UNEXPECTED_LABEL: ("unexpected label value", "Name the value in dataset.json or correct the label"),
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the dataset. ``case`` is empty when it concerns the folder as a whole."""

    code: ProblemCode
    case: str
    detail: str

    def line(self) -> str:
        """What, where, why and what to do, in one line; names files, so it stays at the site."""
        what, advice = _WORDS[self.code]
        where = f"case {self.case}" if self.case else "dataset"
        return " ".join(f"{where}: {what}: {self.detail}. {advice}.".split())


@dataclass(frozen=True)
class DatasetReport:
    """What a dataset holds and what is wrong with it; fit for use when ``problems`` is empty.

    ``channel_names`` is in channel order, ``labels`` maps name to value, cases are sorted, ``spacing_median_mm`` is the
    median over readable cases per array axis (x, y, z as NIfTI stores them); None when no image could be read.
    """

    name: str
    channel_names: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    train_cases: tuple[str, ...] = ()
    test_cases: tuple[str, ...] = ()
    spacing_median_mm: tuple[float, float, float] | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class _Description:
    """What dataset.json promises."""

    name: str
    channel_names: tuple[str, ...]
    labels: Mapping[str, int]
    ending: str
    n_train: int | None


class _InvalidDescription(Exception):
    """dataset.json does not describe a dataset; the message is the detail of the problem."""


@dataclass
class _Case:
    """The files of one case, relative to the dataset's folder."""

    channels: dict[int, str] = field(default_factory=dict)
    label: str | None = None


@dataclass(frozen=True)
class _Volume:
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, ...]


def check_dataset(folder: Path, *, progress: Progress | None = None) -> DatasetReport:
    """Open every file of an nnU-Net raw folder and report all that is wrong. Never raises for bad data."""
    try:
        description = _describe(folder)
    except _InvalidDescription as error:
        return DatasetReport(name=folder.name, problems=(Problem(ProblemCode.DATASET_JSON_INVALID, "", str(error)),))
    problems: list[Problem] = []
    splits = {split: _collect(folder, split, description, problems) for split in _SPLITS}
    problems += _check_lists(splits, description)

    total = sum(len(case.channels) + (case.label is not None) for cases in splits.values() for case in cases.values())
    done = 0
    spacings: list[tuple[float, ...]] = []
    first_seen: dict[str, tuple[str, str]] = {}
    for split in _SPLITS:
        for name, case in splits[split].items():
            reference: tuple[str, _Volume] | None = None
            for path in [*(case.channels[index] for index in sorted(case.channels)), case.label]:
                if path is None:
                    continue
                volume = _check_file(folder, path, name, path == case.label, description, first_seen, problems)
                if volume is not None and reference is None:
                    reference = (path, volume)
                    spacings.append(volume.spacing_mm)
                elif volume is not None and reference is not None:
                    problems += _compare(name, path, volume, *reference)
                done += 1
                if progress is not None:
                    progress(done, total)
    x, y, z = (statistics.median(axis) for axis in zip(*spacings, strict=True)) if spacings else (0.0, 0.0, 0.0)
    return DatasetReport(
        name=description.name,
        channel_names=description.channel_names,
        labels=description.labels,
        train_cases=tuple(name for name, case in splits["Tr"].items() if case.channels),
        test_cases=tuple(name for name, case in splits["Ts"].items() if case.channels),
        spacing_median_mm=(x, y, z) if spacings else None,
        problems=tuple(problems),
    )


def dataset_files(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file that belongs to the dataset, by path relative to ``folder`` with forward slashes.

    Belonging are dataset.json and, in the four split folders, the files named like a case of it. Other files, such as
    notes or participants.tsv, do not change what is learned and are left out.

    Raises OSError when a file cannot be read, ValueError when dataset.json describes no dataset.
    """
    try:
        description = _describe(folder)
    except _InvalidDescription as error:
        raise ValueError(f"{folder.name}: {error}") from error
    paths = ["dataset.json"]
    for split in _SPLITS:
        for case in _collect(folder, split, description, []).values():
            paths += [*case.channels.values(), *([case.label] if case.label else [])]
    return {path: file_sha256(folder / path) for path in sorted(paths)}


def dataset_version(files: Mapping[str, str]) -> str:
    """The dataset's identity: ``sha256:`` and the digest of the sorted listing ``<hex>  <path>\\n`` of its files."""
    listing = "".join(f"{files[path]}  {path}\n" for path in sorted(files, key=str.encode))
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def file_sha256(path: Path) -> str:
    """64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(folder: Path) -> _Description:
    path = folder / "dataset.json"
    try:
        if path.stat().st_size > _DATASET_JSON_LIMIT:
            raise _InvalidDescription("it is larger than 1 MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _InvalidDescription(f"it cannot be opened ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _InvalidDescription(f"it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _InvalidDescription("it is not a JSON object")
    channels, labels = content.get("channel_names"), content.get("labels")
    if not isinstance(channels, dict) or set(channels) != {str(i) for i in range(len(channels))} or not channels:
        raise _InvalidDescription('channel_names must map "0", "1", ... to names')
    if not all(isinstance(name, str) and name for name in channels.values()):
        raise _InvalidDescription("channel_names holds a name that is not text")
    if not isinstance(labels, dict) or not all(type(value) is int for value in labels.values()):
        raise _InvalidDescription("labels must map names to whole numbers; regions are not supported")
    if labels.get("background") != 0 or len(set(labels.values())) != len(labels) or len(labels) < 2:
        raise _InvalidDescription("labels must have background 0 and at least one other value, each used once")
    ending = content.get("file_ending")
    if ending not in ENDINGS:
        raise _InvalidDescription(f"file_ending is {ending!r} but must be one of {', '.join(ENDINGS)}")
    n_train = content.get("numTraining")
    if n_train is not None and type(n_train) is not int:
        raise _InvalidDescription("numTraining is not a whole number")
    name = content.get("name")
    return _Description(
        name=name if isinstance(name, str) and name else folder.name,
        channel_names=tuple(channels[str(i)] for i in range(len(channels))),
        labels=labels,
        ending=ending,
        n_train=n_train,
    )


def _listing(folder: Path, part: str) -> Iterator[str]:
    if (folder / part).is_dir():
        yield from sorted(entry.name for entry in (folder / part).iterdir() if not entry.name.startswith("."))


def _collect(folder: Path, split: str, description: _Description, problems: list[Problem]) -> dict[str, _Case]:
    """Cases of one split by name, sorted; files that are named like no case become problems and are left out."""
    cases: dict[str, _Case] = {}
    ending = re.escape(description.ending)
    root = os.path.realpath(folder)
    for part, pattern in (
        (f"images{split}", rf"({_CASE})_([0-9]{{4}}){ending}"),
        (f"labels{split}", rf"({_CASE}){ending}"),
    ):
        for entry in _listing(folder, part):
            match = re.fullmatch(pattern, entry)
            path = f"{part}/{entry}"
            if match is None:
                problems.append(Problem(ProblemCode.UNEXPECTED_FILE, "", f"{path} is not named like a case's file"))
            elif not Path(os.path.realpath(folder / path)).is_relative_to(root):
                problems.append(Problem(ProblemCode.OUTSIDE_FOLDER, match[1], f"{path} is a link out of the folder"))
            elif part.startswith("labels"):
                cases.setdefault(match[1], _Case()).label = path
            elif int(match[2]) < len(description.channel_names):
                cases.setdefault(match[1], _Case()).channels[int(match[2])] = path
            else:
                detail = f"{path} is channel {int(match[2])}, dataset.json names {len(description.channel_names)}"
                problems.append(Problem(ProblemCode.UNEXPECTED_CHANNEL, match[1], detail))
    return dict(sorted(cases.items()))


def _check_lists(splits: Mapping[str, Mapping[str, _Case]], description: _Description) -> Iterator[Problem]:
    """What the names of the files alone can tell."""
    for split in _SPLITS:
        for name, case in splits[split].items():
            if not case.channels:
                detail = f"{case.label} is there, but no image of it is in images{split}"
                yield Problem(ProblemCode.IMAGE_MISSING, name, detail)
                continue
            for index, channel in enumerate(description.channel_names):
                if index not in case.channels:
                    detail = f"images{split}/{name}_{index:04d}{description.ending} ({channel}) is not there"
                    yield Problem(ProblemCode.MISSING_CHANNEL, name, detail)
            if case.label is None:
                detail = f"labels{split}/{name}{description.ending} is not there"
                yield Problem(ProblemCode.LABEL_MISSING, name, detail)
    for name in sorted(set(splits["Tr"]) & set(splits["Ts"])):
        yield Problem(ProblemCode.DUPLICATE_CASE, name, f"{name} is in imagesTr and in imagesTs")
    n_train = sum(bool(case.channels) for case in splits["Tr"].values())
    if not any(case.channels for cases in splits.values() for case in cases.values()):
        yield Problem(
            ProblemCode.NO_CASES, "", f"neither imagesTr nor imagesTs holds a <case>_0000{description.ending}"
        )
    elif not any(case.channels for case in splits["Ts"].values()):
        yield Problem(ProblemCode.NO_TEST_CASES, "", "imagesTs is empty, so no model can be evaluated at this site")
    if description.n_train is not None and description.n_train != n_train:
        detail = f"dataset.json says numTraining {description.n_train}, imagesTr holds {n_train}"
        yield Problem(ProblemCode.COUNT_DIFFERS, "", detail)


def _check_file(
    folder: Path,
    path: str,
    name: str,
    is_label: bool,
    description: _Description,
    first_seen: dict[str, tuple[str, str]],
    problems: list[Problem],
) -> _Volume | None:
    """Check one file by itself; its grid when it has one."""

    def problem(code: ProblemCode, detail: str) -> None:
        problems.append(Problem(code, name, f"{path} {detail}"))

    try:
        digest = file_sha256(folder / path)
        image: Any = nib.load(folder / path)
        if math.prod(image.shape) > _MOST_VOXELS:
            raise ValueError("the header promises more than any scanner makes")
        values: NDArray[Any] = np.asanyarray(image.dataobj)
        affine = np.asarray(image.affine, dtype=np.float64)
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError, HeaderDataError) as error:
        problem(ProblemCode.UNREADABLE, f"({type(error).__name__})")
        return None
    if not is_label:
        case, earlier = first_seen.setdefault(digest, (name, path))
        if earlier != path:
            problem(ProblemCode.DUPLICATE_IMAGE, f"is byte for byte {earlier} of case {case}")
    if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "iuf":
        problem(ProblemCode.NOT_3D, f"has shape {_by(values.shape)} of {values.dtype}")
        return None
    axes = affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or (spacing < 1e-3).any():
        problem(ProblemCode.AFFINE_INVALID, "has no finite, non-zero voxel size")
        return None
    if np.abs(axes.T @ axes / np.outer(spacing, spacing) - np.eye(3)).max() > AFFINE_TOLERANCE:
        problem(ProblemCode.AFFINE_INVALID, "has axes that are not at right angles")
        return None
    _check_values(values, is_label, description, problem)
    return _Volume(values.shape, affine, tuple(float(s) for s in spacing))


def _check_values(
    values: NDArray[Any], is_label: bool, description: _Description, problem: Callable[[ProblemCode, str], None]
) -> None:
    if values.dtype.kind == "f" and (bad := int(np.count_nonzero(~np.isfinite(values)))):
        problem(ProblemCode.NOT_FINITE, f"has {bad} voxels that are NaN or infinite")
    elif not is_label:
        if values.min() == values.max():
            problem(ProblemCode.CONSTANT_IMAGE, f"holds {values.flat[0]} everywhere")
    elif values.dtype.kind == "f" and (fractions := values[values != np.rint(values)]).size:
        problem(ProblemCode.LABEL_NOT_INTEGER, f"has {fractions.size} voxels such as {fractions[0]:.4g}")
    else:
        allowed = set(description.labels.values())
        unexpected = [int(value) for value in np.unique(values) if int(value) not in allowed]
        if unexpected:
            shown = ", ".join(map(str, unexpected[:5])) + (", ..." if len(unexpected) > 5 else "")
            problem(ProblemCode.UNEXPECTED_LABEL, f"holds {shown}; dataset.json allows {_values(allowed)}")


def _compare(name: str, path: str, volume: _Volume, first: str, reference: _Volume) -> Iterator[Problem]:
    if volume.shape != reference.shape:
        detail = f"{path} is {_by(volume.shape)}, {first} is {_by(reference.shape)}"
        yield Problem(ProblemCode.SHAPE_DIFFERS, name, detail)
    difference = float(np.abs(volume.affine - reference.affine).max())
    if difference > AFFINE_TOLERANCE:
        detail = f"{path} and {first} lie up to {difference:.3g} apart (allowed {AFFINE_TOLERANCE:g})"
        yield Problem(ProblemCode.AFFINE_DIFFERS, name, detail)


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _values(values: set[int]) -> str:
    return ", ".join(map(str, sorted(values)))
