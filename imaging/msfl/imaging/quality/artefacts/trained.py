"""trained: four logistic regressions, one per artefact, over the features of an image.

Their weights are numbers in `weights.json`, made by `benchmarks/artefacts.py`, which also measures how good they are on
subjects they have not seen. What they learned from, and from whose data, is in that file, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np

from msfl.imaging.checks import Volume
from msfl.imaging.quality.artefacts import Artefact
from msfl.imaging.quality.artefacts.features import NAMES, features
from msfl.imaging.volume import Mask


class Trained:
    @property
    def name(self) -> str:
        return f"msfl artefacts {self._model['version']}"

    def ready(self) -> None:
        pass  # its weights lie beside this module

    def detect(self, image: Volume, brain: Mask) -> Mapping[Artefact, float]:
        return self.probabilities(features(image, brain))

    def probabilities(self, found: np.ndarray[Any, np.dtype[np.float64]]) -> Mapping[Artefact, float]:
        """`found` is one value per name in NAMES. Values beyond what was ever seen count as the most extreme seen."""
        scaled = np.clip((found - self._array("centre")) / self._array("scale"), -8, 8)
        out = {}
        for artefact in Artefact:
            one = self._model["artefacts"][artefact.value]
            score = float(scaled @ np.array([one["weights"].get(name, 0.0) for name in NAMES])) + one["bias"]
            out[artefact] = float(1 / (1 + np.exp(-np.clip(score, -50, 50))))
        return out

    @cached_property
    def _model(self) -> dict[str, Any]:
        model: dict[str, Any] = json.loads(files(__package__).joinpath("weights.json").read_bytes())
        assert model["features"] == list(NAMES), "weights.json belongs to other features: train again"
        return model

    def _array(self, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array(self._model[key], dtype=np.float64)
