"""pictures: what a person needs to see of a case, as small WebP files in `cases/<case>/pictures/`.

    mosaic.webp            seven axial slices: FLAIR above, T1w below, outlines of brain (blue) and lesions (red)
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
from msfl.imaging.workspace import Case

NAMES: Final = ("mosaic", "flair", "before", "after")
SLICES: Final = 7
_TILE: Final = 150  # pixels
_BRAIN: Final = (64, 180, 255)
_T1W_BRAIN: Final = (120, 230, 140)
_LESION: Final = (255, 60, 60)

Picture = NDArray[np.uint8]


def draw(case: Case, raw: Raw, made: Standard) -> None:
    """Write the four pictures, each whole."""
    before = resample(raw.t1w, made.flair, Rigid(np.eye(4)), "linear")
    with case.filling("pictures") as folder:
        _save(folder / "mosaic.webp", _mosaic(made))
        for name, volume in (("flair", made.flair), ("before", before), ("after", made.t1w)):
            _save(folder / f"{name}.webp", _planes(volume, made.brain))


def _mosaic(made: Standard) -> Picture:
    box = _box(made.brain, made.flair.spacing_mm)
    low, high = box[2].start, box[2].stop
    at = np.linspace(low + 0.12 * (high - low), low + 0.9 * (high - low), SLICES).astype(int)
    lesion = made.lesion.voxels > 0 if made.lesion is not None else None
    rows = []
    for image, outlines in (
        (made.flair, [(made.brain, _BRAIN), *([(lesion, _LESION)] if lesion is not None else [])]),
        (made.t1w, [(made.t1w_brain, _T1W_BRAIN)]),
    ):
        grey = _grey(image, made.brain)
        tiles = [
            _tile(grey[box[0], box[1], z], [(m[box[0], box[1], z], c) for m, c in outlines], image, (0, 1)) for z in at
        ]
        rows.append(np.concatenate([_square(tile) for tile in tiles], axis=1))
    return np.concatenate(rows, axis=0)


def _planes(image: Volume, brain: Mask) -> Picture:
    x, y, z = (int(axis.mean()) for axis in np.nonzero(brain))
    grey = _grey(image, brain)
    axial = _tile(grey[:, :, z], [], image, (0, 1))
    coronal = _tile(grey[:, y, :], [], image, (0, 2))
    sagittal = _tile(grey[x, :, :][::-1], [], image, (1, 2))
    return np.concatenate([_square(tile, 2 * _TILE) for tile in (axial, coronal, sagittal)], axis=1)


def _tile(
    grey: Picture, outlines: list[tuple[Mask, tuple[int, int, int]]], image: Volume, axes: tuple[int, int]
) -> Picture:
    """One slice with its outlines, in square pixels; rows from top to bottom, columns from the patient's right."""
    mm = [image.spacing_mm[a] for a in axes]
    size = [max(1, round(n * m / min(mm))) for n, m in zip(grey.shape, mm, strict=True)]
    scale = max(1, round(2 * _TILE / max(size)))
    size = [n * scale for n in size]

    def upright(plane: NDArray[Any], how: Image.Resampling) -> NDArray[Any]:
        turned = Image.fromarray(np.ascontiguousarray(plane.T[::-1, ::-1]))
        return np.asarray(turned.resize((size[0], size[1]), how))

    colour = np.repeat(upright(grey, Image.Resampling.BILINEAR)[..., None], 3, axis=2)
    for mask, rgb in outlines:
        whole = upright(mask.astype(np.uint8) * 255, Image.Resampling.BILINEAR) > 127
        edge = whole & ~ndimage.binary_erosion(whole)
        colour[edge] = rgb
    return colour


def _square(picture: Picture, side: int = _TILE) -> Picture:
    """Scaled to fit and put in the middle of a black square."""
    rows, columns = picture.shape[:2]
    scale = side / max(rows, columns)
    small = Image.fromarray(picture).resize(
        (max(1, int(columns * scale)), max(1, int(rows * scale))), Image.Resampling.LANCZOS
    )
    out = Image.new("RGB", (side, side))
    out.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return np.asarray(out)


def _grey(image: Volume, brain: Mask) -> Picture:
    values = image.voxels.astype(np.float32)
    low, high = np.percentile(values[brain], [0.5, 99.8])
    low = min(float(low), 0.3 * float(high))
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
