"""The site's certificate while the gateway serves: renewed in time, taken up when it changes, named once expired.

    every second    identity.pem is another one than the line was dialled with ─▶ dial with it, runs go on
                    less than a third of its life left ─▶ new key ─▶ Renew ─▶ fits? ─▶ audit ▸ write (▸ dial)
    line down       expired? one clear line, once per certificate

An open connection outlives its certificate: TLS looks at it only when a connection is made. So a run goes on, and a
site whose line is cut after that is silent until staff bring a new registration token (`msfl gateway enrol --again`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import grpc
import structlog

from msfl.gateway.home import Home, NoIdentity
from msfl.gateway.link import LineDown, Link, NotWanted
from msfl.protos.audit_log import AuditLog
from msfl.protos.certificates import CertificateFacts, Identity, certificate_facts, renewal_due, sign_renewal, unfit
from msfl.protos.channel import dial, make_csr
from msfl.protos.health import span

log = structlog.get_logger()


def dial_as(home: Home) -> grpc.Channel:
    """A channel to the orchestrator with the certificate that is in the home now."""
    identity = home.identity()
    return dial(home.settings().link_endpoint, home.ca_pem, identity.key_pem, identity.certificate_pem)


def expired_remedy(site: str) -> str:
    return (
        f"ask the operator for a new registration token (msfl orchestrator token create {site}), "
        "then: msfl gateway enrol --again FILE --home HOME"
    )


class Membership:
    """Made once the line is dialled; `look_after` and `say_if_expired` may be called by different threads."""

    def __init__(self, home: Home, link: Link, audit: AuditLog, clock: Callable[[], datetime]) -> None:
        self._home = home
        self._site = home.settings().site
        self._link = link
        self._audit = audit
        self._clock = clock
        self._last_try: float | None = None
        self._expiry_said: datetime | None = None
        self._passed_over: Identity | None = None
        self._use(home.identity())

    def _use(self, identity: Identity) -> None:
        self._identity = identity
        self._facts: CertificateFacts = certificate_facts(identity.certificate_pem, self._home.ca_pem)

    def look_after(self) -> None:
        try:
            found = self._home.identity()
        except NoIdentity as error:
            log.error("the line goes on with the certificate it has", site=self._site, why=str(error))
            return
        if found not in (self._identity, self._passed_over):
            self._take_up(found)
        since = None if self._last_try is None else timedelta(seconds=time.monotonic() - self._last_try)
        if renewal_due(self._facts.not_before, self._facts.not_after, self._clock(), since):
            self._last_try = time.monotonic()
            self._renew()

    def _take_up(self, found: Identity) -> None:
        if (why := unfit(found, self._site, self._home.ca_pem, self._clock())) is not None:
            self._passed_over = found
            log.error("the new identity.pem is of no use; the line goes on with the old one", site=self._site, why=why)
            return
        self._use(found)
        if not renewal_due(self._facts.not_before, self._facts.not_after, self._clock()):
            # Else a clock that is weeks ahead would have it renewed and dialled with every second.
            self._last_try = None
        self._link.switch(dial_as(self._home))
        log.info("dialling with a new certificate", site=self._site, valid_until=str(self._facts.not_after))

    def _renew(self) -> None:
        key, csr = make_csr(self._site)
        try:
            certificate = self._link.renew(csr, sign_renewal(self._identity, csr))
        except (LineDown, NotWanted) as error:
            left = span(self._facts.not_after - self._clock())
            log.warning("the certificate is not renewed yet", site=self._site, why=str(error), left=left)
            return
        identity = Identity(key, certificate)
        if (why := unfit(identity, self._site, self._home.ca_pem, self._clock())) is not None:
            log.error("the orchestrator sent a certificate that is of no use", site=self._site, why=why)
            return
        until = certificate_facts(certificate, self._home.ca_pem).not_after
        try:
            self._audit.write(self._clock(), "certificate renewed", self._site, {"valid_until": until.isoformat()})
            self._home.write_identity(identity)
        except OSError as error:
            log.error("the new certificate cannot be kept", site=self._site, where=str(self._home.root), why=str(error))

    def say_if_expired(self) -> None:
        facts = self._facts
        if self._clock() >= facts.not_after and self._expiry_said != facts.not_after:
            self._expiry_said = facts.not_after
            log.error(
                "this site's certificate has expired: the orchestrator lets nobody in with it",
                site=self._site,
                expired_at=f"{facts.not_after:%Y-%m-%d %H:%M:%S} UTC",
                do=expired_remedy(self._site),
            )
