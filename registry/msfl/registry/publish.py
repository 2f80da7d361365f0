"""How a release reaches the registry, and how its signed papers are found there again.

    push_release        blobs, then the manifest, under the tag <name>_<version>; a released tag never moves
    attach_materials    what the statement binds by its hash: the SBOM and the model card
    submit_statement    the publisher's envelope, attached to the image
    add_review          a reviewer's envelope, attached to the image
    add_publication     the publisher's envelope again: reviewed, and for use now
    papers_of           all of these envelopes as they lie there
    publication         do the papers satisfy the federation root now?          TrustedRelease, or the Refusal

Papers are DSSE envelopes, each the only layer of a small manifest whose `subject` is the image (OCI 1.1 referrers).
Nobody needs to trust the registry for them: `msfl.policies.trust` checks who signed. What a registry can do is keep a
paper back, which refuses a release (fail closed), or keep back a reviewer's *reject*; against that, policies name
digests and revocations come with the heartbeat. Who may push can only attach more: either all papers are read or, where
there are more than `MAX_PAPERS` of a kind, none (`too_many_papers`), so that nothing is pushed out of sight. A later
statement of the same image replaces an earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from msfl.policies.encoding import Malformed, canonical_json, read_json, sha256_of
from msfl.policies.envelope import MAX_ENVELOPE_BYTES
from msfl.policies.refusals import Code, Refusal, Refused, refuse
from msfl.policies.trust import NOTHING_REVOKED, Revoked, TrustedFederationRoot, TrustedRelease, trust_release
from msfl.registry.build import BuiltRelease
from msfl.registry.interface import (
    EMPTY,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Descriptor,
    NotInRegistry,
    Registry,
)
from msfl.registry.model_card import MAX_CARD_BYTES, ModelCard
from msfl.registry.pull import NAME_LABEL, VERSION_LABEL
from msfl.registry.sbom import MAX_SBOM_BYTES, SBOM_TYPE

STATEMENT_TYPE: Final = "application/vnd.msfl.release-statement.v1+dsse"
REVIEW_TYPE: Final = "application/vnd.msfl.review.v1+dsse"
PUBLICATION_TYPE: Final = "application/vnd.msfl.publication.v1+dsse"
CARD_TYPE: Final = "application/vnd.msfl.model-card.v1"
_DSSE: Final = "application/vnd.dsse.envelope.v1+json"
MAX_PAPERS: Final = 64


@dataclass(frozen=True)
class Papers:
    """Envelopes as the registry serves them, nobody's word yet. The latest statement; None without one."""

    statement: bytes | None
    reviews: tuple[bytes, ...]
    publications: tuple[bytes, ...]


class AlreadyPublished(ValueError):
    """This name and version exist in the registry with another digest. Versions are never reused; raise the version."""


def push_release(registry: Registry, built: BuiltRelease) -> str:
    """Raises AlreadyPublished. Pushing the same image again changes nothing. Returns the digest."""
    tag = tag_of(built.recipe.name, built.recipe.version)
    try:
        known = registry.resolve(tag)
    except NotInRegistry:
        known = built.digest
    if known != built.digest:
        raise AlreadyPublished(
            f"{built.ref} is in the registry as {known}, and this build is {built.digest}; "
            "the code or the environment has changed, so give the release a new version"
        )
    for digest, chunks in built.blobs():
        registry.put_blob(digest, chunks)
    return registry.put_manifest(built.manifest, tag)


def attach_materials(registry: Registry, digest: str, sbom: bytes, card: ModelCard) -> None:
    """Raises NotInRegistry when the image is not there."""
    _attach(registry, digest, SBOM_TYPE, sbom, SBOM_TYPE)
    _attach(registry, digest, CARD_TYPE, card.data, card.media_type)


def material_of(registry: Registry, digest: str, artifact_type: str, sha256: str) -> tuple[bytes, str] | None:
    """The attached bytes that have exactly this hash, and their media type; None when nothing attached has it."""
    limit = MAX_SBOM_BYTES if artifact_type == SBOM_TYPE else MAX_CARD_BYTES
    for referrer in registry.referrers(digest, artifact_type)[-MAX_PAPERS:]:
        manifest = _read_manifest(registry, referrer.digest)
        layer = _only_layer(manifest, digest) if manifest else None
        if layer is not None and layer.digest == sha256:
            data = _read_blob(registry, layer, limit)
            if data is not None:
                return data, layer.media_type
    return None


def submit_statement(registry: Registry, digest: str, envelope: bytes) -> str:
    """Attach the publisher's signed statement. Raises NotInRegistry when the image is not there."""
    return _attach(registry, digest, STATEMENT_TYPE, envelope)


def add_review(registry: Registry, digest: str, envelope: bytes) -> str:
    """Attach a reviewer's signed word. Raises NotInRegistry when the image is not there."""
    return _attach(registry, digest, REVIEW_TYPE, envelope)


def add_publication(registry: Registry, digest: str, envelope: bytes) -> str:
    """Attach the publisher's signed publication. Raises NotInRegistry when the image is not there."""
    return _attach(registry, digest, PUBLICATION_TYPE, envelope)


def papers_of(registry: Registry, digest: str) -> Papers:
    """Raises Refused where there are too many."""
    statements = _papers(registry, digest, STATEMENT_TYPE)
    return Papers(
        statements[-1] if statements else None,
        _papers(registry, digest, REVIEW_TYPE),
        _papers(registry, digest, PUBLICATION_TYPE),
    )


def statements_of(registry: Registry, digest: str) -> tuple[bytes, tuple[bytes, ...]]:
    """The latest statement's envelope and all reviews' envelopes, unverified. Raises NotInRegistry without one,
    Refused where there are too many."""
    statements = _papers(registry, digest, STATEMENT_TYPE)
    if not statements:
        raise NotInRegistry(f"the registry holds no signed statement for {digest}")
    return statements[-1], _papers(registry, digest, REVIEW_TYPE)


def list_releases(registry: Registry) -> tuple[tuple[str, str], ...]:
    """(`name:version`, digest) of every tagged release, sorted. What it says is the registry's word only."""
    found = []
    for tag in registry.tags():
        digest = registry.resolve(tag)
        manifest = _read_manifest(registry, digest)
        annotations = manifest.get("annotations") if manifest else None
        if not isinstance(annotations, dict):
            continue
        name, version = annotations.get(NAME_LABEL), annotations.get(VERSION_LABEL)
        if isinstance(name, str) and isinstance(version, str) and tag == tag_of(name, version):
            found.append((f"{name}:{version}", digest))
    return tuple(sorted(found))


def resolve_release(registry: Registry, ref: str) -> str:
    """The digest of `name:version`, for people; sites are asked by digest. Raises NotInRegistry."""
    name, _, version = ref.partition(":")
    return registry.resolve(tag_of(name, version))


def publication(
    registry: Registry,
    digest: str,
    root: TrustedFederationRoot,
    now: datetime,
    revoked: Revoked = NOTHING_REVOKED,
) -> TrustedRelease | Refusal:
    """Whether the image's papers satisfy the federation root now, and are about this very image."""
    try:
        statement, reviews = statements_of(registry, digest)
    except Refused as flooded:
        return flooded.refusal
    except NotInRegistry:
        return refuse(Code.WRONG_PUBLISHER, f"The registry holds no signed statement for {digest}.", digest=digest)
    return trust_papers(statement, reviews, digest, root, now, revoked)


def trust_papers(
    statement: bytes,
    reviews: tuple[bytes, ...],
    digest: str,
    root: TrustedFederationRoot,
    now: datetime,
    revoked: Revoked = NOTHING_REVOKED,
) -> TrustedRelease | Refusal:
    """The same for papers that are at hand, from wherever."""
    release = trust_release(statement, reviews, root, now, revoked)
    if isinstance(release, TrustedRelease) and release.statement.digest != digest:
        what = f"The statement attached to {digest} is about {release.statement.digest}."
        return refuse(Code.IMAGE_BROKEN, what, digest=digest)
    return release


def tag_of(name: str, version: str) -> str:
    """A version holds no underscore, so the last one splits the tag again."""
    return f"{name}_{version}"


def _attach(registry: Registry, digest: str, artifact_type: str, data: bytes, media_type: str = _DSSE) -> str:
    subject = registry.get_manifest(digest)
    empty = b"{}"
    for blob in (empty, data):
        registry.put_blob(sha256_of(blob), [blob])
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": Descriptor(EMPTY, sha256_of(empty), len(empty)).to_json(),
        "layers": [Descriptor(media_type, sha256_of(data), len(data)).to_json()],
        "subject": Descriptor(MANIFEST, digest, len(subject)).to_json(),
    }
    return registry.put_manifest(canonical_json(manifest))


def _papers(registry: Registry, digest: str, artifact_type: str) -> tuple[bytes, ...]:
    """Whatever cannot be read is nobody's word, and left out. Raises Refused."""
    papers = []
    referrers = registry.referrers(digest, artifact_type)
    if len(referrers) > MAX_PAPERS:
        what = f"The registry lists {len(referrers)} papers of one kind for {digest}; {MAX_PAPERS} are the most."
        raise Refused(refuse(Code.TOO_MANY_PAPERS, what, digest=digest, kind=artifact_type))
    for referrer in referrers:
        manifest = _read_manifest(registry, referrer.digest)
        envelope = _read_envelope(registry, manifest, digest) if manifest else None
        if envelope is not None:
            papers.append(envelope)
    return tuple(papers)


def _read_envelope(registry: Registry, manifest: dict[str, object], subject: str) -> bytes | None:
    layer = _only_layer(manifest, subject)
    return _read_blob(registry, layer, MAX_ENVELOPE_BYTES) if layer else None


def _only_layer(manifest: dict[str, object], subject: str) -> Descriptor | None:
    try:
        if Descriptor.from_json(manifest.get("subject")).digest != subject:
            return None
        layers = manifest.get("layers")
        (layer,) = layers if isinstance(layers, tuple) else ()
        return Descriptor.from_json(layer)
    except ValueError:
        return None


def _read_blob(registry: Registry, wanted: Descriptor, limit: int) -> bytes | None:
    try:
        with registry.get_blob(wanted.digest) as stream:
            data = stream.read(limit + 1)
    except NotInRegistry:
        return None
    return data if len(data) <= limit and sha256_of(data) == wanted.digest else None


def _read_manifest(registry: Registry, digest: str) -> dict[str, object] | None:
    try:
        body = registry.get_manifest(digest)
        manifest = read_json(body, "manifest", max_bytes=MAX_MANIFEST_BYTES)
    except (NotInRegistry, Malformed):
        return None
    return manifest if isinstance(manifest, dict) and sha256_of(body) == digest else None
