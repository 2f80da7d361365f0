"""DICOM of several kinds becomes the volume that was scanned, voxel by voxel, where it was scanned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from fakes.scanners import FLAIR, T1W, Scanner, enhanced, head
from msfl.imaging.custodian import import_source
from msfl.imaging.workspace import Case, Workspace

pytestmark = pytest.mark.slow
SAGITTAL = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def imported(tmp_path: Path) -> Case:
    brought = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0)
    assert [o.verdict for o in brought.outcomes] == ["imported"], brought
    return Workspace.of(tmp_path / "home", "ms-trial").cases()[0]


def upright(voxels: NDArray[Any], affine: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    image = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    return np.asarray(image.dataobj), image.affine


def is_what_was_scanned(file: Path, voxels: NDArray[Any], affine: NDArray[Any]) -> None:
    image = nib.load(file)
    (was, where), (now, there) = upright(voxels, affine), upright(np.asarray(image.dataobj), image.affine)
    assert now.dtype == np.int16
    assert np.array_equal(was, now)
    assert np.abs(where - there).max() < 1e-3


def as_syntax(uid: pydicom.uid.UID) -> Callable[[Sequence[Path]], None]:
    def change(files: Sequence[Path]) -> None:
        for file in files:
            image = pydicom.dcmread(file)
            if uid == RLELossless:
                image.compress(uid)
            elif uid == ExplicitVRBigEndian:
                image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
            image.file_meta.TransferSyntaxUID = uid
            pydicom.dcmwrite(
                file, image, little_endian=uid != ExplicitVRBigEndian, implicit_vr=uid == ImplicitVRLittleEndian
            )

    return change


SYNTAXES = [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless]


@pytest.mark.parametrize("turned", [np.eye(4), SAGITTAL], ids=["axial", "sagittal"])
def test_slices_become_the_volume(tmp_path: Path, turned: NDArray[Any]) -> None:
    voxels, affine = head(seed=1)
    scanner = Scanner()
    scanner.scan(voxels, affine @ turned, tmp_path / "source", FLAIR)
    scanner.scan(voxels[::-1], affine, tmp_path / "source", T1W)
    case = imported(tmp_path)
    is_what_was_scanned(case.raw("FLAIR"), voxels, affine @ turned)
    is_what_was_scanned(case.raw("T1w"), voxels[::-1], affine)
    assert case.source["images"]["T1w"]["InversionTime"] == 0.9
    assert case.source["scanner"] | {"id": ""} == {
        "id": "", "manufacturer": "Siemens", "model": "skyra", "field_t": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize("uid", SYNTAXES, ids=lambda uid: uid.name)
def test_every_transfer_syntax_becomes_the_same_volume(tmp_path: Path, uid: pydicom.uid.UID) -> None:
    voxels, affine = head(seed=1)
    scanner = Scanner()
    as_syntax(uid)(scanner.scan(voxels, affine, tmp_path / "source", FLAIR))
    scanner.scan(voxels, affine, tmp_path / "source", T1W)
    is_what_was_scanned(imported(tmp_path).raw("FLAIR"), voxels, affine)


def test_objects_of_many_frames_become_the_volume(tmp_path: Path) -> None:
    voxels, affine = head(seed=1)
    (tmp_path / "source").mkdir()
    enhanced(voxels, affine, tmp_path / "source" / "a", FLAIR, 1)
    enhanced(voxels[::-1], affine @ SAGITTAL, tmp_path / "source" / "b", T1W, 2)
    case = imported(tmp_path)
    is_what_was_scanned(case.raw("FLAIR"), voxels, affine)
    is_what_was_scanned(case.raw("T1w"), voxels[::-1], affine @ SAGITTAL)


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    voxels, affine = head(seed=1)
    scanner = Scanner()
    for contrast in (FLAIR, T1W):
        scanner.scan(voxels, affine, tmp_path / "source", contrast)
    case = imported(tmp_path)
    first = {f.name: f.read_bytes() for f in (case.folder / "raw").iterdir()}
    (case.folder / "journal.json").unlink()
    again = imported(tmp_path)
    assert {f.name: f.read_bytes() for f in (again.folder / "raw").iterdir()} == first
