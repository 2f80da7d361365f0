"""Images at a site, by digest: what was pulled once is not pulled again.

    <folder>/blobs/<hex>          manifests, configs, layers: each once, whoever names it; complete, or not there
    <folder>/blobs/<hex>.part     what has come of one so far; the next pull of it goes on from here
    <folder>/<hex>/               an image's own layers, unpacked
    <folder>/held/<who>           the digest of the image that a run (or whoever) uses, until it lets go

Nothing here is believed: `msfl.registry.pull` hashes what it takes from this folder as it does what it takes from a
registry. The folder is its owner's alone, and of one process at a time; its threads may pull at once.
"""

from __future__ import annotations

import re
from pathlib import Path

_WHO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ImageCache:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held = folder / "held"
        for made in (self.blobs, self._held):
            made.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    def blob(self, digest: str) -> Path:
        return self.blobs / digest.removeprefix("sha256:")

    def root(self, digest: str) -> Path:
        return self.folder / digest.removeprefix("sha256:")

    def hold(self, digest: str, by: str) -> None:
        """From now on this image stays, until `by` lets go. One image for each; raises ValueError for no plain name."""
        if not _WHO.fullmatch(by):
            raise ValueError(f"{by[:140]!r} cannot hold an image: letters, digits, dot, dash and underscore")
        (self._held / by).write_text(digest)

    def release(self, by: str) -> None:
        (self._held / by).unlink(missing_ok=True)
