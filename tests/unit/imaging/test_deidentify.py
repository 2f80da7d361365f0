"""Pseudonyms, moved dates, rebuilt words, warnings of burned-in text, and the face that goes while the brain stays."""

from __future__ import annotations

import stat
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.scanners import FLAIR, T1W, Patient, Scanner, head
from msfl.imaging.checks import Volume
from msfl.imaging.deidentify.burned_in import looks_written_on, said_by_header
from msfl.imaging.deidentify.changes import as_html, changes
from msfl.imaging.deidentify.deface import defaced, without_face
from msfl.imaging.deidentify.headers import Options, deidentify
from msfl.imaging.deidentify.keys import Pseudonyms, site_key
from msfl.imaging.deidentify.leaks import leaks, words_of_path
from msfl.imaging.deidentify.sidecars import scrubbed
from msfl.imaging.deidentify.words import imaging_words, maker, model
from msfl.imaging.workspace import Unusable, Workspace
from msfl.policies.refusals import CannotProceed

KEY = bytes(range(32))
OURS = Pseudonyms.of(KEY, "ms-trial")
DAYS = st.dates(date(1950, 1, 1), date(2050, 1, 1))

# ------------------------------------------------------------------ pseudonyms


def test_the_same_patient_is_the_same_and_only_at_this_site_in_this_dataset() -> None:
    assert OURS.patient("MRN1") == Pseudonyms.of(KEY, "ms-trial").patient("MRN1")
    others = {Pseudonyms.of(KEY, "other").patient("MRN1"), Pseudonyms.of(bytes(32), "ms-trial").patient("MRN1")}
    assert OURS.patient("MRN1") not in others
    assert len(others) == 2


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_patients_have_different_names_that_a_case_can_have(one: str, other: str) -> None:
    name = f"{OURS.patient(one)}-{OURS.visit(OURS.patient(one), other)}"
    assert Workspace(Path("w")).case(name).id == name
    assert (OURS.patient(one) == OURS.patient(other)) == (one == other)


@given(st.text(min_size=1))
def test_a_new_uid_is_a_uid(uid: str) -> None:
    made = pydicom.uid.UID(OURS.uid(uid))
    assert made.is_valid
    assert str(made).startswith("2.25.")
    assert len(made) <= 64


@given(DAYS, DAYS, st.text(min_size=1))
def test_dates_of_a_patient_move_together_and_far(one: date, other: date, patient: str) -> None:
    moved = OURS.shifted(patient, one)
    assert OURS.shifted(patient, other) - moved == other - one
    assert timedelta(30) <= one - moved <= timedelta(3650)


def test_patients_move_by_different_numbers_of_days() -> None:
    day = date(2024, 2, 29)
    assert len({OURS.shifted(f"p{n}", day) for n in range(100)}) > 90


def test_the_key_is_made_once_and_for_nobody_else(tmp_path: Path) -> None:
    key = site_key(tmp_path)
    assert site_key(tmp_path) == key
    assert len(set(key)) > 8
    file = tmp_path / "secrets" / "data.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert site_key(tmp_path / "another") != key
    file.chmod(0o640)
    with pytest.raises(CannotProceed, match="chmod 600"):
        site_key(tmp_path)
    file.chmod(0o600)
    file.write_bytes(key[:-1])
    with pytest.raises(CannotProceed, match="Restore it"):
        site_key(tmp_path)


# ------------------------------------------------------------------ headers


def deidentified(tmp_path: Path, number: str = "MRN1", day: str = "20240229", **headers: Any) -> pydicom.Dataset:
    voxels, affine = head(12, 12.0)
    file = Scanner(Patient(number), day).scan(voxels, affine, tmp_path / number / day, T1W, **headers)[0]
    return deidentify(pydicom.dcmread(file), OURS.patient(number), OURS, Options())


def test_uids_are_replaced_alike_everywhere(tmp_path: Path) -> None:
    voxels, affine = head(12, 12.0)
    scanner = Scanner()
    files = [*scanner.scan(voxels, affine, tmp_path, T1W), *scanner.scan(voxels, affine, tmp_path, FLAIR)]
    before = [pydicom.dcmread(f) for f in files]
    after = [deidentify(image, "p", OURS, Options()) for image in before]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"):
        pairs = {(image[keyword].value, made[keyword].value) for image, made in zip(before, after, strict=True)}
        assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs}), keyword
        assert not {old for old, _ in pairs} & {new for _, new in pairs}
    assert all(made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID for made in after)
    assert {made.SOPClassUID for made in after} == {before[0].SOPClassUID}


def test_intervals_between_visits_stay(tmp_path: Path) -> None:
    first, second = (deidentified(tmp_path, "MRN1", day) for day in ("20240229", "20240331"))
    days = [date.fromisoformat(f"{d[:4]}-{d[4:6]}-{d[6:]}") for d in (first.StudyDate, second.StudyDate)]
    assert days[1] - days[0] == timedelta(31)
    assert not first.StudyTime
    assert not first.PatientBirthDate


@pytest.mark.parametrize("text", ["yesterday", "2024", "20249999", "99999999"])
def test_what_is_no_date_is_gone(tmp_path: Path, text: str) -> None:
    assert deidentified(tmp_path, SeriesDate=text).SeriesDate == ""


def test_a_code_string_holds_no_name(tmp_path: Path) -> None:
    made = deidentified(tmp_path, ImageType=["ORIGINAL", "PRIMARY", "KOWALCZYK"], ScanOptions="DOE")
    assert list(made.ImageType) == ["ORIGINAL", "PRIMARY", ""]
    assert made.ScanOptions == ""


def test_before_and_after_can_be_read_and_nothing_in_it_runs(tmp_path: Path) -> None:
    voxels, affine = head(12, 12.0)
    file = Scanner().scan(voxels, affine, tmp_path, T1W, PatientComments="<script>alert(1)</script>")[0]
    source = pydicom.dcmread(file)
    rows = changes(source, deidentify(source, "p123", OURS, Options()))
    verdicts = {row.attribute.split(" ")[-1]: row.verdict for row in rows}
    assert verdicts["PatientComments"] == "removed"
    assert verdicts["PatientName"] == "replaced"
    assert verdicts["EchoTime"] == "kept"
    assert verdicts["PatientIdentityRemoved"] == "added"
    page = as_html({"T1w": rows})
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "This page names the patient" in page


# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("t1_mprage_sag_p2_iso", "t1 mprage sag p2 iso"),
        ("t1_mprage Doe, John 19660317", "t1 mprage"),
        ("T2 SPACE dark-fluid 0.9mm", "t2 space dark fluid 0 9mm"),
        ("MRN4711 flair", "flair"),
        ("Dr. Müller: FLAIR", "flair"),
        ("12345 99 1234", "99"),
        ("1966t1", ""),
        ("", ""),
    ],
)
def test_descriptions_are_rebuilt_from_known_words(text: str, kept: str) -> None:
    assert imaging_words(text) == kept


def test_makers_and_models_are_names_on_a_list() -> None:
    assert maker("SIEMENS HEALTHINEERS St. Rabenfels") == "Siemens"
    assert maker("GE MEDICAL SYSTEMS") == "GE"
    assert maker("Rabenfels") == ""
    assert model("MAGNETOM Prisma_fit of ward 17") == "magnetom prisma fit 17"
    assert model("DISCOVERY MR750w 4711881") == "discovery mr750w"


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none())))
def test_a_sidecar_is_made_of_listed_fields_alone(sidecar: dict[str, object]) -> None:
    assert scrubbed(sidecar | {"PatientName": "Doe", "EchoTime": 0.1}).get("PatientName") is None


def test_a_number_that_is_a_text_or_a_patients_is_dropped() -> None:
    assert (
        scrubbed({"EchoTime": "Doe", "RepetitionTime": 4711881, "FlipAngle": True, "InversionTime": float("nan")}) == {}
    )
    assert scrubbed({"MRAcquisitionType": "Doe", "SliceThickness": 1}) == {"SliceThickness": 1.0}


def test_own_words_raise_no_alarm(tmp_path: Path) -> None:
    file = tmp_path / "source.json"
    file.write_text(
        '{"kind": "dicom", "images": {"FLAIR": {"SeriesDescription": "t1 mprage"}}, "field_t": null, "defaced": true}'
    )
    source = Path("/home/images/none/patient/FLAIR/t1_mprage/source/IM0001.dcm")
    assert leaks([file], words_of_path(source)) == ()
    file.write_text('{"kind": "dicom", "note": "patient im0001"}')
    assert leaks([file], words_of_path(source)) == ("source.json",)


# ------------------------------------------------------------------ burned-in text


def letters(image: np.ndarray, count: int, top: int = 4095) -> np.ndarray:
    written = image.copy()
    for n in range(count):
        written[4:11, 4 + 8 * n] = top
        written[4, 4 + 8 * n : 9 + 8 * n] = top
    return written


def test_text_in_the_picture_is_warned_about() -> None:
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 900, (128, 128))
    assert not looks_written_on(plain)
    assert looks_written_on(letters(plain, 12))
    assert not looks_written_on(letters(plain, 2)), "a few bright things are anatomy"
    assert not looks_written_on(np.full((16, 16), 7))


def test_a_header_that_admits_it_is_believed() -> None:
    image = pydicom.Dataset()
    assert not said_by_header(image)
    image.BurnedInAnnotation = "YES"
    assert said_by_header(image)
    image = pydicom.Dataset()
    image.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    assert said_by_header(image)


# ------------------------------------------------------------------ faces


def body(turn: tuple[int, ...] = (0, 1, 2), flip: tuple[int, ...] = ()) -> tuple[Volume, np.ndarray, np.ndarray]:
    """A head with a nose in front of and below the brain (RAS, 4 mm), stored in any order of axes; brain and nose."""
    at = (np.arange(60) - 30) * 4.0
    x, y, z = np.meshgrid(at, at, at, indexing="ij")
    brain = (x / 68) ** 2 + (y / 85) ** 2 + ((z - 30) / 62) ** 2 < 1
    whole = (x / 78) ** 2 + (y / 95) ** 2 + ((z - 5) / 100) ** 2 < 1
    nose = (np.abs(x) < 14) & (y > 80) & (y < 108) & (z > -60) & (z < -30)
    voxels = np.where(brain, 700, np.where(whole | nose, 300, 0)).astype(np.int16)
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = at[0]
    permute = np.zeros((4, 4))
    permute[3, 3] = 1
    for new, old in enumerate(turn):
        permute[old, new] = 1
    arrays = [np.flip(a.transpose(turn), flip) for a in (voxels, brain, nose)]
    affine = affine @ permute
    for axis in flip:
        affine[:, 3] += affine[:, axis] * 59
        affine[:, axis] *= -1
    return Volume(arrays[0], affine), arrays[1], arrays[2]


@pytest.mark.parametrize("turn", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flip", [(), (0,), (1, 2)])
def test_the_face_goes_and_no_voxel_of_the_brain(turn: tuple[int, ...], flip: tuple[int, ...]) -> None:
    volume, brain, nose = body(turn, flip)
    kept = without_face(volume, brain)
    made = defaced(volume, kept)
    assert (made.voxels[brain] == volume.voxels[brain]).all()
    assert not kept[nose].any()
    assert made.voxels.dtype == volume.voxels.dtype
    assert kept[volume.voxels > 0].mean() > 0.6, "the rest of the head stays"


@given(st.integers(0, 2**32), st.floats(0.001, 0.2))
def test_no_brain_is_lost_whatever_its_shape(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    brain = rng.random((14, 15, 16)) < share
    brain[7, 7, 7] = True
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.5, 3, 3)
    affine = np.eye(4)
    affine[:3, :3] = turned
    assert without_face(Volume(np.ones(brain.shape), affine), brain)[brain].all()


def test_without_a_brain_there_is_no_telling() -> None:
    volume, brain, _ = body()
    with pytest.raises(Unusable, match="Without a brain mask"):
        without_face(volume, np.zeros_like(brain))
