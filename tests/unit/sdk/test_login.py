"""Logging in, without a provider: what is asked, what is made of the answers, and what is said when they are bad."""

from __future__ import annotations

import base64
import hashlib
import json
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
import pytest
from typer.testing import CliRunner

from fakes.governance import key
from fakes.oidc import ACCESS, AUDIENCE, CLIENT, ID, ISSUER, access_claims, id_claims, jws, rsa_jwk
from msfl.policies.documents import IssuerKeys
from msfl.policies.encoding import load_json
from msfl.policies.jwk import to_base64url
from msfl.sdk import login, oidc
from msfl.sdk.credentials import Credentials, NotConnected, fresh
from msfl.sdk.credentials import Login as How
from msfl.sdk.oidc import Answer, Application, LoginFailed, Tokens

TOKEN_URL, DEVICE_URL, PAGE = f"{ISSUER}/token", f"{ISSUER}/device", f"{ISSUER}/auth"
KNOWN = f"{ISSUER}/.well-known/openid-configuration"
METADATA = {
    "issuer": ISSUER,
    "token_endpoint": TOKEN_URL,
    "device_authorization_endpoint": DEVICE_URL,
    "authorization_endpoint": PAGE,
    "jwks_uri": f"{ISSUER}/jwks",
    "dpop_signing_alg_values_supported": ["ES256", "EdDSA"],
}
ACCESS_TOKEN = jws(ACCESS, access_claims())
GIVEN: dict[str, Any] = {
    "access_token": ACCESS_TOKEN,
    "id_token": jws(ID, id_claims(ACCESS_TOKEN)),
    "refresh_token": "refresh-1",
    "expires_in": 3600,
}
CODE = {"device_code": "d", "user_code": "ABCD", "verification_uri": f"{ISSUER}/code", "expires_in": 60, "interval": 5}
PENDING, SLOWER = {"error": "authorization_pending"}, {"error": "slow_down"}


class FakeProvider:
    """Answers in the order given, per address; remembers what it was asked."""

    def __init__(self, *tokens: dict[str, Any], **changes: Any) -> None:
        metadata = {k: v for k, v in (METADATA | changes).items() if v is not None}
        self.answers = {KNOWN: [metadata] * 9, TOKEN_URL: list(tokens), DEVICE_URL: [CODE]}
        self.answers[f"{ISSUER}/jwks"] = [{"keys": [rsa_jwk()]}]
        self.asked: list[tuple[str, dict[str, str], dict[str, str]]] = []

    def __call__(self, url: str, form: Mapping[str, str] | None, headers: Mapping[str, str]) -> Answer:
        self.asked.append((url, dict(form or {}), dict(headers)))
        said = dict(self.answers[url].pop(0))
        extra = {"dpop-nonce": "n-1"} if said.get("error") == "use_dpop_nonce" else {}
        return Answer(400 if "error" in said else 200, json.dumps(said).encode(), extra)

    def app(self, **changes: Any) -> Application:
        provider = oidc.discover(ISSUER, self)
        parameters = {"resource": AUDIENCE}
        app = Application(provider, CLIENT, "openid email", parameters, key("ada"), self, clock=lambda: 1000.0)
        return replace(app, **changes)


# ------------------------------------------------------------------------------------------------ a code to type


def test_a_code_is_shown_and_asked_after_ever_more_slowly() -> None:
    provider = FakeProvider(PENDING, SLOWER, PENDING, GIVEN)
    shown: list[tuple[str, str]] = []
    slept: list[float] = []
    tokens = oidc.device_login(provider.app(), lambda *said: shown.append((said[0], said[1])), slept.append)
    assert shown == [(f"{ISSUER}/code", "ABCD")]
    assert slept == [5.0, 5.0, 10.0, 10.0]
    assert tokens == Tokens(ACCESS_TOKEN, GIVEN["id_token"], "refresh-1", 4600.0)
    assert tokens.token == f"{ACCESS_TOKEN}~{GIVEN['id_token']}"
    _, asked, _ = provider.asked[1]
    assert asked["nonce"].startswith(f"msfl.{key('ada').thumbprint}.")
    assert asked["resource"] == AUDIENCE


def test_each_token_request_is_bound_to_the_users_key() -> None:
    provider = FakeProvider({"error": "use_dpop_nonce"}, GIVEN)
    provider.app().now_or_never({"grant_type": "x"})
    proofs = [headers["DPoP"] for url, _, headers in provider.asked if url == TOKEN_URL]
    claims = [jwt.decode(p, key("ada").private.public_key(), ["EdDSA"], options={"verify_iat": False}) for p in proofs]
    assert [c.get("nonce") for c in claims] == [None, "n-1"]
    assert claims[0]["htu"] == TOKEN_URL
    assert claims[0]["jti"] != claims[1]["jti"]
    plain = FakeProvider(GIVEN, dpop_signing_alg_values_supported=["ES256"])
    plain.app().now_or_never({"grant_type": "x"})
    assert "DPoP" not in plain.asked[-1][2]


def test_nobody_types_the_code() -> None:
    moments = iter((1000.0, 1030.0, 1061.0))
    provider = FakeProvider(PENDING, PENDING)
    with pytest.raises(LoginFailed, match="nobody logged in with the code ABCD in time"):
        oidc.device_login(provider.app(clock=lambda: next(moments, 2000.0)), lambda *_: None, lambda _: None)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"error": "access_denied", "error_description": "the end-user aborted"}, "the end-user aborted"),
        ({"error": "expired_token"}, "expired_token"),
        ({"access_token": "opaque"}, "no access token that others can verify"),
        ({}, "no access token that others can verify"),
    ],
)
def test_what_the_provider_says_is_said(answer: dict[str, Any], said: str) -> None:
    with pytest.raises(LoginFailed, match=said):
        oidc.device_login(FakeProvider(answer).app(), lambda *_: None, lambda _: None)


# --------------------------------------------------------------------------------------------------- the browser


def browse(provider: FakeProvider, **changes: str) -> tuple[Tokens, dict[str, str]]:
    """The page that opens answers at once, after somebody else has knocked at the port; `changes` to its answer."""
    asked: dict[str, str] = {}
    visits: list[Thread] = []

    def visit() -> None:
        answer = {"code": "c-1", "state": asked["state"], "iss": ISSUER} | changes
        for query in ({"code": "forged", "state": "x"}, {}, {k: v for k, v in answer.items() if v}):
            with urllib.request.urlopen(f"{asked['redirect_uri']}?{urlencode(query)}", timeout=5) as page:
                page.read()

    def open_page(address: str) -> None:
        asked.update({k: v[0] for k, v in parse_qs(urlsplit(address).query).items()})
        visits.append(Thread(target=visit))
        visits[0].start()

    try:
        return oidc.browser_login(provider.app(), open_page), asked
    finally:
        visits[0].join()


def test_the_browser_comes_back_with_a_code_that_only_we_can_use() -> None:
    provider = FakeProvider(GIVEN)
    tokens, asked = browse(provider)
    assert tokens.access_token == ACCESS_TOKEN
    assert asked["redirect_uri"].startswith("http://127.0.0.1:")
    assert (asked["code_challenge_method"], asked["response_type"]) == ("S256", "code")
    _, form, _ = provider.asked[-1]
    assert form["code"] == "c-1", "what came without our state was not listened to"
    assert to_base64url(hashlib.sha256(form["code_verifier"].encode()).digest()) == asked["code_challenge"]


def test_a_page_of_another_provider_or_a_refusal() -> None:
    with pytest.raises(LoginFailed, match=r"came from https://evil\.example"):
        browse(FakeProvider(), iss="https://evil.example")
    with pytest.raises(LoginFailed, match="access_denied"):
        browse(FakeProvider(), error="access_denied")
    with pytest.raises(LoginFailed, match="nobody logged in"):
        oidc.browser_login(FakeProvider().app(), lambda _: None, timeout_s=0.0)


def test_a_way_that_the_provider_does_not_have() -> None:
    with pytest.raises(LoginFailed, match="--browser"):
        oidc.device_login(FakeProvider(device_authorization_endpoint=None).app(), lambda *_: None, lambda _: None)
    with pytest.raises(LoginFailed, match="no login page"):
        oidc.browser_login(FakeProvider(authorization_endpoint=None).app(), lambda _: None)


# ------------------------------------------------------------------------------------------- machines and renewal


def test_a_machine_shows_its_secret_to_the_token_endpoint_only() -> None:
    provider = FakeProvider({"access_token": ACCESS_TOKEN})
    tokens = oidc.client_credentials(provider.app(client_id="ro bot", secret="s:ecret"))
    assert (tokens.token, tokens.refresh_token) == (ACCESS_TOKEN, "")
    url, form, headers = provider.asked[-1]
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"ro%20bot:s%3Aecret"
    assert form == {"grant_type": "client_credentials", "resource": AUDIENCE}
    assert url == TOKEN_URL


def credentials(**changes: Any) -> Credentials:
    how = How(ISSUER, CLIENT, "openid email", {"resource": AUDIENCE}, "person", "refresh-0", expires=1000.0)
    pem = key("ada").to_pem().decode()
    return Credentials("fl.example:443", "CA", "old", pem, "ada@uni.example", replace(how, **changes))


def test_a_token_is_renewed_a_minute_before_it_expires() -> None:
    provider = FakeProvider(GIVEN)
    living = credentials()
    assert fresh(living, 939.0, provider) is living
    renewed = fresh(living, 941.0, provider)
    assert renewed.token.startswith(ACCESS_TOKEN)
    assert renewed.login is not None
    assert renewed.login.refresh_token == "refresh-1"
    assert provider.asked[-1][1]["refresh_token"] == "refresh-0"
    assert renewed.bound
    embedded = replace(living, login=None)
    assert fresh(embedded, 9e9, provider) is embedded


def test_a_provider_that_gives_no_new_refresh_token_leaves_the_old_one() -> None:
    renewed = fresh(credentials(), 1000.0, FakeProvider({**GIVEN, "refresh_token": ""}))
    assert renewed.login is not None
    assert renewed.login.refresh_token == "refresh-0"


def test_a_token_that_cannot_be_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSFL_CLIENT_SECRET", raising=False)
    with pytest.raises(NotConnected, match="no refresh token; run `msfl login` again"):
        fresh(credentials(refresh_token=""), 1000.0, FakeProvider())
    with pytest.raises(NotConnected, match="MSFL_CLIENT_SECRET is not set"):
        fresh(credentials(way="machine"), 1000.0, FakeProvider())
    with pytest.raises(NotConnected, match="invalid_grant"):
        fresh(credentials(), 1000.0, FakeProvider({"error": "invalid_grant"}))


# --------------------------------------------------------------------------------------- discovery and the wire


def test_a_provider_that_calls_itself_otherwise_is_not_asked() -> None:
    for changes in ({"issuer": "https://evil.example"}, {"issuer": ISSUER + "/"}, {"token_endpoint": None}):
        with pytest.raises(LoginFailed):
            FakeProvider(**changes).app()


@pytest.mark.parametrize("url", ["http://idp.uni.example/", "ftp://idp.uni.example/", "file:///etc/passwd", "idp", ""])
def test_a_provider_is_asked_over_https_only(url: str) -> None:
    with pytest.raises(LoginFailed, match="https only"):
        oidc.https(url, None, {})


def test_a_provider_that_is_not_there() -> None:
    with pytest.raises(LoginFailed, match=r"127\.0\.0\.1:1 does not answer"):
        oidc.https("http://127.0.0.1:1/", None, {})


# ------------------------------------------------------------------------------------------------------ the files


def test_credentials_are_for_their_owner_only_and_come_back(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "credentials.json"
    file.parent.mkdir()
    file.write_text("{}")
    file.chmod(0o644)
    credentials().write(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert Credentials.read(file) == credentials()
    assert list(file.parent.iterdir()) == [file]
    for broken in ("{}", "[]", '{"login": {}}', "x"):
        file.write_text(broken)
        with pytest.raises(NotConnected, match="msfl login"):
            Credentials.read(file)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"endpoint": "x"}'])
def test_a_welcome_file_that_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "welcome.json"
    file.write_text(text)
    with pytest.raises(LoginFailed, match="welcome file"):
        login.login(file, out=tmp_path / "credentials.json", issuer_key=None, ca=None)
    assert not (tmp_path / "credentials.json").exists()


def test_a_login_that_binds_nothing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = jws(ACCESS, access_claims(cnf=None))
    monkeypatch.setattr(oidc, "https", FakeProvider({"access_token": bare}))
    monkeypatch.setenv("MSFL_CLIENT_ID", "robot")
    monkeypatch.setenv("MSFL_CLIENT_SECRET", "secret")
    welcome = {"endpoint": "fl:443", "ca": "CA", "issuer": ISSUER, "client_id": CLIENT, "scope": "", "parameters": {}}
    file = tmp_path / "welcome.json"
    file.write_text(json.dumps(welcome))
    login.login(file, machine=True, out=tmp_path / "c.json", issuer_key=None, ca=None)
    assert "did not bind the token" in " ".join(capsys.readouterr().out.split())
    made = Credentials.read(tmp_path / "c.json")
    assert not made.bound
    assert made.user == "ada-1"
    assert "secret" not in (tmp_path / "c.json").read_text()


def test_the_keys_of_a_provider_are_read_at_the_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "https", FakeProvider())
    shown = CliRunner().invoke(login.issuer_app, ["show", ISSUER, "--audience", AUDIENCE, "--client", CLIENT])
    entry = load_json(shown.stdout.encode(), IssuerKeys, "entry")
    assert [jwk.model_dump(exclude_none=True) for jwk in entry.jwks] == [rsa_jwk()]


def test_a_second_steward_signs_only_the_same_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "keys.dsse"

    def sign(steward: str, version: int = 1) -> Any:
        (tmp_path / "key.pem").write_bytes(key(steward).to_pem())
        monkeypatch.setattr(oidc, "https", provider)
        options = ["--federation", "msfl-test", "--version", str(version), "--key", str(tmp_path / "key.pem")]
        return CliRunner().invoke(login.issuer_app, ["sign", ISSUER, *options, "--out", str(out)])

    provider = FakeProvider()
    assert sign("stella").exit_code == 0
    provider = FakeProvider()
    assert sign("stig").exit_code == 0
    assert out.read_bytes().count(b"keyid") == 2
    before = out.read_bytes()
    provider = FakeProvider()
    provider.answers[f"{ISSUER}/jwks"] = [{"keys": [rsa_jwk("mallory")]}]
    assert "compare them before you sign" in str(sign("stan").exception)
    provider = FakeProvider()
    assert "compare them" in str(sign("stan", version=2).exception)
    assert out.read_bytes() == before
