"""measure: every figure of one case, from its images. What is slow is done here, once; `verdict` judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from msfl.imaging.quality.agreement import agreement
from msfl.imaging.quality.artefacts import ArtefactDetector
from msfl.imaging.quality.geometry import geometry
from msfl.imaging.quality.lesions import lesions
from msfl.imaging.quality.signal import signal, tissue
from msfl.imaging.quality.twins import fingerprint
from msfl.imaging.standard.pipeline import Raw, Standard


@dataclass(frozen=True)
class Measured:
    figures: Mapping[str, float | None]
    fingerprint: tuple[int, ...]


def measure(raw: Raw, made: Standard, detector: ArtefactDetector) -> Measured:
    """Names are those of `words.FIGURES`; values have at most six significant digits, so that they read well."""
    parts = tissue(made.t1w, made.brain)
    pair = agreement(raw, made)
    t1w_depth, flair_depth = pair["t1w_depth"], pair["flair_depth"]
    below = t1w_depth - flair_depth if t1w_depth is not None and flair_depth is not None else None
    found: dict[str, float | None] = {
        **_named("FLAIR", geometry(raw.flair, made.flair_brain_raw)),
        **_named("T1w", geometry(raw.t1w, made.t1w_brain_raw)),
        **_named("FLAIR", signal(made.flair, made.brain, parts, fluid_is_signal=True)),
        **_named("T1w", signal(made.t1w, made.brain, parts, fluid_is_signal=False)),
        **_named("FLAIR", {a.value: p for a, p in detector.detect(raw.flair, made.flair_brain_raw).items()}),
        **_named("T1w", {a.value: p for a, p in detector.detect(raw.t1w, made.t1w_brain_raw).items()}),
        **_named("pair", {**pair, "flair_below_t1w": below}),
    }
    if made.lesion is not None:
        found |= _named("lesion", lesions(made.lesion, made.flair, made.brain, parts.wm))
    rounded = {
        name: None if value is None or not np.isfinite(value) else float(f"{value:.6g}")
        for name, value in found.items()
    }
    return Measured(rounded, fingerprint(made))


def _named(of: str, figures: Mapping[str, float | None] | Mapping[str, float]) -> dict[str, float | None]:
    return {f"{of}.{name}": value for name, value in figures.items()}
