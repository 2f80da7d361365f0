"""features: a few numbers about an image that artefacts change and anatomy does not.

Everything is measured inside the brain and after division by its mean, so that neither the scanner's units, nor the
head around it, nor whether that was cut away, decides. An artefact is made in k-space and is looked for there:

=========  ==========================================================  =================================================
artefact   what it does in k-space                                     feature
=========  ==========================================================  =================================================
noise      lifts everything                                            deviation of the finest diagonal detail (Haar)
spike      one point stands out                                        highest point against its neighbours in frequency
ghosting   every n-th line is weaker                                   rhythm in the energy of lines, per axis
motion     parts of k-space come from a moved head: their phases do    rhythm of short wavelength in the logarithm of the
           not fit, and cancel in bands                                spectrum (cepstrum within 9 mm), per axis
=========  ==========================================================  =================================================

Bogert's cepstrum finds echoes, and a head that was seen at two places is one. Cost: about half a second per image.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from msfl.imaging.volume import Mask, Volume

BLOCK: Final = 112
"""Voxels per axis of the block in the middle of the brain whose spectrum is taken."""

NAMES: Final = (
    "noise_3d", "noise_2d_low", "noise_2d_high", "spike", "spike_second",
    "ghost_peak", "ghost_strength", "ghost_head_peak", "ghost_head_strength",
    "echo_high", "echo_middle", "echo_low", "echo_all", "rough_high", "rough_low",
)  # fmt: skip

Array = NDArray[np.float32]


def features(image: Volume, brain: Mask) -> NDArray[np.float64]:
    """One value per name in NAMES. `image` in any units; `brain` on its grid, not empty."""
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    inside = brain[box]
    values = np.asarray(image.data[box], dtype=np.float32)
    mean = float(values[inside].mean())
    values = values / mean
    whole = np.asarray(image.data, dtype=np.float32) / mean
    block = _block(values, inside)
    spectrum = np.abs(fft.rfftn(block * _taper(block.shape))) + np.float32(1e-6)
    found = {
        **_noise(values, inside),
        **_spike(spectrum),
        **_ghost("ghost", values * inside),
        **_ghost("ghost_head", whole),
        **_echo(spectrum, block.shape, image.spacing_mm),
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
    """How far the highest point stands above the median of its shell, and the next one elsewhere."""
    radius = np.zeros(spectrum.shape, dtype=np.float32)
    for axis, length in enumerate(spectrum.shape):
        f = np.fft.fftfreq(length) if axis < 2 else np.linspace(0, 0.5, length)
        radius += np.square(f).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    shell = np.minimum((np.sqrt(radius) * 80).astype(np.int32), 60)
    order = np.argsort(shell, axis=None, kind="stable")
    edges = np.searchsorted(shell.ravel()[order], np.arange(62))
    flat = spectrum.ravel()
    medians = [float(np.median(flat[order[a:b]])) if b > a else 1.0 for a, b in zip(edges, edges[1:], strict=False)]
    above = flat / np.array(medians, dtype=np.float32)[shell.ravel()]
    above[shell.ravel() < 6] = 0
    first = int(above.argmax())
    highest = float(above[first])
    place = np.array(np.unravel_index(first, spectrum.shape))
    cube = above.reshape(spectrum.shape)
    near = tuple(slice(max(int(p) - 4, 0), int(p) + 5) for p in place)
    cube[near] = 0
    return {"spike": float(np.log(highest)), "spike_second": float(np.log(cube.max() + 1e-6))}


def _ghost(name: str, values: Array) -> dict[str, float]:
    """The strongest rhythm, with 3 to 14 lines to a turn, in the energy of k-space's lines along any axis."""
    peaks, strengths = [], []
    for axis, length in enumerate(values.shape):
        if length < 40:
            continue
        lines = np.moveaxis(values, axis, -1)[::2, ::2]
        energy = np.sqrt(np.square(np.abs(fft.rfft(lines, axis=-1))).mean(axis=(0, 1))) + 1e-6
        level = np.log(energy[int(0.05 * length) : int(0.45 * length)])
        rest = level - ndimage.median_filter(level, 15, mode="nearest")
        rest = np.clip(rest, -1, 1) * np.hanning(len(rest))
        turns = np.abs(fft.rfft(rest, 4 * len(rest))) / len(rest) * 4
        per_line = np.arange(len(turns)) / (4 * len(rest))
        looked = (per_line > 1 / 14) & (per_line < 1 / 2.5)
        strengths.append(float(turns[looked].max()))
        peaks.append(float(turns[looked].max() / (np.median(turns[looked]) + 1e-6)))
    return {
        f"{name}_peak": float(np.log(max(peaks, default=1.0))),
        f"{name}_strength": float(np.log(max(strengths, default=1e-3) + 1e-6)),
    }


def _echo(spectrum: Array, shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> dict[str, float]:
    """How much of the log spectrum's ripple, beyond the inner third of k-space along an axis, has an echo's wavelength.

    In decreasing order over the three axes, then over all of k-space; natural logarithms of a ratio to what is found at
    echoes of 14 to 28 mm. `rough` is the deviation of the logarithm itself: random phases give 0.64."""
    level = np.log(spectrum)
    level -= ndimage.uniform_filter(level, [max(3, n // 5) for n in spectrum.shape], mode="nearest")
    level = np.clip(level, -3, 3)
    lag = np.zeros(shape, dtype=np.float32)
    for axis, (length, mm) in enumerate(zip(shape, spacing_mm, strict=True)):
        step = (np.fft.fftfreq(length) * length * mm).astype(np.float32)
        lag += np.square(step).reshape([-1 if a == axis else 1 for a in range(3)])
    lag = np.sqrt(lag)
    close, far = (lag > 1.6) & (lag < 9), (lag > 14) & (lag < 28)
    ratios, roughness = [], []
    for axis in (0, 1, 2, None):
        part = level
        if axis is not None:
            f = np.abs(np.fft.fftfreq(shape[axis])) if axis < 2 else np.linspace(0, 0.5, spectrum.shape[2])
            outer = ((f > 0.18) & (f < 0.46)).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
            part = level * outer
            roughness.append(float(np.log(np.sqrt(np.square(part).sum() / (outer.mean() * part.size)) + 1e-6)))
        cepstrum = np.square(fft.irfftn(part, shape))
        ratios.append(float(np.log(cepstrum[close].mean() / cepstrum[far].mean())))
    high, middle, low = sorted(ratios[:3], reverse=True)
    return {
        "echo_high": high, "echo_middle": middle, "echo_low": low, "echo_all": ratios[3],
        "rough_high": max(roughness), "rough_low": min(roughness),
    }  # fmt: skip
