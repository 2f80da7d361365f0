"""words: what each figure is called, in what unit, and what a value outside its limits means to people who take images.

A name is `<image>.<figure>`: FLAIR, T1w, `pair` (both together) or `lesion` (the expert's mask).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

NO_LESION_MASK: Final = "no_lesion_mask"
"""No figure, but said of a case in the same places."""


@dataclass(frozen=True)
class Words:
    title: str
    unit: str
    low: str = ""
    """What to say when the value is too low."""
    high: str = ""
    digits: int = 2


def _image(name: str) -> dict[str, Words]:
    cut = f"Part of the brain lies outside the {name} image. Plan the slab larger, or leave the case out."
    voxels = f"The voxels of {name} are not 1 mm: another protocol than the study's (1.0 ± 0.1 mm in all directions)."
    small = f"The brain in the {name} image is unusually short: part of it may be cut off, or it was not found whole."
    again = f"Look at the {name} image; if it is bad, use a repeated acquisition of the visit."
    snr = "fluid (CSF)" if name == "FLAIR" else "grey and white matter"
    return {
        "spacing_min": Words(f"{name}: shortest voxel edge", "mm", low=voxels, high=voxels),
        "spacing_max": Words(f"{name}: longest voxel edge", "mm", low=voxels, high=voxels),
        "obliquity": Words(
            f"{name}: obliquity", "°", high=f"The slab of {name} lies very oblique in the head.", digits=1
        ),
        "brain": Words(
            f"{name}: brain volume",
            "ml",
            low=f"Little brain was found in {name}: it is cut off, or brain extraction failed. Look at the outline.",
            high=f"More brain was found in {name} than a skull holds: brain extraction failed. Look at the outline.",
            digits=0,
        ),
        "brain_length": Words(f"{name}: brain, front to back", "mm", low=small, digits=0),
        "brain_width": Words(f"{name}: brain, left to right", "mm", low=small, digits=0),
        "brain_height": Words(f"{name}: brain, top to bottom", "mm", low=small, digits=0),
        "cut_top": Words(f"{name}: brain on the upper face", "cm²", high=cut, digits=1),
        "cut_side": Words(f"{name}: brain on a side face", "cm²", high=cut, digits=1),
        "cut_bottom": Words(f"{name}: brain on the lower face", "cm²", high=cut, digits=1),
        "snr": Words(f"{name}: SNR in {snr}", "", low=f"Weak or noisy signal in {name}. {again}"),
        "snrd": Words(f"{name}: SNR over air (SNRd)", "", low=f"Weak or noisy signal in {name}. {again}"),
        "cnr": Words(f"{name}: contrast (CNR)", "", low=f"Grey and white matter hardly differ in {name}. {again}"),
        "cjv": Words(
            f"{name}: joint variation of grey and white matter (CJV)",
            "",
            high=f"Grey and white matter hardly differ in {name}: motion, noise or strong shading. {again}",
        ),
        "efc": Words(f"{name}: entropy focus (EFC)", "", high=f"{name} is blurred or ghosted. {again}"),
        "fber": Words(
            f"{name}: head over air (FBER)",
            "",
            low=f"Signal outside the head in {name}: ghosts, noise. {again}",
            digits=0,
        ),
        "motion": Words(
            f"{name}: probability of motion", "", high=f"The head seems to have moved during {name}. {again}"
        ),
        "ghosting": Words(
            f"{name}: ghosting", "", high=f"There seem to be faint, shifted copies of the head in {name}. {again}"
        ),
        "spike": Words(
            f"{name}: probability of spike noise", "", high=f"There seem to be stripes over {name}. {again}"
        ),
        "noise": Words(f"{name}: probability of noise", "", high=f"{name} is grainy. {again}"),
    }


_WRONG_PAIR = "T1w and FLAIR do not seem to show one brain. Check that both are of this patient and this visit."
_SWAPPED = "T1w and FLAIR look swapped, or one of them is another kind of image. Check what was imported as which."

FIGURES: Final[Mapping[str, Words]] = {
    **{f"FLAIR.{name}": words for name, words in _image("FLAIR").items()},
    **{f"T1w.{name}": words for name, words in _image("T1w").items()},
    "pair.shared_mirrored": Words(
        "Information shared when one is mirrored, relative",
        "",
        high="Left and right of T1w and FLAIR do not agree: one of them is mirrored. Convert both again from DICOM.",
        digits=3,
    ),
    "pair.volume_similarity": Words("Brain volumes agree", "", low=_WRONG_PAIR, digits=3),
    "pair.overlap": Words("Brain outlines overlap", "", low=_WRONG_PAIR, digits=3),
    "pair.shift": Words(
        "T1w moved by", "mm", high="The head moved far between the images. Look at the overlay.", digits=1
    ),
    "pair.turn": Words(
        "T1w turned by", "°", high="The head turned far between the images. Look at the overlay.", digits=1
    ),
    "pair.shared": Words("Information shared by T1w and FLAIR", "", low=_WRONG_PAIR, digits=3),
    "pair.t1w_depth": Words("T1w: depth of what is bright", "", low=_SWAPPED),
    "pair.flair_depth": Words("FLAIR: depth of what is bright", "", high=_SWAPPED),
    "pair.flair_below_t1w": Words("T1w's over FLAIR's depth of what is bright", "", low=_SWAPPED),
    "lesion.other_labels": Words(
        "Lesion mask: other values than 0 and 1", "", high="The mask has labels besides lesion.", digits=0
    ),
    "lesion.volume": Words(
        "Lesion volume",
        "ml",
        low="The mask is empty or nearly so. If the patient has no lesions this is right; else it is the wrong file.",
        high="More lesion than is plausible. Check that the mask is of lesions, not of tissue.",
    ),
    "lesion.count": Words("Lesions", "", digits=0),
    "lesion.largest": Words("Largest lesion", "ml"),
    "lesion.tiny": Words(
        "Lesions below 3 mm³", "", high="The mask has many specks. Clean it, or accept them.", digits=0
    ),
    "lesion.outside": Words(
        "Part of the mask outside the brain", "", high="The mask reaches out of the brain. Is it of this visit?"
    ),
    "lesion.brightness": Words(
        "FLAIR in lesions over white matter",
        "",
        low="What is marked is not bright: the mask is shifted or of another visit.",
    ),
}
