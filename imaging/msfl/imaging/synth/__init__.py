"""synth: patients who never were, for demonstrations and tests.

Real anatomy (the template inside the nilearn wheel), drawn anew for every case, with lesions, a site's scanner and a
site's annotator. The output is an nnU-Net raw folder. It is synthetic: it shows that the machinery works, and says
nothing about clinical accuracy.
"""

from collections.abc import Mapping
from typing import Final

from msfl.imaging.synth.scanner import DEMO_SITES, SiteStyle
from msfl.imaging.synth.site import DEFAULT_SPACING_MM, generate_site

DEMO_CASES: Final[Mapping[str, tuple[int, int]]] = {"site-a": (8, 4), "site-b": (8, 4), "site-c": (6, 4)}
"""Training and test cases of the demo's sites."""

__all__ = ["DEFAULT_SPACING_MM", "DEMO_CASES", "DEMO_SITES", "SiteStyle", "generate_site"]
