"""DSSE envelopes: exact bytes, a payload type per kind of document, and signatures by Ed25519 keys.

    {"payload": base64, "payloadType": "application/vnd.msfl.<kind>+<yaml|json>;v=1",
     "signatures": [{"keyid": hex, "sig": base64}, …]}            signed: "DSSEv1 <len> type <len> payload"

securesystemslib signs and verifies; what it leaves open is closed here. The envelope is read by the strict JSON reader
(a duplicate or unknown member is refused), base64 must be canonical, a key id may sign once, and a signature counts
for a key only under the id derived from that key. The payload stays unread until `trust` has verified it: a `Signed`
has no way to its document.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, StringConstraints
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey

from msfl.policies.documents import (
    AssetPolicy,
    AuditCheckpoint,
    Document,
    FederationRoot,
    Member,
    Publication,
    ReleaseStatement,
    Review,
    RevocationList,
    RunConfirmation,
    SiteRoot,
    Timestamp,
)
from msfl.policies.encoding import MAX_BYTES, Malformed, Problem, canonical_json, load_json, load_yaml, sha256_of
from msfl.policies.keys import KeyPair, decode_public, key_id

MAX_ENVELOPE_BYTES = 2 * MAX_BYTES
D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class Kind(Generic[D]):
    """One kind of document: what its signature covers besides the bytes, and how the bytes are read."""

    name: str
    model: type[D]
    syntax: Literal["yaml", "json"]

    @property
    def payload_type(self) -> str:
        return f"application/vnd.msfl.{self.name}+{self.syntax};v=1"

    def load(self, payload: bytes, file: str) -> D:
        """Raises Malformed."""
        document: D = _load(self, payload, file)
        return document


@lru_cache(maxsize=128)
def _load(kind: Kind[Any], payload: bytes, file: str) -> Any:
    """The same bytes are the same document, and a site reads its policies again every few seconds."""
    load = load_yaml if kind.syntax == "yaml" else load_json
    return load(payload, kind.model, file)


ASSET_POLICY = Kind("asset-policy", AssetPolicy, "yaml")
SITE_ROOT = Kind("site-root", SiteRoot, "json")
FEDERATION_ROOT = Kind("federation-root", FederationRoot, "json")
RELEASE_STATEMENT = Kind("release-statement", ReleaseStatement, "json")
REVIEW = Kind("review", Review, "json")
PUBLICATION = Kind("publication", Publication, "json")
RUN_CONFIRMATION = Kind("run-confirmation", RunConfirmation, "json")
AUDIT_CHECKPOINT = Kind("audit-checkpoint", AuditCheckpoint, "json")
REVOCATIONS = Kind("revocations", RevocationList, "json")
TIMESTAMP = Kind("timestamp", Timestamp, "json")


class _Signature(Document):
    keyid: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    sig: str


class _Envelope(Document):
    payload: str
    payloadType: Annotated[str, StringConstraints(max_length=200)]  # DSSE's own spelling
    signatures: tuple[_Signature, ...] = Field(min_length=1, max_length=32)


@dataclass(frozen=True)
class Signed(Generic[D]):
    """An envelope of the right form and of nobody's trust yet. `payload` is bytes, never a document."""

    kind: Kind[D]
    payload: bytes
    payload_type: str
    signatures: tuple[tuple[str, bytes], ...]
    file: str

    @classmethod
    def parse(cls, data: bytes, kind: Kind[D], file: str = "envelope") -> Signed[D]:
        """Raises Malformed."""
        raw = load_json(data, _Envelope, file, max_bytes=MAX_ENVELOPE_BYTES)
        signatures = tuple((s.keyid, _base64(s.sig, file, "signatures.sig")) for s in raw.signatures)
        if len({keyid for keyid, _ in signatures}) != len(signatures):
            raise Malformed(file, (Problem(None, "signatures", "a key signs twice", "one signature per key"),))
        return cls(kind, _base64(raw.payload, file, "payload"), raw.payloadType, signatures, file)

    @property
    def sha256(self) -> str:
        """Of the payload's exact bytes."""
        return sha256_of(self.payload)

    def payload_of_kind(self) -> bytes:
        """The payload, if it was signed as this kind. Still unverified. Raises Malformed."""
        if self.payload_type != self.kind.payload_type:
            raise Malformed(self.file, (Problem(None, "payloadType", repr(self.payload_type), self.kind.payload_type),))
        return self.payload

    def signed_by(self, members: Iterable[Member]) -> tuple[Member, ...]:
        """Those of `members` whose key made one of the signatures over payload type and payload."""
        envelope = Envelope(self.payload, self.payload_type, {k: Signature(k, s.hex()) for k, s in self.signatures})
        return tuple(m for m in members if _verifies(envelope, m))


def sign(payload: bytes, kind: Kind[Any], keys: Iterable[KeyPair]) -> bytes:
    """The envelope's bytes over the payload's exact bytes. The payload must be a valid document: raises Malformed."""
    kind.load(payload, kind.name)
    envelope = Envelope(payload, kind.payload_type, {})
    for key in keys:
        envelope.sign(CryptoSigner(key.private, _library_key(key.id, key.public)))
    return _bytes(envelope)


def add_signature(data: bytes, kind: Kind[Any], key: KeyPair) -> bytes:
    """The same envelope with one more signature, for a second custodian. Raises Malformed."""
    signed = Signed.parse(data, kind)
    signed.kind.load(signed.payload_of_kind(), signed.file)
    signatures = {k: Signature(k, s.hex()) for k, s in signed.signatures}
    envelope = Envelope(signed.payload, signed.payload_type, signatures)
    envelope.sign(CryptoSigner(key.private, _library_key(key.id, key.public)))
    return _bytes(envelope)


def _bytes(envelope: Any) -> bytes:
    return canonical_json(envelope.to_dict())


def _verifies(envelope: Any, member: Member) -> bool:
    public = decode_public(member.public_key)
    try:
        # The library takes the id at its word; it is derived again here, so a relabelled key finds no signature.
        envelope.verify([_library_key(key_id(public), public)], 1)
    except VerificationError:
        return False
    return True


def _library_key(keyid: str, public: bytes) -> Any:
    return SSlibKey(keyid, "ed25519", "ed25519", {"public": public.hex()})


def _base64(text: str, file: str, key: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed(file, (Problem(None, key, "not base64"),)) from error
    if base64.b64encode(raw).decode() != text:
        raise Malformed(file, (Problem(None, key, "not canonical base64"),))
    return raw
