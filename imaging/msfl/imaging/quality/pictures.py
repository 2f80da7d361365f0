"""pictures: what a person needs to see of a case, as small WebP files in `cases/<case>/pictures/`.

    mosaic.webp            six axial slices: FLAIR above, T1w below, outlines of brain (blue) and lesions (red)
    flair.webp             the three planes through the middle of the brain
    before.webp            T1w in the same planes, as the headers have it
    after.webp             T1w in the same planes, registered

Seen from the front and from below, as radiologists do: the patient's right is on the left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from msfl.imaging.checks import Volume
from msfl.imaging.standard.pipeline import Raw, Standard
from msfl.imaging.standard.register import Rigid
from msfl.imaging.standard.resample import resample
from msfl.imaging.volume import Mask

NAMES: Final = ("mosaic", "flair", "before", "after")
SLICES: Final = 6
TILE: Final = 190
"""Pixels."""
_BRAIN: Final = (64, 180, 255)
_T1W_BRAIN: Final = (120, 230, 140)
_LESION: Final = (255, 60, 60)

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]


def draw(folder: Path, raw: Raw, made: Standard) -> None:
    """Write the four pictures into an empty folder."""
    before = resample(raw.t1w, made.flair, Rigid(np.eye(4)), "linear")
    _save(folder / "mosaic.webp", _mosaic(made))
    for name, volume in (("flair", made.flair), ("before", before), ("after", made.t1w)):
        _save(folder / f"{name}.webp", _planes(volume, made.brain))


def _mosaic(made: Standard) -> Picture:
    box = _box(made.brain, made.flair.spacing_mm)
    low, high = box[2].start, box[2].stop
    at = np.linspace(low + 0.15 * (high - low), low + 0.88 * (high - low), SLICES).astype(int)
    lesion = made.lesion.voxels > 0 if made.lesion is not None else None
    rows = []
    for image, outlines in (
        (made.flair, [(made.brain, _BRAIN), *([(lesion, _LESION)] if lesion is not None else [])]),
        (made.t1w, [(made.t1w_brain, _T1W_BRAIN)]),
    ):
        grey, mm = _grey(image, made.brain), (image.spacing_mm[0], image.spacing_mm[1])
        tiles = []
        for z in at:
            cut = (box[0], box[1], z)
            tiles.append(_tile(grey[cut], [(mask[cut], colour) for mask, colour in outlines], mm, TILE))
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)


def _planes(image: Volume, brain: Mask) -> Picture:
    x, y, z = (int(axis.mean()) for axis in np.nonzero(brain))
    mm, grey = image.spacing_mm, _grey(image, brain)
    axial = _tile(grey[:, :, z], [], (mm[0], mm[1]), 2 * TILE)
    coronal = _tile(grey[:, y, :], [], (mm[0], mm[2]), 2 * TILE)
    sagittal = _tile(grey[x, ::-1, :], [], (mm[1], mm[2]), 2 * TILE)
    return np.concatenate([axial, coronal, sagittal], axis=1)


def _tile(grey: Picture, outlines: list[tuple[Mask, Colour]], mm: tuple[float, float], side: int) -> Picture:
    """One slice in the middle of a black square, its outlines a pixel thin; rows from top to bottom, columns from the
    patient's right."""
    sizes = [n * m for n, m in zip(grey.shape, mm, strict=True)]
    columns, rows = (max(1, int(size * side / max(sizes))) for size in sizes)

    def upright(plane: NDArray[Any]) -> NDArray[Any]:
        turned = Image.fromarray(np.ascontiguousarray(plane.T[::-1, ::-1]))
        return np.asarray(turned.resize((columns, rows), Image.Resampling.BILINEAR))

    colour = np.repeat(upright(grey)[..., None], 3, axis=2)
    for mask, rgb in outlines:
        whole = upright(mask.astype(np.uint8) * 255) > 127
        colour[ndimage.binary_dilation(whole) & ~whole] = rgb
    out = np.zeros((side, side, 3), dtype=np.uint8)
    top, left = (side - rows) // 2, (side - columns) // 2
    out[top : top + rows, left : left + columns] = colour
    return out


def _grey(image: Volume, brain: Mask) -> Picture:
    values = image.voxels.astype(np.float32)
    low, high = np.percentile(values[brain], [0.5, 99.8])
    low = max(0.0, min(float(low), 0.3 * float(high)))
    return np.asarray(np.clip((values - low) / max(float(high) - low, 1e-6), 0, 1) * 255, dtype=np.uint8)


def _box(mask: Mask, spacing_mm: tuple[float, float, float], margin_mm: float = 8) -> tuple[slice, slice, slice]:
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    x, y, z = (
        slice(max(0, part.start - round(margin_mm / mm)), min(n, part.stop + round(margin_mm / mm)))
        for part, mm, n in zip(found, spacing_mm, mask.shape, strict=True)
    )
    return x, y, z


def _save(file: Path, picture: Picture) -> None:
    Image.fromarray(picture).save(file, "WEBP", quality=60, method=4)
