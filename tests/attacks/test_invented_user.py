"""The centre carries the keys of identity providers to the sites, and would like to carry its own."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from fakes.governance import NOW, key
from fakes.oidc import ACCESS, ISSUER, Provider, access_claims, jws, rsa_jwk
from msfl.policies.documents import IssuerKeys
from msfl.policies.envelope import FEDERATION_ROOT
from msfl.policies.identity import User, verify_token
from msfl.policies.issuers import TrustedKeySet, trust_key_set
from msfl.policies.keys import encode_public
from msfl.policies.refusals import Code, Refusal
from msfl.protos.key_sets import KeySets

PROVIDER = Provider(stewards=("stella", "stig"))
TOKEN = jws(ACCESS, access_claims())
FORGED = jws(ACCESS, access_claims(), "mallory")


def refused(envelope: bytes, provider: Provider = PROVIDER) -> Code:
    result = trust_key_set(envelope, provider.root)
    assert isinstance(result, Refusal)
    return result.code


def at_the_site(sets: KeySets, token: str, offered: tuple[bytes, ...] = (), days: float = 0.0) -> str:
    """What a site answers that was offered these key sets: the user, or the code."""
    root = PROVIDER.root
    sets.take(offered, root)
    found = verify_token(token, root.document.issuers, NOW + timedelta(days=days), sets.trusted(root))
    return found.subject if isinstance(found, User) else found.code.value


def test_a_key_set_of_a_steward_counts(tmp_path: Path) -> None:
    assert at_the_site(KeySets(tmp_path), TOKEN, (PROVIDER.key_set(),)) == "ada-1"


def test_a_set_that_no_steward_signed_is_nobodys_word(tmp_path: Path) -> None:
    forged = PROVIDER.key_set(jwks=(rsa_jwk("mallory"),), signers=("mallory",))
    assert refused(forged) is Code.WRONG_SIGNER
    assert at_the_site(KeySets(tmp_path), FORGED, (forged,)) == "issuer_keys_stale"
    for signer in ("otto", "paul", "rosa", "issuer"):  # keeper, publisher, reviewer, another issuer
        assert refused(PROVIDER.key_set(signers=(signer,))) is Code.WRONG_SIGNER


def test_one_steward_is_not_two(tmp_path: Path) -> None:
    careful = Provider(stewards=("stella", "stig"), threshold=2)
    assert refused(careful.key_set(), careful) is Code.TOO_FEW_SIGNERS
    both = trust_key_set(careful.key_set(signers=("stella", "stig")), careful.root)
    assert isinstance(both, TrustedKeySet)
    with pytest.raises(ValueError, match="cannot be reached"):
        IssuerKeys(**{**vars(careful.issuer), "steward_threshold": 3})


def test_a_set_of_another_federation_or_for_another_issuer() -> None:
    assert refused(PROVIDER.key_set(federation="another")) is Code.WRONG_SIGNER
    assert refused(PROVIDER.key_set(issuer="https://login.uni.example")) is Code.WRONG_SIGNER  # it has pinned keys
    assert refused(PROVIDER.key_set(issuer="https://evil.example")) is Code.WRONG_SIGNER
    assert refused(Provider().key_set(), Provider()) is Code.WRONG_SIGNER, "pinned keys have no stewards"


def test_another_document_passed_off_as_a_set() -> None:
    envelope = PROVIDER.key_set().replace(b"issuer-key-set+json", b"federation-root+json")
    assert FEDERATION_ROOT.payload_type.encode() in envelope
    assert refused(envelope) is Code.WRONG_DOCUMENT_KIND
    assert refused(b"{}") is Code.MALFORMED_DOCUMENT
    assert refused(b"") is Code.MALFORMED_DOCUMENT


def test_an_older_set_does_not_come_back_after_a_restart(tmp_path: Path) -> None:
    old, new = PROVIDER.key_set(1, (rsa_jwk("stolen"),)), PROVIDER.key_set(2)
    stolen = jws(ACCESS, access_claims(), "stolen")
    assert at_the_site(KeySets(tmp_path), stolen, (old,)) == "ada-1"
    assert at_the_site(KeySets(tmp_path), TOKEN, (new,)) == "ada-1"
    for offered in ((old,), (old, new), (new, old), ()):
        assert at_the_site(KeySets(tmp_path), stolen, offered) == "token_unknown_issuer"
        assert at_the_site(KeySets(tmp_path), TOKEN, offered) == "ada-1"


def test_two_sets_of_one_version_the_first_that_was_seen_stays(tmp_path: Path) -> None:
    sets = KeySets(tmp_path)
    assert at_the_site(sets, TOKEN, (PROVIDER.key_set(1),)) == "ada-1"
    assert at_the_site(sets, FORGED, (PROVIDER.key_set(1, (rsa_jwk("mallory"),)),)) == "token_unknown_issuer"


def test_a_centre_that_holds_the_next_set_back_stops_runs_and_keeps_no_key_alive(tmp_path: Path) -> None:
    sets = KeySets(tmp_path)
    for days, answer in ((0.0, "ada-1"), (28.0, "token_expired"), (29.0, "issuer_keys_stale")):
        assert at_the_site(sets, TOKEN, (PROVIDER.key_set(),), days) == answer
    assert at_the_site(sets, TOKEN, (PROVIDER.key_set(2, issued=NOW + timedelta(days=30)),)) == "issuer_keys_stale"


def test_a_set_does_not_live_longer_than_some_weeks() -> None:
    with pytest.raises(ValueError, match="35 days"):
        PROVIDER.key_set(days=36)


def test_what_lies_in_the_folder_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "x.dsse").write_bytes(PROVIDER.key_set(jwks=(rsa_jwk("mallory"),), signers=("mallory",)))
    assert at_the_site(KeySets(tmp_path), FORGED) == "issuer_keys_stale"


def test_a_root_takes_keys_from_one_source_only() -> None:
    both = vars(PROVIDER.issuer) | {"keys": (encode_public(key("issuer").public),)}
    with pytest.raises(ValueError, match="exactly one"):
        IssuerKeys(**both)
    with pytest.raises(ValueError, match="exactly one"):
        IssuerKeys(issuer=ISSUER, audience="a", clients=("c",))
    with pytest.raises(ValueError, match="name the clients"):
        IssuerKeys(**{**vars(PROVIDER.issuer), "clients": ()})


def test_a_hand_cannot_make_a_trusted_set() -> None:
    trusted = trust_key_set(PROVIDER.key_set(), PROVIDER.root)
    assert isinstance(trusted, TrustedKeySet)
    with pytest.raises(TypeError):
        TrustedKeySet(trusted.document, trusted.sha256, seal=object())
