"""Where a site's files are: the read-only data in nnU-Net raw layout, and nnU-Net's own folders inside the scratch.

    site.data/imagesTr/<case>_0000<ending>, labelsTr/<case><ending>      train and validation cases
    site.data/imagesTs/…,                   labelsTs/…                   test cases
    site.scratch/nnunet/{raw,preprocessed,results}                       what nnU-Net calls its three roots
    site.scratch/plan.json, site.scratch/streams/…                       what a restarted worker resumes from

nnU-Net reads its roots from the environment at every use, so `use_roots` is called at the start of every verb. Images
are read where they lie; nothing is copied or linked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msfl.learning.contract import ModelRefusal, Site, Split

DATASET_NAME = "Dataset501_msfl"
PLANS_NAME = "nnUNetPlans"
CONFIGURATION = "3d_fullres"

_ROOTS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}


def image_files(site: Site, case: str, split: Split | str) -> list[str]:
    """One file per channel, in channel order. Raises ModelRefusal `image_missing`."""
    folder = site.data / ("imagesTs" if split == "test" else "imagesTr")
    files = [folder / f"{case}_{channel:04d}{site.file_ending}" for channel in range(len(site.channel_names))]
    for channel, file in zip(site.channel_names, files, strict=True):
        if not file.is_file():
            raise ModelRefusal("image_missing", f"case {case}: no {channel} image at {file}; complete the dataset")
    return [str(file) for file in files]


def label_file(site: Site, case: str, split: Split | str) -> str:
    """Raises ModelRefusal `label_missing`."""
    file = site.data / ("labelsTs" if split == "test" else "labelsTr") / f"{case}{site.file_ending}"
    if not file.is_file():
        raise ModelRefusal("label_missing", f"case {case}: no label at {file}; complete the dataset")
    return str(file)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables for the length of a block: nnU-Net takes some of its settings from there only."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def roots(folder: Path) -> dict[str, str]:
    """nnU-Net's three roots below `folder`, created, as environment variables."""
    values = {}
    for variable, name in _ROOTS.items():
        root = folder / "nnunet" / name
        root.mkdir(parents=True, exist_ok=True)
        values[variable] = str(root)
    return values


def use_roots(folder: Path) -> None:
    os.environ.update(roots(folder))
