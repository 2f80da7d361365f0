"""A folder in nnU-Net's raw layout, with a FLAIR and a T1w channel and lesions as its label.

Its own division into training and test cases is kept: ``imagesTs`` stays the test set. Each case counts as one patient;
where patients have several cases, import with a CSV that says so. A folder that is ready as it is, with channels of any
kind, needs no import: ``msfl data import FOLDER --out RECORD`` checks it where it lies.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from msfl.imaging.datasets import ENDINGS
from msfl.imaging.faults import Fault, unusable
from msfl.imaging.sources.files import stays_inside
from msfl.imaging.sources.found import Found, ImageSource, NiftiFile, Visit
from msfl.imaging.workspace import CHANNELS
from msfl.policies.refusals import CannotProceed

IMAGES: Final = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")


def is_nnunet(folder: Path) -> bool:
    return (folder / "dataset.json").is_file() and any((folder / name).is_dir() for name in ("imagesTr", "imagesTs"))


def find_nnunet(folder: Path, files: Sequence[Path]) -> Found:
    """`files` are those of the folder. Raises CannotProceed where dataset.json names other channels or labels."""
    channels, ending = _describe(folder)
    visits: list[Visit] = []
    splits: tuple[tuple[str, Literal["train", "test"]], ...] = (("Tr", "train"), ("Ts", "test"))
    for part, split in splits:
        names = {
            f.name[: -len(ending) - 5] for f in (folder / f"images{part}").glob(f"?*_[0-9][0-9][0-9][0-9]{ending}")
        }
        visits += [_visit(folder, part, name, channels, ending, split) for name in sorted(names)]
    known = {file for visit in visits for file in visit.seen} | {folder / "dataset.json"}
    return Found(visits, rest=[file for file in files if file not in known])


def _visit(
    folder: Path, part: str, name: str, channels: dict[str, str], ending: str, split: Literal["train", "test"]
) -> Visit:
    images: dict[str, ImageSource] = {}
    label = folder / f"labels{part}" / f"{name}{ending}"
    seen = tuple(folder / f"images{part}" / f"{name}_{int(number):04d}{ending}" for number in channels.values())
    seen += (label,)
    for role, number in channels.items():
        file = folder / f"images{part}" / f"{name}_{int(number):04d}{ending}"
        if not stays_inside(file, folder):
            why = unusable(Fault.OUTSIDE_SOURCE, f"The {role} image is a link that leads out of the folder.")
            return Visit("nnunet", name, "", unusable=why, seen=seen)
        if not file.is_file():
            missing = Fault.MISSING_FLAIR if role == "FLAIR" else Fault.MISSING_T1W
            why = unusable(missing, f"The case has no {role} image.", f"Add it as …_{int(number):04d}{ending}.")
            return Visit("nnunet", name, "", unusable=why, seen=seen)
        images[role] = NiftiFile(file)
    inside = label.is_file() and stays_inside(label, folder)
    return Visit("nnunet", name, "", images, NiftiFile(label) if inside else None, split=split, seen=seen)


def _describe(folder: Path) -> tuple[dict[str, str], str]:
    hint = "Check it where it lies: msfl data import FOLDER --out RECORD."
    try:
        content = json.loads((folder / "dataset.json").read_bytes())
        names = {str(name).casefold(): number for number, name in content["channel_names"].items()}
        channels = {role: names[role.casefold()] for role in CHANNELS if role.casefold() in names}
        labels, ending = content["labels"], content["file_ending"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CannotProceed(f"{folder / 'dataset.json'} does not describe a dataset of nnU-Net. {hint}") from error
    if len(channels) != len(CHANNELS):
        raise CannotProceed(
            f"{folder / 'dataset.json'} names no channel {' or '.join(set(CHANNELS) - set(channels))}. {hint}"
        )
    if set(labels.values()) != {0, 1} or ending not in ENDINGS:
        raise CannotProceed(f"{folder / 'dataset.json'} has other labels than background 0 and lesion 1. {hint}")
    return channels, ending
