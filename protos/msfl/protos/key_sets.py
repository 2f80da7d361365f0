"""Key sets of identity providers in a folder, at the centre and at a site alike: of each issuer the newest, one file.

    take(envelopes)   verified, and kept where they are newer than what is there; durable on return
    trusted           what is there, verified again: nothing in the folder is believed because it lies there
    envelopes         what is there, to be handed on

The file of an issuer is named after the hash of its `iss`. A version that was seen is never replaced by an older one.
A site remembers which it has seen beside the folder, too (`gateway.standing`), and `keep`s what that lets through.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msfl.policies.encoding import sha256_of
from msfl.policies.issuers import TrustedKeySet, newer, trust_key_set
from msfl.policies.refusals import Refusal
from msfl.policies.trust import NOTHING_REVOKED, Revoked, TrustedFederationRoot
from msfl.protos.durable_files import write_durably


class KeySets:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def envelopes(self) -> tuple[bytes, ...]:
        return tuple(file.read_bytes() for file in sorted(self._folder.glob("*.dsse")))

    def trusted(self, root: TrustedFederationRoot, revoked: Revoked = NOTHING_REVOKED) -> tuple[TrustedKeySet, ...]:
        """Those that stewards of this root signed; of another root's nothing is left."""
        found = (trust_key_set(envelope, root, revoked=revoked) for envelope in self.envelopes())
        return tuple(keys for keys in found if isinstance(keys, TrustedKeySet))

    def take(
        self, envelopes: Iterable[bytes], root: TrustedFederationRoot, revoked: Revoked = NOTHING_REVOKED
    ) -> tuple[Refusal, ...]:
        """Why what was not taken was not; older and equal versions go without a word."""
        refused: list[Refusal] = []
        for envelope in envelopes:
            offered = trust_key_set(envelope, root, revoked=revoked)
            if isinstance(offered, Refusal):
                refused.append(offered)
                continue
            issuer = offered.document.issuer
            known = next((k for k in self.trusted(root) if k.document.issuer == issuer), None)
            if newer(known, offered):
                self.keep(issuer, envelope)
        return tuple(refused)

    def keep(self, issuer: str, envelope: bytes) -> None:
        """In place of what is there, whatever that is."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = sha256_of(issuer.encode()).removeprefix("sha256:")
        write_durably(self._folder / f"{name}.dsse", envelope, mode=0o666)
