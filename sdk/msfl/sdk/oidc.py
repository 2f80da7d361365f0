"""OpenID Connect from the user's side: what `msfl login` and a client that is refreshed say to an identity provider.

    discover          issuer ▸ Provider: its endpoints, named by itself under its own name, over TLS
    DeviceLogin       a code to type on any device with a browser (RFC 8628): terminals, notebooks on a cluster
    BrowserLogin      the browser on this machine: authorization code, PKCE S256, loopback redirect (RFC 8252)
    client_credentials, refresh

Every login asks for a token bound to the user's own key: by a DPoP proof (RFC 9449) at the token endpoint where the
provider says that it knows DPoP with EdDSA, and always by the nonce in the ID token. Gateways verify the binding.
Answers are small JSON over verified TLS, or over plain HTTP to this very machine; redirects are not followed.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import jwt

from msfl.policies.identity import NONCE_PREFIX, nonce_for
from msfl.policies.jwk import base64url, to_base64url
from msfl.policies.keys import KeyPair
from msfl.policies.refusals import CannotProceed, JsonObject

MAX_ANSWER_BYTES = 1 << 20
HTTP_TIMEOUT_S = 20.0
LOGIN_TIMEOUT_S = 300.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_WELL_KNOWN = "/.well-known/openid-configuration"


class LoginFailed(CannotProceed):
    """The identity provider said no, or cannot be asked. The message says what it said and what to do."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self, url: str) -> JsonObject:
        """Raises LoginFailed."""
        try:
            value = json.loads(self.body)
        except ValueError as error:
            raise LoginFailed(f"{url} answered with something else than JSON (HTTP {self.status})") from error
        if not isinstance(value, dict):
            raise LoginFailed(f"{url} answered with something else than a JSON object (HTTP {self.status})")
        return value


class Http(Protocol):
    """One request, one answer. Raises LoginFailed when there is none."""

    def __call__(self, url: str, form: Mapping[str, str] | None, headers: Mapping[str, str]) -> Answer: ...


@dataclass(frozen=True)
class Tokens:
    """`id_token` and `refresh_token` are empty where the provider gave none; `expires` is Unix time in seconds."""

    access_token: str
    id_token: str
    refresh_token: str
    expires: float

    @property
    def token(self) -> str:
        """As orchestrator and gateways take it."""
        return f"{self.access_token}~{self.id_token}" if self.id_token else self.access_token


@dataclass(frozen=True)
class Provider:
    """What a provider says of itself. Endpoints are empty where it has none."""

    issuer: str
    token_endpoint: str
    authorization_endpoint: str
    device_endpoint: str
    jwks_uri: str
    dpop: bool


def discover(issuer: str, http: Http) -> Provider:
    """Raises LoginFailed."""
    url = issuer.rstrip("/") + _WELL_KNOWN
    said = _good(http(url, None, {}), url)
    if said.get("issuer") != issuer:
        raise LoginFailed(f"{url} says it is {said.get('issuer')!r}; the federation names {issuer!r}")
    found = Provider(
        issuer=issuer,
        token_endpoint=str(said.get("token_endpoint", "")),
        authorization_endpoint=str(said.get("authorization_endpoint", "")),
        device_endpoint=str(said.get("device_authorization_endpoint", "")),
        jwks_uri=str(said.get("jwks_uri", "")),
        dpop="EdDSA" in said.get("dpop_signing_alg_values_supported", ()),
    )
    if not found.token_endpoint or not found.jwks_uri:
        raise LoginFailed(f"{url} names no token endpoint or no keys: is it an OpenID provider?")
    return found


@dataclass(frozen=True)
class Application:
    """Who asks the provider, and for what. `secret` is empty for people's terminals and notebooks."""

    provider: Provider
    client_id: str
    scope: str
    parameters: Mapping[str, str]
    key: KeyPair
    http: Http
    secret: str = ""
    clock: Callable[[], float] = time.time

    def token(self, form: Mapping[str, str]) -> tuple[Tokens | None, str]:
        """The tokens, or the provider's error code of a login that is not over. Raises LoginFailed."""
        url = self.provider.token_endpoint
        body = {**form} if self.secret else {**form, "client_id": self.client_id}
        answer = self.http(url, body, self._headers(url, ""))
        said = answer.json(url)
        if said.get("error") == "use_dpop_nonce":
            answer = self.http(url, body, self._headers(url, answer.headers.get("dpop-nonce", "")))
            said = answer.json(url)
        if said.get("error") in ("authorization_pending", "slow_down"):
            return None, str(said["error"])
        said = _good(answer, url)
        access = said.get("access_token")
        if not isinstance(access, str) or access.count(".") != 2:
            raise LoginFailed(
                f"{url} gave no access token that others can verify; ask its administrator for signed ones (at+jwt) "
                "for this federation's audience"
            )
        lives = said.get("expires_in", 300)
        expires = self.clock() + (float(lives) if isinstance(lives, int | float) else 300.0)
        identity, refresh = str(said.get("id_token", "")), str(said.get("refresh_token", ""))
        return Tokens(access, identity, refresh, expires), ""

    def now_or_never(self, form: Mapping[str, str]) -> Tokens:
        """Raises LoginFailed."""
        tokens, pending = self.token(form)
        if tokens is None:
            raise LoginFailed(f"the identity provider answered {pending} where it should have given a token")
        return tokens

    def nonce(self) -> str:
        return nonce_for(self.key.thumbprint, secrets.token_urlsafe(16))

    def _headers(self, url: str, nonce: str) -> dict[str, str]:
        headers = {}
        if self.secret:
            pair = f"{quote(self.client_id, safe='')}:{quote(self.secret, safe='')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        if self.provider.dpop:
            headers["DPoP"] = _dpop(self.key, url, nonce, self.clock())
        return headers


def said_in(token: str) -> JsonObject:
    """What a token says of its holder, for the holder: nothing here is verified. `email` or `sub` name the user; `jkt`
    is the thumbprint of the key it is bound to, and missing from a bare bearer token."""
    said: JsonObject = {}
    for part in token.split("~"):
        payload = base64url(part.split(".")[1]) if part.count(".") == 2 else None
        try:
            claims = json.loads(payload or b"{}")
        except ValueError:
            continue
        said |= claims if isinstance(claims, dict) else {}
    nonce, bound = str(said.get("nonce", "")), said.get("cnf")
    jkt = bound.get("jkt") if isinstance(bound, dict) else None
    if jkt is None and nonce.startswith(NONCE_PREFIX):
        jkt = nonce.removeprefix(NONCE_PREFIX).partition(".")[0]
    return said if jkt is None else said | {"jkt": str(jkt)}


def client_credentials(app: Application) -> Tokens:
    """For machines. Raises LoginFailed."""
    scope = " ".join(s for s in app.scope.split() if s not in ("openid", "email", "offline_access"))
    form = {"grant_type": "client_credentials", **app.parameters} | ({"scope": scope} if scope else {})
    return app.now_or_never(form)


def refresh(app: Application, tokens: Tokens) -> Tokens:
    """New tokens for the old ones. Raises LoginFailed."""
    form = {"grant_type": "refresh_token", "refresh_token": tokens.refresh_token, **app.parameters}
    new = app.now_or_never(form)
    return replace(new, refresh_token=new.refresh_token or tokens.refresh_token)


def device_login(app: Application, show: Callable[[str, str], None], sleep: Callable[[float], None]) -> Tokens:
    """`show(address, code)` tells the user where to go and what to type. Raises LoginFailed."""
    url = app.provider.device_endpoint
    if not url:
        raise LoginFailed(f"{app.provider.issuer} knows no device codes; use msfl login --browser")
    form = {"client_id": app.client_id, "scope": app.scope, "nonce": app.nonce(), **app.parameters}
    said = _good(app.http(url, form, {}), url)
    try:
        code, shown = str(said["device_code"]), str(said["user_code"])
        where = str(said.get("verification_uri_complete") or said["verification_uri"])
        ends, pause = app.clock() + float(said["expires_in"]), float(said.get("interval", 5))
    except (KeyError, TypeError, ValueError) as error:
        raise LoginFailed(f"{url} did not answer with a device code") from error
    show(where, shown)
    while app.clock() < ends:
        sleep(pause)
        tokens, pending = app.token({"grant_type": _DEVICE_GRANT, "device_code": code, **app.parameters})
        if tokens is not None:
            return tokens
        pause += 5.0 if pending == "slow_down" else 0.0
    raise LoginFailed(f"nobody logged in with the code {shown} in time: begin again")


def browser_login(app: Application, open_page: Callable[[str], object], timeout_s: float = LOGIN_TIMEOUT_S) -> Tokens:
    """`open_page` is given the provider's address; the answer comes to a port of this machine. Raises LoginFailed."""
    if not app.provider.authorization_endpoint:
        raise LoginFailed(f"{app.provider.issuer} has no login page; use msfl login without --browser")
    state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
    with HTTPServer(("127.0.0.1", 0), _Redirected) as server:
        redirect = f"http://127.0.0.1:{server.server_port}/"
        asked = {
            "response_type": "code",
            "client_id": app.client_id,
            "redirect_uri": redirect,
            "scope": app.scope,
            "state": state,
            "nonce": app.nonce(),
            "code_challenge": to_base64url(hashlib.sha256(verifier.encode()).digest()),
            "code_challenge_method": "S256",
            # A refresh token is given to whoever was asked, not to whoever was logged in before.
            **({"prompt": "consent"} if "offline_access" in app.scope.split() else {}),
            **app.parameters,
        }
        joint = "&" if "?" in app.provider.authorization_endpoint else "?"
        open_page(f"{app.provider.authorization_endpoint}{joint}{urlencode(asked)}")
        said = _redirect(server, state, timeout_s)
    if "error" in said:
        raise LoginFailed(f"the identity provider said no: {said.get('error_description') or said['error']}")
    if said.get("iss", app.provider.issuer) != app.provider.issuer:
        raise LoginFailed(f"the answer came from {said['iss']}, not from {app.provider.issuer}: begin again")
    form = {"grant_type": "authorization_code", "code": said.get("code", ""), "redirect_uri": redirect}
    return app.now_or_never({**form, "code_verifier": verifier, **app.parameters})


class _Redirected(BaseHTTPRequestHandler):
    """The page that the provider sends the browser to. It keeps the query and says that one may close it."""

    timeout = 10

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        self.server.query = dict(parse_qsl(address.query)) if address.path == "/" else {}  # type: ignore[attr-defined]
        body = b"You may close this page and go back to msfl."
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the address holds the code


def _redirect(server: HTTPServer, state: str, timeout_s: float) -> dict[str, str]:
    """The first answer that belongs to this login; whatever else calls the port is not listened to."""
    ends = time.monotonic() + timeout_s
    while (left := ends - time.monotonic()) > 0:
        server.timeout = left
        server.query = {}  # type: ignore[attr-defined]
        server.handle_request()
        said: dict[str, str] = server.query  # type: ignore[attr-defined]
        if secrets.compare_digest(said.get("state", "").encode(), state.encode()):
            return said
    raise LoginFailed("nobody logged in within five minutes: begin again, or log in without --browser")


def _dpop(key: KeyPair, url: str, nonce: str, now: float) -> str:
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": to_base64url(key.public)}
    claims = {"jti": secrets.token_urlsafe(16), "htm": "POST", "htu": url, "iat": int(now)}
    claims |= {"nonce": nonce} if nonce else {}
    return jwt.encode(claims, key.private, "EdDSA", {"typ": "dpop+jwt", "jwk": jwk})


def _good(answer: Answer, url: str) -> JsonObject:
    """Raises LoginFailed with what the provider said."""
    said = answer.json(url) if answer.body else {}
    if answer.status == 200:
        return said
    why = said.get("error_description") or said.get("error") or f"HTTP {answer.status}"
    raise LoginFailed(f"the identity provider said no: {why} ({url})")


def https(url: str, form: Mapping[str, str] | None, headers: Mapping[str, str]) -> Answer:
    """The Http that people use. Raises LoginFailed."""
    address = urlsplit(url)
    host, plain = address.hostname or "", address.scheme == "http"
    if address.scheme not in ("https", "http") or not host or (plain and host not in _LOOPBACK):
        raise LoginFailed(f"{url}: an identity provider is asked over https only")
    target = (address.path or "/") + (f"?{address.query}" if address.query else "")
    line: http.client.HTTPConnection
    if plain:
        line = http.client.HTTPConnection(host, address.port, timeout=HTTP_TIMEOUT_S)
    else:
        context = ssl.create_default_context()
        line = http.client.HTTPSConnection(host, address.port, timeout=HTTP_TIMEOUT_S, context=context)
    sent = {"Accept": "application/json", **headers}
    body = None
    if form is not None:
        body, sent["Content-Type"] = urlencode(form), "application/x-www-form-urlencoded"
    try:
        line.request("GET" if form is None else "POST", target, body, sent)
        response = line.getresponse()
        data = response.read(MAX_ANSWER_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise LoginFailed(f"the identity provider at {address.netloc} does not answer: {error}") from error
    finally:
        line.close()
    if len(data) > MAX_ANSWER_BYTES:
        raise LoginFailed(f"{url} answered with more than {MAX_ANSWER_BYTES} bytes")
    return Answer(response.status, data, {k.lower(): v for k, v in response.getheaders()})
