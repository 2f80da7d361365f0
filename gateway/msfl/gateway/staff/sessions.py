"""Sessions at a site's page. Pure; the random bytes are an argument.

    log-in ─▶ a new id of 256 random bits, in a cookie; kept is its SHA-256 alone ─▶ over:
        logged out ▸ 15 min without a request ▸ 8 h after the log-in ▸ a new password ▸ the account locked or removed
        ▸ the clock went back behind its beginning

An id that a browser brings to the log-in is never used on: whoever planted it holds nothing (session fixation). Every
form carries `csrf_token`, derived from the id: another page cannot know it, and it is over when the session is.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

IDLE, LIFE = timedelta(minutes=15), timedelta(hours=8)
LEEWAY = timedelta(minutes=1)
ID_BYTES = 32
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Session:
    """`key` is what is kept of the id. `proof` names the password that was given. `seen`: the latest request."""

    key: str
    account: str
    proof: str
    begun: datetime
    seen: datetime


def new_id(random: bytes) -> str:
    assert len(random) == ID_BYTES
    return random.hex()


def key_of(id: str) -> str | None:
    """None for what is no id of ours."""
    return hashlib.sha256(id.encode()).hexdigest() if _ID.fullmatch(id) else None


def proof_of(password_hash: str) -> str:
    """With another password, or the same one set again, it is another."""
    return hashlib.sha256(password_hash.encode()).hexdigest()


def csrf_token(id: str) -> str:
    return hmac.new(bytes.fromhex(id), b"msfl/page/form/v1", hashlib.sha256).hexdigest()


def fits(id: str, token: str) -> bool:
    return hmac.compare_digest(csrf_token(id).encode(), token.encode())


def over(session: Session, now: datetime) -> str | None:
    """Why it is over, in words; None while it lives."""
    if now < session.begun - LEEWAY:
        return "the clock was set back"
    if now - session.begun >= LIFE:
        return f"it is more than {LIFE.total_seconds() / 3600:.0f} hours since you logged in"
    if now - session.seen >= IDLE:
        return f"nothing was done for {IDLE.total_seconds() / 60:.0f} minutes"
    return None
