"""Every artefact detector keeps one contract; the trained one also has to notice what is put into an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fakes.heads import MadeHeadExtractor, SameEverywhere, grid, head
from msfl.imaging.checks import Volume
from msfl.imaging.quality.artefacts import Artefact, ArtefactDetector
from msfl.imaging.quality.artefacts.features import NAMES, features
from msfl.imaging.quality.artefacts.mai_lab import MaiLab
from msfl.imaging.quality.artefacts.trained import Trained
from msfl.imaging.volume import Mask
from msfl.policies.refusals import CannotProceed

# Sorts an image as MAI-Lab's script does: into a folder named after what it takes it for.
SCRIPT = """
import argparse, pathlib, shutil
parser = argparse.ArgumentParser()
parser.add_argument("--input"); parser.add_argument("--output")
chosen = parser.parse_args()
for name in ("T1W_ax", "Motion artifact"):
    pathlib.Path(chosen.output, name).mkdir(parents=True)
for file in pathlib.Path(chosen.input).iterdir():
    shutil.copy(file, pathlib.Path(chosen.output, "{folder}"))
"""


def mai_lab(folder: Path, says: str = "Motion artifact") -> MaiLab:
    folder.mkdir(exist_ok=True)
    (folder / "MRI_sort.py").write_text(SCRIPT.replace("{folder}", says))
    return MaiLab(folder)


@pytest.fixture(scope="module")
def image() -> Volume:
    return head("T1w", grid())


@pytest.fixture(scope="module")
def brain(image: Volume) -> Mask:
    return MadeHeadExtractor().extract(image, "T1w")


@pytest.fixture(params=["same", "trained", "mai-lab"])
def detector(request: pytest.FixtureRequest, tmp_path: Path) -> ArtefactDetector:
    match request.param:
        case "same":
            return SameEverywhere()
        case "trained":
            return Trained()
        case _:
            return mai_lab(tmp_path / "tool")


class TestArtefactDetector:
    def test_what_it_says_lies_between_0_and_1(self, detector: ArtefactDetector, image: Volume, brain: Mask) -> None:
        said = detector.detect(image, brain)
        assert said
        assert set(said) <= set(Artefact)
        assert all(0 <= p <= 1 for p in said.values())

    def test_the_scanners_units_do_not_matter(self, detector: ArtefactDetector, image: Volume, brain: Mask) -> None:
        one, other = detector.detect(image, brain), detector.detect(image.like(image.voxels * np.float32(37)), brain)
        assert {a: round(p, 3) for a, p in one.items()} == {a: round(p, 3) for a, p in other.items()}

    def test_it_has_a_name_and_says_that_it_is_here(self, detector: ArtefactDetector) -> None:
        assert detector.name
        detector.ready()


def test_mai_labs_folders_are_read(tmp_path: Path, image: Volume, brain: Mask) -> None:
    assert mai_lab(tmp_path / "a").detect(image, brain) == {Artefact.MOTION: 1.0}
    assert mai_lab(tmp_path / "b", "T1W_ax").detect(image, brain) == {Artefact.MOTION: 0.0}


def test_a_tool_that_fails_is_named(tmp_path: Path, image: Volume, brain: Mask) -> None:
    (tmp_path / "MRI_sort.py").write_text("raise SystemExit('CUDA is not available')")
    with pytest.raises(CannotProceed, match="failed: CUDA is not available"):
        MaiLab(tmp_path).detect(image, brain)


def test_a_folder_without_the_tool_is_noticed_before_any_image(tmp_path: Path) -> None:
    with pytest.raises(CannotProceed, match="does not hold the MAI-Lab tool"):
        MaiLab(tmp_path).ready()


def spoilt(kind: str, image: Volume, brain: Mask) -> Volume:
    x = image.voxels
    mean = float(x[brain].mean())
    spectrum = np.fft.fftn(x)
    if kind == "noise":
        x = x + 0.1 * mean * np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    elif kind == "spike":
        spectrum[9, 51, 14] += 0.5 * np.abs(spectrum).max()
        x = np.fft.ifftn(spectrum).real
    elif kind == "ghosting":
        lines = np.fft.fftfreq(x.shape[1], 1 / x.shape[1]).astype(int)
        spectrum[:, (lines % 5 == 2) & (np.abs(lines) > 1)] *= 0.5
        x = np.fft.ifftn(spectrum).real
    return image.like(x.astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "feature", "least"),
    [("noise", "noise_3d", 0.8), ("spike", "spike_height", 0.5), ("ghosting", "head_ghost_strength", 1.0)],
)
def test_what_is_put_into_an_image_shows_in_its_feature(
    kind: str, feature: str, least: float, image: Volume, brain: Mask
) -> None:
    at = NAMES.index(feature)
    assert features(spoilt(kind, image, brain), brain)[at] - features(image, brain)[at] > least
