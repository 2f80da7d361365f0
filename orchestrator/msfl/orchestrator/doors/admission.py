"""Whether a site may call at all: asked at every call at the gateways' door, and again while a stream lasts.

    TLS             a certificate of the federation's CA, in force when the connection was made
    admission       of a member ▸ not frozen ▸ its certificate not revoked ▸ from an address its token named
    the method      what this site may do in this run (`link.py`)

TLS looks at a certificate once, when a connection is made, and a connection may stay open for weeks. So the keyring's
word on every member is fetched each second and compared with each call, and a stream that is no longer admitted is
cancelled: freezing a site ends what it is doing within seconds. While the keyring is down its last word counts; before
its first word nobody is admitted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from msfl.orchestrator.doors.turned_away import Note, no_note
from msfl.orchestrator.keyring.client import KeyringDown
from msfl.orchestrator.keyring.keyring import SiteStanding
from msfl.protos.channel import inside, key_sha256, peer_certificate, peer_ip, peer_site

REFRESH_S = 1.0
log = structlog.get_logger()


@dataclass(frozen=True)
class Caller:
    """Who calls, as TLS and the socket say it. `key`: `channel.key_sha256` of the client certificate."""

    site: str | None
    key: str
    ip: str

    @classmethod
    def of(cls, context: grpc.ServicerContext) -> Caller:
        certificate = peer_certificate(context)
        return cls(peer_site(context), key_sha256(certificate) if certificate else "", peer_ip(context))


@dataclass(frozen=True)
class NotAdmitted:
    """`code`: no_site, not_enrolled, site_frozen, certificate_revoked, address_not_allowed."""

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def judge(caller: Caller, standings: Mapping[str, SiteStanding]) -> NotAdmitted | None:
    """None: admitted."""
    if caller.site is None:
        return NotAdmitted("no_site", "no site is named in the client certificate")
    standing = standings.get(caller.site)
    if standing is None:
        return NotAdmitted("not_enrolled", f"{caller.site} is no member of this federation (any more)")
    if standing.frozen is not None:
        return NotAdmitted("site_frozen", f"{caller.site} is frozen until the operator lifts it: ask there")
    if caller.key in standing.revoked:
        what = f"{caller.site} has enrolled anew since it got this certificate"
        return NotAdmitted("certificate_revoked", what)
    if not inside(caller.ip, standing.cidrs):
        what = f"{caller.site} calls from {caller.ip}, outside {', '.join(standing.cidrs)}: ask for a new token"
        return NotAdmitted("address_not_allowed", what)
    return None


class Admission(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types for its classes
    """`ask`: every site's standing, or KeyringDown."""

    def __init__(self, ask: Callable[[], Mapping[str, SiteStanding]], turned_away: Note = no_note) -> None:
        self._ask = ask
        self._turned_away = turned_away
        self._lock = threading.Lock()
        self._standings: Mapping[str, SiteStanding] | None = None
        self._open: dict[grpc.ServicerContext, Caller] = {}

    # ------------------------------------------------------- the keyring's word

    def refresh(self) -> None:
        """Fetch it, and cancel every call that it does not admit any more."""
        try:
            new = self._ask()
        except KeyringDown as error:
            if self._standings is None:
                log.error("nobody is admitted yet: the keyring has not been heard", why=str(error))
            return
        with self._lock:
            before, self._standings = self._standings or {}, new
            under_way = list(self._open.items())
        for site, standing in new.items():
            if standing.frozen is not None and (site not in before or before[site].frozen is None):
                log.critical(
                    "a site is frozen",
                    site=site,
                    why=standing.frozen.why,
                    do=f"ask the site; then msfl orchestrator site unfreeze {site}, with a new token if need be",
                )
        for context, caller in under_way:
            if (refused := judge(caller, new)) is not None:
                log.warning("a call is cut", site=caller.site, peer=caller.ip, code=refused.code)
                self._turned_away("gateways", refused.code, caller.site or "", caller.ip)
                context.cancel()

    def keep_fresh(self, stop: threading.Event) -> None:
        """Until `stop`; the thread that does nothing else."""
        while not stop.wait(REFRESH_S):
            self.refresh()

    # ------------------------------------------------------------- every call

    def intercept_service(
        self, continuation: Callable[[Any], grpc.RpcMethodHandler | None], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(details)
        if handler is None:
            return None
        asked, answered = ("stream" if s else "unary" for s in (handler.request_streaming, handler.response_streaming))
        form = f"{asked}_{answered}"
        behaviour = getattr(handler, form)
        guarded = self._guarded_stream(behaviour) if handler.response_streaming else self._guarded(behaviour)
        make = getattr(grpc, f"{form}_rpc_method_handler")
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _guarded(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            self._admit(context)
            return behaviour(request, context)

        return call

    def _guarded_stream(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            self._admit(context)
            yield from behaviour(request, context)

        return call

    def _admit(self, context: grpc.ServicerContext) -> None:
        caller = Caller.of(context)
        with self._lock:
            standings = self._standings
            # Under one lock with reading it: a later word finds this call among those that are under way.
            self._open[context] = caller
        if not context.add_callback(lambda: self._ended(context)):
            self._ended(context)
        if standings is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the centre's keyring has not been heard yet; try again")
        if (refused := judge(caller, standings or {})) is not None:
            log.warning("not admitted", site=caller.site, peer=caller.ip, code=refused.code)
            self._turned_away("gateways", refused.code, caller.site or "", caller.ip)
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(refused))

    def _ended(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._open.pop(context, None)
