"""The primitives under everything that is sealed or signed, against the vectors of their standards; what they must
refuse; and our own construction, frozen: a file that was sealed once must open for ever.

    HKDF RFC 5869   HPKE RFC 9180, A.1.1   AES-256-GCM McGrew and Viega, case 16   Ed25519 RFC 8032, 7.1
"""

from __future__ import annotations

import hashlib
import io

import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from msfl.policies.keys import KeyPair
from msfl.protos.sealing import (
    CHUNK,
    SealBroken,
    StreamHeader,
    broadcast_key,
    centre_key,
    open_sealed,
    open_with,
    run_key,
    seal,
    unwrap_run_secret,
)

hexed = bytes.fromhex


@pytest.mark.parametrize(
    ("key", "salt", "info", "out"),
    [
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        ("0b" * 22, "", "", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
    ],
)
def test_hkdf_sha256(key: str, salt: str, info: str, out: str) -> None:
    derived = HKDF(SHA256(), len(hexed(out)), salt=hexed(salt), info=hexed(info)).derive(hexed(key))
    assert derived.hex() == out


GCM_KEY = hexed("feffe9928665731c6d6a8f9467308308" * 2)
GCM_IV = hexed("cafebabefacedbaddecaf888")
GCM_AAD = hexed("feedfacedeadbeeffeedfacedeadbeefabaddad2")
GCM_PLAIN = hexed(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
)
GCM_SEALED = hexed(
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b"
)


def test_aes_256_gcm() -> None:
    assert AESGCM(GCM_KEY).encrypt(GCM_IV, GCM_PLAIN, GCM_AAD) == GCM_SEALED
    assert AESGCM(GCM_KEY).decrypt(GCM_IV, GCM_SEALED, GCM_AAD) == GCM_PLAIN


def test_aes_256_gcm_refuses_every_flipped_bit_of_tag_and_text_and_a_short_tag() -> None:
    for place in range(len(GCM_SEALED) * 8):
        flipped = bytearray(GCM_SEALED)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(InvalidTag):
            AESGCM(GCM_KEY).decrypt(GCM_IV, bytes(flipped), GCM_AAD)
    for short in range(1, 16):
        with pytest.raises(InvalidTag):
            AESGCM(GCM_KEY).decrypt(GCM_IV, GCM_SEALED[:-short], GCM_AAD)


ED25519 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe"
        "24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302a"
        "eeb00d291612bb0c00",
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), ED25519)
def test_ed25519(seed: str, public: str, message: str, signature: str) -> None:
    assert KeyPair.from_seed(hexed(seed)).public.hex() == public
    assert Ed25519PrivateKey.from_private_bytes(hexed(seed)).sign(hexed(message)).hex() == signature
    Ed25519PublicKey.from_public_bytes(hexed(public)).verify(hexed(signature), hexed(message))


def test_ed25519_refuses_a_second_spelling_of_a_signature() -> None:
    # S and S + L satisfy the same equation; RFC 8032 wants S < L.
    _, public, message, signature = ED25519[1]
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(hexed(signature)[32:], "little") + order
    twin = hexed(signature)[:32] + s.to_bytes(32, "little")
    verifier = Ed25519PublicKey.from_public_bytes(hexed(public))
    for bad in (twin, hexed(signature)[:-1], hexed(signature) + b"\0", bytes(64), b""):
        with pytest.raises(InvalidSignature):
            verifier.verify(bad, hexed(message))


def test_hpke() -> None:
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
    private = X25519PrivateKey.from_private_bytes(
        hexed("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")
    )
    # The interface has no room for associated data, so the vector's text is sealed with its key and nonce without any.
    key, nonce = hexed("4531685d41d65f03dc48f6b8302c05b0"), hexed("56d890e5accaaf011cff4b7d")
    plain = hexed("4265617574792069732074727574682c20747275746820626561757479")
    sent = hexed("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431")
    theirs = hexed("f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a")
    assert AESGCM(key).encrypt(nonce, plain, b"Count-0") == theirs
    sealed = sent + AESGCM(key).encrypt(nonce, plain, b"")
    assert suite.decrypt(sealed, private, info=b"Ode on a Grecian Urn") == plain


@pytest.mark.parametrize(
    "point",
    [
        "00" * 32,
        "01" + "00" * 31,
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ],
)
def test_a_box_from_a_point_of_small_order_does_not_open(point: str) -> None:
    with pytest.raises(SealBroken):
        open_with(bytes([7]) * 32, hexed(point) + bytes(48), b"info")


# ---------------------------------------------------------------------- our own, frozen

KEY, SALT_ = bytes(range(32)), bytes(range(32, 64))
HEADER = StreamHeader("run-7", "train/3", 3, "site-a", 1, "up", "result")


def sealed(n: int) -> bytes:
    out = io.BytesIO()
    seal(KEY, HEADER, [bytes(i % 251 for i in range(n))], out, salt=SALT_)
    return out.getvalue()


def test_a_sealed_file_of_before_is_sealed_and_opened_the_same_way() -> None:
    small = hexed(
        "000000717b226172746966616374223a22726573756c74222c22617474656d7074223a312c22646972656374696f6e223a227570"
        "222c22726f756e64223a332c2272756e5f6964223a2272756e2d37222c2273697465223a22736974652d61222c227461736b5f69"
        "64223a22747261696e2f33227d202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f4062ee67754b48"
        "cee3ec8d04024d922fe413c7fe75"
    )
    assert sealed(5) == small
    out = io.BytesIO()
    assert open_sealed(KEY, HEADER, io.BytesIO(small), out) == 5
    assert out.getvalue() == bytes(range(5))


@pytest.mark.parametrize(
    ("n", "sha256"),
    [
        (0, "8a257a364d4e99507cac629f55e1aeeba3c6e91bd6d7e7e9258399fd6c9b0907"),
        (CHUNK, "8093e16cf337cea53e6cc24b979a5db7eb4c3924e7a36389c7ef2d3ad0f9b605"),
        (CHUNK + 1, "65c5ef569aca40c1bb969c32fb90b7bb63fa2d3a090b7e00f6c73c381bc48971"),
    ],
)
def test_where_chunks_end_is_frozen(n: int, sha256: str) -> None:
    assert hashlib.sha256(sealed(n)).hexdigest() == sha256


def test_keys_are_derived_as_before() -> None:
    one, two, seven = bytes([1]) * 32, bytes([2]) * 32, bytes([7]) * 32
    assert run_key(one, two, "run-7", "site-a").hex() == (
        "1e69d594cc6468a5535259ca1a950d5a615dad75e7215ffd670c9df92013935a"
    )
    centre = centre_key(seven, "run-7")
    assert centre.hex() == "c5da31d004677304962a672fdc204526c598bab16065559560934c72df3cfed9"
    assert broadcast_key(centre, HEADER).hex() == ("26e8925aa89140d19352bada7448ea0ff401cd0bb3781b7119b44a98d9cd7c7e")


def test_a_run_secret_of_before_is_unwrapped() -> None:
    wrapped = hexed(
        "858bc40e332e23e790750059eb4bb3b8eda6996f0cfbde89fea7286fa5247f04b534233544ad8abb9075a5dda94f6aa36c761725"
        "a3946d114d4956af742ea2dc8da528502d258f68e9208b4d9f3ab8fa"
    )
    assert unwrap_run_secret(bytes([7]) * 32, wrapped, "run-7", "site-a", bytes([2]) * 32) == bytes([1]) * 32
