"""A key of an identity provider, or of a steward who signs its keys, was stolen; the keepers have revoked it. Whoever
holds it can make any user's token, and goes on doing so. At a gateway: `test_revoked_while_running`, too.
"""

from __future__ import annotations

from pathlib import Path

from fakes.governance import NOW, World, key
from fakes.oidc import ACCESS, ID, Provider, access_claims, ec_jwk, id_claims, jws, rsa_jwk
from msfl.policies.documents import Jwk
from msfl.policies.identity import User, issuer_key_revoked, verify_token
from msfl.policies.issuers import trust_key_set
from msfl.policies.refusals import Refusal
from msfl.policies.trust import NOTHING_REVOKED, Revoked
from msfl.protos.key_sets import KeySets

STEWARDS = Provider(stewards=("stella", "stig"))


def revoked(*jwks: dict[str, str]) -> Revoked:
    return Revoked(keys=frozenset(Jwk.model_validate(jwk).key_id for jwk in jwks))


def answer(token: str, gone: Revoked, provider: Provider, *envelopes: bytes) -> str:
    """The user, or the code."""
    found = verify_token(token, provider.root.document.issuers, NOW, provider.trusted(*envelopes), gone)
    return found.subject if isinstance(found, User) else found.code.value


def test_a_token_of_a_revoked_key_is_refused_and_one_of_the_providers_other_key_is_not() -> None:
    both = Provider(jwks=(rsa_jwk("idp"), rsa_jwk("stolen")))
    stolen, sound = jws(ACCESS, access_claims(), "stolen"), jws(ACCESS, access_claims())
    assert answer(stolen, NOTHING_REVOKED, both) == answer(sound, NOTHING_REVOKED, both) == "ada-1"
    gone = revoked(rsa_jwk("stolen"))
    assert answer(stolen, gone, both) == "issuer_key_revoked"
    assert answer(sound, gone, both) == "ada-1"


def test_a_key_that_stewards_signed_is_looked_up_too() -> None:
    token = jws(ACCESS, access_claims())
    assert answer(token, revoked(rsa_jwk()), STEWARDS, STEWARDS.key_set()) == "issuer_key_revoked"


def test_an_id_token_of_a_revoked_key_beside_a_sound_access_token() -> None:
    provider = Provider(jwks=(rsa_jwk(), ec_jwk("stolen")))
    access = jws(ACCESS, access_claims())
    forged = jws({**ID, "alg": "ES256"}, id_claims(access, email="eve@uni.example"), "stolen")
    assert answer(f"{access}~{forged}", NOTHING_REVOKED, provider) == "ada-1"
    assert answer(f"{access}~{forged}", revoked(ec_jwk("stolen")), provider) == "issuer_key_revoked"


def test_the_embedded_issuers_key_has_the_id_that_every_ed25519_key_has() -> None:
    world = World()
    gone = Revoked(keys=frozenset({key("issuer").id}))
    found = verify_token(world.token, world.federation_root.document.issuers, NOW, (), gone)
    assert isinstance(found, Refusal)
    assert found.code.value == "issuer_key_revoked"


def test_who_was_verified_before_is_asked_again() -> None:
    found = Provider().verify(jws(ACCESS, access_claims()))
    assert isinstance(found, User)
    assert issuer_key_revoked(found, NOTHING_REVOKED) is None
    refusal = issuer_key_revoked(found, revoked(rsa_jwk()))
    assert refusal is not None
    assert refusal.fields["key"] == Jwk.model_validate(rsa_jwk()).key_id


def test_a_key_set_of_a_revoked_steward_counts_for_nothing_also_one_that_was_taken_before(tmp_path: Path) -> None:
    gone, sets = Revoked(keys=frozenset({key("stella").id})), KeySets(tmp_path)
    assert sets.take((STEWARDS.key_set(),), STEWARDS.root) == ()
    assert len(sets.trusted(STEWARDS.root)) == 1
    assert sets.trusted(STEWARDS.root, gone) == ()
    (refusal,) = sets.take((STEWARDS.key_set(2),), STEWARDS.root, gone)
    assert refusal.code.value == "key_revoked"
    # The other steward's word is enough.
    assert not isinstance(
        trust_key_set(STEWARDS.key_set(2, signers=("stella", "stig")), STEWARDS.root, "x", gone), Refusal
    )
