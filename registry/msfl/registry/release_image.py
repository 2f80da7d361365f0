"""A release's own two layers, read for people: each byte verified against the digest, unpacked in memory, never run.

Sites take images through `pull`, which keeps and unpacks them; who reviews or compares releases needs no cache, no
sandbox and none of the base's gigabytes, only what the engineer wrote and the list of what it was built with.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msfl.policies.documents import ReleaseStatement
from msfl.policies.encoding import Malformed, read_json, sha256_of
from msfl.policies.refusals import Code, Refusal, Refused, refuse
from msfl.registry.base import BASE_DIGEST, BASE_NAME
from msfl.registry.environment import FILE_NAME, BadEnvironment, EnvironmentLock
from msfl.registry.interface import (
    LAYER_KIND,
    MAX_MANIFEST_BYTES,
    Descriptor,
    NotInRegistry,
    Registry,
    checked_digest,
)
from msfl.registry.layer import BadLayer, LayerLimits, read_layer
from msfl.registry.model_card import ModelCard, card_flaws
from msfl.registry.publish import CARD_TYPE, material_of
from msfl.registry.sbom import SBOM_TYPE, sbom_flaws

_MAX_CONFIG_BYTES = 1 << 20
_MAX_LAYER_BYTES = 256 << 20


@dataclass(frozen=True)
class ReleaseImage:
    """`code` maps names in the image to bytes; `base_…` are the manifest's own words, empty without a base."""

    digest: str
    lock: EnvironmentLock
    code: Mapping[str, bytes]
    base_name: str
    base_digest: str
    layers: int
    bytes: int


def read_image(registry: Registry, digest: str) -> ReleaseImage:
    """Raises Refused (image_broken)."""
    try:
        return _read(registry, checked_digest(digest))
    except NotInRegistry as error:
        raise _broken(digest, f"the registry lacks a part of it ({error})") from error
    except (BadLayer, BadEnvironment, Malformed, KeyError, TypeError, ValueError) as error:
        raise _broken(digest, str(error)) from error


def materials_flaw(registry: Registry, statement: ReleaseStatement) -> Refusal | None:
    """Whether the list and the card that the statement names are attached, and say what the image holds.

    A statement of msfl/v1 names none, which is no flaw. Raises Refused (image_broken).
    """
    if statement.materials is None:
        return None
    sbom = material_of(registry, statement.digest, SBOM_TYPE, statement.materials.sbom)
    card = material_of(registry, statement.digest, CARD_TYPE, statement.materials.model_card)
    image = read_image(registry, statement.digest)
    flaws = []
    if sbom is None:
        flaws.append(f"no attached SBOM has the hash that the statement names, {statement.materials.sbom}")
    else:
        flaws += sbom_flaws(sbom[0], statement.digest, image.lock)
    if card is None:
        flaws.append(f"no attached model card has the hash that the statement names, {statement.materials.model_card}")
    else:
        flaws += card_flaws(ModelCard(*card))
    named = statement.materials.base
    if (named.digest if named else "") != image.base_digest:
        flaws.append(f"the statement names the base {named.digest if named else 'none'}, and the image another")
    if image.lock.sha256 != statement.environment_sha256:
        flaws.append("the statement names another environment than the image's")
    if not flaws:
        return None
    what = f"What lies beside {statement.ref} is not what its statement says: {'; '.join(flaws[:5])}."
    return refuse(Code.MATERIALS_DIFFER, what, release=statement.ref, digest=statement.digest)


def _read(registry: Registry, digest: str) -> ReleaseImage:
    body = registry.get_manifest(digest)
    if len(body) > MAX_MANIFEST_BYTES or sha256_of(body) != digest:
        raise BadLayer("the registry serves a manifest that does not have this digest")
    manifest: Any = read_json(body, "image manifest", max_bytes=MAX_MANIFEST_BYTES)
    layers = [Descriptor.from_json(raw) for raw in manifest["layers"]]
    at = Descriptor.from_json(manifest["config"])
    config: Any = read_json(_blob(registry, at, _MAX_CONFIG_BYTES), "image config", max_bytes=_MAX_CONFIG_BYTES)
    diff_ids = [checked_digest(d) for d in config["rootfs"]["diff_ids"]]
    own: dict[str, dict[str, bytes]] = {}
    for layer, diff_id in zip(layers, diff_ids, strict=True):
        if kind := layer.annotations.get(LAYER_KIND):
            packed = io.BytesIO(_blob(registry, layer, _MAX_LAYER_BYTES))
            own[kind] = dict(read_layer(packed, diff_id, LayerLimits()))
    annotations = manifest.get("annotations", {})
    return ReleaseImage(
        digest,
        EnvironmentLock.from_bytes(own["environment"][FILE_NAME]),
        own["code"],
        str(annotations.get(BASE_NAME, "")),
        str(annotations.get(BASE_DIGEST, "")),
        len(layers),
        sum(layer.size for layer in layers),
    )


def _blob(registry: Registry, wanted: Descriptor, limit: int) -> bytes:
    with registry.get_blob(wanted.digest) as stream:
        data = stream.read(min(wanted.size, limit) + 1)
    if len(data) != wanted.size or sha256_of(data) != wanted.digest:
        raise BadLayer(f"the registry serves other bytes for {wanted.digest}")
    return data


def _broken(digest: str, why: str) -> Refused:
    return Refused(refuse(Code.IMAGE_BROKEN, f"The image {digest} was not taken: {why}.", digest=digest))
