"""A registry in memory. `tamper` lets a test play a registry that serves other bytes than it was given."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from msfl.registry.interface import BadUpload, Descriptor, NotInRegistry, checked_digest, checked_tag


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
    def get_blob(self, digest: str) -> Iterator[BinaryIO]:
        yield io.BytesIO(self._read(digest))

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
