"""site: write one site's synthetic cases as an nnU-Net raw folder.

Each case has its own random stream, derived from (seed, site, split, number). So a case does not depend on how many
others there are, and the same arguments give the same bytes: gzip is written without a time stamp or a name.
"""

import gzip
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from msfl.imaging.synth.anatomy import grid, person
from msfl.imaging.synth.lesions import draw_lesions
from msfl.imaging.synth.scanner import Scan, SiteStyle, scan

DEFAULT_SPACING_MM: Final = 2.0
_LOAD_LIMITS_ML: Final = (8.0, 45.0)


def generate_site(
    folder: Path,
    site: SiteStyle,
    *,
    seed: int,
    n_train: int,
    n_test: int,
    spacing_mm: float = DEFAULT_SPACING_MM,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``n_train`` training and ``n_test`` test cases of ``site`` into ``folder``, which is made if needed.

    Channels: 0 FLAIR, 1 T1w (int16); label 1 is lesion (uint8); RAS, isotropic ``spacing_mm``. ``jobs`` cases are made
    at once (threads: nearly all of it is numpy, which lets others run; about 1 GiB each at 1 mm); the bytes do not
    depend on it. ``progress`` is called with (cases done, cases in all). Raises FileExistsError when the folder already
    holds a dataset, ValueError for a voxel size outside 1 to 4 mm or a negative number of cases.
    """
    if n_train < 0 or n_test < 0 or seed < 0:
        raise ValueError("seed and numbers of cases must not be negative")
    grid(spacing_mm)
    if (folder / "dataset.json").exists():
        raise FileExistsError(f"{folder} already holds a dataset; choose another folder or remove it")
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows = ["case\tsplit\tlesion_ml\tstyle"]
    prefix = site.name.rsplit("-", 1)[-1].upper()
    total = n_train + n_test

    def make(number: int) -> str:
        split, part = ("train", "Tr") if number < n_train else ("test", "Ts")
        index = number if number < n_train else number - n_train
        case = f"{prefix}_{number + 1:03d}"
        taken, affine, load_ml = _draw(site, _stream(seed, site.name, split, index), spacing_mm)
        _write(folder / f"images{part}" / f"{case}_0000.nii.gz", taken.flair, affine)
        _write(folder / f"images{part}" / f"{case}_0001.nii.gz", taken.t1w, affine)
        _write(folder / f"labels{part}" / f"{case}.nii.gz", taken.label, affine)
        return f"{case}\t{split}\t{load_ml:.2f}\tsynthetic {site.name}"

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for row in pool.map(make, range(total)):
            rows.append(row)
            if progress is not None:
                progress(len(rows) - 1, total)
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    description = {
        "name": site.name,
        "description": "synthetic MS lesions on deformed ICBM 152 anatomy; not clinical data",
        "reference": "Fonov et al., NeuroImage 2011;54:313-327, doi:10.1016/j.neuroimage.2010.07.033",
        "channel_names": {"0": "FLAIR", "1": "T1w"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": n_train,
        "file_ending": ".nii.gz",
    }
    # last: a folder with a dataset.json is a complete one
    (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _stream(seed: int, site: str, split: str, index: int) -> np.random.Generator:
    words = hashlib.sha256(f"{seed}/{site}/{split}/{index}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(words, "big")))


def _draw(site: SiteStyle, rng: np.random.Generator, spacing_mm: float) -> tuple[Scan, NDArray[np.float64], float]:
    who = person(rng, spacing_mm)
    load = float(np.clip(rng.lognormal(np.log(site.load_ml), site.load_sigma), *_LOAD_LIMITS_ML))
    taken = scan(rng, who, draw_lesions(rng, who, load), site)
    return taken, who.affine, float(np.count_nonzero(taken.label)) * spacing_mm**3 / 1000


def _write(path: Path, values: NDArray[Any], affine: NDArray[np.float64]) -> None:
    image: Any = nib.nifti1.Nifti1Image(values, affine)
    image.set_sform(affine, code=4)  # 4: MNI 152 space
    image.set_qform(affine, code=4)
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))
