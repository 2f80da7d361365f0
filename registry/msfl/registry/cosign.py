"""Signatures in cosign's layout, for tools that know nothing of msfl: beside the image, by digest, with a plain key.

    tag sha256-<hex>.sig   an image manifest whose layers are the things signed
      layer                {"critical": {"identity": {"docker-reference"}, "image": {"docker-manifest-digest"},
                           "type": "cosign container image signature"}, "optional": …}      simple signing, JSON
      annotation           dev.cosignproject.cosign/signature: base64 of the signature over the layer's bytes
    tag sha256-<hex>.att   the same for attestations: the layer is a DSSE envelope around an in-toto statement
      annotation           predicateType

Several people's signatures are several layers. It is a copy for others: no gateway reads it, because it has no role, no
threshold and no end. cosign takes Ed25519 keys in PEM: `cosign verify --key ada.pub --insecure-ignore-tlog IMAGE`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from msfl.policies.documents import ReleaseStatement
from msfl.policies.encoding import canonical_json, read_json, sha256_of
from msfl.policies.keys import KeyPair
from msfl.registry.interface import (
    CONFIG,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Descriptor,
    JsonObject,
    NotInRegistry,
    Registry,
    referrers_tag,
)

SIGNATURE = "dev.cosignproject.cosign/signature"
SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
DSSE = "application/vnd.dsse.envelope.v1+json"
IN_TOTO = "application/vnd.in-toto+json"
PREDICATE = "https://msfl.dev/release-statement/v2"
_STATEMENT = "https://in-toto.io/Statement/v1"


def signature_tag(digest: str) -> str:
    return f"{referrers_tag(digest)}.sig"


def attestation_tag(digest: str) -> str:
    return f"{referrers_tag(digest)}.att"


def add_signature(registry: Registry, digest: str, reference: str, key: KeyPair, said: Mapping[str, str]) -> str:
    """Sign that `digest` is what `reference` names, beside the signatures that are there. Returns the tag."""
    payload = canonical_json(
        {
            "critical": {
                "identity": {"docker-reference": reference},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": dict(said) or None,
        }
    )
    signature = base64.b64encode(key.private.sign(payload)).decode()
    _append(registry, signature_tag(digest), SIMPLE_SIGNING, payload, {SIGNATURE: signature})
    return signature_tag(digest)


def add_attestation(registry: Registry, statement: ReleaseStatement, document: JsonObject, key: KeyPair) -> str:
    """An in-toto statement about the image whose predicate is the release statement. Returns the tag."""
    subject = {"name": statement.name, "digest": {"sha256": statement.digest.removeprefix("sha256:")}}
    payload = canonical_json(
        {"_type": _STATEMENT, "subject": [subject], "predicateType": PREDICATE, "predicate": document}
    )
    signature = base64.b64encode(key.private.sign(pre_authentication(IN_TOTO, payload))).decode()
    envelope = canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": IN_TOTO,
            "signatures": [{"keyid": key.id, "sig": signature}],
        }
    )
    annotations = {SIGNATURE: "", "predicateType": PREDICATE}
    _append(registry, attestation_tag(statement.digest), DSSE, envelope, annotations)
    return attestation_tag(statement.digest)


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """What DSSE signs."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)


def _append(registry: Registry, tag: str, media_type: str, data: bytes, annotations: dict[str, str]) -> None:
    there = [layer for layer in _layers(registry, tag) if layer.digest != sha256_of(data)]
    layers = [*there, Descriptor(media_type, sha256_of(data), len(data), annotations=annotations)]
    config = canonical_json(
        {
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )
    for blob in (data, config):
        registry.put_blob(sha256_of(blob), [blob])
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": Descriptor(CONFIG, sha256_of(config), len(config)).to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    registry.put_manifest(canonical_json(manifest), tag)


def _layers(registry: Registry, tag: str) -> list[Descriptor]:
    """What stands there already; what cannot be read is replaced."""
    try:
        body = registry.get_manifest(registry.resolve(tag))
        manifest: Any = read_json(body, "signatures", max_bytes=MAX_MANIFEST_BYTES)
        return [Descriptor.from_json(raw) for raw in manifest["layers"]]
    except (NotInRegistry, ValueError, KeyError, TypeError):
        return []
