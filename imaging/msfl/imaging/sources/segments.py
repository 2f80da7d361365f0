"""Which segments of a DICOM segmentation object are lesions? Their label says so, or nothing does (pure).

A label that only counts (``Segment_1``) says nothing; then the kind of tissue that the segment is coded as is asked. A
segmentation of the brain or of a tumour is no mask of lesions, even where it is the only one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

_LESION = re.compile(r"l(?:e|é|ä|ae)sion|(?<![a-z])(?:wmh|msl?|plaques?)(?![a-z])", re.IGNORECASE)
_SAYS_NOTHING = re.compile(r"(?:segment(?:ation)?|label|mask|roi)?[\s_.-]*\d*", re.IGNORECASE)


def called_lesion(label: str, kind: str) -> bool:
    """`kind` is the meaning of the code of its property type."""
    return bool(_LESION.search(kind if _SAYS_NOTHING.fullmatch(label.strip()) else label))


def lesions_and_others(segmentation: Dataset) -> tuple[int, int] | None:
    """How many segments are called lesion, and how many are not; None where the header does not list them."""
    listed = segmentation.get("SegmentSequence")
    if not isinstance(listed, Sequence):
        return None
    called = [called_lesion(str(segment.get("SegmentLabel") or ""), _kind(segment)) for segment in listed]
    return sum(called), len(called) - sum(called)


def labels(segmentation: Dataset) -> str:
    """As the header lists them: free text, for the custodian's eyes only."""
    listed = segmentation.get("SegmentSequence")
    return ", ".join(str(s.get("SegmentLabel") or "") for s in listed) if isinstance(listed, Sequence) else ""


def _kind(segment: Dataset) -> str:
    kinds: Iterable[Any] = segment.get("SegmentedPropertyTypeCodeSequence") or []
    return " ".join(str(kind.get("CodeMeaning") or "") for kind in kinds)
