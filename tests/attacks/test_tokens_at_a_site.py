"""Attacks 18 and 20 where they count: the centre carries a token that it should not have taken, and the site looks for
itself. Nothing starts, nothing leaves, and the code stands in the site's audit log.

`test_token_forgery`, `test_oidc_tokens` and `test_invented_user` show each disguise to the pure rules; here it comes
with an offer.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fakes.governance import AUDIENCE, ISSUER, NOW, key
from fakes.governed_sites import JOB, GovernedSite, OfferedSite, later, must_be_refused
from fakes.oidc import ACCESS, ID, Provider, access_claims, b64, id_claims, jws, rsa, rsa_jwk
from msfl.policies.encoding import encode
from msfl.policies.envelope import FEDERATION_ROOT, sign
from msfl.policies.identity import mint_token, sign_job
from msfl.protos.messages import TrustPapers

SPEC = encode(JOB)


def bound_to(name: str | None, now: Any = NOW, issuer: str = "issuer", audience: str = AUDIENCE) -> str:
    jkt = key(name).thumbprint if name else None
    return mint_token(key(issuer), ISSUER, audience, "user-1", "ada@uni.example", "uni.example", jkt, now)


# ----------------------------------------------------------------------------------------- 18: somebody else's


@pytest.mark.parametrize(
    ("token", "proof", "code"),
    [
        (bound_to("ada"), "", "proof_required"),
        (bound_to("ada"), sign_job(SPEC, key("mallory")), "proof_other_key"),
        (bound_to("ada"), sign_job(SPEC, key("ada"), dry_run=True), "proof_invalid"),
        (bound_to("ada"), sign_job(SPEC + b" ", key("ada")), "proof_invalid"),
        (bound_to(None), sign_job(SPEC, key("mallory")), "proof_other_key"),
        (bound_to(None), "", "proof_required"),
        (bound_to("mallory"), sign_job(SPEC, key("ada")), "proof_other_key"),
    ],
    ids=["bare", "another key's", "to ask only", "another job's", "of no key", "of no key, bare", "rebound"],
)
def test_a_stolen_token(tmp_path: Path, token: str, proof: str, code: str) -> None:
    must_be_refused(OfferedSite(tmp_path).told(token=token, proof=proof), code)


def test_a_job_that_ran_once_is_not_run_again_under_another_name(site: GovernedSite) -> None:
    """The centre has the token and the signature of the first run."""
    assert site.offer("run-1") == "allow"
    site.offer("run-2", nonce=json.loads(site.offered.spec)["nonce"])
    assert site.audited("run decided")[-1] == "job_replayed"
    site.nothing_started("job_replayed")


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (bound_to("ada", issuer="mallory"), "token_unknown_issuer"),
        (bound_to("ada", audience="another-federation"), "token_wrong_audience"),
        (bound_to("ada", NOW - timedelta(hours=9)), "token_expired"),
        (bound_to("ada", NOW + timedelta(hours=1)), "token_invalid"),
        ("", "token_invalid"),
    ],
    ids=["another issuer's", "for another service", "expired", "from the future", "none"],
)
def test_a_token_of_the_embedded_issuers_kind(tmp_path: Path, token: str, code: str) -> None:
    must_be_refused(OfferedSite(tmp_path).told(token=token), code)


# --------------------------------------------------------------------------------------- 20: no token of anybody


def unsigned(**header: Any) -> str:
    body = f"{b64(json.dumps({**ACCESS, **header}).encode())}.{b64(json.dumps(access_claims()).encode())}"
    return body + "."


def hmac_with_the_public_key() -> str:
    body = unsigned(alg="HS256")[:-1]
    pem = rsa("idp").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return f"{body}.{b64(hmac.new(pem, body.encode(), hashlib.sha256).digest())}"


def id_token() -> str:
    return jws(ID, id_claims("x", aud="https://fl.example/msfl", client_id="msfl"))


JWK = {"kty": "RSA", "n": rsa_jwk("mallory")["n"], "e": "AQAB"}
FORGED: dict[str, tuple[Callable[[], str], str]] = {
    "none": (lambda: unsigned(alg="none"), "token_invalid"),
    "HS256 with the public key": (hmac_with_the_public_key, "token_invalid"),
    "jwk in the header": (lambda: jws(ACCESS | {"jwk": JWK}, access_claims(), "mallory"), "token_invalid"),
    "jku": (lambda: jws(ACCESS | {"jku": "https://evil.example"}, access_claims(), "mallory"), "token_invalid"),
    "x5u": (lambda: jws(ACCESS | {"x5u": "https://evil.example"}, access_claims(), "mallory"), "token_invalid"),
    "kid traversal": (
        lambda: jws(ACCESS | {"kid": "../../../etc/passwd"}, access_claims(), "mallory"),
        "token_unknown_issuer",
    ),
    "iss": (lambda: jws(ACCESS, access_claims(iss="https://evil.example")), "token_unknown_issuer"),
    "aud": (lambda: jws(ACCESS, access_claims(aud="another")), "token_wrong_audience"),
    "two audiences": (
        lambda: jws(ACCESS, access_claims(aud=["https://fl.example/msfl", "another"])),
        "token_wrong_audience",
    ),
    "another client's": (lambda: jws(ACCESS, access_claims(client_id="another-app")), "token_wrong_client"),
    "an ID token": (id_token, "token_invalid"),
    "expired": (lambda: jws(ACCESS, access_claims(exp=int(NOW.timestamp()))), "token_expired"),
}


def with_provider(site: GovernedSite, provider: Provider, *key_sets: bytes) -> None:
    """The federation takes the provider into its root."""
    root = later(site.root, issuers=(provider.issuer,))
    listed = site.revocations(1)
    envelope = sign(encode(root), FEDERATION_ROOT, [key("otto")])
    assert site.hear(TrustPapers((envelope,), listed, site.timestamp(listed, 2, root=root))) == []
    found = site.standing.federation_root(site.now)
    assert found.document == root  # type: ignore[union-attr]
    site.home.key_sets.take(key_sets, found)  # type: ignore[arg-type]


def offered_with(site: GovernedSite, monkeypatch: pytest.MonkeyPatch, token: str, run: str = "run-1") -> str:
    monkeypatch.setattr(site, "token", token)
    return site.offer(run)


HONEST = jws(ACCESS, access_claims(email="ada@uni.example"))


def test_the_providers_own_token_lets_a_run_in(site: GovernedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    with_provider(site, Provider())
    assert offered_with(site, monkeypatch, HONEST) == "allow"


@pytest.mark.parametrize("name", FORGED)
def test_a_token_of_an_openid_provider(site: GovernedSite, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make, code = FORGED[name]
    with_provider(site, Provider())
    assert offered_with(site, monkeypatch, make()) == code
    site.nothing_started(code)


def test_keys_that_were_rotated_away_and_an_outage(site: GovernedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider's keys come through stewards. An old key is gone with the next set; without a set in force nobody
    is believed."""
    provider = Provider(stewards=("stella",))
    stolen = jws(ACCESS, access_claims(email="ada@uni.example"), "stolen")
    old, new = provider.key_set(1, (rsa_jwk("stolen"),)), provider.key_set(2)
    with_provider(site, provider)
    assert offered_with(site, monkeypatch, HONEST, "run-1") == "issuer_keys_stale"
    site.nothing_started("issuer_keys_stale")
    root = site.standing.federation_root(site.now)
    for sets in ((old,), (new,), (old,)):
        site.home.key_sets.take(sets, root)  # type: ignore[arg-type]
    assert offered_with(site, monkeypatch, stolen, "run-2") == "token_unknown_issuer"
    site.nothing_started("token_unknown_issuer")
    assert offered_with(site, monkeypatch, HONEST, "run-3") == "allow"
