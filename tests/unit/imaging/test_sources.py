"""BIDS, tables, nnU-Net folders and DICOM as sources: what is found, what is asked, and what an answer does."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import nibabel as nib
import numpy as np
import pytest

from fakes.scanners import FLAIR, SILENT, T1W, Patient, Scanner, head
from fakes.tiny_data import tiny_dataset
from fakes.workspaces import NOON
from msfl.imaging.custodian import import_source
from msfl.imaging.deidentify.keys import Pseudonyms
from msfl.imaging.hand import visit_json, visit_of
from msfl.imaging.importing import ImportOptions, bring_in, case_name
from msfl.imaging.sources.finding import find
from msfl.imaging.sources.found import Found, NiftiFile
from msfl.imaging.sources.series import Weighting
from msfl.imaging.workspace import Workspace
from msfl.policies.refusals import CannotProceed

PSEUDONYMS = Pseudonyms(bytes(32))


def found_in(source: Path, **answers: str) -> Found:
    return find(source, source.parent / "scratch", PSEUDONYMS, answers)


def nifti(file: Path, seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    voxels, affine = head(seed=seed)
    nib.save(nib.Nifti1Image(voxels, affine), file)


def bids(root: Path, *names: str) -> None:
    for name in names:
        sub, *rest = name.split("_")
        folder = root / sub / rest[0] if rest[0].startswith("ses-") else root / sub
        (folder / "anat").mkdir(parents=True, exist_ok=True)
        (folder / "anat" / f"{name}.nii.gz").write_bytes(b"")


def test_bids_sessions_are_visits_of_one_patient(tmp_path: Path) -> None:
    root = tmp_path / "bids"
    bids(root, "sub-01_ses-1_FLAIR", "sub-01_ses-1_T1w", "sub-01_ses-2_FLAIR", "sub-01_ses-2_T1w", "sub-02_T1w")
    (root / "derivatives/manual/sub-01/ses-1/anat").mkdir(parents=True)
    mask = root / "derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz"
    mask.write_bytes(b"")
    found = found_in(root)
    assert [(v.kind, v.patient, v.day) for v in found.visits] == [
        ("bids", "01", "1"), ("bids", "01", "2"), ("bids", "02", ""),
    ]  # fmt: skip
    assert [v.unusable.code if v.unusable else "" for v in found.visits] == ["", "", "missing_flair"]
    assert found.visits[0].lesion == NiftiFile(mask)
    names = [case_name(v, PSEUDONYMS).split("-")[0] for v in found.visits]
    assert names[0] == names[1] != names[2]


def test_two_runs_are_a_question_and_an_answer_settles_it(tmp_path: Path) -> None:
    root = tmp_path / "bids"
    bids(root, "sub-01_FLAIR", "sub-01_run-1_T1w", "sub-01_run-2_T1w", "sub-01_ce-gd_T1w")
    found = found_in(root)
    (question,) = found.questions
    assert (question.role, list(question.choices.values())) == ("T1w", ["image 1 of 2", "image 2 of 2"])
    assert found.visits[0].unusable is not None
    settled = found_in(root, **{list(question.choices)[1]: "T1w"})
    assert settled.visits[0].unusable is None
    assert settled.visits[0].images["T1w"].file.name == "sub-01_run-2_T1w.nii.gz"  # type: ignore[union-attr]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_says_which_file_is_which(tmp_path: Path, separator: str) -> None:
    nifti(tmp_path / "f.nii.gz")
    nifti(tmp_path / "t.nii.gz", 1)
    rows = ["Patient,Visit,FLAIR,T1w,Lesion,Split", "17,a,f.nii.gz,t.nii.gz,,test", "18,,f.nii.gz,t.nii.gz,,maybe"]
    (tmp_path / "list.csv").write_text("\n".join(rows).replace(",", separator), encoding="utf-8-sig")
    first, second = found_in(tmp_path / "list.csv").visits
    assert (first.patient, first.day, first.split, first.unusable) == ("17", "a", "test", None)
    assert second.unusable is not None


def test_a_column_that_is_called_otherwise_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("patient,flair,t1w,mask\n17,f.nii.gz,t.nii.gz,m.nii.gz\n")
    assert list(found_in(tmp_path / "list.csv").notes) == [
        "1 columns of the table were not read; those that are: patient,visit,flair,t1w,lesion,split."
    ]


@pytest.mark.parametrize("text", ["patient,flair\n1,a", "\0\0\0", "", "a;b\n"])
def test_what_is_no_table_is_said_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(CannotProceed, match="Its first line must be"):
        found_in(tmp_path / "list.csv")


def test_an_nnunet_folder_keeps_its_test_set(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "data", n_train=2, n_test=1)
    visits = found_in(tmp_path / "data").visits
    assert [(v.kind, v.split) for v in visits] == [("nnunet", "train"), ("nnunet", "train"), ("nnunet", "test")]
    assert all(v.lesion and set(v.images) == {"FLAIR", "T1w"} for v in visits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["channel_names"].update({"1": "T2w"}), "names no channel T1w"),
        (lambda d: d["labels"].update({"oedema": 2}), "other labels"),
        (lambda d: d.pop("labels"), "does not describe"),
    ],
)
def test_an_nnunet_folder_of_something_else_is_pointed_elsewhere(
    tmp_path: Path, change: Callable[[dict[str, dict[str, object]]], object], said: str
) -> None:
    tiny_dataset(tmp_path / "data", n_train=1, n_test=1)
    description = json.loads((tmp_path / "data" / "dataset.json").read_text())
    change(description)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(CannotProceed, match=f"{said}.*--out RECORD"):
        found_in(tmp_path / "data")


def series_in(folder: Path, *contrasts: dict[str, object]) -> None:
    scanner = Scanner(Patient())
    for seed, contrast in enumerate(contrasts):
        voxels, affine = head(12, 12.0, seed=seed)
        scanner.scan(voxels, affine, folder, contrast)


def test_dicom_is_found_by_its_headers_wherever_it_lies(tmp_path: Path) -> None:
    series_in(tmp_path / "source" / "a" / "b", dict(FLAIR), dict(T1W))
    (visit,) = found_in(tmp_path / "source").visits
    assert (visit.patient, visit.day, visit.unusable) == ("MRN4711889", "20240229", None)
    assert {name: len(image.files) for name, image in visit.images.items()} == {"FLAIR": 12, "T1w": 12}  # type: ignore[union-attr]


def test_the_same_export_twice_is_one_visit(tmp_path: Path) -> None:
    series_in(tmp_path / "source" / "first", dict(FLAIR), dict(T1W))
    series_in(tmp_path / "source" / "second", dict(FLAIR), dict(T1W))
    (visit,) = found_in(tmp_path / "source").visits
    assert len(visit.files) == 24


@pytest.mark.parametrize(
    ("other", "birth", "mixed"),
    [
        ("Doe^Jane", "19660317", False),
        ("Miller^Jane", "19660317", False),
        ("Miller^Anne", "19660317", False),
        ("Doe^Jane^Maria", "", False),
        ("Miller^Anne", "", True),
        ("Doe^Jane", "19770101", True),
    ],
)
def test_one_patient_id_is_one_person_or_nobodys(tmp_path: Path, other: str, birth: str, mixed: bool) -> None:
    voxels, affine = head(12, 12.0)
    for name, born, day in (("Doe^Jane", birth and "19660317", "20230101"), (other, birth, "20240101")):
        scanner = Scanner(Patient("MRN1", name, born), day)
        for contrast in (FLAIR, T1W):
            scanner.scan(voxels, affine, tmp_path / "source" / day, contrast)
    found = found_in(tmp_path / "source")
    codes = {visit.unusable.code if visit.unusable else "" for visit in found.visits}
    assert codes == {"mixed_patients" if mixed else ""}
    assert len(found.visits) == 2
    assert bool(found.notes) == (other != "Doe^Jane")


def test_a_question_about_dicom_names_series_and_no_person(tmp_path: Path) -> None:
    series_in(tmp_path / "source", dict(FLAIR), dict(T1W), dict(T1W) | {"SeriesDescription": "t1 Kowalczyk"})
    found = found_in(tmp_path / "source")
    (question,) = found.questions
    assert found.visits[0].unusable is not None
    assert len(question.choices) == 2
    assert "Kowalczyk" not in str(question.choices)
    assert all("12 slices of 12 mm; TR 2300 ms, TE 2.98 ms, TI 900 ms" in label for label in question.choices.values())
    taken = list(question.choices)[1]
    assert found_in(tmp_path / "source", **{taken: "T1w"}).visits[0].unusable is None
    assert found_in(tmp_path / "source", **{taken: "ignore"}).visits[0].unusable is None


def test_visits_cross_between_processes_as_json(tmp_path: Path) -> None:
    series_in(tmp_path / "source", dict(FLAIR), dict(SILENT))
    (visit,) = found_in(tmp_path / "source").visits
    assert len(visit.silent) == 1
    assert visit_of(json.loads(json.dumps(visit_json(visit)))) == visit
    bids(tmp_path / "bids", "sub-01_T1w")
    (other,) = found_in(tmp_path / "bids").visits
    back = visit_of(json.loads(json.dumps(visit_json(other))))
    assert (back.unusable.code, back.images) == ("missing_flair", other.images)  # type: ignore[union-attr]


def zipped(file: Path, folder: Path, *below: str) -> Path:
    """Everything below `folder`, below `below`, with what a Mac puts beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in sorted(f for f in folder.rglob("*") if f.is_file()):
            name = PurePosixPath(*below, *one.relative_to(folder).parts)
            archive.write(one, str(name))
            archive.writestr(str(PurePosixPath("__MACOSX", name.parent, f"._{name.name}")), b"\0\5\x16\7")
    return file


def test_zips_in_zips_are_opened_and_named_as_where_the_images_lie(tmp_path: Path) -> None:
    series_in(tmp_path / "images", dict(FLAIR), dict(T1W))
    zipped(tmp_path / "one" / "inner.zip", tmp_path / "images", "export")
    zipped(tmp_path / "two" / "middle.zip", tmp_path / "one")
    outer = zipped(tmp_path / "outer.zip", tmp_path / "two", "disk")
    found = found_in(outer)
    assert [visit.unusable for visit in found.visits] == [None]
    assert found.left_out == []
    origin = found.origin(found.visits[0].files[0])
    assert origin == f"{outer}/disk/middle.zip/inner.zip/export/{found.visits[0].files[0].name}"


@pytest.mark.parametrize("how", ["one level up", "zip", "zip of a mac's folder"])
def test_bids_and_nnunet_are_found_wherever_they_lie(tmp_path: Path, how: str) -> None:
    made = tmp_path / "made"
    bids(made / "study", "sub-01_FLAIR", "sub-01_T1w", "sub-01_ce-gd_T1w", "sub-01_T2w")
    tiny_dataset(made / "Dataset001", n_train=1, n_test=1)
    if how == "one level up":
        source = made
    else:
        source = zipped(tmp_path / "x.zip", made, *(["export"] if "folder" in how else []))
    found = found_in(source)
    assert sorted((v.kind, v.unusable) for v in found.visits) == [("bids", None), ("nnunet", None), ("nnunet", None)]
    assert found.left_out == []
    assert any(note.startswith("2 further files of the BIDS or nnU-Net folders") for note in found.notes), found.notes
    assert any("files that are no images" in note for note in found.notes) == (how != "one level up")


def test_a_zip_or_another_kind_beside_them_takes_nothing_away(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny_dataset(source, n_train=1, n_test=1)
    bids(source / "first", "sub-01_FLAIR", "sub-01_T1w")
    bids(source / "second", "sub-02_FLAIR", "sub-02_T1w")
    series_in(source / "first" / "dicom", dict(FLAIR), dict(T1W))
    series_in(source / "first" / "sourcedata", dict(FLAIR))
    series_in(tmp_path / "images", dict(FLAIR), dict(T1W))
    zipped(source / "images.zip", tmp_path / "images")
    found = found_in(source)
    assert sorted(v.kind for v in found.visits) == ["bids", "bids", "dicom", "nnunet", "nnunet"]
    assert "12 further files of the BIDS or nnU-Net folders" in " ".join(found.notes)
    assert "24 DICOM files are copies of others" in " ".join(found.notes)


def test_one_visit_in_two_folders_is_nobodys(tmp_path: Path) -> None:
    for name in ("first", "second"):
        bids(tmp_path / "source" / name, "sub-01_FLAIR", "sub-01_T1w")
    (visit,) = found_in(tmp_path / "source").visits
    assert visit.unusable is not None
    assert visit.unusable.code == "ambiguous"
    assert "--series" not in visit.unusable.reason


def test_what_no_one_claims_is_listed_or_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    series_in(source, dict(FLAIR), dict(T1W), dict(T1W) | {"SeriesDescription": "localizer"})
    nifti(source / "mask.nii.gz")
    (source / "more.tar.gz").write_bytes(b"x")
    (source / "letter.txt").write_text("nobody's business")
    found = found_in(source)
    assert [(left.files, left.why.code) for left in found.left_out] == [
        ((source / "mask.nii.gz",), "no_patient"), ((source / "more.tar.gz",), "unreadable"),
    ]  # fmt: skip
    assert "Import a CSV" in found.left_out[0].why.reason
    assert list(found.notes) == [
        "12 DICOM files of series that are neither FLAIR, T1w nor lesion mask were passed over.",
        "1 files that are no images were passed over.",
    ]


def test_nothing_at_all_is_said_with_what_was_seen(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("Doe.csv", "Doe.doe", "a.json"):
        (tmp_path / "source" / name).write_text("x")
    said = " ".join(found_in(tmp_path / "source").notes)
    assert "Looked for: DICOM" in said
    assert "1 CSV, 1 of another kind, 1 JSON" in said or "Seen:" in said
    assert "import the CSV itself" in said
    assert "oe" not in said.replace("does", "")
    (tmp_path / "list.csv").write_text("patient,flair,t1w\n")
    assert "no other" in found_in(tmp_path / "list.csv").notes[0]


def test_of_a_whole_series_and_a_cut_copy_the_whole_one_is_taken(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        series_in(tmp_path / "source" / name, dict(FLAIR), dict(T1W))
    for name in ("a", "c"):
        for file in (tmp_path / "source" / name).iterdir():
            file.write_bytes(file.read_bytes()[:-100])
    (visit,) = found_in(tmp_path / "source").visits
    assert {file.parent.name for file in visit.files} == {"b"}


def test_letters_of_another_alphabet_are_said_to_be_that(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("patient,flair,t1w\nMüller,a,b\n".encode("cp1252"))
    with pytest.raises(CannotProceed, match="CSV UTF-8"):
        found_in(tmp_path / "list.csv")


def test_advice_fits_where_the_fault_is(tmp_path: Path) -> None:
    nifti(tmp_path / "f.nii.gz")
    rows = ["patient,flair,t1w,split", "1,f.nii.gz,f.nii.gz,maybe", "2,f.nii.gz,gone.nii.gz,", "3,,f.nii.gz,"]
    rows += ["4,f.nii.gz,f.nii.gz,"] * 2
    (tmp_path / "list.csv").write_text("\n".join(rows))
    bids(tmp_path / "bids", "sub-01_T1w")
    visits = [*found_in(tmp_path / "list.csv").visits, *found_in(tmp_path / "bids").visits]
    assert len(visits) == 5
    for visit in visits:
        assert visit.unusable is not None
        assert not any(word in visit.unusable.reason for word in ("--series", "PACS")), visit.unusable


def test_a_question_tells_equal_series_apart_and_says_where_they_are(tmp_path: Path) -> None:
    series_in(tmp_path / "source", dict(FLAIR), dict(T1W), dict(T1W))
    brought = import_source(str(tmp_path / "home"), "ms-trial", str(tmp_path / "source"), hands=0)
    (question,) = brought.questions
    labels = list(question["choices"].values())
    assert [label.split(":")[0] for label in labels] == ["series 2, 12 files", "series 3, 12 files"]
    rows = Path(brought.names).read_text(encoding="utf-8-sig").splitlines()
    for number, name in zip("23", question["choices"], strict=True):
        assert f"{name},{question['case']},{number},t1_mprage_sag_p2_iso,12,{tmp_path / 'source'}" in rows
    with pytest.raises(CannotProceed, match=r"called x00000000\. Nothing was done"):
        import_source(tmp_path / "home", "ms-trial", tmp_path / "source", answers={"x00000000": "T1w"}, hands=0)


def test_two_answers_for_one_image_are_no_answer(tmp_path: Path) -> None:
    series_in(tmp_path / "source", dict(FLAIR), dict(T1W), dict(T1W))
    (question,) = found_in(tmp_path / "source").questions
    found = found_in(tmp_path / "source", **dict.fromkeys(question.choices, "T1w"))
    assert len(found.questions) == 1


SILENT_MR = dict(SILENT) | {"RepetitionTime": None, "EchoTime": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        ((Weighting.T1W, Weighting.FLAIR), "imported"),
        ((Weighting.FLAIR, Weighting.FLAIR), "unusable"),
        ((Weighting.UNKNOWN, Weighting.FLAIR), "unusable"),
    ],
)
def test_where_headers_are_silent_the_images_are_looked_at(
    tmp_path: Path, seen: tuple[Weighting, ...], verdict: str
) -> None:
    scanner = Scanner(Patient())
    for seed in range(2):
        voxels, affine = head(seed=seed)
        scanner.scan(voxels, affine, tmp_path / "source", SILENT_MR)
    (visit,) = found_in(tmp_path / "source").visits
    case = Workspace.of(tmp_path / "home", "ms-trial").case(case_name(visit, PSEUDONYMS))
    looks = iter(seen)
    outcome = bring_in(
        visit, case, PSEUDONYMS, ImportOptions(), NOON, tmp_path / "private", look=lambda volume: next(looks)
    )
    assert outcome.verdict == verdict, outcome
    if verdict == "unusable":
        assert "x" in outcome.reason
        assert "by their looks" in outcome.reason
    else:
        # The first series that was scanned came in as what it was seen to be.
        first = np.asarray(nib.load(case.raw("T1w")).dataobj)
        assert abs(float(first.mean()) - float(head(seed=0)[0].mean())) < 1e-3


@pytest.mark.slow
def test_bids_and_a_mask_become_a_case(tmp_path: Path) -> None:
    root = tmp_path / "bids"
    for seed, name in enumerate(("FLAIR", "T1w")):
        nifti(root / "sub-01" / "anat" / f"sub-01_{name}.nii.gz", seed)
    voxels, affine = head()
    mask = nib.as_closest_canonical(nib.Nifti1Image((voxels > 700).astype(np.uint8), affine))
    flipped = mask.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    (root / "derivatives" / "sub-01" / "anat").mkdir(parents=True)
    nib.save(flipped, root / "derivatives" / "sub-01" / "anat" / "sub-01_desc-lesion_mask.nii.gz")
    brought = import_source(tmp_path / "home", "ms-trial", root, hands=0)
    assert [o.verdict for o in brought.outcomes] == ["imported"], brought
    case = Workspace.of(tmp_path / "home", "ms-trial").cases()[0]
    assert case.source["lesion_on"] == "FLAIR"
    assert (np.asarray(nib.load(case.raw("lesion")).dataobj) == (voxels > 700)).all(), "the same place, other axes"
