"""How the keys of an identity provider that changes them reach a site, which fetches nothing from the internet.

    provider's JWKS ──read over TLS by its stewards──▶ Signed[IssuerKeySet] ──carried by the centre──▶ TrustedKeySet

The federation root names an issuer's stewards; the centre only carries what they signed, so that it cannot invent a
user. Versions only grow, and whoever has seen a version takes no other bytes under it. A set is good for some weeks
only: a centre that holds the next one back stops new runs, it does not keep an old key alive. A revoked steward counts
for nobody; a revoked key of the provider itself is found where a token is verified (`identity`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from datetime import datetime

from msfl.policies.documents import IssuerKeySet
from msfl.policies.encoding import Malformed
from msfl.policies.envelope import Kind, Signed
from msfl.policies.refusals import Code, Refusal, refuse
from msfl.policies.trust import NOTHING_REVOKED, Revoked, TrustedFederationRoot

ISSUER_KEY_SET = Kind("issuer-key-set", IssuerKeySet, "json")
_SEAL = object()


@dataclass(frozen=True)
class TrustedKeySet:
    """Signed by the stewards of its issuer. Whether it is still good is asked where it is used. Made here only."""

    document: IssuerKeySet
    sha256: str
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("a TrustedKeySet is made by trust_key_set from verified bytes, never by hand")


def trust_key_set(
    envelope: bytes,
    root: TrustedFederationRoot,
    file: str = "issuer key set",
    revoked: Revoked = NOTHING_REVOKED,
) -> TrustedKeySet | Refusal:
    """Who may sign depends on the issuer that the set names, so it is read, strictly, before its signers are checked,
    as a root is."""
    try:
        signed = Signed.parse(envelope, ISSUER_KEY_SET, file)
        if signed.payload_type != ISSUER_KEY_SET.payload_type:
            what = f"{file} was signed as {signed.payload_type!r}, not as {ISSUER_KEY_SET.payload_type!r}."
            return refuse(Code.WRONG_DOCUMENT_KIND, what, file=file)
        keys = ISSUER_KEY_SET.load(signed.payload, file)
    except Malformed as error:
        return refuse(Code.MALFORMED_DOCUMENT, f"{error}.", file=file)
    federation = root.document
    issuer = next((i for i in federation.issuers if i.issuer == keys.issuer and i.stewards), None)
    if issuer is None or keys.federation != federation.federation:
        what = f"{file} is for {keys.issuer} in {keys.federation}, for which the federation root names no stewards."
        return refuse(Code.WRONG_SIGNER, what, file=file, issuer=keys.issuer)
    signers = signed.signed_by(issuer.stewards)
    people = {member.person for member in revoked.without(signers)}
    if len(people) < issuer.steward_threshold <= len({member.person for member in signers}):
        who = ", ".join(sorted({member.person for member in signers}))
        what = f"{file} is signed by {who} with a key that is revoked."
        return refuse(Code.KEY_REVOKED, what, file=file, signers=who)
    if not people:
        return refuse(Code.WRONG_SIGNER, f"{file} is signed by no steward of {keys.issuer}.", file=file)
    if len(people) < issuer.steward_threshold:
        what = f"{file} is signed by {len(people)} of {issuer.steward_threshold} stewards needed."
        return refuse(Code.TOO_FEW_SIGNERS, what, file=file, signers=", ".join(sorted(people)))
    return TrustedKeySet(keys, signed.sha256, _SEAL)


def newer(known: TrustedKeySet | None, offered: TrustedKeySet) -> bool:
    """Whether `offered` takes the place of `known`, of the same issuer."""
    return known is None or offered.document.version > known.document.version


def in_force_until(
    root: TrustedFederationRoot, key_sets: Iterable[TrustedKeySet]
) -> tuple[tuple[str, datetime | Refusal], ...]:
    """Of each issuer that has stewards: until when its newest key set is good; there may be none."""
    found, sets = [], tuple(key_sets)
    for issuer in (i.issuer for i in root.document.issuers if i.stewards):
        keys = key_set_of(issuer, sets)
        none = refuse(Code.ISSUER_KEYS_STALE, f"No key set of {issuer} ever came here.", issuer=issuer)
        found.append((issuer, none if keys is None else keys.expires))
    return tuple(found)


def key_set_of(issuer: str, key_sets: Iterable[TrustedKeySet]) -> IssuerKeySet | None:
    """The newest of an issuer."""
    found = [k.document for k in key_sets if k.document.issuer == issuer]
    return max(found, key=lambda k: k.version, default=None)
