"""Files from a disk that anybody may have written: whatever their bytes, they are read, or refused with a code.

Seeds are small real files; the fuzzer changes, cuts and repeats pieces of them. What is not a refusal is a bug, and so
is an answer that is not the same twice, or one that takes long.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import pydicom
import pytest
from hypothesis import strategies as st

from fakes.fuzzing import fuzz
from fakes.scanners import FLAIR, T1W, Scanner, head
from msfl.imaging.convert import convert
from msfl.imaging.deidentify.headers import Options
from msfl.imaging.deidentify.keys import Pseudonyms
from msfl.imaging.deidentify.nifti import read_volume
from msfl.imaging.deidentify.sidecars import read_scrubbed
from msfl.imaging.sources.archive import Limits, unpack
from msfl.imaging.sources.dicom import find_dicom
from msfl.imaging.sources.table import find_in_table
from msfl.imaging.workspace import Unusable
from msfl.policies.refusals import CannotProceed

PSEUDONYMS = Pseudonyms(bytes(32))


@contextmanager
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="msfl-fuzz-"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def of_file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        with folder() as place:
            (place / name).write_bytes(data)
            return read(place / name)

    return parse


def found(file: Path) -> Any:
    seen = find_dicom([file], PSEUDONYMS, {})
    return [v.unusable.code if v.unusable else "" for v in seen.visits], [left.why.code for left in seen.left_out]


def deidentified(file: Path) -> Any:
    """All but the conversion, for which one slice is not enough: it is refused, too, but late."""
    scratch = file.parent / "scratch"
    scratch.mkdir()
    converted = convert([file], "p1", PSEUDONYMS, Options(), scratch)
    return converted.sidecar


def unpacked(file: Path) -> Any:
    into = file.parent / "into"
    into.mkdir()
    unpack(file, into, Limits(files=20, file_bytes=1 << 16, total_bytes=1 << 18))
    return sorted((p.name, p.read_bytes()) for p in into.rglob("*") if p.is_file())


def dicom_seed(**headers: Any) -> bytes:
    with folder() as place:
        voxels, affine = head(12, 12.0)
        file = Scanner().scan(voxels[:, :, :1], affine, place, T1W, **headers)[0]
        image = pydicom.dcmread(file)
        nested = pydicom.Dataset()
        nested.PatientName = "Doe"
        image.RequestAttributesSequence = [nested]
        image.private_block(0x0029, "SIEMENS", create=True).add_new(0x10, "OB", b"abcd")
        image.save_as(file)
        return file.read_bytes()


def nifti_seed() -> bytes:
    voxels, affine = head(12, 12.0)
    return gzip.compress(nib.Nifti1Image(voxels, affine).to_bytes(), mtime=0)


def zip_seed() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.dcm", b"some bytes" * 20)
        archive.writestr("c", b"x")
    return out.getvalue()


@dataclass(frozen=True)
class Target:
    parse: Callable[[bytes], Any]
    seeds: tuple[bytes, ...]
    tokens: tuple[bytes, ...] = ()


TARGETS = {
    "a DICOM header": Target(of_file("a.dcm", found), (dicom_seed(), dicom_seed(**FLAIR)), (b"SQ\0\0", b"\xff" * 4)),
    "a DICOM file that comes in": Target(of_file("a.dcm", deidentified), (dicom_seed(),), (b"UN\0\0", b"\xff" * 4)),
    "a NIfTI file": Target(of_file("a.nii", read_volume), (gzip.decompress(nifti_seed()),), (b"\xff\x7f", b"\0" * 4)),
    "a compressed NIfTI file": Target(of_file("a.nii.gz", read_volume), (nifti_seed(),), (b"\x1f\x8b",)),
    "a zip": Target(of_file("a.zip", unpacked), (zip_seed(),), (b"PK\x01\x02", b"PK\x05\x06", b"../", b"\xff" * 4)),
    "a sidecar": Target(
        of_file("a.json", read_scrubbed), (b'{"EchoTime": 0.1, "Manufacturer": "GE"}',), (b"NaN", b"[" * 999)
    ),
    "a table": Target(of_file("a.csv", find_in_table), (b"patient,flair,t1w\n1,a,b\n",), (b'"', b"\0", b"\n", b";")),
}


def changed(target: Target) -> st.SearchStrategy[bytes]:
    piece = st.one_of(st.sampled_from(target.tokens), st.binary(min_size=1, max_size=8))
    edit = st.tuples(st.floats(0, 1), st.integers(0, 8), piece)

    def apply(seed: bytes, edits: list[tuple[float, int, bytes]], keep: float) -> bytes:
        data = bytearray(seed)
        for where, width, with_ in edits:
            at = int(where * len(data))
            data[at : at + width] = with_
        return bytes(data[: max(1, int(keep * len(data)))])

    keep = st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1))
    return st.builds(apply, st.sampled_from(target.seeds), st.lists(edit, max_size=4), keep)


def outcome(target: Target, data: bytes) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "read", repr(target.parse(data))
    except Unusable as refused:
        return "refused", refused.code
    except CannotProceed:
        return "refused", "cannot proceed"


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused(name: str) -> None:
    fuzz(changed(TARGETS[name]), partial(outcome, TARGETS[name]), 60)


@pytest.mark.full
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused_for_long(name: str) -> None:
    fuzz(changed(TARGETS[name]), partial(outcome, TARGETS[name]), int(os.environ.get("MSFL_FUZZ", "20000")))
