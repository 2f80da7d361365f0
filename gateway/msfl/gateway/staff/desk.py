"""Lets staff in: every log-in, failure, lock and change of an account goes through here and into the audit log.

    log in    locked (account, address)? ─ yes ─▶ login_locked, no password is looked at
                │ no: the failure is counted, durably, before the password is looked at
                ▼
              compare, also for a name that is no account ─ wrong ─▶ audit ▸ login_refused
                │ right: the count is taken back
                ▼
              audit ▸ new session ▸ id

Counting first means that guesses made at the same time, or cut short by a kill, have been counted. Wrong name, wrong
password and an account that an administrator locked get one answer, after the same work. A name that is no account is
written nowhere: people type their passwords there. It is counted under a keyed hash, whose key ends with the process.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from msfl.gateway.staff.accounts import Account, Invitation, Role, is_name, weakness
from msfl.gateway.staff.book import Book
from msfl.gateway.staff.lockout import FREE_PER_ACCOUNT, FREE_PER_ADDRESS, Failures, Locked, failed, lock, seen
from msfl.gateway.staff.passwords import Compared, Passwords
from msfl.gateway.staff.sessions import ID_BYTES, Session, key_of, new_id, over, proof_of
from msfl.policies.documents import format_utc
from msfl.policies.refusals import CannotProceed, Code, Refusal, Refused, refuse
from msfl.protos.audit_log import AuditLog

SEEN_EVERY = timedelta(seconds=15)
INVITED_FOR = timedelta(days=1)
CODE_BYTES = 16
_NOBODY = "unknown"
_NO_NAME = "{0!r} is no name of a person: small letters, digits and . _ + @ - between them"
log = structlog.get_logger()


@dataclass(frozen=True)
class Visitor:
    """Somebody with a living session. `session` is its id, as the browser holds it."""

    account: Account
    session: str


class Desk:
    """One per process; its methods may be called by any thread."""

    def __init__(
        self,
        book: Book,
        audit: AuditLog,
        passwords: Passwords,
        site: str,
        clock: Callable[[], datetime],
        random: Callable[[int], bytes],
    ) -> None:
        self._book = book
        self._audit = audit
        self._passwords = passwords
        self._site = site
        self._clock = clock
        self._random = random
        self._key = random(32)
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ log-in

    def log_in(self, name: str, password: str, address: str, before: str = "") -> Visitor | Refusal:
        """`before`: the id that the browser came with; it ends."""
        account = self._proven(name, password, address)
        if isinstance(account, Refusal):
            return account
        if self._passwords.outdated(account.password):
            account = self._rehashed(account, password)
        return self._begin(account, address, before)

    def accept(self, name: str, code: str, new: str, address: str, before: str = "") -> Visitor | Refusal:
        """Set the password that an invitation asks for, and log in. Wrong codes count as wrong passwords do."""
        offered = _code_key(code)

        def compared(account: Account | None) -> Compared:
            held = None if account is None or account.locked else self._book.invitation(account.name)
            good = held is not None and self._clock() < held.until
            return Compared(good and held is not None and hmac.compare_digest(held.code, offered))

        wrong = "Name or code is wrong, or the code was used or is too old."
        account = self._counted(name, address, compared, wrong)
        if isinstance(account, Refusal):
            return account
        if (weak := weakness(new, account.name, self._site)) is not None:
            return weak
        with self._lock:  # Once: of two who come at the same time the second finds none.
            held = self._book.invitation(account.name)
            if held is None or held.code != offered:
                return refuse(Code.LOGIN_REFUSED, wrong)
            self._book.uninvite(account.name)
        return self._begin(self._with_password(account, new, account.name), address, before)

    def _proven(self, name: str, password: str, address: str) -> Account | Refusal:
        def compared(account: Account | None) -> Compared:
            open = account is not None and not account.locked and account.password
            return self._passwords.compare(account.password if account and open else None, password)

        return self._counted(name, address, compared, "Name or password is wrong.")

    def _counted(
        self, name: str, address: str, compare: Callable[[Account | None], Compared], wrong: str
    ) -> Account | Refusal:
        name = name.strip().casefold()
        account = self._book.account(name) if is_name(name) else None
        who = name if account is not None else hmac.new(self._key, name.encode(), hashlib.sha256).hexdigest()
        counted = {f"account {who}": FREE_PER_ACCOUNT, f"address {_network(address)}": FREE_PER_ADDRESS}
        with self._lock:
            now = self._clock()
            self._book.sweep(now)
            if (locked := self._locked(counted, now)) is not None:
                what = f"Too many failed log-ins; locked until {format_utc(_up(locked.until))}."
                return refuse(Code.LOGIN_LOCKED, what, until=format_utc(_up(locked.until)))
            for what in counted:
                self._book.count(what, failed(self._book.failures(what), now))
        found = compare(account)
        if not found.right or account is None:
            self._note_failure(account, address, counted)
            return refuse(Code.LOGIN_REFUSED, wrong)
        with self._lock:
            for what in counted:
                before_it = self._book.failures(what)
                kept = before_it.count - 1 if what.startswith("address ") else 0
                self._book.count(what, replace(before_it, count=kept) if kept > 0 else Failures())
        return account

    def _locked(self, counted: dict[str, int], now: datetime) -> Locked | None:
        """The lock that ends last. Failures that lie in the future, by a clock that went back, are now from now on."""
        locks = []
        for what, free in counted.items():
            failures = self._book.failures(what)
            if (as_seen := seen(failures, now)) != failures:
                self._book.count(what, as_seen)
            locks.append(lock(as_seen, free, now))
        return max((one for one in locks if one is not None), key=lambda one: one.until, default=None)

    def _note_failure(self, account: Account | None, address: str, counted: dict[str, int]) -> None:
        now, who = self._clock(), _NOBODY if account is None else account.name
        fields = {"code": Code.LOGIN_REFUSED.value, "address": address}
        self._audit.write(now, "staff login failed", who, fields)
        with self._lock:
            for what, free in counted.items():
                if (locked := lock(self._book.failures(what), free, now)) is not None:
                    whom = who if what.startswith("account ") else address
                    until = {"code": Code.LOGIN_LOCKED.value, "until": format_utc(_up(locked.until))}
                    self._audit.write(now, "staff login locked", whom, until)
                    log.warning("log-ins are locked", whom=whom, until=until["until"])

    def _rehashed(self, account: Account, password: str) -> Account:
        fresh = replace(account, password=self._passwords.hash(password))
        self._audit.write(self._clock(), "staff password hashed anew", account.name, {})
        self._book.set_password(account, fresh.password)
        return fresh

    def _begin(self, account: Account, address: str, before: str) -> Visitor:
        now, id = self._clock(), new_id(self._random(ID_BYTES))
        key = key_of(id)
        assert key is not None
        self._audit.write(now, "staff logged in", account.name, {"role": account.role.value, "address": address})
        if (old := key_of(before)) is not None:
            self._book.end(old)
        self._book.begin(Session(key, account.name, proof_of(account.password), now, now))
        return Visitor(account, id)

    # ----------------------------------------------------------------- session

    def who(self, id: str) -> Visitor | Refusal:
        """Who comes with this id; each call is a sign of life."""
        key, now = key_of(id), self._clock()
        session = None if key is None else self._book.session(key)
        if session is None:
            return refuse(Code.SESSION_OVER, "You are not logged in.")
        if (why := over(session, now)) is not None:
            self._book.end(session.key)
            return refuse(Code.SESSION_OVER, f"Your session is over: {why}.")
        account = self._book.account(session.account)
        if account is None or account.locked or session.proof != proof_of(account.password):
            self._book.end(session.key)
            return refuse(Code.SESSION_OVER, "Your session is over.")
        if now - session.seen >= SEEN_EVERY:
            self._book.see(session.key, now)
        return Visitor(account, id)

    def log_out(self, visitor: Visitor) -> None:
        self._audit.write(self._clock(), "staff logged out", visitor.account.name, {})
        if (key := key_of(visitor.session)) is not None:
            self._book.end(key)

    def change_own(self, visitor: Visitor, old: str, new: str, address: str) -> Visitor | Refusal:
        """A new password for somebody who knows the old one, who gets a new session; all the others end."""
        name = visitor.account.name
        if (weak := weakness(new, name, self._site)) is not None:
            return weak
        account = self._proven(name, old, address)
        if isinstance(account, Refusal):
            return account
        return self._begin(self._with_password(account, new, name), address, visitor.session)

    def note(self, action: str, object: str, visitor: Visitor, **fields: str) -> None:
        """Before what a visitor asks for is done, or after it was refused."""
        self._audit.write(self._clock(), action, object, {"by": visitor.account.name, **fields})

    def alarm(self, code: Code, address: str) -> None:
        """Somebody without a session was refused, and not for a password."""
        self._audit.write(self._clock(), "staff request refused", _NOBODY, {"code": code.value, "address": address})

    # ------------------------------------------------- who looks after accounts

    def accounts(self) -> tuple[Account, ...]:
        return self._book.accounts()

    def lock_of(self, name: str) -> Locked | None:
        return lock(self._book.failures(f"account {name}"), FREE_PER_ACCOUNT, self._clock())

    def add(self, name: str, role: Role, password: str, by: str) -> None:
        """Raises CannotProceed, Refused."""
        if not is_name(name):
            raise CannotProceed(_NO_NAME.format(name))
        if self._book.account(name) is not None:
            raise CannotProceed(f"there is an account {name}; a new password: msfl gateway account password {name}")
        if (weak := weakness(password, name, self._site)) is not None:
            raise Refused(weak)
        account = Account(name, role, self._passwords.hash(password))
        self._audit.write(self._clock(), "staff account added", name, {"role": role.value, "by": by})
        self._book.add(account)

    def invite(self, name: str, role: Role | None, by: str) -> tuple[str, datetime]:
        """A code with which this person sets a password, once; where there is no such account, it is made with `role`.
        Raises CannotProceed."""
        account = self._book.account(name)
        if account is None and role is None:
            raise CannotProceed(f"there is no account {name}; say which --role it shall have")
        if account is None and not is_name(name):
            raise CannotProceed(_NO_NAME.format(name))
        now, code = self._clock(), self._random(CODE_BYTES).hex()
        self._audit.write(now, "staff invited", name, {"role": role.value if role else "", "by": by})
        if account is None and role is not None:
            self._book.add(Account(name, role, ""))
        self._book.invite(name, Invitation(_code_key(code), now + INVITED_FOR))
        return "-".join(code[n : n + 8] for n in range(0, len(code), 8)), now + INVITED_FOR

    def set_password(self, name: str, password: str, by: str) -> None:
        """Raises CannotProceed, Refused."""
        account = self._known(name)
        if (weak := weakness(password, name, self._site)) is not None:
            raise Refused(weak)
        self._with_password(account, password, by)

    def set_role(self, name: str, role: Role, by: str) -> None:
        self._known(name)
        self._audit.write(self._clock(), "staff account changed", name, {"role": role.value, "by": by})
        self._book.set_role(name, role)

    def lock_account(self, name: str, by: str) -> None:
        self._known(name)
        self._audit.write(self._clock(), "staff account locked", name, {"by": by})
        self._book.set_locked(name, True)
        self._book.end_all(name)

    def unlock_account(self, name: str, by: str) -> None:
        """Whatever it was locked by."""
        self._known(name)
        self._audit.write(self._clock(), "staff account unlocked", name, {"by": by})
        self._book.set_locked(name, False)
        self._book.count(f"account {name}", Failures())

    def unlock_address(self, address: str, by: str) -> None:
        self._audit.write(self._clock(), "staff address unlocked", address, {"by": by})
        self._book.count(f"address {_network(address)}", Failures())

    def remove(self, name: str, by: str) -> None:
        self._known(name)
        self._audit.write(self._clock(), "staff account removed", name, {"by": by})
        self._book.remove(name)
        self._book.uninvite(name)
        self._book.end_all(name)

    def _with_password(self, account: Account, password: str, by: str) -> Account:
        """All its sessions end: each rests on the password that it began with."""
        fresh = replace(account, password=self._passwords.hash(password))
        self._audit.write(self._clock(), "staff password changed", account.name, {"by": by})
        self._book.set_password(account, fresh.password)
        self._book.uninvite(account.name)
        return fresh

    def _known(self, name: str) -> Account:
        if (account := self._book.account(name)) is None:
            raise CannotProceed(f"there is no account {name}; msfl gateway account list shows all")
        return account


def _code_key(code: str) -> str:
    """As it is typed: with blanks or hyphens, in capitals or not."""
    return hashlib.sha256("".join(c for c in code.casefold() if c.isalnum()).encode()).hexdigest()


def _network(address: str) -> str:
    """What failures are counted by: an IPv4 address, or the /64 network that one IPv6 customer has for itself."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "?"
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


def _up(at: datetime) -> datetime:
    """To the next full second: who comes back then finds it open."""
    return at if at.microsecond == 0 else at.replace(microsecond=0) + timedelta(seconds=1)
