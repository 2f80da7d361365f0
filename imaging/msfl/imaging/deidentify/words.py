"""Free text is rebuilt from words on a list: `t1_mprage_sag Doe, John` becomes `t1 mprage sag`.

A description of a series is of use (which contrast, which plane), and it is where technicians write names. So nothing
passes but known words of MR imaging and numbers of one or two digits; no number long enough to be a patient's, no date.
"""

from __future__ import annotations

import re
from typing import Final

_PIECES = re.compile(r"[a-z0-9]+")
_TOKENS = re.compile(r"[a-z]+|[0-9]+")

_LISTED_IMAGING = """
    anat t1 t2 t2star t w tw weighted pd flair dark fluid darkfluid tirm tse fse se ge gre tfe ffe fl spgr fspgr bravo
    mprage mp mpr rage mp2rage space cube vista vasc isovoxel brainview tfl ir stir ir prep sag sagittal cor coronal tra
    trans transversal ax axial iso d mm ms gd gad ce post pre with without contrast km kontrast nativ native brain head
    hirn schaedel schadel kopf neuro fs fatsat fat sat spair spir wo we p ipat grappa sense caipi cs medic dir db inv
    uni den localizer scout survey loc aahead adc dwi dti diff tracew swi mag pha phase magnitude tof mra bold asl pcasl
    fast fisp trufi blade propeller multivane nd dis norm high low res hires std standard ms lesion
"""
_IMAGING: Final = frozenset(_LISTED_IMAGING.split())
_MAKERS: Final = {
    "siemens": "Siemens",
    "ge": "GE",
    "philips": "Philips",
    "canon": "Canon",
    "toshiba": "Toshiba",
    "hitachi": "Hitachi",
    "fujifilm": "Fujifilm",
    "united": "United Imaging",
    "uih": "United Imaging",
    "bruker": "Bruker",
    "hyperfine": "Hyperfine",
    "esaote": "Esaote",
    "neusoft": "Neusoft",
}
_LISTED_MODELS = """
    magnetom skyra prisma fit trio triotim tim verio avanto aera vida espree symphony sonata allegra sola lumina altea
    amira terra biograph mmr sempra free max essenza spectra achieva ingenia intera elition ambition dstream panorama
    ingenuity medical systems signa excite hdx hdxt hde hdi discovery mr optima premier architect pioneer artist
    explorer voyager creator hero w vantage titan galan orian elan echelon oval trillium umr omega swoop
"""
_MODELS: Final = frozenset(_LISTED_MODELS.split())


def imaging_words(text: str) -> str:
    """What a description says of the images, in small letters: a piece between separators stays whole or goes whole."""
    return " ".join(piece for piece in _PIECES.findall(text.lower()) if _known(piece, _IMAGING, most_digits=2))


def maker(text: str) -> str:
    """A maker of scanners, or nothing."""
    return next((_MAKERS[token] for token in _TOKENS.findall(text.lower()) if token in _MAKERS), "")


def model(text: str) -> str:
    """The name of a product (MR 750w: numbers are part of it), or what is left of it."""
    return " ".join(piece for piece in _PIECES.findall(text.lower()) if _known(piece, _MODELS, most_digits=3))


def _known(piece: str, words: frozenset[str], most_digits: int) -> bool:
    tokens = _TOKENS.findall(piece)
    numbers = [token for token in tokens if token.isdigit()]
    return (
        all(token in words for token in tokens if not token.isdigit())
        and len(numbers) <= 2
        and all(len(number) <= most_digits for number in numbers)
    )
