"""synth: patients who never were, for demonstrations and tests.

Real anatomy (the template inside the nilearn wheel), drawn anew for every case, with lesions, a site's scanner and a
site's annotator. The output is an nnU-Net raw folder. It is synthetic: it shows that the machinery works, and says
nothing about clinical accuracy.
"""

from msfl.imaging.synth.scanner import DEMO_SITES, SiteStyle
from msfl.imaging.synth.site import generate_site

__all__ = ["DEMO_SITES", "SiteStyle", "generate_site"]
