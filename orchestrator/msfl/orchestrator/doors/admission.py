"""Whether a site may call at all: asked at every call at the gateways' door, and again while a stream lasts.

    TLS             a certificate of the federation's CA, in force when the connection was made
    admission       not revoked ▸ a member ▸ not frozen ▸ its certificate not revoked ▸ from an address its token named
    the method      what this site may do in this run (`link.py`)

TLS looks at a certificate once, when a connection is made, and a connection may stay open for weeks. So the keyring's
word on every member, and the federation's revocation list, are fetched each second and compared with each call, and a
stream that is no longer admitted is cancelled: freezing or revoking a site ends what it is doing within seconds. While
the keyring is down its last word counts; before its first word nobody is admitted.

A revoked site must hear of it, or its workers would go on for nothing: `parting` answers a heartbeat of it that does
not know the list yet with the list, as the keepers signed it. That is all it gets, and no sign of life.
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
from msfl.policies.refusals import Code
from msfl.policies.trust import NOTHING_REVOKED, Revoked
from msfl.protos.channel import inside, key_sha256, peer_certificate, peer_ip, peer_site

REFRESH_S = 1.0
MOST_CALLS = 128  # of one site at a time; a gateway has one open, and a few for each run
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
    """`code`: no_site, not_enrolled, site_revoked, site_frozen, certificate_revoked, address_not_allowed."""

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def judge(
    caller: Caller, standings: Mapping[str, SiteStanding], revoked: Revoked = NOTHING_REVOKED
) -> NotAdmitted | None:
    """None: admitted. `revoked`: by the federation's list, which names certificates by their key, as other keys."""
    if caller.site is None:
        return NotAdmitted("no_site", "no site is named in the client certificate")
    if caller.site in revoked.sites:
        return NotAdmitted(Code.SITE_REVOKED.value, f"{caller.site} is revoked by the federation's keepers, for good")
    standing = standings.get(caller.site)
    if standing is None:
        return NotAdmitted("not_enrolled", f"{caller.site} is no member of this federation (any more)")
    if standing.frozen is not None:
        return NotAdmitted("site_frozen", f"{caller.site} is frozen until the operator lifts it: ask there")
    if caller.key in standing.revoked:
        what = f"{caller.site} has enrolled anew since it got this certificate"
        return NotAdmitted("certificate_revoked", what)
    if caller.key in revoked.keys:
        what = f"the key of this certificate of {caller.site} is revoked by the federation's keepers: enrol --again"
        return NotAdmitted("certificate_revoked", what)
    if not inside(caller.ip, standing.cidrs):
        what = f"{caller.site} calls from {caller.ip}, outside {', '.join(standing.cidrs)}: ask for a new token"
        return NotAdmitted("address_not_allowed", what)
    return None


class Admission(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types for its classes
    """`ask`: every site's standing, or KeyringDown. `parting(method, request)`: the answer to a call of a revoked site
    that is to hear of it; None: the call is refused."""

    def __init__(
        self,
        ask: Callable[[], Mapping[str, SiteStanding]],
        revoked: Callable[[], Revoked],
        parting: Callable[[str, Any], Any] = lambda method, request: None,
        turned_away: Note = no_note,
    ) -> None:
        self._ask = ask
        self._ask_revoked = revoked
        self._parting = parting
        self._turned_away = turned_away
        self._revoked = NOTHING_REVOKED
        self._lock = threading.Lock()
        self._standings: Mapping[str, SiteStanding] | None = None
        self._open: dict[grpc.ServicerContext, Caller] = {}

    # ------------------------------------------------------- the keyring's word

    def refresh(self) -> None:
        """Fetch it and the list, and cancel every call that they do not admit any more."""
        revoked = self._ask_revoked()
        try:
            new = self._ask()
        except KeyringDown as error:
            if self._standings is None:
                log.error("nobody is admitted yet: the keyring has not been heard", why=str(error))
                return
            new = self._standings
        with self._lock:
            before, self._standings = self._standings or {}, new
            self._revoked = revoked
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
            if (refused := judge(caller, new, revoked)) is not None:
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
        if handler.response_streaming:
            guarded = self._guarded_stream(behaviour)
        else:
            guarded = self._guarded(behaviour, details.method)
        make = getattr(grpc, f"{form}_rpc_method_handler")
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _guarded(self, behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            if Caller.of(context).site in self._revoked.sites and (word := self._parting(method, request)) is not None:
                return word
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
            standings, revoked = self._standings, self._revoked
            open_already = sum(other.site == caller.site for other in self._open.values())
            # Under one lock with reading it: a later word finds this call among those that are under way.
            self._open[context] = caller
        if not context.add_callback(lambda: self._ended(context)):
            self._ended(context)
        if standings is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the centre's keyring has not been heard yet; try again")
        if (refused := judge(caller, standings or {}, revoked)) is not None:
            log.warning("not admitted", site=caller.site, peer=caller.ip, code=refused.code)
            self._turned_away("gateways", refused.code, caller.site or "", caller.ip)
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(refused))
        if open_already >= MOST_CALLS:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{caller.site} has {open_already} calls open already")

    def _ended(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._open.pop(context, None)
