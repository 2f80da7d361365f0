"""Which series of a visit is the FLAIR, which the T1w? Decided from what the headers say, never from file names.

Two witnesses are heard: physics (TR, TE, TI, the kind of sequence) and words (description, protocol, sequence name).

    a name of something else (a scout, diffusion, the spine) settles it
    both say the same, or one is silent  → that
    they contradict each other           → unsure: a person is asked
    both are silent                      → unknown: the image itself is looked at (`weighting`)

Typical ranges at 1.5 and 3 T, in ms (physics only rules out what cannot be; vendors differ in what they call TE)::

                      TR            TE          TI
    FLAIR 2D/3D   4000–14000     60–700    1500–2900     an inversion that nulls water
    MPRAGE         5–3500       1.5–8       300–1400     TR is the whole cycle at Siemens, one echo at GE and Philips
    T1 spoiled GE   4–60         1.5–10          –       flip angle 8–40°
    T1 spin echo   300–900       5–30            –
    T2, PD        1500–9000      8–200           –

Among several series of one kind the better one is taken, when it is better for a reason (`_better`); two equals are a
question. Angles in degrees, lengths in mm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

K = TypeVar("K")


class Weighting(StrEnum):
    FLAIR = "FLAIR"
    T1W = "T1w"
    T1W_CONTRAST = "T1w with contrast agent"
    OTHER = "another image"
    UNSURE = "unsure"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class SeriesFacts:
    """What the headers of one series say. None and "" where they are silent; `text` is description, protocol and
    sequence name together."""

    text: str = ""
    tr_ms: float | None = None
    te_ms: float | None = None
    ti_ms: float | None = None
    flip_deg: float | None = None
    scanning: frozenset[str] = frozenset()
    variant: frozenset[str] = frozenset()
    image_type: tuple[str, ...] = ()
    contrast_agent: bool = False
    three_d: bool = False
    slices: int = 0
    slice_mm: float | None = None


@dataclass(frozen=True)
class Recognised:
    """`why` names ranges and words on a list; no free text of the header."""

    weighting: Weighting
    why: str


_FLAIR = re.compile(r"flair|dark.?fluid|tirm.?dark|fluid.?att")
_T1 = re.compile(
    r"(?<![a-z0-9])t1(?![0-9])|mp.?rage|bravo|f?spgr|(?<![a-z])tfl3d|t1w|t1.?(tfe|ffe|tse|se|space|vibe)|vibe"
)
_OTHER = re.compile(
    r"loc(ali[sz]er)?(?![a-z])|scout|survey|(?<![a-z])dwi|diff|trace|(?<![a-z])adc|(?<![a-z])dti|(?<![a-z])swi|swan|mip"
    r"|(?<![a-z])mra|tof|bold|(?<![a-z])fmri|perf|(?<![a-z])asl|field.?map|t2.?star|(?<![a-z])medic|(?<![a-z])dir(?![a-z])"
    r"|phase|mapping|(?<![a-z])spine|cervical|hals|neck|(?<![a-z])cine|screen"
)
_T2 = re.compile(r"(?<![a-z0-9])t2(?![0-9])|(?<![a-z])pd(?![a-z])|proton")
_CONTRAST = re.compile(
    r"(?<![a-z])(gd|gado[a-z]*|ce|kontrast|contrast|post|km)(?![a-z])|\+\s?(c|km|gd)(?![a-z])|mit\s?km|(?<![a-z])t1.?c(?![a-z])"
)
_NO_CONTRAST = re.compile(r"(?<![a-z])(pre|nativ[a-z]*|without|ohne|non)(?![a-z])")
NOT_THE_IMAGE: Final = frozenset({"LOCALIZER", "PROJECTION IMAGE", "MIP", "SCREEN SAVE", "REPORT", "PHASE", "P"})
FEWEST_SLICES: Final = 10


def recognise(facts: SeriesFacts) -> Recognised:
    """What this series shows, and why."""
    if hit := NOT_THE_IMAGE & set(facts.image_type):
        return Recognised(Weighting.OTHER, f"its image type is {sorted(hit)[0].lower()}")
    if 0 < facts.slices < FEWEST_SLICES:
        return Recognised(Weighting.OTHER, f"it has only {facts.slices} slices")
    if _OTHER.search(_spoken(facts)):
        return Recognised(Weighting.OTHER, "by its name")
    physics, words = _physics(facts), _words(facts)
    if physics is None and words is None:
        return Recognised(Weighting.UNKNOWN, "its headers do not say")
    if physics is not None and words is not None and physics is not words:
        return Recognised(Weighting.UNSURE, f"its times are those of {physics}, its name is that of {words}")
    kind = physics or words
    assert kind is not None, "one of the two witnesses spoke"
    by = "times and name" if physics and words else "times" if physics else "name"
    if kind is Weighting.T1W and _has_contrast(facts):
        return Recognised(Weighting.T1W_CONTRAST, f"by its {by}, and a contrast agent was given")
    return Recognised(kind, f"by its {by}")


def _spoken(facts: SeriesFacts) -> str:
    return facts.text.lower().replace("_", " ")


def _physics(facts: SeriesFacts) -> Weighting | None:
    tr, te, ti = facts.tr_ms, facts.te_ms, facts.ti_ms
    if not tr or te is None:
        return None
    if ti and 1500 <= ti <= 2900 and tr >= 4000 and te >= 60:
        return Weighting.FLAIR
    if ti and 300 <= ti <= 1400 and te <= 8 and tr <= 3500:
        return Weighting.T1W
    gradient = "GR" in facts.scanning
    if gradient and tr <= 60 and te <= 10 and (facts.flip_deg is None or facts.flip_deg >= 8):
        return Weighting.T1W
    if not gradient and not ti and 200 <= tr <= 1000 and te <= 30:
        return Weighting.T1W
    if not ti and tr >= 1500 and "IR" not in facts.scanning:
        return Weighting.OTHER
    return None


def _words(facts: SeriesFacts) -> Weighting | None:
    text = _spoken(facts)
    if _FLAIR.search(text):
        return Weighting.OTHER if re.search(r"t1.{0,3}flair", text) else Weighting.FLAIR
    if _T1.search(text):
        return Weighting.T1W
    if _T2.search(text):
        # A 3D FLAIR is often called t2_space; only the physics can tell.
        return None if "IR" in facts.scanning else Weighting.OTHER
    return None


def _has_contrast(facts: SeriesFacts) -> bool:
    text = _spoken(facts)
    return facts.contrast_agent or (bool(_CONTRAST.search(text)) and not _NO_CONTRAST.search(text))


def choose(series: Mapping[K, tuple[SeriesFacts, Weighting]], role: Weighting) -> tuple[K, ...]:
    """The series that is `role`: one, none, or several that are equally good, for a person to choose from.

    A T1w with contrast agent and a series that contradicts itself are never taken without asking.
    """
    of_role = {key: facts for key, (facts, weighting) in series.items() if weighting is role}
    if not of_role:
        fallback = {Weighting.UNSURE} | ({Weighting.T1W_CONTRAST} if role is Weighting.T1W else set())
        return tuple(key for key, (_, weighting) in series.items() if weighting in fallback)
    best = max(_better(facts) for facts in of_role.values())
    return tuple(key for key, facts in of_role.items() if _better(facts) == best)


def needs_a_person(series: Mapping[K, tuple[SeriesFacts, Weighting]], chosen: tuple[K, ...], role: Weighting) -> bool:
    return len(chosen) > 1 or any(series[key][1] is not role for key in chosen)


def _better(facts: SeriesFacts) -> tuple[bool, bool, bool, float]:
    """Taken by the scanner rather than computed; 3D rather than 2D; intensities evened out; thinner slices."""
    return (
        "ORIGINAL" in facts.image_type or not facts.image_type,
        facts.three_d,
        bool({"NORM", "FIL", "FILTERED_GEMS"} & set(facts.image_type)),
        -round(facts.slice_mm or 99.0, 1),
    )
