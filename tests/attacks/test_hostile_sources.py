"""What a custodian is handed on a disk: archives that climb out or blow up, links that lead away, series that are cut,
mixed, encrypted or of something else. Each has its verdict, none stops the others, nothing is lost or half there.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from fakes.scanners import FLAIR, T1W, Patient, Scanner, head
from msfl.imaging import importing
from msfl.imaging.custodian import import_source, listing
from msfl.imaging.deidentify.keys import Pseudonyms
from msfl.imaging.faults import Fault
from msfl.imaging.sources.archive import Limits, unpack
from msfl.imaging.sources.finding import find
from msfl.imaging.workspace import State, Unusable, Workspace
from msfl.policies.refusals import CannotProceed

LIMITS = Limits(files=50, file_bytes=1 << 20, total_bytes=4 << 20, ratio=60)


def pair(folder: Path, number: str) -> Scanner:
    """FLAIR and T1w of one patient, as DICOM."""
    scanner = Scanner(Patient(number, f"Doe^{number}"))
    for seed, contrast in enumerate((FLAIR, T1W)):
        voxels, affine = head(seed=seed)
        scanner.scan(voxels, affine, folder, contrast)
    return scanner


# ------------------------------------------------------------------ archives


def entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def climbing(archive: zipfile.ZipFile) -> None:
    archive.writestr("fine.dcm", b"x")
    archive.writestr("../outside", b"x")


def absolute(archive: zipfile.ZipFile) -> None:
    archive.writestr("/etc/outside", b"x")


def windows(archive: zipfile.ZipFile) -> None:
    archive.writestr("C:/outside", b"x")


def backslash(archive: zipfile.ZipFile) -> None:
    info = entry("a")
    info.filename = "..\\outside"
    archive.writestr(info, b"x")


def link(archive: zipfile.ZipFile) -> None:
    archive.writestr(entry("link", stat.S_IFLNK | 0o777), b"/etc/passwd")


def device(archive: zipfile.ZipFile) -> None:
    archive.writestr(entry("device", stat.S_IFCHR | 0o666), b"")


def twice(archive: zipfile.ZipFile) -> None:
    archive.writestr("a", b"x")
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a", b"y")


def file_and_folder(archive: zipfile.ZipFile) -> None:
    archive.writestr("a", b"x")
    archive.writestr("a/b", b"x")


def bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr("zeros", bytes(900_000))
    archive.writestr("more", bytes(900_000))
    archive.writestr("and more", bytes(900_000))


def too_many(archive: zipfile.ZipFile) -> None:
    for number in range(60):
        archive.writestr(str(number), b"")


def too_long(archive: zipfile.ZipFile) -> None:
    archive.writestr("long", os.urandom(2 << 20))


ARCHIVES: dict[Callable[[zipfile.ZipFile], None], Fault] = {
    climbing: Fault.ARCHIVE_UNSAFE,
    absolute: Fault.ARCHIVE_UNSAFE,
    windows: Fault.ARCHIVE_UNSAFE,
    backslash: Fault.ARCHIVE_UNSAFE,
    link: Fault.ARCHIVE_UNSAFE,
    device: Fault.ARCHIVE_UNSAFE,
    twice: Fault.ARCHIVE_UNSAFE,
    file_and_folder: Fault.ARCHIVE_UNSAFE,
    bomb: Fault.TOO_LARGE,
    too_many: Fault.TOO_LARGE,
    too_long: Fault.TOO_LARGE,
}


@pytest.mark.parametrize(("fill", "fault"), ARCHIVES.items(), ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_hostile_archive_leaves_nothing_behind(
    tmp_path: Path, fill: Callable[[zipfile.ZipFile], None], fault: Fault
) -> None:
    file, into = tmp_path / "x.zip", tmp_path / "deep" / "into"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        fill(archive)
    into.mkdir(parents=True)
    with pytest.raises(Unusable) as refused:
        unpack(file, into, LIMITS)
    assert refused.value.code == fault
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "x.zip"]


def encrypted(data: bytes) -> bytes:
    """The bit that says "encrypted", in both headers of the one file."""
    changed = bytearray(data)
    changed[data.index(b"PK\x03\x04") + 6] |= 1
    changed[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


def lying(data: bytes) -> bytes:
    """It declares one byte and holds a thousand."""
    changed = bytearray(data)
    changed[data.index(b"PK\x01\x02") + 24 : data.index(b"PK\x01\x02") + 28] = (1).to_bytes(4, "little")
    return bytes(changed)


def unknown_method(data: bytes) -> bytes:
    changed = bytearray(data)
    for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        changed[data.index(mark) + at] = 99
    return bytes(changed)


@pytest.mark.parametrize(
    ("bend", "fault"),
    [
        (lambda data: data[:-30], Fault.TRUNCATED),
        (lambda data: data[: len(data) // 2], Fault.TRUNCATED),
        (lambda data: b"PK\x03\x04 this is no zip", Fault.TRUNCATED),
        (lambda data: b"", Fault.TRUNCATED),
        (encrypted, Fault.ENCRYPTED),
        (lying, Fault.TRUNCATED),
        (unknown_method, Fault.UNREADABLE),
    ],
    ids=["cut end", "half", "only a beginning", "empty", "encrypted", "lying about its size", "unknown method"],
)
def test_a_damaged_archive_leaves_nothing_behind(tmp_path: Path, bend: Callable[[bytes], bytes], fault: Fault) -> None:
    file, into = tmp_path / "x.zip", tmp_path / "into"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", os.urandom(1000))
    file.write_bytes(bend(file.read_bytes()))
    into.mkdir()
    with pytest.raises(Unusable) as refused:
        unpack(file, into, LIMITS)
    assert refused.value.code == fault
    assert not into.exists()


@pytest.mark.slow
def test_a_link_that_leads_out_of_the_source_is_not_followed(tmp_path: Path) -> None:
    pair(tmp_path / "another ward", "MRN2222")
    pair(tmp_path / "source", "MRN1111")
    (tmp_path / "source" / "more").symlink_to(tmp_path / "another ward")
    (tmp_path / "source" / "one.dcm").symlink_to(next((tmp_path / "another ward").iterdir()))
    os.mkfifo(tmp_path / "source" / "pipe.dcm")
    brought = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0)
    assert [outcome.verdict for outcome in brought.outcomes] == ["imported"]
    assert [(left["files"], left["code"]) for left in brought.left_out] == [(3, Fault.OUTSIDE_SOURCE)]


# ------------------------------------------------------------------ visits


def rewrite(folder: Path, change: Callable[[pydicom.Dataset], None]) -> None:
    for file in sorted(folder.iterdir()):
        image = pydicom.dcmread(file)
        change(image)
        image.save_as(file)


def of(series: int) -> Callable[[Path], list[Path]]:
    return lambda folder: sorted(folder.glob(f"IM{series:02d}*"))


def cut_in_the_picture(folder: Path) -> None:
    file = of(1)(folder)[10]
    file.write_bytes(file.read_bytes()[:-500])


def cut_in_the_header(folder: Path) -> None:
    for file in of(1)(folder):
        file.write_bytes(file.read_bytes()[:400])


def no_picture(folder: Path) -> None:
    rewrite(folder, lambda image: image.__delattr__("PixelData"))


def a_slice_is_missing(folder: Path) -> None:
    of(2)(folder)[12].unlink()


def the_end_is_missing(folder: Path) -> None:
    rewrite(folder, lambda image: setattr(image, "ImagesInAcquisition", 32))
    for file in of(2)(folder)[28:]:
        file.unlink()


def over_time(folder: Path) -> None:
    def change(image: pydicom.Dataset) -> None:
        image.ImagePositionPatient[2] = float(image.ImagePositionPatient[2]) // 10 * 10

    rewrite(folder, change)


def turned(folder: Path) -> None:
    image = pydicom.dcmread(of(1)(folder)[5])
    image.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    image.save_as(of(1)(folder)[5])


def no_flair(folder: Path) -> None:
    for file in of(1)(folder):
        file.unlink()


def no_t1w(folder: Path) -> None:
    for file in of(2)(folder):
        file.unlink()


def one_series_of_two_patients(folder: Path) -> None:
    for file in of(1)(folder)[:7]:
        image = pydicom.dcmread(file)
        image.PatientID = "MRN9999"
        image.save_as(file)


def one_number_of_two_people(folder: Path) -> None:
    for file in of(2)(folder):
        image = pydicom.dcmread(file)
        image.PatientName, image.PatientBirthDate = "Somebody^Else", "19010101"
        image.save_as(file)


def thick(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    voxels, affine = head()
    scanner = Scanner(Patient("BAD1", "Doe^BAD1"))
    for contrast in (FLAIR, T1W):
        scanner.scan(voxels[:, :, ::2], affine @ np.diag([1, 1, 2, 1]), folder, contrast)


def metres(folder: Path) -> None:
    def change(image: pydicom.Dataset) -> None:
        image.PixelSpacing = [f"{float(v) / 1000:.6f}" for v in image.PixelSpacing]
        image.ImagePositionPatient = [f"{float(v) / 1000:.6f}" for v in image.ImagePositionPatient]
        image.SliceThickness = image.SpacingBetweenSlices = 0.005

    rewrite(folder, change)


def empty_picture(folder: Path) -> None:
    rewrite(folder, lambda image: setattr(image, "PixelData", bytes(len(image.PixelData))))


def two_t1w(folder: Path) -> None:
    voxels, affine = head(seed=7)
    scanner = Scanner(Patient("BAD1", "Doe^BAD1"), series=8)
    scanner.scan(voxels, affine, folder, T1W)


def only_with_contrast_agent(folder: Path) -> None:
    def change(image: pydicom.Dataset) -> None:
        image.ContrastBolusAgent = "Gadovist"

    rewrite(folder, change)


BAD: dict[Callable[[Path], None], Fault] = {
    cut_in_the_picture: Fault.TRUNCATED,
    no_picture: Fault.TRUNCATED,
    a_slice_is_missing: Fault.SLICES_MISSING,
    the_end_is_missing: Fault.SLICES_MISSING,
    over_time: Fault.NOT_3D,
    turned: Fault.NOT_3D,
    no_flair: Fault.MISSING_FLAIR,
    no_t1w: Fault.MISSING_T1W,
    cut_in_the_header: Fault.MISSING_FLAIR,
    one_series_of_two_patients: Fault.MIXED_PATIENTS,
    one_number_of_two_people: Fault.MIXED_PATIENTS,
    thick: Fault.THICK_SLICES,
    metres: Fault.WRONG_UNITS,
    empty_picture: Fault.CONSTANT,
    two_t1w: Fault.AMBIGUOUS,
    only_with_contrast_agent: Fault.AMBIGUOUS,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "GOOD1"
    pair(folder, "GOOD1")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "fault"), BAD.items(), ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_bad_visit_has_its_verdict_and_stops_no_other(
    tmp_path: Path, good: Path, spoil: Callable[[Path], None], fault: Fault
) -> None:
    source = tmp_path / "source"
    pair(source / "BAD1", "BAD1")
    (source / "GOOD1").mkdir()
    for file in good.iterdir():
        os.link(file, source / "GOOD1" / file.name)
    spoil(source / "BAD1")
    brought = import_source(tmp_path / "home", "ms-trial", source, hands=0)
    assert not brought.ok
    codes = sorted({outcome.code for outcome in brought.outcomes if outcome.verdict == "unusable"})
    assert codes == [fault.value], brought
    assert [outcome.verdict for outcome in brought.outcomes].count("imported") == 1, "the good one is in"
    for listed in listing(tmp_path / "home", "ms-trial"):
        case = Workspace.of(tmp_path / "home", "ms-trial").case(listed.case)
        if listed.standing.state is State.FOUND:
            assert [f.name for f in case.folder.iterdir()] == ["journal.json"], "nothing is half in"
            assert listed.standing.failed is not None
            assert listed.standing.failed.code == fault
        else:
            assert listed.channels == ("FLAIR", "T1w")


@pytest.mark.slow
def test_what_came_in_stays_when_a_later_export_is_damaged(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    pair(source, "MRN1")
    (first,) = import_source(home, "ms-trial", source, hands=0).outcomes
    before = {f: f.read_bytes() for f in (home / "datasets" / "ms-trial" / "cases").rglob("*") if f.is_file()}
    cut_in_the_picture(source)
    (then,) = import_source(home, "ms-trial", source, hands=0).outcomes
    assert (first.verdict, then.verdict, then.code) == ("imported", "kept", Fault.TRUNCATED)
    assert then.case == first.case
    assert {f: f.read_bytes() for f in (home / "datasets" / "ms-trial" / "cases").rglob("*") if f.is_file()} == before


@pytest.mark.slow
def test_a_visit_that_was_mended_comes_in(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    pair(source, "BAD1")
    a_slice_is_missing(source)
    assert import_source(home, "ms-trial", source, hands=0).outcomes[0].code == Fault.SLICES_MISSING
    pair(source, "BAD1")
    assert import_source(home, "ms-trial", source, hands=0).outcomes[0].verdict == "imported"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beginning", "name", "code"),
    [
        (b"Salted__" + bytes(200), "a.bin", "encrypted"),
        (b"-----BEGIN PGP MESSAGE-----\n" + bytes(200), "a.asc", "encrypted"),
        (bytes.fromhex("308006092a864886f70d010703a080") + bytes(200), "a.dcm", "encrypted"),
        (bytes(range(256)) * 4, "a.dcm", "unreadable"),
        (bytes(128) + b"DICM" + bytes(range(1, 200)), "a", "truncated"),
        (bytes(128) + b"DICM", "a", "truncated"),
    ],
)
def test_files_that_were_meant_to_be_dicom_are_listed(tmp_path: Path, beginning: bytes, name: str, code: str) -> None:
    pair(tmp_path / "source", "MRN1")
    (tmp_path / "source" / name).write_bytes(beginning)
    (tmp_path / "source" / "notes.txt").write_text("not an image, and nobody's business")
    brought = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0)
    assert [(left["files"], left["code"]) for left in brought.left_out] == [(1, code)]
    assert [outcome.verdict for outcome in brought.outcomes] == ["imported"]


@pytest.mark.slow
def test_a_folder_of_two_patients_is_sorted_and_said(tmp_path: Path) -> None:
    for number in ("MRN1", "MRN2"):
        scanner = Scanner(Patient(number, f"Doe^{number}"))
        for seed, contrast in enumerate((FLAIR, T1W)):
            voxels, affine = head(seed=seed)
            scanner.scan(voxels, affine, tmp_path / "source", contrast, prefix=number)
    brought = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0)
    assert [outcome.verdict for outcome in brought.outcomes] == ["imported"] * 2
    assert brought.notes == ("1 folders hold images of more than one patient; they were sorted by patient ID.",)


@pytest.mark.slow
def test_a_zip_per_patient_is_a_source_and_a_bad_one_stops_no_other(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in ("MRN1", "MRN2"):
        pair(tmp_path / number, number)
        with zipfile.ZipFile(source / f"{number}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in (tmp_path / number).iterdir():
                archive.write(file, f"export/{file.name}")
    with zipfile.ZipFile(source / "evil.zip", "w") as archive:
        archive.writestr("../../evil", b"x")
    (source / "cut.zip").write_bytes((source / "MRN1.zip").read_bytes()[:5000])
    brought = import_source(tmp_path / "home", "ms-trial", source, hands=0)
    assert [outcome.verdict for outcome in brought.outcomes] == ["imported"] * 2
    assert sorted(left["code"] for left in brought.left_out) == ["archive_unsafe", "truncated"]
    assert not (tmp_path / "home" / "secrets" / "data" / "ms-trial" / "unpacked").exists()


def in_zip(file: Path, *members: tuple[str, bytes]) -> bytes:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.read_bytes()


def test_the_limits_hold_for_all_levels_of_archives_together(tmp_path: Path) -> None:
    inner = [in_zip(tmp_path / "x.zip", ("a", os.urandom(700_000))) for _ in range(4)]
    (tmp_path / "source").mkdir()
    in_zip(tmp_path / "source" / "outer.zip", *((f"{number}.zip", data) for number, data in enumerate(inner)))
    found = find(tmp_path / "source", tmp_path / "scratch", Pseudonyms(bytes(32)), limits=LIMITS)
    assert [left.why.code for left in found.left_out] == [Fault.TOO_LARGE] * 3, "four MiB are three and one"


def test_an_archive_in_an_archive_without_end_is_left_out(tmp_path: Path) -> None:
    data = in_zip(tmp_path / "x.zip", ("a", b"x"))
    for _ in range(9):
        data = in_zip(tmp_path / "x.zip", ("x.zip", data))
    (tmp_path / "x.zip").rename(tmp_path / "source.zip")
    found = find(tmp_path / "source.zip", tmp_path / "scratch", Pseudonyms(bytes(32)))
    assert [left.why.code for left in found.left_out] == [Fault.TOO_LARGE]
    assert len(found.unpacked) == Limits().levels


# ------------------------------------------------------------------ the custodian's own list


def links_of(home: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((home / "secrets/data/ms-trial/links.json").read_text())
    return read


@pytest.mark.slow
def test_the_list_names_the_zip_the_patient_came_from(tmp_path: Path) -> None:
    pair(tmp_path / "MRN1", "MRN1")
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for file in (tmp_path / "MRN1").iterdir():
            archive.write(file, f"disk/{file.name}")
        archive.writestr("cut.dcm", b"x")
    import_source(tmp_path / "home", "ms-trial", tmp_path / "export.zip", hands=0)
    links = links_of(tmp_path / "home")
    assert [link["from"] for link in links["cases"].values()] == [[f"{tmp_path}/export.zip/disk"]]
    assert [left["files"] for left in links["left_out"]] == [[f"{tmp_path}/export.zip/cut.dcm"]]


@pytest.mark.slow
def test_the_list_names_the_file_that_is_damaged_and_keeps_where_a_case_came_from(tmp_path: Path) -> None:
    home, first, second = tmp_path / "home", tmp_path / "first", tmp_path / "second"
    pair(first, "MRN1")
    pair(second, "MRN1")
    cut_in_the_picture(second)
    bad = str(of(1)(second)[10])
    import_source(home, "ms-trial", second, hands=0)
    (link,) = links_of(home)["cases"].values()
    assert (link["from"], link["code"], link["files"]) == ([str(second)], "truncated", [bad])
    import_source(home, "ms-trial", first, hands=0)
    brought = import_source(home, "ms-trial", second, hands=0)
    assert [outcome.verdict for outcome in brought.outcomes] == ["kept"]
    assert bad not in repr(brought), "what is printed names no file"
    (link,) = links_of(home)["cases"].values()
    assert link["from"] == [str(first)]
    assert (link["damaged_in"]["from"], link["damaged_in"]["files"]) == ([str(second)], [bad])


@pytest.mark.slow
def test_the_list_says_where_mixed_patients_lie(tmp_path: Path) -> None:
    pair(tmp_path / "source", "MRN1")
    one_series_of_two_patients(tmp_path / "source")
    import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0)
    cases = links_of(tmp_path / "home")["cases"].values()
    assert [(link["code"], link["from"]) for link in cases] == [("mixed_patients", [str(tmp_path / "source")])] * 2


# ------------------------------------------------------------------ the disk


@pytest.mark.slow
def test_a_disk_without_room_for_a_volume_is_not_the_images_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair(tmp_path / "source", "MRN1")
    little = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: little)
    with pytest.raises(CannotProceed, match=r"no room left on the disk.*What was done is kept"):
        import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0)
    assert [listed.standing.failed for listed in listing(tmp_path / "home", "ms-trial")] == []
    monkeypatch.undo()
    (outcome,) = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0).outcomes
    assert outcome.verdict == "imported"


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_stops_the_import_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    pair(tmp_path / "source", "MRN1")
    monkeypatch.setattr(importing, "write_volume", full)
    with pytest.raises(CannotProceed, match="no room left on the disk"):
        import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0)
    left = [file for file in (tmp_path / "home" / "datasets").rglob("*") if file.is_file() and file.name != ".lock"]
    assert left == []


@pytest.mark.slow
def test_whoever_interrupts_an_import_finds_no_scratch_files_of_patients(tmp_path: Path) -> None:
    pair(tmp_path / "source", "MRN1")
    import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0)
    (case,) = Workspace.of(tmp_path / "home", "ms-trial").cases()

    def interrupted(what: str, done: int, total: int) -> None:
        if what == "importing":
            (case.folder / ".scratch").mkdir()
            raise KeyboardInterrupt

    for stop in (interrupted, None):
        try:
            import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=1, progress=stop)
        except KeyboardInterrupt:
            assert stop is not None
        assert not (case.folder / ".scratch").exists()


# ------------------------------------------------------------------ NIfTI


def save(file: Path, voxels: np.ndarray, affine: np.ndarray, **header: object) -> None:
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units(header.get("unit", "mm"))
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, file)


def nan(file: Path) -> None:
    voxels, affine = head()
    values = voxels.astype(np.float32)
    values[3, 4, 5] = np.nan
    save(file, values, affine)


def four_d(file: Path) -> None:
    voxels, affine = head()
    save(file, np.stack([voxels] * 3, axis=-1), affine)


def in_metres(file: Path) -> None:
    voxels, affine = head()
    save(file, voxels, affine, unit="meter")


def in_centimetres(file: Path) -> None:
    voxels, affine = head()
    save(file, voxels, affine @ np.diag([0.1, 0.1, 0.1, 1]))


def nowhere(file: Path) -> None:
    voxels, _ = head()
    image = nib.Nifti1Image(voxels, None)
    image.header["pixdim"][1:4] = 5
    nib.save(image, file)


def left_is_right(file: Path) -> None:
    voxels, affine = head()
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ affine, code=1)
    nib.save(image, file)


def cut(file: Path) -> None:
    voxels, affine = head()
    save(file, voxels, affine)
    file.write_bytes(file.read_bytes()[:3000])


def damaged(file: Path) -> None:
    voxels, affine = head()
    save(file, voxels, affine)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))


def one_slice(file: Path) -> None:
    voxels, affine = head()
    save(file, voxels[:, :, :1], affine)


def colours(file: Path) -> None:
    rgb = np.zeros((20, 20, 20), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.diag([5.0, 5, 5, 1])), file)


def sheared(file: Path) -> None:
    voxels, affine = head()
    affine[0, 1] = 3
    save(file, voxels, affine)


def text(file: Path) -> None:
    file.write_text("this is not an image")


def bomb_of_zeros(file: Path) -> None:
    voxels, affine = head()
    save(file, voxels, affine)
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()) + bytes(64 << 20)))


def promises_too_much(file: Path) -> None:
    voxels, affine = head()
    save(file, voxels, affine)
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[42:48] = (30000).to_bytes(2, "little") * 3
    file.write_bytes(gzip.compress(bytes(content)))


BAD_NIFTI: dict[Callable[[Path], None], Fault] = {
    nan: Fault.NOT_FINITE,
    four_d: Fault.NOT_3D,
    in_metres: Fault.WRONG_UNITS,
    in_centimetres: Fault.WRONG_UNITS,
    nowhere: Fault.BAD_GEOMETRY,
    left_is_right: Fault.BAD_GEOMETRY,
    sheared: Fault.BAD_GEOMETRY,
    cut: Fault.TRUNCATED,
    damaged: Fault.TRUNCATED,
    one_slice: Fault.TOO_FEW_SLICES,
    colours: Fault.NOT_3D,
    text: Fault.UNREADABLE,
    bomb_of_zeros: Fault.TOO_LARGE,
    promises_too_much: Fault.TOO_LARGE,
}


@pytest.mark.slow
def test_every_bad_nifti_has_its_verdict_and_the_good_one_comes_in(tmp_path: Path) -> None:
    source, lines = tmp_path / "source", ["patient,flair,t1w,lesion"]
    for number, spoil in enumerate(BAD_NIFTI):
        voxels, affine = head(seed=number)
        save(source / f"t{number}.nii.gz", voxels, affine)
        (source / f"f{number}.nii.gz").parent.mkdir(exist_ok=True)
        spoil(source / f"f{number}.nii.gz")
        lines.append(f"{spoil.__name__},f{number}.nii.gz,t{number}.nii.gz,")
    voxels, affine = head(seed=99)
    save(source / "flair.nii.gz", voxels, affine)
    for name, mask in (("mask", voxels > 700), ("grey", voxels)):
        save(source / f"{name}.nii.gz", mask.astype(np.uint8), affine)
    save(source / "elsewhere.nii.gz", (voxels > 700).astype(np.uint8)[1:], affine)
    lines += [
        "good,flair.nii.gz,t0.nii.gz,mask.nii.gz",
        "grey,flair.nii.gz,t0.nii.gz,grey.nii.gz",
        "elsewhere,flair.nii.gz,t0.nii.gz,elsewhere.nii.gz",
        "gone,flair.nii.gz,gone.nii.gz,",
        "no flair,,t0.nii.gz,",
        "climbs,../../../etc/hostname,t0.nii.gz,",
        "twice,flair.nii.gz,t0.nii.gz,",
        "twice,flair.nii.gz,t1.nii.gz,",
        ",flair.nii.gz,t0.nii.gz,",
    ]
    (source / "list.csv").write_text("\n".join(lines))
    brought = import_source(tmp_path / "home", "ms-trial", source / "list.csv", hands=0)
    links = json.loads((tmp_path / "home/secrets/data/ms-trial/links.json").read_text())["cases"]
    codes = {links[outcome.case]["patient"]: outcome.code for outcome in brought.outcomes}
    expected = {spoil.__name__: fault.value for spoil, fault in BAD_NIFTI.items()} | {
        "good": "",
        "grey": Fault.MASK_NOT_BINARY,
        "elsewhere": Fault.MASK_ELSEWHERE,
        "gone": Fault.UNREADABLE,
        "no flair": Fault.MISSING_FLAIR,
        "climbs": Fault.OUTSIDE_SOURCE,
        "twice": Fault.AMBIGUOUS,
        f"line {len(lines)}": Fault.NO_PATIENT,
    }
    assert codes == expected
    assert [outcome.verdict for outcome in brought.outcomes].count("imported") == 1
