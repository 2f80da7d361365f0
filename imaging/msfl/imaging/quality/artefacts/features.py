"""features: a few numbers about an image that artefacts change and anatomy does not.

Everything is measured after division by the brain's mean, so that the scanner's units do not decide, and most of it
twice: on the image as it is, and inside the brain only, since what lies around it may have been cut away. An artefact
is made in k-space and is looked for there:

=========  ===============================================================  ==========================================
artefact   what it does in k-space                                          feature
=========  ===============================================================  ==========================================
noise      lifts everything                                                 deviation of the finest diagonal detail
spike      one point stands out                                             the highest point: its height, and against
                                                                            its shell
ghosting   every n-th line is weaker                                        rhythm in the energy of lines, per axis
motion     lines were taken of a head that lay elsewhere: what fits no      step in the energy of lines, per axis;
           longer cancels, and neighbouring lines do not go together        loss of coherence from line to line
=========  ===============================================================  ==========================================

Cost: about 0.3 s of CPU per image.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from msfl.imaging.checks import Volume
from msfl.imaging.volume import Mask

BLOCK: Final = 112
"""Voxels per axis of the block in the middle of the brain whose spectrum is taken."""

_LINES: Final = ("ghost_peak", "ghost_strength", "step", "step_peak", "dip", "dip_peak")
NAMES: Final = (
    "noise_3d", "noise_2d_low", "noise_2d_high", "spike_height", "spike_peak",
    *(f"head_{name}" for name in _LINES), *(f"brain_{name}" for name in _LINES),
)  # fmt: skip

_SHORTEST: Final = 44  # voxels: of fewer lines nothing can be said

Array = NDArray[np.float32]
Line = NDArray[np.float64]


def features(image: Volume, brain: Mask) -> NDArray[np.float64]:
    """One value per name in NAMES. `image` in any units; `brain` on its grid, not empty."""
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    inside = brain[box]
    values = np.asarray(image.voxels[box], dtype=np.float32)
    mean = float(values[inside].mean())
    values = values / mean
    whole = np.asarray(image.voxels, dtype=np.float32) / mean
    block = _block(values, inside)
    spectrum = np.abs(fft.rfftn(block * _taper(block.shape))) + np.float32(1e-6)
    found = {
        **_noise(values, inside),
        **_spike(spectrum),
        **{f"head_{name}": value for name, value in _lines(whole).items()},
        **{f"brain_{name}": value for name, value in _lines(values * inside).items()},
    }
    return np.array([found[name] for name in NAMES])


def _block(values: Array, inside: Mask) -> Array:
    """The middle of the brain: at most BLOCK voxels per axis, without its mean."""
    middle = [int(axis.mean()) for axis in np.nonzero(inside)]
    cut = []
    for centre, length in zip(middle, values.shape, strict=True):
        size = min(BLOCK, length)
        start = min(max(centre - size // 2, 0), length - size)
        cut.append(slice(start, start + size))
    block = values[tuple(cut)] * inside[tuple(cut)]
    return np.asarray(block - block.mean(), dtype=np.float32)


def _taper(shape: tuple[int, ...]) -> Array:
    """Falls to zero over the outer eighth at each side, so that the block's faces are no edges."""
    out = np.ones(shape, dtype=np.float32)
    for axis, length in enumerate(shape):
        edge = np.minimum(np.arange(length) + 0.5, length - np.arange(length) - 0.5) / (length / 8)
        window = np.sin(np.clip(edge, 0, 1) * np.pi / 2) ** 2
        out *= window.reshape([-1 if a == axis else 1 for a in range(3)]).astype(np.float32)
    return out


def _noise(values: Array, inside: Mask) -> dict[str, float]:
    """Robust deviation of Haar's diagonal detail (Donoho & Johnstone, Biometrika 1994), as natural logarithms."""
    detail = []
    for axes in ((0, 1, 2), (0, 1), (0, 2), (1, 2)):
        fine, whole = values, inside
        for axis in axes:
            fine = np.diff(fine, axis=axis) / np.float32(np.sqrt(2))
            whole = whole.take(range(whole.shape[axis] - 1), axis) & whole.take(range(1, whole.shape[axis]), axis)
        chosen = fine[whole]
        detail.append(float(np.log(np.median(np.abs(chosen)) / 0.6745 + 1e-6)) if chosen.size else -14.0)
    return {"noise_3d": detail[0], "noise_2d_low": min(detail[1:]), "noise_2d_high": max(detail[1:])}


def _spike(spectrum: Array) -> dict[str, float]:
    """The highest point away from the middle: the height of its wave in parts of the brain's mean, and how far it
    stands above the median of its shell; natural logarithms."""
    square = np.zeros(spectrum.shape, dtype=np.float32)
    for axis, length in enumerate(spectrum.shape):
        f = np.fft.fftfreq(length) if axis < 2 else np.linspace(0, 0.5, length)
        square += np.square(f).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    shell = (np.sqrt(square) * 80).astype(np.int32).ravel()
    flat = np.where(shell < 6, 0, spectrum.ravel())
    first = int(flat.argmax())
    beside = flat[shell == shell[first]]
    voxels = np.prod([*spectrum.shape[:2], 2 * (spectrum.shape[2] - 1)])
    height = 4 * float(flat[first]) / float(voxels)
    return {"spike_height": float(np.log(height)), "spike_peak": float(np.log(flat[first] / np.median(beside)))}


def _lines(values: Array) -> dict[str, float]:
    """What stands out in the sequence of k-space's lines, along the axis where it does most; logarithms but for `dip`.

    ghost   the strongest rhythm of the energy, with 2.5 to 14 lines to a turn
    step    the largest change of the level of the energy, from four lines to the next four, against its trend
    dip     the deepest loss of coherence between one line and the next
    `_peak` is the same over what is usual along that axis."""
    rows: list[tuple[float, ...]] = []
    for axis, length in enumerate(values.shape):
        if length < _SHORTEST:
            continue
        lines = fft.rfft(np.moveaxis(values, axis, -1)[::2, ::2], axis=-1)
        energy = np.square(np.abs(lines)).sum(axis=(0, 1), dtype=np.float64) + 1e-6
        together = np.abs((lines[..., 1:] * lines[..., :-1].conj()).sum(axis=(0, 1), dtype=np.complex128))
        level = np.log(energy) / 2
        rows.append((*_rhythm(level, length), *_step(level, length), *_dip(together, energy, length)))
    most = np.max(rows, axis=0) if rows else np.zeros(len(_LINES))
    return dict(zip(_LINES, map(float, most), strict=True))


def _rhythm(level: Line, length: int) -> tuple[float, float]:
    level = level[int(0.05 * length) : int(0.45 * length)]
    rest = np.clip(level - ndimage.median_filter(level, 15, mode="nearest"), -1, 1) * np.hanning(len(level))
    turns = np.abs(np.fft.rfft(rest, 4 * len(rest))) / len(rest) * 4
    per_line = np.arange(len(turns)) / (4 * len(rest))
    looked = turns[(per_line > 1 / 14) & (per_line < 1 / 2.5)]
    return float(np.log(looked.max() / (np.median(looked) + 1e-3) + 1e-3)), float(np.log(looked.max() + 1e-3))


def _step(level: Line, length: int) -> tuple[float, float]:
    sums = np.concatenate([[0.0], np.cumsum(level)])
    means = (sums[4:] - sums[:-4]) / 4
    change = means[4:] - means[:-4]  # entry i: lines i+4..i+7 against i..i+3
    change = np.abs(change - ndimage.median_filter(change, 15, mode="nearest"))
    looked = change[max(0, int(0.06 * length) - 4) : int(0.30 * length) - 4]
    return float(np.log(looked.max() + 1e-3)), float(np.log(looked.max() / (np.median(looked) + 1e-2) + 1e-3))


def _dip(together: Line, energy: Line, length: int) -> tuple[float, float]:
    coherence = np.log(together / np.sqrt(energy[1:] * energy[:-1]) + 1e-3)
    below = ndimage.median_filter(coherence, 9, mode="nearest") - coherence
    looked = below[int(0.06 * length) : int(0.30 * length)]
    return float(looked.max()), float(np.log(looked.max() / (np.median(np.abs(looked)) + 1e-2) + 1e-3))
