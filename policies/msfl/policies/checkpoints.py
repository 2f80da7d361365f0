"""Checkpoints of an audit log: made by its owner, kept by others, compared later.

    owner    first n entries ▸ Merkle root ▸ AuditCheckpoint ▸ DSSE, signed with the log's own Ed25519 key
    keeper   `judge`: of the right log? signed by the key it was first seen with? not behind, not beside what I keep?

The log's key says nothing but "this is how my log stood"; it approves nothing. Whoever holds it can sign another
history, and is found out by the checkpoint of the first one, which somebody else keeps. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from msfl.policies.audit import Chain
from msfl.policies.documents import AuditCheckpoint, Member
from msfl.policies.encoding import Malformed, encode
from msfl.policies.envelope import AUDIT_CHECKPOINT, Signed, sign
from msfl.policies.keys import BadKey, KeyPair, decode_public, key_id

MAX_CHECKPOINT_BYTES = 4096


@dataclass(frozen=True)
class NotKept:
    """Why a checkpoint is not kept. `code`: not_a_checkpoint, other_log, other_key, bad_signature, and, of a checkpoint
    that its log has signed, history_shrank, history_differs."""

    code: str
    why: str


def checkpoint(chain: Chain, log: str, at: datetime, key: KeyPair) -> bytes:
    """The signed statement, one line of JSON without its newline."""
    said = AuditCheckpoint(log=log, size=chain.size, root=chain.root, head=chain.head, at=at)
    return sign(encode(said), AUDIT_CHECKPOINT, [key])


def read_checkpoint(envelope: bytes, keys: Mapping[str, str]) -> AuditCheckpoint | NotKept:
    """What it says, if the log that it is about has signed it. `keys`: public keys by log."""
    if len(envelope) > MAX_CHECKPOINT_BYTES:
        return NotKept("not_a_checkpoint", f"{len(envelope)} bytes; a checkpoint has at most {MAX_CHECKPOINT_BYTES}")
    try:
        signed = Signed.parse(envelope, AUDIT_CHECKPOINT, "checkpoint")
        said = AUDIT_CHECKPOINT.load(signed.payload_of_kind(), "checkpoint")
        if (public_key := keys.get(said.log)) is None:
            return NotKept("other_log", f"it is about {said.log}, whose key is not known here")
        signer = Member(person="log", key_id=key_id(decode_public(public_key)), public_key=public_key)
    except Malformed as error:
        return NotKept("not_a_checkpoint", str(error))
    except BadKey as error:
        return NotKept("not_a_checkpoint", f"its key: {error}")
    if not signed.signed_by((signer,)):
        return NotKept("bad_signature", f"{said.log} at {said.size} entries is not signed with the log's key")
    return said


def judge(
    envelope: bytes, public_key: str, log: str, known_key: str | None, newest: AuditCheckpoint | None
) -> AuditCheckpoint | NotKept:
    """Whether to keep what the owner of `log` has just said.

    Args:
        known_key: the log's key as it was when it was first seen here; None: this is the first time.
        newest: the last checkpoint of that log that is kept here.
    """
    if known_key is not None and public_key != known_key:
        return NotKept("other_key", f"{log} signs with another key than it did before")
    said = read_checkpoint(envelope, {log: public_key})
    if isinstance(said, NotKept):
        return said
    if newest is None or said.size > newest.size:
        return said
    if said.size < newest.size:
        return NotKept("history_shrank", f"{log} has {said.size} entries and had {newest.size} at {newest.at}")
    if (said.root, said.head) != (newest.root, newest.head):
        return NotKept("history_differs", f"{log} has other first {said.size} entries than it had at {newest.at}")
    return said
