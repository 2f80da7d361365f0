"""A patient's identifiers, planted wherever a scanner, an archive or a person could write them, are in nothing that an
import leaves behind: no header, file name, sidecar, journal, listing or line of output.

More than thirty are planted in a real DICOM series (`MSFL_TEST_DATA`; without it the made one is used alone): in names,
numbers, dates and UIDs, in free text, in nested sequences, private attributes, overlays, the preamble, the file meta
header and behind the pixels, in file and folder names, in NIfTI headers and their extensions, in BIDS sidecars. The
custodian's own list may hold them, and nothing else.
"""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from typer.testing import CliRunner

from fakes.scanners import FLAIR, T1W, Patient, Scanner, head
from msfl.imaging.custodian import import_source
from msfl.imaging.deidentify import headers, sidecars
from msfl.imaging.deidentify.headers import (
    BASIC_PROFILE,
    CLEAN_DESCRIPTORS,
    DEVICE,
    MODIFIED_DATES,
    Options,
    deidentify,
)
from msfl.imaging.deidentify.keys import Pseudonyms
from msfl.imaging.deidentify.leaks import identifiers, leaks
from msfl.imaging.main import app

PSEUDONYMS = Pseudonyms(bytes(range(32)))
PATIENT = PSEUDONYMS.patient("MRN4711889")

# Keyword to what is planted. No two are alike, so that a find names its place.
PLANTED: dict[str, str] = {
    "PatientName": "Kowalczyk^Zbigniew^Aurelius",
    "PatientID": "MRN4711889",
    "OtherPatientIDs": "OLDMRN118822",
    "PatientBirthDate": "19660317",
    "PatientBirthTime": "034517",
    "PatientAge": "058Y",
    "PatientAddress": "Lindenstrasse 17 Musterstadt",
    "PatientTelephoneNumbers": "+49-170-5551234",
    "PatientMotherBirthName": "Wisniewska",
    "PatientComments": "brother of Zygmunt",
    "PatientReligiousPreference": "Zoroastrian",
    "EthnicGroup": "Sorbian",
    "Occupation": "Harpsichordist",
    "MilitaryRank": "Obermaat",
    "MedicalRecordLocator": "CABINET7731",
    "AdditionalPatientHistory": "fell at Castle Rabenstein",
    "InstitutionName": "Klinikum Rabenfels",
    "InstitutionAddress": "Rabenfelsweg 4",
    "InstitutionalDepartmentName": "Neuroradiologie Ost",
    "ReferringPhysicianName": "Oberndorfer^Hildegard",
    "PerformingPhysicianName": "Szczepanski^Tadeusz",
    "OperatorsName": "Quackenbush^Q",
    "NameOfPhysiciansReadingStudy": "Featherstonehaugh",
    "AccessionNumber": "ACC99881177",
    "StudyID": "STUDY55771",
    "StudyDescription": "Kopf Kowalczyk privat",
    "SeriesDescription": "t1_mprage Kowalczyk 19660317",
    "ProtocolName": "t1 mprage for Zbigniew",
    "ImageComments": "seen with Mr Kowalczyk",
    "RequestedProcedureDescription": "MRI for Aurelius",
    "StationName": "MRRABEN03",
    "DeviceSerialNumber": "SN8812773",
    "SoftwareVersions": "syngo RABENVERSION",
    "ContrastBolusAgent": "Gadorabenol",
    "BodyPartExamined": "RABENHEAD",
    "StudyDate": "20240229",
    "SeriesDate": "20240229",
    "AcquisitionDate": "20240229",
    "ContentDate": "20240229",
    "StudyTime": "101523.771",
    "AcquisitionDateTime": "20240229101523.771",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.4711.1",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.4711.2",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.4711.3",
    "DeviceUID": "1.2.826.0.1.3680043.8.498.4711.4",
    "SequenceName": "*tflRABEN",
    "PerformedProcedureStepDescription": "Schaedel Kowalczyk",
    "IssuerOfPatientID": "RABENFELS-KIS",
}  # fmt: skip
ELSEWHERE = {
    "nested": "Nestroy-Kowalczyk",
    "twice nested": "Doppelnestroy",
    "private": "PRIVKOWALCZYK77",
    "private in a sequence": "PRIVNESTED78",
    "private bytes": "CSAKOWALCZYK",
    "overlay": "OVERLAYRABEN",
    "preamble": "PREAMBLERABEN",
    "file meta": "AERABENFELS",
    "trailing": "TRAILINGRABEN",
    "unknown attribute": "UNKNOWNRABEN",
    "instance UID": "1.2.826.0.1.3680043.8.498.4711.1000",
}
# As any of these would identify: whole values, and parts of them that stand alone.
WORDS = sorted(
    {value for value in (*PLANTED.values(), *ELSEWHERE.values())}
    | {"Kowalczyk", "Zbigniew", "Aurelius", "Zygmunt", "Rabenfels", "Rabenstein", "Oberndorfer", "Szczepanski"}
    | {"Quackenbush", "Musterstadt", "RABEN", "Nestroy", "2024-02-29", "1966-03-17"},
    key=len,
)  # fmt: skip
# Too short to be looked for as bytes in pictures: they are looked for in headers and text.
SHORT = {"058Y", "034517"}


def plant(image: Dataset, number: int = 0) -> Dataset:
    for keyword, value in PLANTED.items():
        setattr(image, keyword, value)
    inner = Dataset()
    inner.PersonName = ELSEWHERE["twice nested"]
    inner.add_new(0x00091001, "LO", ELSEWHERE["private in a sequence"])
    inner.add_new(0x00090010, "LO", "RABEN PRIVATE")
    nested = Dataset()
    nested.PatientName = ELSEWHERE["nested"]
    nested.PersonIdentificationCodeSequence = Sequence([inner])
    image.RequestAttributesSequence = Sequence([nested])
    # A sequence that stays, with something in it that must not.
    kept = Dataset()
    kept.DimensionOrganizationUID = "1.2.826.0.1.3680043.8.498.4711.5"
    kept.ImageComments = ELSEWHERE["nested"]
    kept.PatientName = ELSEWHERE["nested"]
    image.DimensionOrganizationSequence = Sequence([kept])
    block = image.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", f"..{ELSEWHERE['private bytes']}..".encode())
    block.add_new(0x11, "LO", ELSEWHERE["private"])
    image.add_new(0x60000010, "US", 8)
    image.add_new(0x60000011, "US", 8)
    image.add_new(0x60000040, "CS", "G")
    image.add_new(0x60000050, "SS", [1, 1])
    image.add_new(0x60000100, "US", 1)
    image.add_new(0x60000102, "US", 0)
    image.add_new(0x60003000, "OW", b"\0" * 8)
    image.add_new(0x60004000, "LT", ELSEWHERE["overlay"])
    image.add_new(0x0018BEEF, "LO", ELSEWHERE["unknown attribute"])
    image.add_new(0xFFFCFFFC, "OB", ELSEWHERE["trailing"].encode())
    image.SOPInstanceUID = f"{ELSEWHERE['instance UID']}{number}"
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.SourceApplicationEntityTitle = ELSEWHERE["file meta"]
    image.preamble = ELSEWHERE["preamble"].encode().ljust(128, b"\0")
    return image


def made_series(folder: Path) -> list[Path]:
    voxels, affine = head()
    return Scanner(Patient()).scan(voxels, affine, folder, T1W)


def real_series(folder: Path) -> list[Path]:
    data = os.environ.get("MSFL_TEST_DATA")
    if not data:
        pytest.skip("MSFL_TEST_DATA is not set: no real DICOM here")
    with tarfile.open(Path(data) / "dicom" / "adult_head_defaced.tgz") as archive:
        archive.extractall(folder, filter="data")
    return sorted(folder.rglob("*.dcm"))


SERIES = [pytest.param(made_series, id="made"), pytest.param(real_series, id="real", marks=pytest.mark.slow)]


def found_in(content: bytes, words: list[str]) -> list[str]:
    lower = content.lower()
    return [word for word in words if word.lower().encode() in lower]


def test_more_than_thirty_are_planted() -> None:
    assert len(PLANTED) + len(ELSEWHERE) > 50
    assert len(set(PLANTED.values())) > 40


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("options", [Options(), Options("remove"), Options(device=True)], ids=str)
def test_none_is_left_in_a_deidentified_file(tmp_path: Path, series: object, options: Options) -> None:
    files = series(tmp_path / "from")  # type: ignore[operator]
    kept = {PLANTED[k] for k in ("DeviceSerialNumber", "StationName", "SoftwareVersions")} if options.device else set()
    for file in (files[0], files[len(files) // 2]):
        source = plant(pydicom.dcmread(file))
        before = pydicom.dcmread(file).PixelData
        made = deidentify(source, PATIENT, PSEUDONYMS, options)
        made.save_as(tmp_path / "made.dcm", enforce_file_format=True)
        again = pydicom.dcmread(tmp_path / "made.dcm")
        assert again.PixelData == before
        del again.PixelData
        pixelless = (tmp_path / "made.dcm").read_bytes().replace(before, b"")
        words = [word for word in WORDS if not any(word in k for k in kept)]
        assert found_in(pixelless, words) == []
        assert [e for e in again.iterall() if e.tag.is_private] == []
        assert [e for e in again if e.tag.group in range(0x6000, 0x6020) or e.tag.group == 0xFFFC] == []
        assert source.PatientName == PLANTED["PatientName"], "the source is not changed"


def test_what_was_done_is_recorded_as_the_standard_asks(tmp_path: Path) -> None:
    source = plant(pydicom.dcmread(made_series(tmp_path)[0]))
    made = deidentify(source, PATIENT, PSEUDONYMS, Options(device=True))
    assert made.PatientIdentityRemoved == "YES"
    codes = [(item.CodeValue, item.CodingSchemeDesignator) for item in made.DeidentificationMethodCodeSequence]
    assert codes == [(code, "DCM") for code in (BASIC_PROFILE, CLEAN_DESCRIPTORS, MODIFIED_DATES, DEVICE)]
    assert made.LongitudinalTemporalInformationModified == "MODIFIED"
    assert made.PatientName == made.PatientID == PATIENT
    removed = deidentify(source, PATIENT, PSEUDONYMS, Options("remove"))
    assert removed.LongitudinalTemporalInformationModified == "REMOVED"
    assert not removed.StudyDate


def test_what_the_images_need_is_kept(tmp_path: Path) -> None:
    source = pydicom.dcmread(made_series(tmp_path)[3])
    made = deidentify(source, PATIENT, PSEUDONYMS, Options())
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "EchoTime",
                    "RepetitionTime", "InversionTime", "FlipAngle", "MagneticFieldStrength", "ImageType", "SOPClassUID",
                    "Rows", "Columns", "BitsStored", "InstanceNumber", "ScanningSequence"):  # fmt: skip
        assert made[keyword].value == source[keyword].value, keyword
    assert made.SeriesDescription == "t1 mprage sag p2 iso"
    assert (made.Manufacturer, made.ManufacturerModelName) == ("Siemens", "skyra")


def test_the_gate_finds_what_the_rules_would_have_missed(tmp_path: Path) -> None:
    telling = identifiers(plant(pydicom.dcmread(made_series(tmp_path / "dicom")[0])))
    assert {PLANTED["PatientID"], "Kowalczyk", PLANTED["StudyDate"], PLANTED["StudyInstanceUID"]} <= telling
    clean, leaky, named = (tmp_path / name for name in ("a.json", "b.json", "Kowalczyk.json"))
    clean.write_text(json.dumps({"images": {"FLAIR": {"SeriesDescription": "t1 mprage"}}}))
    leaky.write_text(json.dumps({"note": f"seen by {PLANTED['OperatorsName'].split('^')[0]} today"}))
    named.write_text("{}")
    image = tmp_path / "i.nii.gz"
    nifti = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    nifti.header.extensions.append(nib.nifti1.Nifti1Extension("comment", PLANTED["PatientID"].encode()))
    nib.save(nifti, image)
    assert leaks([clean, leaky, named, image], telling) == ("b.json", "Kowalczyk.json", "i.nii.gz")


def files_of(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            yield file, content
            if file.name.endswith(".gz"):
                yield file, gzip.decompress(content)[:4096]


def nothing_is_left(home: Path, output: str) -> None:
    """Outside the custodian's own folder, which nobody else may read."""
    seen = 0
    for file, content in files_of(home):
        if file.is_relative_to(home / "secrets"):
            assert file.stat().st_mode & 0o077 == 0, file
            continue
        seen += 1
        assert found_in(str(file.relative_to(home)).encode(), WORDS) == [], file
        assert found_in(content, [w for w in WORDS if w not in SHORT]) == [], file
    assert seen > 4
    assert found_in(output.encode(), WORDS) == [], output
    assert (home / "secrets" / "data").stat().st_mode & 0o077 == 0


@pytest.mark.slow
@pytest.mark.parametrize("first", SERIES)
def test_none_is_left_of_an_imported_visit(tmp_path: Path, first: object) -> None:
    source, home = tmp_path / "Kowalczyk_Zbigniew_19660317", tmp_path / "home"
    files = first(source / "MRN4711889")  # type: ignore[operator]
    for number, file in enumerate(files):
        image = plant(pydicom.dcmread(file), number)
        for keyword, value in T1W.items():
            setattr(image, keyword, value)
        image.SeriesDescription = PLANTED["SeriesDescription"]
        image.Modality, image.ImageType = "MR", ["ORIGINAL", "PRIMARY"]
        image.ContrastBolusAgent = ""
        image.save_as(file.with_name(f"Kowalczyk_{number}.dcm"), enforce_file_format=True)
        file.unlink()
    voxels, affine = head(seed=1)
    flair = Scanner(
        Patient(PLANTED["PatientID"], PLANTED["PatientName"], PLANTED["PatientBirthDate"]), PLANTED["StudyDate"]
    )
    wanted = {"StudyInstanceUID": PLANTED["StudyInstanceUID"], "IssuerOfPatientID": PLANTED["IssuerOfPatientID"]}
    flair.series = 5
    flair.scan(voxels, affine, source / "Flair von Kowalczyk", FLAIR, **wanted)
    # Something that is broken, so that refusals are shown, too.
    (source / "MRN4711889" / "Kowalczyk_kaputt.dcm").write_bytes(b"no DICOM")
    done = CliRunner().invoke(app, ["import", str(source), "--dataset", "ms-trial", "--home", str(home)])
    assert "1 imported" in done.output, done.output
    assert "1 files left out: unreadable" in done.output
    listed = CliRunner().invoke(app, ["list", "ms-trial", "--home", str(home), "--json"])
    assert [case["state"] for case in json.loads(listed.stdout)["cases"]] == ["imported"]
    again = CliRunner().invoke(app, ["import", str(source), "--dataset", "ms-trial", "--home", str(home), "--json"])
    assert json.loads(again.stdout)["outcomes"][0]["verdict"] == "unchanged"
    nothing_is_left(home, done.output + listed.output + again.output)
    links = (home / "secrets" / "data" / "ms-trial" / "links.json").read_text()
    assert PLANTED["PatientID"] in links, "the custodian's own list knows who it is"
    page = next((home / "secrets" / "data" / "ms-trial" / "changes").iterdir()).read_text()
    assert "Klinikum Rabenfels" in page
    assert "removed" in page


@pytest.mark.slow
def test_what_a_broken_rule_lets_through_is_caught_before_anything_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule for descriptions is made to keep them as they are, at both places where it is applied."""
    monkeypatch.setattr(headers, "_REBUILT", {**headers._REBUILT, "SeriesDescription": str})
    monkeypatch.setattr(sidecars, "FIELDS", {**sidecars.FIELDS, "SeriesDescription": str})
    scanner = Scanner(Patient("MRN4711889", "Kowalczyk^Zbigniew"))
    for seed, contrast in enumerate((FLAIR, T1W)):
        voxels, affine = head(seed=seed)
        named = {**contrast, "SeriesDescription": f"{contrast['SeriesDescription']} kowalczyk"}
        scanner.scan(voxels, affine, tmp_path / "source", named)
    (outcome,) = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0).outcomes
    assert (outcome.verdict, outcome.code) == ("unusable", "identity_left")
    kept = tmp_path / "home" / "datasets" / "ms-trial" / "cases" / outcome.case
    assert [file.name for file in kept.iterdir()] == ["journal.json"]
    assert b"kowalczyk" not in (kept / "journal.json").read_bytes().lower()


@pytest.mark.slow
def test_none_is_left_of_nifti_and_its_sidecar(tmp_path: Path) -> None:
    source, home = tmp_path / "Kowalczyk", tmp_path / "home"
    anat = source / "sub-Kowalczyk" / "ses-20240229" / "anat"
    anat.mkdir(parents=True)
    for number, name in enumerate(("FLAIR", "T1w")):
        voxels, affine = head(seed=number)
        image = nib.Nifti1Image(voxels, affine)
        image.header["descrip"] = b"Kowalczyk 20240229 101523"
        image.header["aux_file"] = b"MRN4711889"
        image.header["intent_name"] = b"Zbigniew"
        image.header["db_name"] = b"Rabenfels"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", "\n".join(WORDS).encode()))
        image.header.set_xyzt_units("mm")
        nib.save(image, anat / f"sub-Kowalczyk_ses-20240229_{name}.nii.gz")
        sidecar = {k: v for k, v in PLANTED.items() if k not in ("SequenceName",)} | {
            "EchoTime": 0.1, "RepetitionTime": 5, "Manufacturer": "Siemens Kowalczyk",
            "ManufacturersModelName": "Skyra Rabenfels", "SeriesDescription": PLANTED["SeriesDescription"],
        }  # fmt: skip
        (anat / f"sub-Kowalczyk_ses-20240229_{name}.json").write_text(json.dumps(sidecar))
    done = CliRunner().invoke(app, ["import", str(source), "--dataset", "ms-trial", "--home", str(home)])
    assert "1 imported" in done.output, done.output
    nothing_is_left(home, done.output)
    case = next((home / "datasets" / "ms-trial" / "cases").iterdir())
    said = json.loads((case / "source.json").read_text())
    assert said["scanner"]["manufacturer"] == "Siemens"
    assert said["images"]["FLAIR"] == {
        "EchoTime": 0.1, "RepetitionTime": 5.0, "Manufacturer": "Siemens", "ManufacturersModelName": "skyra",
        "SeriesDescription": "t1 mprage",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", ["113100", "burned_in_text", "mask_kept"])
def test_a_patient_who_is_called_like_one_of_our_own_codes_comes_in(tmp_path: Path, number: str) -> None:
    scanner = Scanner(Patient(number, "Doe"))
    for seed, contrast in enumerate((FLAIR, T1W)):
        scanner.scan(*head(seed=seed), tmp_path / "source" / "mask", contrast, BurnedInAnnotation="YES")
    (outcome,) = import_source(tmp_path / "home", "ms-trial", tmp_path / "source", hands=0).outcomes
    assert (outcome.verdict, outcome.warnings) == ("imported", ("burned_in_text",)), outcome


def test_only_our_own_codes_may_stand_where_they_stand(tmp_path: Path) -> None:
    for codes, found in (
        (["113100"], ()),
        (["113100", "MRN4711889"], ("source.json",)),
        ("MRN4711889", ("source.json",)),
    ):
        (tmp_path / "source.json").write_text(json.dumps({"deidentified": {"codes": codes}}))
        assert leaks([tmp_path / "source.json"], {"MRN4711889"}) == found
