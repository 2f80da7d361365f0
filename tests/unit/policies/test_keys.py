"""Keys: ids and thumbprints that others compute alike, and files that open only with their passphrase."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fakes.governance import key
from msfl.policies.keys import BadKey, KeyPair, decode_public, encode_public, key_id, thumbprint

RFC8037_X = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


def test_the_thumbprint_is_that_of_rfc_8037_appendix_a3() -> None:
    assert thumbprint(RFC8037_X) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_the_key_id_is_the_hash_of_the_canonical_spki() -> None:
    spki = bytes.fromhex("302a300506032b6570032100") + RFC8037_X
    assert key_id(RFC8037_X) == hashlib.sha256(spki).hexdigest()


def test_a_seed_gives_the_key_of_rfc_8032() -> None:
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    assert KeyPair.from_seed(seed).public == RFC8037_X


def test_a_key_file_opens_with_its_passphrase_only() -> None:
    pair = key("cleo")
    assert KeyPair.from_pem(pair.to_pem()).id == pair.id
    sealed = pair.to_pem(b"correct horse")
    assert KeyPair.from_pem(sealed, b"correct horse").id == pair.id
    for passphrase in (None, b"wrong"):
        with pytest.raises(BadKey):
            KeyPair.from_pem(sealed, passphrase)


def test_another_kind_of_key_is_refused() -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(BadKey, match="not an Ed25519"):
        KeyPair.from_pem(pem)
    with pytest.raises(BadKey):
        KeyPair.from_pem(b"not a key")


def test_a_public_key_has_one_spelling() -> None:
    text = encode_public(RFC8037_X)
    assert decode_public(text) == RFC8037_X
    for other in (text.rstrip("="), text + "\n", text.replace("=", "A="), encode_public(RFC8037_X[:31]), "ä" * 44):
        with pytest.raises(BadKey):
            decode_public(other)
