"""The registry seam: content-addressed blobs, manifests with tags, and what refers to a manifest.

    put_blob / get_blob            bytes by digest
    put_manifest / get_manifest    JSON by digest; a manifest with a `subject` becomes a referrer of that subject
    resolve / tags                 tag → digest; a tag may move, so nothing at a site is ever named by one
    referrers                      the signed statement and reviews of an image, as descriptors

It is what every OCI distribution registry can do, and no more. Nothing that comes out of a registry is trusted: the
reader hashes what it reads against the digest it asked for (`msfl.registry.pull`), and signatures are checked by
`msfl.policies.trust`. An implementation checks what is put into it, so that a torn upload is seen by the one who
uploads; it promises nothing to the one who reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from io import BufferedIOBase
from typing import Any, Protocol, TypeAlias

from msfl.policies.refusals import CannotProceed

JsonObject: TypeAlias = dict[str, Any]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
# In the manifest, on a layer's descriptor: which of the release's own layers it is. A base layer has none.
LAYER_KIND = "msfl.layer"
EMPTY = "application/vnd.oci.empty.v1+json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


class NotInRegistry(LookupError):
    """The registry holds no such blob, manifest or tag."""


class RegistryFails(CannotProceed):
    """The registry cannot be reached, does not let us in, or does not do what the protocol says."""


class BadUpload(ValueError):
    """What was put does not have the digest it was put under, or a name that no registry would take."""


@dataclass(frozen=True)
class Descriptor:
    """How OCI documents point at bytes: `digest` is `sha256:<64 hex>`, `size` counts bytes."""

    media_type: str
    digest: str
    size: int
    artifact_type: str = ""
    annotations: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        document: JsonObject = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        if self.annotations:
            document["annotations"] = self.annotations
        return document

    @classmethod
    def from_json(cls, raw: object) -> Descriptor:
        """Raises ValueError for anything that is not a descriptor with a sha256 digest and a size."""
        if not isinstance(raw, dict):
            raise ValueError("a descriptor is a JSON object")
        media_type, digest, size = raw.get("mediaType"), raw.get("digest"), raw.get("size")
        artifact_type, annotations = raw.get("artifactType", ""), raw.get("annotations", {})
        if not isinstance(media_type, str) or not isinstance(digest, str) or not isinstance(artifact_type, str):
            raise ValueError("a descriptor has a media type and a digest")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError("a descriptor has a size in bytes")
        if not isinstance(annotations, dict) or not all(isinstance(v, str) for v in annotations.values()):
            raise ValueError("annotations are strings")
        return cls(media_type, checked_digest(digest), size, artifact_type, dict(annotations))


class Registry(Protocol):
    def put_blob(self, digest: str, data: Iterable[bytes]) -> None:
        """Durable on return; putting the same blob again changes nothing. Raises BadUpload when the bytes differ."""
        ...

    def get_blob(self, digest: str, start: int = 0) -> AbstractContextManager[BufferedIOBase]:
        """The bytes kept under this digest, from byte `start` on, of which there is one; unverified. Raises
        NotInRegistry."""
        ...

    def put_manifest(self, body: bytes, tag: str | None = None) -> str:
        """Keep a manifest and return its digest; `tag` then points at it. Raises BadUpload."""
        ...

    def get_manifest(self, digest: str) -> bytes:
        """Unverified. Raises NotInRegistry."""
        ...

    def resolve(self, tag: str) -> str:
        """The digest a tag points at now. Raises NotInRegistry."""
        ...

    def tags(self) -> tuple[str, ...]:
        """All tags that people gave, sorted."""
        ...

    def referrers(self, digest: str, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        """Manifests whose `subject` is this digest, in the order in which they came. Raises Refused where there are too
        many for all of them to be read."""
        ...


def checked_digest(digest: str) -> str:
    """Raises ValueError for anything but `sha256:<64 lower-case hex>`; digests become file names."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"not a sha256 digest: {digest[:80]!r}")
    return digest


def checked_tag(tag: str) -> str:
    """Raises BadUpload."""
    if not _TAG.fullmatch(tag):
        raise BadUpload(f"{tag[:140]!r} cannot be a tag: letters, digits, dot, dash and underscore, at most 128")
    return tag


def referrers_tag(digest: str) -> str:
    """The tag under which registries without a referrers API keep the index of referrers: `sha256-<hex>`."""
    return checked_digest(digest).replace(":", "-")


def checked_manifest(body: bytes) -> JsonObject:
    """What a manifest says that is about to be put. Raises BadUpload."""
    if len(body) > MAX_MANIFEST_BYTES:
        raise BadUpload(f"a manifest of {len(body)} bytes; registries take at most {MAX_MANIFEST_BYTES}")
    try:
        manifest = json.loads(body)
        if "subject" in manifest:
            Descriptor.from_json(manifest["subject"])
        media_type = manifest["mediaType"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadUpload(f"not a manifest: {error}") from error
    if media_type not in (MANIFEST, INDEX):
        raise BadUpload(f"a manifest of media type {media_type!r}")
    return dict(manifest)
