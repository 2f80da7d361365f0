"""A registry in memory, and the smallest image. `tamper` plays a registry that serves other bytes than it was given."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Any

from msfl.registry.interface import (
    CONFIG,
    LAYER,
    LAYER_KIND,
    LAYER_TAR,
    MANIFEST,
    BadUpload,
    Descriptor,
    NotInRegistry,
    Registry,
    checked_digest,
    checked_tag,
)

LOCK = b'{"distributions":{},"format":"msfl-environment/v1","python":"cpython"}'
LOCKED = {"msfl-environment.json": LOCK}
CODE = {"msfl/learning/__init__.py": b"code = 1"}


class MemoryRegistry:
    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._tags: dict[str, str] = {}
        self._referrers: dict[str, list[Descriptor]] = {}

    def put_blob(self, digest: str, data: Iterable[bytes]) -> None:
        body = b"".join(data)
        if checked_digest(digest) != "sha256:" + hashlib.sha256(body).hexdigest():
            raise BadUpload("other bytes")
        self._blobs[digest] = body

    @contextmanager
    def get_blob(self, digest: str, start: int = 0) -> Iterator[BufferedIOBase]:
        yield io.BytesIO(self._read(digest)[start:])

    def put_manifest(self, body: bytes, tag: str | None = None) -> str:
        try:
            manifest = json.loads(body)
            media_type = str(manifest["mediaType"])
            subject = Descriptor.from_json(manifest["subject"]).digest if "subject" in manifest else None
        except (ValueError, KeyError, TypeError) as error:
            raise BadUpload("not a manifest") from error
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        self._blobs[digest] = body
        if subject is not None:
            known = self._referrers.setdefault(subject, [])
            if digest not in {d.digest for d in known}:
                known.append(Descriptor(media_type, digest, len(body), str(manifest.get("artifactType", ""))))
        if tag is not None:
            self._tags[checked_tag(tag)] = digest
        return digest

    def get_manifest(self, digest: str) -> bytes:
        return self._read(digest)

    def resolve(self, tag: str) -> str:
        if tag not in self._tags:
            raise NotInRegistry(tag)
        return self._tags[tag]

    def tags(self) -> tuple[str, ...]:
        return tuple(sorted(self._tags))

    def referrers(self, digest: str, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        known = self._referrers.get(checked_digest(digest), [])
        return tuple(d for d in known if artifact_type in (None, d.artifact_type))

    def tamper(self, digest: str, body: bytes) -> None:
        """From now on, serve `body` under `digest`."""
        self._blobs[digest] = body

    def _read(self, digest: str) -> bytes:
        if checked_digest(digest) not in self._blobs:
            raise NotInRegistry(digest)
        return self._blobs[digest]


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(files: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **{"format": tarfile.USTAR_FORMAT, **options}) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            if change is not None:
                change(entry)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


class Image:
    """An image in a registry, every part of which a test may replace before it is pushed: `tar` is that of the code,
    `packed` the layer it comes in, `base` are tars of the layers below, compressed unless `compress` is None."""

    def __init__(
        self,
        tar: bytes | None = None,
        packed: bytes | None = None,
        base: tuple[bytes, ...] = (),
        compress: Callable[[bytes], bytes] | None = lambda tar: gzip.compress(tar, mtime=0),
    ) -> None:
        tar = tar_of(CODE) if tar is None else tar
        lock = tar_of(LOCKED)
        self.layer = gzip.compress(tar, mtime=0) if packed is None else packed
        below = list(base) if compress is None else [compress(b) for b in base]
        self.layers = [*below, gzip.compress(lock, mtime=0), self.layer]
        self.kinds: list[dict[str, str]] = [*({} for _ in base), {LAYER_KIND: "environment"}, {LAYER_KIND: "code"}]
        self.media_types = [*((LAYER if compress else LAYER_TAR) for _ in base), LAYER, LAYER]
        self.config: dict[str, Any] = {
            "config": {"Entrypoint": ["python", "-m", "x"], "Labels": {"msfl.environment.sha256": digest_of(LOCK)}},
            "rootfs": {"diff_ids": [digest_of(t) for t in (*base, lock, tar)]},
        }
        self.manifest: dict[str, Any] = {"schemaVersion": 2, "mediaType": MANIFEST}
        self.registry = MemoryRegistry()

    def push(self, registry: Registry | None = None) -> str:
        """To its own registry in memory, or to this one; the image's digest."""
        to = registry or self.registry
        config = json.dumps(self.config).encode()
        for blob in (*self.layers, config):
            to.put_blob(digest_of(blob), [blob])
        self.config_digest = digest_of(config)
        parts = {"config": Descriptor(CONFIG, digest_of(config), len(config)).to_json(), "layers": self.descriptors()}
        return to.put_manifest(json.dumps({**parts, **self.manifest}).encode())

    def descriptors(self) -> list[dict[str, Any]]:
        return [
            Descriptor(media_type, digest_of(layer), len(layer), annotations=kind).to_json()
            for layer, kind, media_type in zip(self.layers, self.kinds, self.media_types, strict=True)
        ]
