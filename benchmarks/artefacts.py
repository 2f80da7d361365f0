"""Train the artefact detector, and measure it on subjects that it has not seen.

    python benchmarks/artefacts.py features --data DIR --out features.npz      about 15 minutes of CPU
    python benchmarks/artefacts.py train --features features.npz [--write]     seconds; prints the table

Needs torchio (1.2) and scikit-learn beside the extra `dev`: pip install torchio scikit-learn.

Clean images are varied as scans vary (turned a little, other contrast, shading, light noise, mirrored, a third of them
with the skull cut off afterwards) and then spoilt by torchio at fixed, modest severities: motion of at most 3° and 3 mm
per axis in two moves; ghosting of intensity 0.5; one spike of 0.5; noise of 10 % of the brain's mean.
`motion_magnitude` is the same motion by other means (cubic interpolation, magnitude instead of real part), so that the
detector does not learn one simulator by heart.

Training sees real brains 07 and 26 and raw study pairs of patient 01 (CC-BY), and generated brains. Tested is on three
heads of other people, scanners and formats, and on the raw pairs of patients 03, 04 and 12. `--write` puts the weights
into the package; a pure function of the features file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from msfl.imaging.brain.deepbet import Deepbet
from msfl.imaging.checks import Volume
from msfl.imaging.deidentify.nifti import read_volume
from msfl.imaging.quality.artefacts.features import NAMES, features
from msfl.imaging.standard.reorient import reorient
from msfl.imaging.synth import DEMO_SITES, generate_site

KINDS = ("clean", "motion", "motion_magnitude", "ghosting", "spike", "noise")
WEIGHTS = Path(__file__).parents[1] / "imaging/msfl/imaging/quality/artefacts/weights.json"
TRAINED_ON = {"patient07", "patient26", "patient01", "synth0", "synth1", "synth2", "synth3"}


@dataclass(frozen=True)
class Source:
    subject: str
    modality: str
    file: Path


def sources(data: Path, scratch: Path) -> Iterator[Source]:
    for patient in ("patient07", "patient26"):
        for modality in ("T1w", "FLAIR"):
            yield Source(patient, modality, data / "openms" / patient / f"{modality}.nii.gz")
    for folder in sorted((data / "openms/raw").iterdir()):
        for file in sorted(folder.glob("*_T1W.nii.gz")) + sorted(folder.glob("*_FLAIR.nii.gz")):
            yield Source(folder.name, "FLAIR" if "FLAIR" in file.name else "T1w", file)
    yield Source("head-T1w", "T1w", data / "heads/T1w_head.nii.gz")
    yield Source("head-FLAIR", "FLAIR", data / "heads/FLAIR_head.nii.gz")
    with tarfile.open(data / "dicom/adult_head_defaced.tgz") as archive:
        archive.extractall(scratch / "dicom", filter="data")
    words = ["dcm2niix", "-z", "y", "-b", "n", "-f", "head", "-o", str(scratch), str(scratch / "dicom")]
    subprocess.run(words, check=True, capture_output=True)
    yield Source("head-dicom", "T1w", scratch / "head.nii.gz")
    for number, style in enumerate((*DEMO_SITES, DEMO_SITES[0])):
        place = scratch / f"synth{number}"
        generate_site(place, style, seed=100 + number, n_train=1, n_test=0, spacing_mm=1.0)
        for file in sorted((place / "imagesTr").iterdir()):
            yield Source(f"synth{number}", "FLAIR" if file.name.endswith("_0000.nii.gz") else "T1w", file)


def cut_to_head(image: Volume, brain: np.ndarray, margin_mm: float = 18) -> tuple[Volume, np.ndarray]:
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    cut = tuple(
        slice(max(0, part.start - round(margin_mm / mm)), part.stop + round(margin_mm / mm))
        for part, mm in zip(box, image.spacing_mm, strict=True)
    )
    return Volume(image.voxels[cut].astype(np.float32), np.diag([*image.spacing_mm, 1.0])), brain[cut]


def varied(rng: np.random.Generator, image: Volume, brain: np.ndarray) -> tuple[Volume, np.ndarray]:
    """The same head as another clean scan might show it."""
    x, spacing = image.voxels / image.voxels[brain].mean(), np.diag(image.spacing_mm)
    if rng.random() < 0.5:
        u, _, v = np.linalg.svd(np.eye(3) + np.cross(np.eye(3), np.deg2rad(rng.uniform(-6, 6, 3))))
        turn = np.linalg.inv(spacing) @ u @ v @ spacing
        middle = (np.array(x.shape) - 1) / 2
        x = ndimage.affine_transform(x, turn, middle - turn @ middle, order=3)
        brain = ndimage.affine_transform(brain.astype(np.float32), turn, middle - turn @ middle, order=1) > 0.5
    x = np.maximum(x, 0) ** rng.uniform(0.85, 1.2)
    x = x * np.exp(0.12 * ndimage.zoom(rng.standard_normal((4, 4, 4)), [n / 4 for n in x.shape], order=3))
    if rng.random() < 0.5:
        x = x + rng.uniform(0, 0.03) * rng.standard_normal(x.shape)
    for axis in range(3):
        if rng.random() < 0.5:
            x, brain = np.flip(x, axis), np.flip(brain, axis)
    return image.like(np.ascontiguousarray(x, dtype=np.float32)), np.ascontiguousarray(brain)


def spoilt(rng: np.random.Generator, kind: str, image: Volume, brain: np.ndarray) -> Volume:
    import torch
    import torchio as tio

    if kind == "clean":
        return image
    torch.manual_seed(int(rng.integers(1 << 31)))
    turned = rng.permutation(3)  # torchio takes k-space's last axis for the slow one
    x, spacing = image.voxels.transpose(turned), np.array(image.spacing_mm)[turned]
    if kind == "motion_magnitude":
        out = moved(rng, x, spacing)
    else:
        deviation = 0.1 * float(image.voxels[brain].mean())
        how = {
            "motion": tio.RandomMotion(degrees=3, translation=3, num_transforms=2),
            "ghosting": tio.RandomGhosting(intensity=(0.5, 0.5)),
            "spike": tio.RandomSpike(num_spikes=(1, 1), intensity=(0.5, 0.5)),
            "noise": tio.RandomNoise(std=(deviation, deviation)),
        }[kind]
        tensor = torch.from_numpy(np.ascontiguousarray(x))[None]
        out = how(tio.ScalarImage(tensor=tensor, affine=np.diag([*spacing, 1]))).data[0].numpy()
    return image.like(np.ascontiguousarray(out.transpose(np.argsort(turned))))


def moved(rng: np.random.Generator, x: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """k-space filled in order along the last axis while the head lies at three places, one after the other."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(x.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    length = x.shape[2]
    filled = np.fft.fftshift(np.fft.fft(x, axis=2), axes=2)
    times = np.array([1, 2]) / 3 + rng.uniform(-0.1, 0.1, 2)
    for begin, end in ((0, times[0]), (times[1], 1)):
        euler = sitk.Euler3DTransform()
        euler.SetCenter((spacing * x.shape / 2).tolist())
        euler.SetRotation(*np.deg2rad(rng.uniform(-3, 3, 3)).tolist())
        euler.SetTranslation(rng.uniform(-3, 3, 3).tolist())
        there = sitk.GetArrayFromImage(sitk.Resample(image, image, euler, sitk.sitkBSpline3, 0.0)).transpose(2, 1, 0)
        part = slice(int(begin * length), int(end * length))
        filled[..., part] = np.fft.fftshift(np.fft.fft(there, axis=2), axes=2)[..., part]
    return np.abs(np.fft.ifft(np.fft.ifftshift(filled, axes=2), axis=2)).astype(np.float32)


def make_features(data: Path, out: Path, variants: int) -> None:
    rows = []
    extractor = Deepbet()
    with tempfile.TemporaryDirectory() as scratch:
        for number, source in enumerate(sources(data, Path(scratch))):
            rng = np.random.default_rng([2026, number])
            whole = reorient(read_volume(source.file))
            head, brain = cut_to_head(whole, extractor.extract(whole, source.modality))
            for variant in range(variants):
                image, mask = varied(rng, head, brain)
                bare = rng.random() < 1 / 3
                for kind in KINDS:
                    made = spoilt(rng, kind, image, mask)
                    if bare:
                        made = made.like(made.voxels * ndimage.binary_dilation(mask, iterations=2))
                    rows.append((source.subject, source.modality, variant, kind, features(made, mask)))
            print(source.subject, source.modality, source.file.name, flush=True)
            save(out, rows)


def save(out: Path, rows: list[tuple[str, str, int, str, np.ndarray]]) -> None:
    subject, modality, variant, kind, values = zip(*rows, strict=True)
    np.savez(out, subject=subject, modality=modality, variant=variant, kind=kind, values=np.array(values), names=NAMES)


def train(file: Path, write: bool) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

    with np.load(file) as table:
        assert tuple(table["names"]) == NAMES, "made with other features"
        subject, modality, kind, values = table["subject"], table["modality"], table["kind"], table["values"]
    seen = np.isin(subject, sorted(TRAINED_ON))
    centre, scale = np.median(values[seen], axis=0), values[seen].std(axis=0)
    scaled = np.clip((values - centre) / scale, -8, 8)
    model = {
        "version": "1",
        "features": list(NAMES),
        "centre": [round(float(v), 6) for v in centre],
        "scale": [round(float(v), 6) for v in scale],
        "artefacts": {},
        "trained_on": "openms patients 07, 26 and 01 (CC-BY; Lesjak et al. 2016, 2018); brains of `msfl data synth`",
    }
    print(
        f"{'':10}{'AUC':>7}{'T1w':>7}{'FLAIR':>7}{'found':>7}{'false':>7}   on unseen subjects; at a probability of 0.5"
    )
    clean = kind == "clean"
    for artefact in ("motion", "ghosting", "spike", "noise"):
        has = np.char.startswith(kind, artefact)
        regression = LogisticRegression(C=0.3, class_weight="balanced", max_iter=10_000)
        regression.fit(scaled[seen], has[seen])
        # Where training subjects, each left out in turn, would have had no more than one false alarm in twenty.
        left_out = cross_val_predict(
            regression, scaled[seen], has[seen], groups=subject[seen], cv=LeaveOneGroupOut(), method="decision_function"
        )
        border = max(0.0, float(np.percentile(left_out[clean[seen]], 95)))
        score = regression.decision_function(scaled) - border
        model["artefacts"][artefact] = {
            "weights": {name: round(float(w), 5) for name, w in zip(NAMES, regression.coef_[0], strict=True)},
            "bias": round(float(regression.intercept_[0]) - border, 5),
        }
        for shown in dict.fromkeys([artefact, *np.unique(kind[has]).tolist()]):
            chosen = ~seen & (clean | (kind == shown))
            aucs = [
                roc_auc_score((kind == shown)[part], score[part])
                for part in (chosen, chosen & (modality == "T1w"), chosen & (modality == "FLAIR"))
            ]
            found, wrong = (score[~seen & (kind == shown)] > 0).mean(), (score[~seen & clean] > 0).mean()
            print(f"{shown:17.17}" + "".join(f"{v:7.3f}" for v in (*aucs, found, wrong)))
    print("clean images tested:", int((~seen & clean).sum()), "of", ", ".join(np.unique(subject[~seen]).tolist()))
    if write:
        WEIGHTS.write_text(json.dumps(model, indent=1) + "\n")


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("features")
    first.add_argument("--data", type=Path, default=os.environ.get("MSFL_TEST_DATA"))
    first.add_argument("--out", type=Path, required=True)
    first.add_argument("--variants", type=int, default=5)
    second = commands.add_parser("train")
    second.add_argument("--features", type=Path, required=True)
    second.add_argument("--write", action="store_true", help="put the weights into the package")
    chosen = parser.parse_args()
    if chosen.command == "features":
        make_features(chosen.data, chosen.out, chosen.variants)
    else:
        train(chosen.features, chosen.write)


if __name__ == "__main__":
    main()
