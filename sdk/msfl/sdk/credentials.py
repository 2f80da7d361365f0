"""Who the user is: where the federation is, whom to trust there, the token, and the key the token is bound to.

One JSON file, mode 0600, at `MSFL_CREDENTIALS` or `~/.config/msfl/credentials.json`; `msfl login` writes it. The key is
made on the user's machine and signs every call and every job, so that a stolen token alone opens nothing.

Where an identity provider gave the token, `login` says which one and how, so that `fresh` can get the next one: with
the refresh token of a person, or with the secret of a machine (`MSFL_CLIENT_SECRET`, never in the file).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from msfl.policies.keys import KeyPair
from msfl.policies.refusals import CannotProceed
from msfl.sdk import oidc
from msfl.sdk.oidc import Application, Http, LoginFailed, Tokens

# A token that is about to expire may do so before the last gateway has looked at it.
RENEW_BEFORE_S = 60.0


class NotConnected(CannotProceed):
    """No usable credentials, or the orchestrator does not answer. The message says what to do."""


@dataclass(frozen=True)
class Login:
    """How the token was got. `way`: `person` or `machine`; `expires`: Unix time in seconds."""

    issuer: str
    client_id: str
    scope: str
    parameters: Mapping[str, str]
    way: str
    refresh_token: str = ""
    expires: float = 0.0


@dataclass(frozen=True)
class Credentials:
    """`endpoint`: host:port; `ca`: PEM of the federation's own CA; `key`: PEM of the user's Ed25519 key.

    `login` is None for a token of the embedded issuer, which is for one machine only."""

    endpoint: str
    ca: str
    token: str
    key: str
    user: str
    login: Login | None = field(default=None)

    @classmethod
    def default_file(cls) -> Path:
        named = os.environ.get("MSFL_CREDENTIALS")
        return Path(named) if named else Path.home() / ".config" / "msfl" / "credentials.json"

    @classmethod
    def read(cls, file: Path | None = None) -> Credentials:
        """Raises NotConnected."""
        file = file or cls.default_file()
        try:
            raw = json.loads(file.read_text())
            login = raw.pop("login", None)
            return cls(**raw, login=None if login is None else Login(**login))
        except FileNotFoundError as error:
            raise NotConnected(f"there are no credentials at {file}: run `msfl login` first") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise NotConnected(f"the credentials at {file} cannot be read: run `msfl login` again") from error

    def write(self, file: Path) -> None:
        """For this user only, whatever lay there before; whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as target:
            json.dump(asdict(self), target, indent=1)
        temporary.replace(file)

    @property
    def key_pair(self) -> KeyPair:
        return KeyPair.from_pem(self.key.encode())

    @property
    def bound(self) -> bool:
        """Whether the token says that it is bound to the key; a bare bearer token is not, and has nothing signed."""
        return oidc.said_in(self.token).get("jkt") == self.key_pair.thumbprint

    def expiring(self, now: float) -> bool:
        """`now`: Unix time in seconds. A token of the embedded issuer is not renewed."""
        return self.login is not None and now >= self.login.expires - RENEW_BEFORE_S

    def with_tokens(self, tokens: Tokens) -> Credentials:
        assert self.login is not None
        login = replace(self.login, refresh_token=tokens.refresh_token, expires=tokens.expires)
        return replace(self, token=tokens.token, login=login)


def fresh(credentials: Credentials, now: float, http: Http = oidc.https) -> Credentials:
    """The same credentials while their token lives, else with a new one. Raises NotConnected."""
    login = credentials.login
    if login is None or not credentials.expiring(now):
        return credentials
    try:
        return credentials.with_tokens(_renewed(credentials, login, http))
    except LoginFailed as error:
        raise NotConnected(f"your token has expired and cannot be renewed: {error}; run `msfl login` again") from error


def _renewed(credentials: Credentials, login: Login, http: Http) -> Tokens:
    if login.way == "person" and not login.refresh_token:
        raise LoginFailed("the identity provider gave no refresh token")
    secret = os.environ.get("MSFL_CLIENT_SECRET", "") if login.way == "machine" else ""
    if login.way == "machine" and not secret:
        raise LoginFailed("MSFL_CLIENT_SECRET is not set")
    app = Application(
        provider=oidc.discover(login.issuer, http),
        client_id=login.client_id,
        scope=login.scope,
        parameters=login.parameters,
        key=credentials.key_pair,
        http=http,
        secret=secret,
    )
    if login.way == "machine":
        return oidc.client_credentials(app)
    return oidc.refresh(app, Tokens("", "", login.refresh_token, login.expires))


Renew = Callable[[Credentials, float], Credentials]
