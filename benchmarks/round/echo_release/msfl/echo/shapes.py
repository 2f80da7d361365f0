"""The tensors of a 3-D U-Net as nnU-Net plans it at full resolution: 108 float32 tensors, 31,195,594 values, 124.8 MB.

Six stages of 32 to 320 features, two convolutions each, transposed convolutions up, deep supervision. Numpy alone:
the worker of the benchmark's release and the apps for Flower and NVIDIA FLARE all take their model from here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

WIDTHS = (32, 64, 128, 256, 320, 320)
FULL_MB = 124.782376


def shapes(model_mb: float = FULL_MB) -> dict[str, tuple[int, ...]]:
    """Name → shape, in order. A smaller model has the same 108 tensors with fewer features."""
    factor = math.sqrt(min(1.0, model_mb / FULL_MB))
    widths = [max(1, round(w * factor)) for w in WIDTHS]
    found: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, before: int, after: int) -> None:
        found[f"{name}.conv.weight"] = (after, before, 3, 3, 3)
        for part in ("conv.bias", "norm.weight", "norm.bias"):
            found[f"{name}.{part}"] = (after,)

    before = 1
    for stage, width in enumerate(widths):
        convolution(f"encoder.stages.{stage}.0", before, width)
        convolution(f"encoder.stages.{stage}.1", width, width)
        before = width
    for stage in range(5):
        low, high = widths[5 - stage], widths[4 - stage]
        found[f"decoder.transpconvs.{stage}.weight"] = (low, high, 2, 2, 2)
        found[f"decoder.transpconvs.{stage}.bias"] = (high,)
        convolution(f"decoder.stages.{stage}.0", 2 * high, high)
        convolution(f"decoder.stages.{stage}.1", high, high)
        found[f"decoder.seg_layers.{stage}.weight"] = (2, high, 1, 1, 1)
        found[f"decoder.seg_layers.{stage}.bias"] = (2,)
    return found


def first_model(model_mb: float = FULL_MB, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Standard normal values: they do not compress."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes(model_mb).items()}


def epsilon(number: int) -> np.float32:
    """What site `number` (from 1) adds to every value in a round: no two sites send the same bytes."""
    return np.float32(number / 1024)


def drift(sites: int, rounds: int) -> float:
    """How far FedAvg with equal weights has moved every value after so many rounds."""
    return rounds * sum(float(epsilon(n)) for n in range(1, sites + 1)) / sites
