"""The disk fills up while an image comes, although there was room when it began: nothing is half kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fakes.disks import filled, small_disk
from fakes.registries import Image, tar_of
from msfl.policies.refusals import Code, Refused
from msfl.registry.cache import ImageCache
from msfl.registry.pull import pull

pytestmark = [pytest.mark.system, pytest.mark.slow]
SYSTEM = tar_of({f"usr/{n}": os.urandom(1 << 20) for n in range(8)})


@pytest.mark.parametrize("compressed", [True, False])
def test_a_disk_that_fills_up_while_the_image_comes(tmp_path: Path, compressed: bool) -> None:
    image = Image(base=(SYSTEM,)) if compressed else Image(base=(SYSTEM,), compress=None)
    digest = image.push()
    folder = tmp_path / "images"
    folder.mkdir()
    with small_disk(folder, 24):
        # Sure of more room than there is, as when others write meanwhile.
        hopeful, honest = ImageCache(folder, spare_bytes=-1 << 30), ImageCache(folder, spare_bytes=0)
        (folder / "other").write_bytes(bytes(20 << 20))
        with pytest.raises(OSError, match="No space left") as full:
            pull(image.registry, digest, hopeful, by="run", whole=True)
        assert full.value.errno == errno.ENOSPC
        assert not list(folder.glob("blobs/*.part"))
        with pytest.raises(Refused) as no:
            pull(image.registry, digest, honest, by="run", whole=True)
        assert no.value.refusal.code is Code.IMAGE_DOES_NOT_FIT
        with filled(folder), pytest.raises(Refused, match="the disk leaves room for 0 MiB"):
            pull(image.registry, digest, honest, by="run", whole=True)
        (folder / "other").unlink()
        assert len(pull(image.registry, digest, honest, by="run", whole=True).layers) == 3
