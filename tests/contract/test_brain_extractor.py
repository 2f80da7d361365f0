"""Every way to find a brain keeps one contract: a mask on the head's own grid, in whatever orientation it is stored."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from fakes.heads import MadeHeadExtractor, grid, head
from msfl.imaging.brain import BrainExtractor, extractor
from msfl.imaging.brain.hd_bet import HdBet
from msfl.imaging.brain.synthstrip import SynthStrip
from msfl.imaging.checks import Volume
from msfl.imaging.deidentify.nifti import read_volume
from msfl.imaging.standard.reorient import reorient
from msfl.imaging.workspace import Unusable
from msfl.policies.refusals import CannotProceed

# What stands in for a site's command: the arguments of the real one, and a mask where the real one leaves it.
COMMAND = """#!{python}
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from fakes.heads import MadeHeadExtractor
from msfl.imaging.deidentify.nifti import read_volume, write_volume
words = sys.argv[1:]
given = Path(words[words.index("-i") + 1])
out = Path(words[words.index({option!r}) + 1])
if {option!r} == "-o":
    assert "--save_bet_mask" in words
    out = out.with_name(out.name.replace(".nii.gz", "_bet.nii.gz"))
image = read_volume(given)
try:
    mask = MadeHeadExtractor().extract(image, "image")
except Exception:
    mask = image.voxels > 1e9
write_volume(image.like(mask), out)
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, option in (("mri_synthstrip", "-m"), ("hd-bet", "-o")):
        file = tmp_path / name
        file.write_text(COMMAND.format(python=sys.executable, path=[p for p in sys.path if p], option=option))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


class Contract:
    """Of a head in which the extractor can find a brain."""

    @pytest.fixture
    def subject(self, commands: Path) -> BrainExtractor:
        raise NotImplementedError

    @pytest.fixture
    def image(self) -> Volume:
        return head("T1w", grid())

    def test_the_mask_lies_on_the_heads_grid_however_it_is_stored(self, subject: BrainExtractor, image: Volume) -> None:
        mask = subject.extract(image, "T1w")
        assert mask.shape == image.voxels.shape
        assert mask.dtype == np.bool_
        ml = float(np.count_nonzero(mask)) * image.voxel_ml
        assert 900 < ml < 2000
        axes = image.affine[:, [2, 0, 1, 3]].copy()
        axes[:3, 3] += axes[:3, 1] * (image.voxels.shape[0] - 1)
        axes[:3, 1] *= -1
        turned = Volume(np.ascontiguousarray(image.voxels.transpose(2, 0, 1)[:, ::-1]), axes)
        again = reorient(turned.like(subject.extract(turned, "T1w").astype(np.uint8))).voxels > 0
        upright = reorient(image.like(mask.astype(np.uint8))).voxels > 0
        both = np.count_nonzero(again & upright)
        assert 2 * both / (np.count_nonzero(again) + np.count_nonzero(upright)) > 0.98

    def test_where_there_is_none_it_says_so(self, subject: BrainExtractor, image: Volume) -> None:
        with pytest.raises(Unusable, match="no_brain"):
            subject.extract(image.like(np.zeros_like(image.voxels)), "FLAIR")

    def test_it_has_a_name_and_says_that_it_is_here(self, subject: BrainExtractor) -> None:
        assert subject.name
        subject.ready()


class TestMadeHead(Contract):
    @pytest.fixture
    def subject(self, commands: Path) -> BrainExtractor:
        return MadeHeadExtractor()


@pytest.mark.slow
class TestSynthStrip(Contract):
    @pytest.fixture
    def subject(self, commands: Path) -> BrainExtractor:
        return SynthStrip()


@pytest.mark.slow
class TestHdBet(Contract):
    @pytest.fixture
    def subject(self, commands: Path) -> BrainExtractor:
        return HdBet()


@pytest.mark.system
class TestDeepbet(Contract):
    """On a real head; its weights come with its wheel."""

    @pytest.fixture
    def subject(self, commands: Path) -> BrainExtractor:
        return extractor("deepbet")

    @pytest.fixture
    def image(self) -> Volume:
        root = os.environ.get("MSFL_TEST_DATA")
        if root is None:
            pytest.skip("no real head: set MSFL_TEST_DATA to the folder that holds heads/")
        return read_volume(Path(root) / "heads" / "T1w_head.nii.gz")


def test_a_command_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotProceed, match="mri_synthstrip is not on this machine's PATH"):
        SynthStrip().extract(head("T1w", grid()), "T1w")
    with pytest.raises(CannotProceed, match="hd-bet is not on this machine's PATH"):
        HdBet().ready()


def test_a_command_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hd-bet"
    file.write_text("#!/bin/sh\necho weights are missing >&2\nexit 3\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(CannotProceed, match=r"exit code 3\): weights are missing"):
        HdBet().extract(head("T1w", grid()), "T1w")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(CannotProceed, match="there are deepbet, hd-bet, synthstrip"):
        extractor("magic")
