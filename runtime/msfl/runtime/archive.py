"""Verified blobs as the one tar that `docker load` takes, made while it is sent.

    manifest.json          which blob is the config, which are the layers
    blobs/sha256/<hex>     config and layers, as the registry served them

No name, no tag: nothing in the engine points at the image but the digest of its config, which was verified here. Each
blob is hashed once more on its way, and the engine in turn holds every layer against the config.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from msfl.policies.refusals import Code, Refused, refuse
from msfl.runtime.interface import Image

_CHUNK = 1 << 20


def archive(image: Image) -> Iterator[bytes]:
    """Raises Refused (image_broken) when a blob is not what was verified; what was sent so far is of no use then."""
    manifest = [
        {
            "Config": _name(image.config_digest),
            "RepoTags": None,
            "Layers": [_name(part.digest) for part in image.layers],
        }
    ]
    yield from _entry("manifest.json", json.dumps(manifest).encode())
    yield from _blob(image, image.config, image.config_digest)
    seen = set()
    for part in image.layers:
        if part.digest not in seen:  # The same layer may be there twice.
            seen.add(part.digest)
            yield from _blob(image, part.path, part.digest)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _entry(name: str, data: bytes) -> Iterator[bytes]:
    yield _header(name, len(data))
    yield data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def _blob(image: Image, path: Path, digest: str) -> Iterator[bytes]:
    found = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        yield _header(_name(digest), size)
        left = size
        while left and (chunk := file.read(min(_CHUNK, left))):
            found.update(chunk)
            left -= len(chunk)
            yield chunk
    if left or f"sha256:{found.hexdigest()}" != digest:
        what = f"{path} is not the blob {digest} any more that was verified"
        raise Refused(
            refuse(Code.IMAGE_BROKEN, f"The image {image.digest} was not started: {what}.", digest=image.digest)
        )
    yield b"\0" * (-size % tarfile.BLOCKSIZE)
