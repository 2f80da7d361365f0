"""Who the user is: where the federation is, whom to trust there, the token, and the key the token is bound to.

One JSON file, mode 0600, at `MSFL_CREDENTIALS` or `~/.config/msfl/credentials.json`; `msfl login` writes it. The key is
made on the user's machine and signs every job, so that a stolen token alone submits nothing where sites ask for proof.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from msfl.policies.keys import KeyPair
from msfl.policies.refusals import CannotProceed


class NotConnected(CannotProceed):
    """No usable credentials, or the orchestrator does not answer. The message says what to do."""


@dataclass(frozen=True)
class Credentials:
    """`endpoint`: host:port; `ca`: PEM of the federation's own CA; `key`: PEM of the user's Ed25519 key."""

    endpoint: str
    ca: str
    token: str
    key: str
    user: str

    @classmethod
    def default_file(cls) -> Path:
        named = os.environ.get("MSFL_CREDENTIALS")
        return Path(named) if named else Path.home() / ".config" / "msfl" / "credentials.json"

    @classmethod
    def read(cls, file: Path | None = None) -> Credentials:
        """Raises NotConnected."""
        file = file or cls.default_file()
        try:
            return cls(**json.loads(file.read_text()))
        except FileNotFoundError as error:
            raise NotConnected(f"there are no credentials at {file}: run `msfl login` first") from error
        except (ValueError, TypeError) as error:
            raise NotConnected(f"the credentials at {file} cannot be read: run `msfl login` again") from error

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as target:
            json.dump(asdict(self), target, indent=1)

    @property
    def key_pair(self) -> KeyPair:
        return KeyPair.from_pem(self.key.encode())
