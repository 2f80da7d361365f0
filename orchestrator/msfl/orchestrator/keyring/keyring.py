"""What the keyring does, in one process, under one lock: issue tokens, enrol sites once, renew their certificates, hand
run keys over.

    folder (0700)   ca.key, ca.pem            the CA
                    centre.key                X25519, HPKE: run secrets are wrapped to it
                    tokens/<id>.json          secrets until it is used, site, expiry, addresses; then `used_at`
                    sites/<site>.json         the site's symmetric key, addresses, certificates in force and revoked
                    frozen/<site>.json        since when, why and by whom a site is frozen; there is none for the others
                    audit/                    the keyring's own hash-chained log (`msfl.protos.audit_log`)

Every act stands in the log before it is done: keyring made, token made and used, certificate issued and renewed, site
frozen and unfrozen, run keys handed over. No secret does; a certificate is named by `channel.key_sha256`. What cannot
be written down is not done (OSError). Refusals change nothing and are not in it: who asks from the network must not be
able to fill the disk.

A token is consumed, durably, before its certificate is returned: of two racing redemptions exactly one wins, and a
crash in between costs a token, never gives two certificates. Whoever shows the secret of a used token has a copy of it,
and nobody can tell which of the two is the site: the site is frozen until the operator has asked and lifts it. Without
the secret a second use is refused and recorded, no more; else anybody who reads a log could freeze a site.

    member ── token used a second time, or the operator ──▶ frozen ── the operator ──▶ member

A frozen site's certificates are refused at every call (`doors/admission.py`), it gets no new one by renewal, and no run
key of it is handed over. The same, and no token either, holds for a site that the federation's list revokes, for good:
the keyring reads the list by itself (`trust`), it does not take the orchestrator's word. An enrolment, the first or
`again`, revokes every certificate of the site before it. The token's symmetric key takes the place of the one before.
Where a member enrols `again`, its home at hand, the old one serves for `KEY_OVERLAP` beside it, so that its running
runs go on; else it is gone.

Honest limit: whoever owns this process and the orchestrator's store can read single updates. Secure aggregation is
the answer to that, and a later one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import TypeAdapter

from msfl.orchestrator.keyring.authority import (
    BadRequest,
    create_ca,
    federation_of,
    issue_server,
    renewing_site,
    sign_site,
)
from msfl.policies.documents import Slug, format_utc
from msfl.policies.encoding import sha256_of
from msfl.policies.refusals import Code, Refused, refuse
from msfl.policies.trust import NOTHING_REVOKED, Revoked
from msfl.protos.audit_log import LOG_NAME, AuditLog
from msfl.protos.channel import inside, key_sha256
from msfl.protos.durable_files import sync_folder, write_durably
from msfl.protos.notary import Notary, Shown
from msfl.protos.only_one import only_one
from msfl.protos.registration import RegistrationToken, proof
from msfl.protos.sealing import EVERYBODY, MIN_SITES, SealBroken, centre_key, run_key, seal_to, unwrap_run_secret

MAX_TOKEN_LIFE = timedelta(hours=72)
KEY_OVERLAP = timedelta(days=14)  # A run lasts days, and what is left of one that failed is kept for a week.
# A site's name becomes a file's name and a certificate's; whoever asks for another one gets neither.
_SITE: TypeAdapter[str] = TypeAdapter(Slug)
_SAFE_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")


@dataclass(frozen=True)
class Enrolled:
    certificate_pem: bytes


@dataclass(frozen=True)
class EnrolmentRefusal:
    """`code`: unknown_token, token_used, token_expired, address_not_allowed, bad_proof, bad_csr, not_enrolled,
    site_frozen, site_revoked, certificate_revoked."""

    code: str
    message: str


@dataclass(frozen=True)
class Freeze:
    """`at`: Unix time."""

    at: int
    why: str
    by: str


@dataclass(frozen=True)
class SiteStanding:
    """What a door must know of a member. `revoked`: certificates, by `channel.key_sha256`; `cidrs`: where it may call
    from, as its token said."""

    cidrs: tuple[str, ...]
    revoked: frozenset[str] = frozenset()
    frozen: Freeze | None = None


class SecretUnusable(Exception):
    """What a site sent as its run secret cannot be used; `site` names it."""

    def __init__(self, site: str, why: str) -> None:
        super().__init__(f"{site}: {why}")
        self.site = site


class Keyring:
    def __init__(self, folder: Path, revoked: Callable[[], Revoked] = lambda: NOTHING_REVOKED) -> None:
        """`revoked`: by the federation's list, as it is now."""
        self._folder = folder
        self._revoked = revoked
        self._notary: Notary | None = None
        self._lock = threading.Lock()
        self._known: dict[str, SiteStanding] | None = None

    @classmethod
    def create(cls, folder: Path, federation: str, now: datetime) -> Keyring:
        """Make every key. Raises FileExistsError rather than make them anew."""
        for name in ("", "tokens", "sites", "frozen"):
            (folder / name).mkdir(parents=True, mode=0o700, exist_ok=True)
        if (folder / "ca.key").exists():
            raise FileExistsError(f"{folder} holds a keyring already")
        key, certificate = create_ca(federation, now)
        write_durably(folder / "ca.pem", certificate)
        write_durably(folder / "centre.key", X25519PrivateKey.generate().private_bytes_raw())
        keyring = cls(folder)
        keyring._say(now, "keyring made", federation, {"ca": key_sha256(certificate)})
        write_durably(folder / "ca.key", key)
        return keyring

    @property
    def ca_pem(self) -> bytes:
        return (self._folder / "ca.pem").read_bytes()

    @property
    def _ca_sha256(self) -> str:
        return hashlib.sha256(self.ca_pem).hexdigest()

    def server_certificate(self, hosts: tuple[str, ...], now: datetime) -> tuple[bytes, bytes]:
        """The orchestrator's key and certificate, PEM."""
        with self._lock:
            key, certificate = issue_server((self._folder / "ca.key").read_bytes(), self.ca_pem, hosts, now)
            fields = {"names": ", ".join(hosts), **_named(certificate)}
            self._say(now, "server certificate issued", self.federation, fields)
        return key, certificate

    # ------------------------------------------------------------------ the log

    @cached_property
    def federation(self) -> str:
        return federation_of(self.ca_pem)

    @cached_property
    def audit(self) -> AuditLog:
        """Raises AuditBroken. One process at a time may write: whoever acts `holds` the folder."""
        return AuditLog(self._folder / "audit" / LOG_NAME, f"keyring {self.federation}")

    def witnessed(self, clock: Callable[[], datetime]) -> Shown:
        """The log as it stands, signed with its own key, for the orchestrator to keep. Raises OSError."""
        with self._lock:
            if self._notary is None:
                self._notary = Notary(self.audit, self._folder / "audit", keyring_log(self.federation), clock)
            return self._notary.show()

    def _say(self, now: datetime, action: str, object: str, fields: Mapping[str, str]) -> None:
        self.audit.write(now, action, object, fields)

    # ------------------------------------------------------------------ tokens

    def issue_token(
        self,
        *,
        federation: str,
        site: str,
        endpoint: str,
        link_endpoint: str,
        registry: str,
        federation_root_sha256: str,
        life: timedelta,
        cidrs: tuple[str, ...],
        now: datetime,
    ) -> RegistrationToken:
        """Raises ValueError for a life over 72 h, or a site name or an address range that is none; Refused for a site
        that is revoked."""
        _SITE.validate_python(site)
        if site in self._revoked().sites:
            raise Refused(refuse(Code.SITE_REVOKED, f"The site {site} is revoked.", site=site))
        if not timedelta(0) < life <= MAX_TOKEN_LIFE:
            raise ValueError(f"a registration token lives at most {MAX_TOKEN_LIFE}")
        for cidr in cidrs:
            ipaddress.ip_network(cidr)
        with self._lock:
            token = RegistrationToken(
                federation=federation,
                site=site,
                endpoint=endpoint,
                link_endpoint=link_endpoint,
                registry=registry,
                ca_certificate=self.ca_pem.decode(),
                token_id=secrets.token_hex(8),
                secret=secrets.token_bytes(32),
                site_key=secrets.token_bytes(32),
                centre_public_key=self._centre().public_key().public_bytes_raw(),
                federation_root_sha256=federation_root_sha256,
                expires=int((now + life).timestamp()),
                allowed_cidrs=cidrs,
            )
            fields = {"site": site, "expires": format_utc(now + life), "addresses": ", ".join(cidrs)}
            self._say(now, "token made", token.token_id, fields)
            self._put(
                "tokens",
                token.token_id,
                {
                    "site": site,
                    "secret": _text(token.secret),
                    "site_key": _text(token.site_key),
                    "expires": token.expires,
                    "cidrs": list(cidrs),
                    "used_at": None,
                    "refused_uses": 0,
                },
            )
        return token

    def enrol(
        self,
        *,
        token_id: str,
        csr_pem: bytes,
        nonce: bytes,
        proof_: bytes,
        peer_ip: str,
        now: datetime,
        again: bool = False,
    ) -> Enrolled | EnrolmentRefusal:
        with self._lock:
            kept = self._get("tokens", token_id)
            if kept is None:
                return EnrolmentRefusal("unknown_token", "no such registration token: ask the operator for a new one")
            expected = proof(base64.b64decode(kept["secret"]), csr_pem, self._ca_sha256, nonce)
            shown = hmac.compare_digest(expected, proof_)
            if kept["used_at"] is not None:
                kept["refused_uses"] += 1
                self._put("tokens", token_id, kept)
                if shown:
                    self._freeze(kept["site"], f"token {token_id} was used a second time, from {peer_ip}", "", now)
                    what = (
                        f"this token was used before, so {kept['site']} is frozen: its gateway is refused until the "
                        f"operator ends that with `msfl orchestrator site unfreeze {kept['site']} --by NAME`. If the "
                        "first time was not you, tell the operator so"
                    )
                    return EnrolmentRefusal("token_used", what)
                return EnrolmentRefusal("token_used", "this token was used before: ask the operator for a new one")
            if not shown:
                return EnrolmentRefusal("bad_proof", "whoever asks does not hold this token")
            if now.timestamp() >= kept["expires"]:
                return EnrolmentRefusal("token_expired", "the token has expired: ask the operator for a new one")
            if not inside(peer_ip, kept["cidrs"]):
                return EnrolmentRefusal("address_not_allowed", f"{peer_ip} is outside {', '.join(kept['cidrs'])}")
            if kept["site"] in self._revoked().sites:
                return _site_revoked(kept["site"])
            before = self._get("sites", kept["site"])
            member = before if again else None
            if again and member is None:
                return EnrolmentRefusal("not_enrolled", f"{kept['site']} is no member yet: enrol in an empty folder")
            try:
                key = (self._folder / "ca.key").read_bytes()
                certificate = sign_site(key, self.ca_pem, csr_pem, kept["site"], now)
            except BadRequest as error:
                return EnrolmentRefusal("bad_csr", str(error))
            at = int(now.timestamp())
            older = {} if member is None else _in_force(member, "older_keys", at)
            if member is not None:
                older |= {member["site_key"]: at + int(KEY_OVERLAP.total_seconds())}
            issued, revoked = _in_force(before, "issued", at), _in_force(before, "revoked", at)
            self._say(now, "token used", token_id, {"site": kept["site"], "from": peer_ip})
            fields = {
                **_named(certificate),
                "revokes": " ".join(issued),
                "site_key": "new" if before is None else "replaced" if member is None else "replaced, overlaps",
            }
            self._say(now, "certificate issued", kept["site"], fields)
            # The secret stays, to tell who shows it a second time; it opens nothing any more.
            self._put("tokens", token_id, kept | {"used_at": at, "site_key": ""})
            site = {
                "site_key": kept["site_key"],
                "older_keys": older,
                "enrolled_at": at,
                "cidrs": kept["cidrs"],
                "issued": _and_this({}, certificate),
                "revoked": revoked | issued,
            }
            self._put("sites", kept["site"], site)
            return Enrolled(certificate)

    def renew(
        self, *, certificate_pem: bytes, csr_pem: bytes, proof: bytes, now: datetime
    ) -> Enrolled | EnrolmentRefusal:
        """A new certificate for the member that `certificate_pem`, the one in use, names and whose key made `proof`.

        Nothing that the orchestrator says of the asker is believed.
        """
        with self._lock:
            try:
                site = renewing_site(self.ca_pem, certificate_pem, csr_pem, proof, now)
                member = self._get("sites", site)
                if member is None:
                    return EnrolmentRefusal("not_enrolled", f"{site} is no member of this federation (any more)")
                revoked, shown = self._revoked(), key_sha256(certificate_pem)
                if site in revoked.sites:
                    return _site_revoked(site)
                if (frozen := self._get("frozen", site)) is not None:
                    return EnrolmentRefusal("site_frozen", f"{site} is frozen ({frozen['why']}): ask the operator")
                if shown in member["revoked"]:
                    return EnrolmentRefusal(
                        "certificate_revoked", f"{site} has enrolled anew since it got this certificate"
                    )
                if shown in revoked.keys:
                    what = f"the key that {site} uses is revoked: msfl gateway enrol --again"
                    return EnrolmentRefusal("certificate_revoked", what)
                certificate = sign_site((self._folder / "ca.key").read_bytes(), self.ca_pem, csr_pem, site, now)
            except BadRequest as error:
                return EnrolmentRefusal("bad_csr", str(error))
            at = int(now.timestamp())
            self._say(now, "certificate renewed", site, {**_named(certificate), "signed_with": shown})
            # The old one goes on serving until it expires: channels are open with it.
            issued = _and_this(_in_force(member, "issued", at), certificate)
            self._put("sites", site, member | {"renewed_at": at, "issued": issued})
            return Enrolled(certificate)

    def sites(self) -> dict[str, int]:
        """Members, and when each got its latest certificate, Unix time."""
        with self._lock:
            kept = self._all("sites")
        return {site: int(member.get("renewed_at", member["enrolled_at"])) for site, member in kept.items()}

    # ------------------------------------------------------------------ freezing

    def freeze(self, site: str, why: str, by: str, now: datetime) -> bool:
        """False when there is neither a member nor a frozen site of this name. The first reason stays."""
        with self._lock:
            if self._get("sites", site) is None and self._get("frozen", site) is None:
                return False
            self._freeze(site, why, by, now)
        return True

    def _freeze(self, site: str, why: str, by: str, now: datetime) -> None:
        if self._get("frozen", site) is None:
            self._say(now, "site frozen", site, {"why": why, "by": by})
            self._put("frozen", site, {"at": int(now.timestamp()), "why": why, "by": by})

    def unfreeze(self, site: str, by: str, now: datetime) -> bool:
        """False when it was not frozen."""
        with self._lock:
            if self._get("frozen", site) is None:
                return False
            self._say(now, "site unfrozen", site, {"by": by})
            _remove(self._folder / "frozen" / f"{site}.json")
            self._known = None
        return True

    def standings(self) -> dict[str, SiteStanding]:
        """Every member, and every site that is frozen without being one."""
        self._revoked()  # Asked each second: a list that lies there only for a while is heard, too.
        with self._lock:
            if self._known is None:
                frozen = {site: Freeze(**kept) for site, kept in self._all("frozen").items()}
                known = {site: SiteStanding((), frozenset(), freeze) for site, freeze in frozen.items()}
                for site, member in self._all("sites").items():
                    revoked = frozenset(member["revoked"])
                    known[site] = SiteStanding(tuple(member["cidrs"]), revoked, frozen.get(site))
                self._known = known
            return self._known

    # -------------------------------------------------------------------- runs

    def hand_over(
        self,
        run_id: str,
        wrapped: Mapping[str, bytes],
        aggregator_public: bytes,
        now: datetime,
        earlier: str = "",
        min_sites: int = 0,
    ) -> bytes:
        """The run's site keys, and its key for what goes to all, in a box for the aggregator.

        `earlier`: a run whose model this one starts from; the key of what went to all in that run comes along.
        `min_sites`: of the job; it comes along, and a site's secret opens only where the site has read the same.
        Raises SecretUnusable for the first site whose secret is, ValueError for a number that is none.
        """
        if not 0 <= min_sites < 1 << 32:
            raise ValueError(f"{min_sites} is no number of sites")
        revoked = self._revoked().sites
        with self._lock:
            private = self._centre().private_bytes_raw()
            keys = {EVERYBODY: _text(centre_key(private, run_id))}
            if min_sites:
                keys[MIN_SITES] = _text(min_sites.to_bytes(4, "big"))
            if earlier:
                keys[f"{EVERYBODY}@{earlier}"] = _text(centre_key(private, earlier))
            for site, box in wrapped.items():
                kept = self._get("sites", site)
                if kept is None:
                    raise SecretUnusable(site, "the site was never enrolled")
                if site in revoked:
                    raise SecretUnusable(site, "the site is revoked")
                if self._get("frozen", site) is not None:
                    raise SecretUnusable(site, "the site is frozen")
                in_force = (kept["site_key"], *_in_force(kept, "older_keys", int(now.timestamp())))
                site_keys = [base64.b64decode(k) for k in in_force]
                keys[site] = _text(_run_key(private, box, run_id, site, site_keys, min_sites))
            fields = {"sites": " ".join(sorted(wrapped)), "earlier": earlier, "to": sha256_of(aggregator_public)}
            fields["min_sites"] = str(min_sites or "")
            self._say(now, "run keys handed over", run_id, {k: v for k, v in fields.items() if v})
        info = b"msfl/aggregator-keys/v1|" + run_id.encode()
        return seal_to(aggregator_public, json.dumps(keys).encode(), info)

    # -------------------------------------------------------------------- files

    def _centre(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes((self._folder / "centre.key").read_bytes())

    def _get(self, kind: str, name: str) -> dict[str, Any] | None:
        # Names come from the network.
        if len(name) > 64 or not _SAFE_NAME.fullmatch(name):
            return None
        file = self._folder / kind / f"{name}.json"
        if not file.exists():
            return None
        return dict(json.loads(file.read_text()))

    def _all(self, kind: str) -> dict[str, dict[str, Any]]:
        return {f.stem: json.loads(f.read_text()) for f in sorted((self._folder / kind).glob("*.json"))}

    def _put(self, kind: str, name: str, value: dict[str, Any]) -> None:
        self._known = None
        write_durably(self._folder / kind / f"{name}.json", json.dumps(value, indent=1).encode())


def _site_revoked(site: str) -> EnrolmentRefusal:
    return EnrolmentRefusal(Code.SITE_REVOKED.value, f"{site} is revoked by the federation's keepers, for good")


def _run_key(private: bytes, box: bytes, run_id: str, site: str, site_keys: list[bytes], min_sites: int) -> bytes:
    """Raises SecretUnusable: the box was made for none of the site's keys in force, or for another number of sites, or
    is no box of this run. A box of an earlier gateway is for no number: whoever else made one knows no site's key."""
    for site_key in site_keys:
        for least in dict.fromkeys((min_sites, 0)):
            try:
                secret = unwrap_run_secret(private, box, run_id, site, site_key, least)
            except SealBroken:
                continue
            return run_key(secret, site_key, run_id, site)
    raise SecretUnusable(site, f"the box does not open with any of the site's {len(site_keys)} keys")


def keyring_log(federation: str) -> str:
    """The name of its log, beside `centre:…` and `site:…`."""
    return f"keyring:{federation}"


def held(folder: Path) -> AbstractContextManager[None]:
    """Nobody else acts with this keyring meanwhile. Raises RuntimeError when somebody does already."""
    return only_one(folder, RuntimeError(f"another keyring serves {folder}: stop that one first"))


def _named(certificate_pem: bytes) -> dict[str, str]:
    until = x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc
    return {"key": key_sha256(certificate_pem), "until": format_utc(until)}


def _in_force(member: dict[str, Any] | None, which: str, at: int) -> dict[str, int]:
    """What has not expired of `issued` or `revoked` certificates (by `key_sha256`), or of `older_keys`."""
    return {} if member is None else {key: until for key, until in member[which].items() if until > at}


def _and_this(issued: dict[str, int], certificate_pem: bytes) -> dict[str, int]:
    until = x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc
    return issued | {key_sha256(certificate_pem): int(until.timestamp())}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _remove(file: Path) -> None:
    """Durably."""
    file.unlink()
    sync_folder(file.parent)
