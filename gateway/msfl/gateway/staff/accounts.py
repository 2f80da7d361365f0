"""Who may log in at a site's page, and which passwords are taken. Pure.

    role         may
    viewer       see what runs, what waits, which policies are in force, and what has left
    custodian    the same; stop a run, keep a waiting one away. Only while the site root in force names this person

There is no account until `msfl gateway account add` made one, no password that came with the software, and no account
that can confirm a run: that takes a custodian's key, which no browser holds.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError
from zxcvbn import zxcvbn

from msfl.policies.documents import Person
from msfl.policies.refusals import Code, Refusal, refuse

SHORTEST, LONGEST = 12, 128
GUESSABLE = 3  # zxcvbn's estimate: below it, fewer than 10^8 guesses find the password
_ESTIMATED = 72  # the estimate of a longer text takes seconds, and its beginning is enough
_PERSON = TypeAdapter[str](Person)


class Role(StrEnum):
    CUSTODIAN = "custodian"
    VIEWER = "viewer"


@dataclass(frozen=True)
class Account:
    """`password` is an argon2id hash with its parameters; empty until the person has set one, and then nobody logs in.
    `locked`: by an administrator, until it is lifted."""

    name: str
    role: Role
    password: str
    locked: bool = False


@dataclass(frozen=True)
class Invitation:
    """To set a password once, before `until`, with a code of 128 random bits; `code` is the SHA-256 of it."""

    code: str
    until: datetime


def is_name(text: str) -> bool:
    """Whether it is a person's name as in a site root."""
    try:
        _PERSON.validate_python(text)
    except ValidationError:
        return False
    return True


def normal(password: str) -> str:
    """The same password on every keyboard (NFKC, as NIST SP 800-63B 5.1.1.2 asks for)."""
    return unicodedata.normalize("NFKC", password)


def weakness(password: str, name: str, site: str) -> Refusal | None:
    """Why a password is not taken; nothing of it is in the answer."""
    password = normal(password)
    if len(password) < SHORTEST:
        return refuse(Code.PASSWORD_WEAK, f"The password has fewer than {SHORTEST} characters.")
    if len(password) > LONGEST:
        return Refusal(Code.PASSWORD_WEAK, f"The password has more than {LONGEST} characters. Choose a shorter one.")
    for whose, words in (("your name", _parts(name)), ("the site's name", _parts(site)), ("msfl", {"msfl"})):
        if any(word in _letters(password) for word in words):
            return refuse(Code.PASSWORD_WEAK, f"The password contains {whose}.")
    if zxcvbn(password[:_ESTIMATED], user_inputs=[name, site])["score"] < GUESSABLE:
        return refuse(Code.PASSWORD_WEAK, "The password is well known or easily guessed.")
    return None


def _parts(name: str) -> set[str]:
    """`cleo.stein@uni.example`: cleosteinuniexample, cleo, stein, example."""
    words = "".join(c if c.isalnum() else " " for c in name.casefold()).split()
    return {_letters(name), *(word for word in words if len(word) > 3)}


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())
