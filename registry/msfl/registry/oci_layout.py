"""The embedded registry: a folder in the OCI image layout, which skopeo, umoci and the like read too.

    <root>/oci-layout                     {"imageLayoutVersion": "1.0.0"}
    <root>/index.json                     tags: manifest descriptors with annotation org.opencontainers.image.ref.name
    <root>/blobs/sha256/<hex>             manifests, configs, layers, envelopes, referrer indexes
    <root>/.lock                          held while index.json is read, changed and replaced

Referrers use the tag scheme of OCI 1.1: an image index under the tag `sha256-<hex of the subject>`. Every file is
written beside its place, synced, and renamed, so that a reader or a killed writer never sees half a file; blobs come
before whatever names them. Several processes may write at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO, Final

from msfl.registry.interface import (
    INDEX,
    MAX_MANIFEST_BYTES,
    BadUpload,
    Descriptor,
    JsonObject,
    NotInRegistry,
    checked_digest,
    checked_manifest,
    checked_tag,
    referrers_tag,
)

_REF_NAME: Final = "org.opencontainers.image.ref.name"


class LayoutRegistry:
    """A `Registry` in one folder. Use `create` for a new one; opening a folder that is no layout raises ValueError."""

    def __init__(self, root: Path) -> None:
        marker = root / "oci-layout"
        if not marker.is_file() or json.loads(marker.read_bytes()).get("imageLayoutVersion") != "1.0.0":
            raise ValueError(f"{root} is not an OCI image layout; make one with: msfl registry init {root}")
        self.root = root
        self._blobs = root / "blobs" / "sha256"

    @classmethod
    def create(cls, root: Path) -> LayoutRegistry:
        """Make the folder a layout if it is none yet."""
        (root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        if not (root / "index.json").exists():
            _write(root / "index.json", _to_bytes({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}))
        if not (root / "oci-layout").exists():
            _write(root / "oci-layout", _to_bytes({"imageLayoutVersion": "1.0.0"}))
        return cls(root)

    def put_blob(self, digest: str, data: Iterable[bytes]) -> None:
        with beside(self._path(digest)) as file:
            found = hashlib.sha256()
            for chunk in data:
                found.update(chunk)
                file.write(chunk)
            if f"sha256:{found.hexdigest()}" != digest:
                raise BadUpload(f"the uploaded bytes have sha256:{found.hexdigest()}, not {digest}")

    @contextmanager
    def get_blob(self, digest: str, start: int = 0) -> Iterator[BufferedIOBase]:
        try:
            file = self._path(digest).open("rb")
        except FileNotFoundError as error:
            raise NotInRegistry(f"{self.root} holds no blob {digest}") from error
        with file:
            file.seek(start)
            yield file

    def put_manifest(self, body: bytes, tag: str | None = None) -> str:
        manifest = checked_manifest(body)
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        self.put_blob(digest, [body])
        descriptor = Descriptor(manifest["mediaType"], digest, len(body), str(manifest.get("artifactType", "")))
        with self._locked():
            if "subject" in manifest:
                subject = Descriptor.from_json(manifest["subject"]).digest
                self._refer(subject, descriptor)
            if tag is not None:
                self._point(checked_tag(tag), descriptor)
        return digest

    def get_manifest(self, digest: str) -> bytes:
        with self.get_blob(digest) as file:
            return file.read(MAX_MANIFEST_BYTES + 1)

    def resolve(self, tag: str) -> str:
        for entry in self._index()["manifests"]:
            if entry.get("annotations", {}).get(_REF_NAME) == tag:
                return Descriptor.from_json(entry).digest
        raise NotInRegistry(f"{self.root} has no tag {tag!r}")

    def tags(self) -> tuple[str, ...]:
        names = (entry.get("annotations", {}).get(_REF_NAME) for entry in self._index()["manifests"])
        return tuple(sorted(name for name in names if name and not name.startswith("sha256-")))

    def referrers(self, digest: str, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        found = self._referrers(digest)
        return tuple(d for d in found if artifact_type is None or d.artifact_type == artifact_type)

    def _refer(self, subject: str, referrer: Descriptor) -> None:
        known = self._referrers(subject)
        if any(d.digest == referrer.digest for d in known):
            return
        body = _to_bytes(
            {"schemaVersion": 2, "mediaType": INDEX, "manifests": [d.to_json() for d in (*known, referrer)]}
        )
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        self.put_blob(digest, [body])
        self._point(referrers_tag(subject), Descriptor(INDEX, digest, len(body)))

    def _referrers(self, subject: str) -> tuple[Descriptor, ...]:
        try:
            digest = self.resolve(referrers_tag(subject))
        except NotInRegistry:
            return ()
        return tuple(Descriptor.from_json(raw) for raw in _read_index(self.get_manifest(digest), digest)["manifests"])

    def _point(self, tag: str, descriptor: Descriptor) -> None:
        index = self._index()
        others = [e for e in index["manifests"] if e.get("annotations", {}).get(_REF_NAME) != tag]
        index["manifests"] = [*others, {**descriptor.to_json(), "annotations": {_REF_NAME: tag}}]
        _write(self.root / "index.json", _to_bytes(index))

    def _index(self) -> JsonObject:
        file = self.root / "index.json"
        return _read_index(file.read_bytes(), str(file))

    def _path(self, digest: str) -> Path:
        return self._blobs / checked_digest(digest).removeprefix("sha256:")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _read_index(data: bytes, where: str) -> JsonObject:
    """Raises NotInRegistry: whoever may write this folder must not be able to end those who only ask."""
    try:
        index = json.loads(data)
        for entry in index["manifests"]:
            Descriptor.from_json(entry)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotInRegistry(f"{where} is no index of manifests ({error!r:.80}): put it back from a copy") from error
    return dict(index)


def _to_bytes(document: JsonObject) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _write(path: Path, data: bytes) -> None:
    with beside(path) as file:
        file.write(data)


@contextmanager
def beside(path: Path) -> Iterator[BinaryIO]:
    """A temporary file in the same folder that takes `path`'s place when the block ends well."""
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
