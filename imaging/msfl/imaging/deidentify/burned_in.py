"""Text inside the picture: it is not removed here, but nobody shall be able to say that they did not know.

Three signs: the header says so; it is a screen shot or a scanned page; and in the picture there are many small,
separate things of one same, extreme value and of one height, as letters are and anatomy is not.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy import ndimage

_FEWEST_LETTERS: Final = 6
_LETTER_VOXELS: Final = (4, 400)


def said_by_header(header: Dataset) -> bool:
    """`BurnedInAnnotation`, a screen shot, or an object that is a page rather than an acquisition."""
    kinds = {str(part) for part in header.get("ImageType") or ()}
    return (
        str(header.get("BurnedInAnnotation") or "").upper() == "YES"
        or "SCREEN SAVE" in kinds
        or str(header.get("SOPClassUID") or "").startswith("1.2.840.10008.5.1.4.1.1.7")
    )


def looks_written_on(image: NDArray[Any]) -> bool:
    """`image` (rows, columns) of any unit. Letters are all of the image's largest value and of similar height."""
    top = image.max()
    if top <= np.percentile(image, 90) or np.count_nonzero(image == top) < _FEWEST_LETTERS * _LETTER_VOXELS[0]:
        return False
    labels, _ = ndimage.label(image == top, structure=np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    sizes = np.bincount(labels.ravel())[1:]
    heights = [
        box[0].stop - box[0].start
        for box, size in zip(boxes, sizes, strict=True)
        if _LETTER_VOXELS[0] <= size <= _LETTER_VOXELS[1]
    ]
    if len(heights) < _FEWEST_LETTERS:
        return False
    middle = float(np.median(heights))
    return sum(abs(height - middle) <= max(1.0, 0.35 * middle) for height in heights) >= _FEWEST_LETTERS and middle >= 4
