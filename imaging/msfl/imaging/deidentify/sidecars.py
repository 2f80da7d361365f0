"""What stays of a sidecar (BIDS JSON, or what dcm2niix writes): numbers, and words on a list.

dcm2niix with `-ba y` still leaves names of institutions, serial numbers and comments behind; so nothing is taken away
here, but a new sidecar is made of the fields below, each of which has a type that a name does not fit into.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from msfl.imaging.deidentify.words import imaging_words, maker, model
from msfl.imaging.workspace import JsonObject

_MOST_BYTES = 1 << 20


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e5:
        return None
    return float(value)


def _words(rule: Callable[[str], str]) -> Callable[[Any], str | None]:
    return lambda value: (rule(value) or None) if isinstance(value, str) else None


def _one_of(*allowed: str) -> Callable[[Any], str | None]:
    return lambda value: value if value in allowed else None


FIELDS: Final[Mapping[str, Callable[[Any], float | str | None]]] = {
    "Manufacturer": _words(maker),
    "ManufacturersModelName": _words(model),
    "MagneticFieldStrength": _number,
    "MRAcquisitionType": _one_of("1D", "2D", "3D"),
    "SeriesDescription": _words(imaging_words),
    "RepetitionTime": _number,  # s, as in BIDS
    "EchoTime": _number,
    "InversionTime": _number,
    "FlipAngle": _number,
    "EchoTrainLength": _number,
    "PixelBandwidth": _number,
    "SliceThickness": _number,
    "SpacingBetweenSlices": _number,
}


def scrubbed(sidecar: Mapping[str, Any]) -> JsonObject:
    """Only the fields on the list, each rebuilt by its rule."""
    made = {name: rule(sidecar[name]) for name, rule in FIELDS.items() if name in sidecar}
    return {name: value for name, value in made.items() if value is not None}


def read_scrubbed(file: Path | None) -> JsonObject:
    """Of a file that may be missing, damaged or no sidecar at all: then it says nothing."""
    if file is None or file.stat().st_size > _MOST_BYTES:
        return {}
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return scrubbed(value) if isinstance(value, dict) else {}
