"""How fast an image is pulled and verified: `python benchmarks/pull.py --mib 1024 --folder DIR`.

A real OCI distribution registry on loopback (Debian's docker-registry), one self-contained image whose base layers have
that many MiB as they come: first as plain tars, then compressed. MB (10^6 bytes) as they come per second, manifest to
verified image: every byte hashed, every tar looked through and held against its diff_id, all of it kept.
Then the same again, when it is at hand: hashed anew, nothing asked of the registry. A folder in memory (/dev/shm) shows
what the code itself allows; the registry shares the machine.
"""

from __future__ import annotations

import argparse
import gzip
import io
import random
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fakes.registries import Image
from fakes.registry_server import registry_server
from msfl.registry.cache import ImageCache
from msfl.registry.distribution import Address, DistributionRegistry
from msfl.registry.pull import VerifiedImage, pull

LAYER_MIB = 256
FILE_BYTES = 40_000  # on average, as in a site-packages folder


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--mib", type=int, default=1024)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--folder", type=Path, default=None)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name, registry_server(Path(name)) as server:
        registry = DistributionRegistry(Address.parse(f"{server.base}/benchmark/images"))
        for what, compressed in (("plain tar", False), ("tar+gzip", True)):
            image = _image(asked.mib, compressed=compressed)
            digest = image.push(registry)
            size = sum(map(len, image.layers))
            print(f"{what}: {len(image.layers)} layers of together {size >> 20} MiB")
            for n in range(asked.repeats):
                with tempfile.TemporaryDirectory(dir=asked.folder) as cache_folder:
                    cache = ImageCache(Path(cache_folder))
                    for when in ("pulled", "at hand"):
                        wall, processor = _seconds(lambda: _whole(registry, digest, cache))  # noqa: B023  # called at once
                        print(
                            f"  {n + 1} {when:8} {size / 1e6 / wall:6.0f} MB/s of wall time, "
                            f"{size / 1e6 / processor:6.0f} of our processor time"
                        )
            image.layers.clear()
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB, with the image that was pushed")


def _whole(registry: DistributionRegistry, digest: str, cache: ImageCache) -> VerifiedImage:
    return pull(registry, digest, cache, by="benchmark", whole=True)


def _image(mib: int, *, compressed: bool) -> Image:
    """Layers of files with bytes that compress like programs do (to a third) where they are to be compressed, and
    random ones otherwise."""
    base = []
    for n in range(max(1, mib // LAYER_MIB)):
        packed = _tar(min(mib, LAYER_MIB) << 20, random.Random(n), compressible=compressed)
        base.append(packed)
    return Image(base=tuple(base), compress=_gzip if compressed else None)


def _tar(size: int, chance: random.Random, *, compressible: bool) -> bytes:
    buffer, left, n = io.BytesIO(), size * (3 if compressible else 1), 0
    words = [chance.randbytes(chance.randrange(3, 12)) for _ in range(4096)]
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        while left > 0:
            length = min(left, chance.randrange(2 * FILE_BYTES))
            data = b"".join(chance.choices(words, k=length // 7)) if compressible else chance.randbytes(length)
            entry = tarfile.TarInfo(f"usr/lib/python3/package{n // 100}/module{n}.bin")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
            left, n = left - max(len(data), 1), n + 1
    return buffer.getvalue()


def _gzip(tar: bytes) -> bytes:
    return gzip.compress(tar, 4, mtime=0)


def _seconds(job: Callable[[], object]) -> tuple[float, float]:
    """Of wall time, and of processor time, all threads together."""
    wall, processor = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
