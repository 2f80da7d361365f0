"""scanner: what a person's brain and lesions look like on one site's FLAIR and T1w.

Signal is built relative to white matter = 1: tissue fractions × tissue brightness, then the lesions, then everything
that is bright on FLAIR without being a lesion. The latter matters: in real data a threshold fails because of it, and a
network has to learn place, shape and T1 to tell it apart.

==================  ==================================  ====================================
bright non-lesion   where                               on T1w
==================  ==================================  ====================================
ependymal lining    one voxel along the ventricles      normal
caps                tips of the frontal/occipital horns almost normal white matter
septum              midline between the ventricles      as thin tissue
choroid plexus      in the atria                        between fluid and grey matter
bright cortex       insula, cingulate, patches          normal grey matter
vessels             spots on the surface                bright or normal
flow                in the basal cisterns, in bands     fluid
==================  ==================================  ====================================

Then comes the scanner: blur (point spread), coil shading, Rician noise (Gudbjartsson & Patz, MRM 1995;34:910-914),
and the contrast curve and units of the site.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from msfl.imaging.synth.anatomy import Person, Volume, smooth_noise
from msfl.imaging.synth.lesions import Lesions

_FWHM: Final = 2.3548  # full width at half maximum of a Gaussian, in standard deviations


@dataclass(frozen=True)
class SiteStyle:
    """How a site's patients, scanner and annotator differ from another's. Brightness is relative to white matter.

    ``load_ml``/``load_sigma``: median and log-deviation of the lesion load. ``lesion_flair``/``lesion_t1``: brightness
    of a typical lesion. ``flair_grey``, ``flair_fluid``, ``t1_grey``, ``t1_fluid``: of grey matter and CSF.
    ``mimics`` scales the bright non-lesions. ``blur_mm``: FWHM of the point spread. ``shading``: log-deviation of the
    coil's bias field. ``noise``: Rician sigma. ``gamma`` bends the contrast; ``units`` is white matter as stored.
    ``outline``: height on a lesion's soft border (0 to 1) at which the annotator draws; low is generous, high is tight.
    ``smallest_ml``: lesions below it are not drawn.
    """

    name: str
    load_ml: float
    load_sigma: float
    lesion_flair: float
    lesion_t1: float
    flair_grey: float
    flair_fluid: float
    t1_grey: float
    t1_fluid: float
    mimics: float
    blur_mm: float
    shading: float
    noise: float
    gamma: float
    units: float
    outline: float
    smallest_ml: float


DEMO_SITES: Final[tuple[SiteStyle, ...]] = (
    SiteStyle(
        name="site-a", load_ml=25, load_sigma=0.35, lesion_flair=1.40, lesion_t1=0.63,
        flair_grey=1.17, flair_fluid=0.22, t1_grey=0.70, t1_fluid=0.22, mimics=1.0,
        blur_mm=1.6, shading=0.03, noise=0.033, gamma=1.0, units=600, outline=0.50, smallest_ml=0.02,
    ),
    SiteStyle(
        name="site-b", load_ml=18, load_sigma=0.4, lesion_flair=1.40, lesion_t1=0.60,
        flair_grey=1.12, flair_fluid=0.38, t1_grey=0.76, t1_fluid=0.30, mimics=1.0,
        blur_mm=2.0, shading=0.05, noise=0.03, gamma=0.85, units=950, outline=0.40, smallest_ml=0.0,
    ),
    SiteStyle(
        name="site-c", load_ml=16, load_sigma=0.3, lesion_flair=1.39, lesion_t1=0.62,
        flair_grey=1.16, flair_fluid=0.26, t1_grey=0.66, t1_fluid=0.25, mimics=1.0,
        blur_mm=2.4, shading=0.06, noise=0.04, gamma=1.15, units=310, outline=0.60, smallest_ml=0.05,
    ),
)  # fmt: skip
"""Three sites of the demo: A the well equipped trial centre, B with flat contrast and a generous annotator, C small,
noisy and blurred, with a tight annotator. They imitate no real vendor."""


@dataclass(frozen=True)
class Scan:
    """FLAIR, T1w and outline on the person's grid, as a site would store them (int16, int16, uint8)."""

    flair: np.ndarray[tuple[int, int, int], np.dtype[np.int16]]
    t1w: np.ndarray[tuple[int, int, int], np.dtype[np.int16]]
    label: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]


def scan(rng: Generator, person: Person, lesions: Lesions, style: SiteStyle) -> Scan:
    """Image one person at one site. Deterministic in ``rng``."""
    shape = person.wm.shape
    size = (shape[0], shape[1], shape[2])
    mm = person.spacing_mm
    # detail of the template that three classes do not carry: pallidum, internal capsule, dentate nucleus
    expected = 95 * person.csf + 178 * person.gm + 232 * person.wm
    detail = np.clip((person.t1 - expected) / 178, -0.25, 0.25) * (person.csf < 0.3)
    mottle = smooth_noise(rng, size, 2.5 / mm)
    streak = smooth_noise(rng, size, 1.0 / mm)
    grey = style.flair_grey * (1 + 0.025 * mottle + 0.02 * streak)
    white = 1 + 0.012 * mottle + 0.015 * streak
    flair: Volume = style.flair_fluid * person.csf + grey * person.gm + white * person.wm - 0.35 * detail
    t1: Volume = (
        style.t1_fluid * person.csf
        + style.t1_grey * (1 + 0.03 * streak) * person.gm
        + (1 + 0.01 * mottle) * person.wm
        + 0.45 * detail
    )
    flair, t1 = _mimics(rng, person, style, flair, t1, mottle)

    amount = lesions.extent
    texture = 1 + 0.05 * smooth_noise(rng, size, 1.6 / mm)
    bright = 1 + (style.lesion_flair - 1) * lesions.severity * texture
    dark = np.clip(1 - (1 - style.lesion_t1) * lesions.severity, 0.45, 1)
    flair = flair + amount * (bright - flair)
    t1 = t1 + amount * (dark - t1)

    for_scanner = []
    for image in (flair, t1):
        signal = ndimage.gaussian_filter(image * person.brain, style.blur_mm / _FWHM / mm)
        shade = np.exp(style.shading * smooth_noise(rng, size, 45 / mm))
        signal = np.maximum(signal, 0) ** style.gamma * shade
        real = signal + style.noise * rng.standard_normal(size, dtype=np.float32)
        imaginary = style.noise * rng.standard_normal(size, dtype=np.float32)
        for_scanner.append(np.rint(np.hypot(real, imaginary) * style.units * person.brain).astype(np.int16))
    return Scan(flair=for_scanner[0], t1w=for_scanner[1], label=_outline(lesions, style, mm))


def _mimics(
    rng: Generator, person: Person, style: SiteStyle, flair: Volume, t1: Volume, mottle: Volume
) -> tuple[Volume, Volume]:
    size = (person.wm.shape[0], person.wm.shape[1], person.wm.shape[2])
    mm = person.spacing_mm
    x, y, z = person.mni_mm
    k = style.mimics
    wide = smooth_noise(rng, size, 7 / mm)
    inside = person.ventricle_mm

    # ependymal lining and caps; dirty white matter behind the atria
    tissue = 1 - person.csf
    lining = np.exp(-np.square((inside - 1.0) / 1.1)) * np.clip(0.7 + 0.5 * wide, 0, 1.3)
    horn = np.exp(-(np.square((np.abs(x) - 15) / 7) + np.square((y - 30) / 8) + np.square((z - 8) / 12)))
    back = np.exp(-(np.square((np.abs(x) - 25) / 9) + np.square((y + 55) / 12) + np.square((z - 14) / 14)))
    near = np.exp(-np.maximum(inside, 0) / 3.5)
    flair = flair + k * tissue * (0.16 * lining + (0.38 * horn * np.clip(1 + 0.4 * wide, 0, 2) + 0.16 * back) * near)
    t1 = t1 - k * 0.06 * tissue * horn * near

    # septum and fornix: a thin sheet of tissue in the fluid
    sheet = np.exp(-np.square(x / 1.6)) * (inside < 2) * (y > -35) * (y < 25) * (z > 0)
    flair = flair + k * 0.75 * sheet * person.csf
    t1 = t1 + 0.4 * sheet * person.csf

    # choroid plexus: clumps in the atria and along the floor
    atrium = np.exp(-(np.square((np.abs(x) - 22) / 7) + np.square((y + 38) / 9) + np.square((z - 10) / 8)))
    plexus = np.clip(1.6 * atrium * (1 + 0.6 * mottle), 0, 1) * person.csf * (inside < 0.5)
    flair = flair + k * 1.0 * plexus
    t1 = t1 + 0.35 * plexus

    # bright cortex: insula, cingulate and patches that differ from person to person
    insula = np.exp(-(np.square((np.abs(x) - 38) / 6) + np.square((y - 2) / 18) + np.square((z - 2) / 14)))
    cingulate = np.exp(-(np.square(x / 7) + np.square((y - 5) / 38) + np.square((z - 30) / 13)))
    patch = np.clip(wide - 0.9, 0, 1.5) * (person.depth_mm < 14)
    flair = flair + k * person.gm * (0.17 * insula + 0.17 * cingulate + 0.16 * patch)

    # vessels: sparse spots in the subarachnoid space
    spots = np.clip(smooth_noise(rng, size, 1.0 / mm) - 2.1, 0, 1.2) * (person.depth_mm < 9) * (person.csf > 0.25)
    flair = flair + k * 0.9 * spots
    t1 = t1 + 0.6 * spots

    # flow: fluid that moved during the inversion is not dark; it repeats as faint bands along y below the tentorium
    cistern = np.exp(-(np.square(x / 16) + np.square((y + 22) / 20) + np.square((z + 26) / 16)))
    flow = np.clip(0.5 + 0.6 * wide, 0, 1.3) * cistern
    phase = rng.uniform(0, 2 * np.pi)
    fade = np.exp(-np.square((z + 30) / 16) - np.square(x / 30))
    bands = np.clip(np.sin(y * (2 * np.pi / 17) + phase), 0, 1) * fade
    flair = flair + k * (0.85 * flow * person.csf + 0.07 * bands * tissue)
    return flair, t1


def _outline(
    lesions: Lesions, style: SiteStyle, spacing_mm: float
) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """What the site's annotator draws; lesions are 26-connected components."""
    drawn = lesions.extent > style.outline
    parts, _ = ndimage.label(drawn, np.ones((3, 3, 3)))
    small = np.bincount(parts.ravel()) * spacing_mm**3 / 1000 < style.smallest_ml
    small[0] = True
    label: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]] = (~small[parts]).astype(np.uint8)
    return label
