"""The last gate: nothing that was taken away may be found in what was written.

What to look for comes from the source itself: everything that named somebody or something in its headers, and the words
of its file and folder names (`identifiers`). Where to look is everything that was written (`leaks`): file names, JSON
values, and of images the whole header with its extensions. A value counts as found when it stands by itself, so that
`1995` inside a longer number is none. Words and numbers that stay on purpose (`words`) are not looked for.
"""

from __future__ import annotations

import gzip
import json
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from msfl.imaging.deidentify.headers import CODES
from msfl.imaging.deidentify.words import imaging_words, maker, model
from msfl.imaging.faults import WARNINGS

_SHORTEST: Final = 4
_FEWEST_DIGITS: Final = 6
_TEXT = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "UI", "DA", "DT"})
_LISTED_OURS = """
    dicom bids nifti nnunet flair t1w lesion train test shift remove seg image
"""
_OURS: Final = frozenset(_LISTED_OURS.split())
_NAMES = frozenset({"source", "FLAIR", "T1w", "lesion"})
# A patient may be called like one of our own constants: in these fields they are what they are, and nothing else is.
_CONSTANTS: Final = {"codes": frozenset(CODES), "warnings": frozenset(WARNINGS)}
_HEADER_BYTES = 64 << 10
_PIECES = re.compile(r"[^\W_]+")
# What stays as it is, and what everybody shares.
_LISTED_AS_SHARED = """
    SOPClassUID MediaStorageSOPClassUID TransferSyntaxUID ImplementationClassUID ImplementationVersionName
    ReferencedSOPClassUID CodeValue CodingSchemeDesignator CodeMeaning Manufacturer ManufacturerModelName
    SeriesDescription ProtocolName SequenceName PulseSequenceName RescaleType PositionReferenceIndicator ContextUID
    MappingResource CodingSchemeVersion DimensionOrganizationUID
"""
_SHARED: Final = frozenset(_LISTED_AS_SHARED.split())


def identifiers(source: Dataset) -> set[str]:
    """Every text, UID and date in a header that de-identification must have taken away or replaced."""
    return {value for value in _values(source) if _is_telling(value)}


def words_of_path(path: Path) -> set[str]:
    """The words of a file's name and of the folders it lies in."""
    return {word for part in path.parts for word in _PIECES.findall(part) if _is_telling(word)}


def _values(source: Dataset) -> Iterator[str]:
    for element in source:
        if element.VR == "SQ":
            for item in element.value:
                yield from _values(item)
        elif element.VR in _TEXT and element.keyword not in _SHARED:
            many = element.value if isinstance(element.value, MultiValue | list) else [element.value]
            for value in many:
                text = str(value).strip()
                yield text
                if element.VR == "PN":
                    yield from re.split(r"[\^= ]+", text)


def _is_telling(value: str) -> bool:
    if len(value) < _SHORTEST or (value.isdigit() and len(value) < _FEWEST_DIGITS):
        return False
    if not any(c.isalpha() for c in value) and sum(c.isdigit() for c in value) < _FEWEST_DIGITS:
        return False
    pieces = [piece.lower() for piece in _PIECES.findall(value)]
    return any(not (p in _OURS or imaging_words(p) or maker(p) or model(p) or len(p) < 3) for p in pieces)


def leaks(written: Iterable[Path], telling: Iterable[str]) -> tuple[str, ...]:
    """Names of the files (their last part only) in which anything telling was found; empty when the gate is passed."""
    wanted = [_alone(value) for value in sorted(telling)]
    found = []
    for file in written:
        text = "\n".join([*_strange(file.name), _text_of(file)])
        if any(value.search(text) for value in wanted):
            found.append(file.name)
    return tuple(found)


def names_somebody(text: str, telling: Iterable[str]) -> bool:
    """What a person wrote holds one of these values, if that tells anything."""
    return any(_alone(value).search(text) for value in telling if _is_telling(value))


def _alone(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\W_]){re.escape(value)}(?![^\W_])", re.IGNORECASE)


def _text_of(file: Path) -> str:
    if file.name.endswith(".nii.gz"):
        with gzip.open(file) as stream:
            content = stream.read(_HEADER_BYTES)
        # Up to where the voxels begin, by the header's own word (float32 at byte 108 of NIfTI-1).
        offset = int(struct.unpack_from("<f", content, 108)[0])
        with file.open("rb") as raw:
            packed = raw.read(_HEADER_BYTES)
        # gzip's own header may carry a file name and a comment, up to a zero.
        named = packed[10:].split(b"\0")[:2] if packed[3] & 0x18 else []
        content = b"\n".join([*named, content[: max(offset, 352)]])
    elif file.suffix == ".json":
        return "\n".join(_values_of(json.loads(file.read_bytes())))
    else:
        content = file.read_bytes()
    return content.decode("latin-1")


def _strange(name: str) -> list[str]:
    """A file's name, unless it is one that every case has."""
    return [] if name.partition(".")[0] in _NAMES else [name]


def _constant(key: str, value: Any) -> bool:
    return isinstance(value, list) and key in _CONSTANTS and _CONSTANTS[key].issuperset(map(str, value))


def _values_of(value: Any) -> Iterator[str]:
    """Of JSON; the names of fields are ours, whatever they are."""
    if isinstance(value, dict):
        yield from (text for key, inner in value.items() if not _constant(key, inner) for text in _values_of(inner))
    elif isinstance(value, list):
        yield from (text for inner in value for text in _values_of(inner))
    elif value is not None and not isinstance(value, bool):
        yield str(value)
