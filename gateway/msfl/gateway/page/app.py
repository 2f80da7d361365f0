"""The page of a site's own staff: what runs, what waits, what has left; stop a run, keep one away. No script, no state.

    request ─▶ Host is ours ─▶ session? ─▶ POST: from our own page? a form? the session's token? ─▶ role ─▶ view or word
                 no: 421        no: 401         no: 403, and in the audit log                        no: 403, the same

What it may do is what a custodian says at a terminal without a key (`answers`): durable words that the serving gateway
hears, and that are in the audit log, with the account's name, before they are said. A yes to a run needs a custodian's
signature; for it the page shows the command. What is shown comes from documents that others wrote: the templates escape
all of it, and the browser is told to run nothing, load nothing from elsewhere, and show this page in no other one.

Cookie: `__Host-msfl`, Secure, over TLS. On plain loopback it is `msfl`: not every browser takes a Secure cookie there.
Both are HttpOnly, SameSite=Strict, Path=/, without Domain. Cookies know no ports: other users of the gateway's machine
who serve something on loopback could get it from a browser there, so use TLS where such users exist.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib import resources
from typing import Any, TypeAlias

import jinja2
import structlog
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msfl.gateway import answers, sent
from msfl.gateway.home import Home
from msfl.gateway.page import views
from msfl.gateway.page.forms import MOST_BYTES, forged, form, host_is_ours
from msfl.gateway.staff.accounts import Role
from msfl.gateway.staff.desk import Desk, Visitor
from msfl.gateway.staff.sessions import csrf_token, fits
from msfl.policies.refusals import CannotProceed, Code, Refusal, refuse
from msfl.protos.audit_log import AuditLog

PASSWORDS_AT_ONCE = 2  # 64 MiB and some 50 ms of every core, each
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with it, browsers send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
log = structlog.get_logger()


@dataclass(frozen=True)
class Asked:
    """One request, as far as a view needs it. `fields` are a form's; `visitor` has a living session."""

    visitor: Visitor
    address: str
    run: str
    fields: Mapping[str, str]


View: TypeAlias = Callable[[Asked], Response]


class Page:
    def __init__(
        self, home: Home, desk: Desk, audit: AuditLog, origins: tuple[str, ...], clock: Callable[[], datetime]
    ) -> None:
        self._home = home
        self._site = home.settings().site
        self._desk = desk
        self._chronicle = views.Chronicle(home, audit)
        self._origins = origins
        self._clock = clock
        self._tls = origins[0].startswith("https://")
        self._cookie = "__Host-msfl" if self._tls else "msfl"
        self._passwords = CapacityLimiter(PASSWORDS_AT_ONCE)
        self._alarmed: dict[tuple[Code, str], datetime] = {}

    def app(self) -> ASGIApp:
        routes = [
            Route("/style.css", self._style, methods=["GET"]),
            Route("/login", self._login_form, methods=["GET"]),
            Route("/login", self._open(self._log_in), methods=["POST"]),
            Route("/setup", self._setup_form, methods=["GET"]),
            Route("/setup", self._open(self._set_up), methods=["POST"]),
            Route("/logout", self._post(self._logout), methods=["POST"]),
            Route("/password", self._get(self._password_form), methods=["GET"]),
            Route("/password", self._post(self._change_password, secret=True), methods=["POST"]),
            Route("/", self._get(self._overview), methods=["GET"]),
            Route("/runs/{run}", self._get(self._run), methods=["GET"]),
            Route("/runs/{run}/stop", self._post(self._stop, acts=True), methods=["POST"]),
            Route("/runs/{run}/refuse", self._post(self._refuse, acts=True), methods=["POST"]),
        ]
        return self._guarded(Starlette(routes=routes, exception_handlers={HTTPException: self._not_here}))

    # ------------------------------------------------------------------- doors

    def _guarded(self, inner: ASGIApp) -> ASGIApp:
        """Our host's name on every request, our headers on every answer, those of errors too."""
        headers = dict(_HEADERS)
        if self._tls:
            headers["Strict-Transport-Security"] = "max-age=31536000"

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            async def dressed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message).update(headers)
                await send(message)

            assert scope["type"] == "http", scope["type"]
            hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            if len(hosts) == 1 and host_is_ours(hosts[0], self._origins):
                await inner(scope, receive, dressed)
            else:
                what = f"This is not the address of this page; it is {self._origins[0]}/\n"
                await PlainTextResponse(what, 421)(scope, receive, dressed)

        return guarded

    def _get(self, view: View) -> Callable[[Request], Response]:
        def endpoint(request: Request) -> Response:
            return self._if_it_works(partial(self._look, view, request))

        return endpoint

    def _look(self, view: View, request: Request) -> Response:
        visitor = self._desk.who(self._id(request))
        if isinstance(visitor, Refusal):
            return self._ask_to_log_in(request, visitor)
        return self._view(view, Asked(visitor, _address(request), request.path_params.get("run", ""), {}))

    def _post(self, view: View, acts: bool = False, secret: bool = False) -> Callable[[Request], Awaitable[Response]]:
        """`acts`: for custodians only. `secret`: a password is looked at, which takes a while."""

        async def endpoint(request: Request) -> Response:
            body = await _body(request)
            turn = partial(self._if_it_works, partial(self._word, view, request, body, acts))
            return await to_thread.run_sync(turn, limiter=self._passwords if secret else None)

        return endpoint

    def _word(self, view: View, request: Request, body: bytes, acts: bool) -> Response:
        visitor, address = self._desk.who(self._id(request)), _address(request)
        fields = self._own_form(request, body)
        if isinstance(visitor, Refusal):
            if isinstance(fields, Refusal):
                self._alarm(fields.code, address)
            return self._ask_to_log_in(request, visitor)
        if not isinstance(fields, Refusal) and not fits(visitor.session, fields.pop("token", "")):
            fields = refuse(Code.REQUEST_FORGED, "The form is not of this session.")
        if not isinstance(fields, Refusal) and acts and not self._acts(visitor):
            what = f"{visitor.account.name} may look here, and is no custodian of {self._site}."
            fields = refuse(Code.NOT_A_CUSTODIAN, what)
        if isinstance(fields, Refusal):
            self._desk.note("staff request refused", request.url.path[:200], visitor, code=fields.code.value)
            return self._say(403, "Refused", fields.message, visitor)
        return self._view(view, Asked(visitor, address, request.path_params.get("run", ""), fields))

    def _own_form(self, request: Request, body: bytes) -> dict[str, str] | Refusal:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}
        return forged(headers, self._origins) or form(headers, body)

    def _view(self, view: View, asked: Asked) -> Response:
        try:
            return view(asked)
        except CannotProceed as error:
            return self._say(409, "That is not possible", str(error), asked.visitor)

    def _if_it_works(self, turn: Callable[[], Response]) -> Response:
        """What cannot be written into the audit log is not done. Who has not logged in learns nothing of why."""
        try:
            return turn()
        except (OSError, CannotProceed) as error:
            log.error("the page cannot do its work", why=str(error))
            what = "The gateway's folder cannot be read or written, so nothing was done; msfl gateway doctor says more."
            return self._say(503, "Not now", what, None)

    def _acts(self, visitor: Visitor) -> bool:
        """Asked each time: who is taken out of the site root is no custodian any more."""
        return visitor.account.role is Role.CUSTODIAN and visitor.account.name in self._home.custodians()

    def _alarm(self, code: Code, address: str) -> None:
        """Into the audit log, where it is news: a stranger must not be able to fill it."""
        now, last = self._clock(), self._alarmed.get((code, address))
        if last is None or abs((now - last).total_seconds()) > 600:
            if len(self._alarmed) > 1000:
                self._alarmed.clear()
            self._alarmed[(code, address)] = now
            self._desk.alarm(code, address)

    # ------------------------------------------------------------------ log-in

    def _login_form(self, request: Request) -> Response:
        if isinstance(self._desk.who(self._id(request)), Visitor):
            return RedirectResponse("/", 303)
        return self._html("login.html.j2", 200, None, why="")

    def _setup_form(self, request: Request) -> Response:
        return self._html("setup.html.j2", 200, None, why="")

    def _open(self, turn: Callable[[Request, bytes], Response]) -> Callable[[Request], Awaitable[Response]]:
        """For those who are not logged in."""

        async def endpoint(request: Request) -> Response:
            body = await _body(request)
            return await to_thread.run_sync(
                partial(self._if_it_works, partial(turn, request, body)), limiter=self._passwords
            )

        return endpoint

    def _log_in(self, request: Request, body: bytes) -> Response:
        def let(fields: Mapping[str, str]) -> Visitor | Refusal:
            name, password = fields.get("name", ""), fields.get("password", "")
            return self._desk.log_in(name, password, _address(request), self._id(request))

        return self._entrance("login.html.j2", request, body, let)

    def _set_up(self, request: Request, body: bytes) -> Response:
        def let(fields: Mapping[str, str]) -> Visitor | Refusal:
            name, code, new, again = (fields.get(field, "") for field in ("name", "code", "new", "again"))
            if new != again:
                return Refusal(Code.PASSWORD_WEAK, "The new password was typed in two ways.")
            return self._desk.accept(name, code, new, _address(request), self._id(request))

        return self._entrance("setup.html.j2", request, body, let)

    def _entrance(
        self, template: str, request: Request, body: bytes, let: Callable[[Mapping[str, str]], Visitor | Refusal]
    ) -> Response:
        fields = self._own_form(request, body)
        if isinstance(fields, Refusal):
            self._alarm(fields.code, _address(request))
            return self._html(template, 403, None, why=fields.message)
        visitor = let(fields)
        if isinstance(visitor, Refusal):
            status = {Code.LOGIN_LOCKED: 429, Code.PASSWORD_WEAK: 400}.get(visitor.code, 401)
            return self._html(template, status, None, why=visitor.message)
        return self._let_in(visitor)

    def _let_in(self, visitor: Visitor) -> Response:
        response = RedirectResponse("/", 303)
        response.set_cookie(self._cookie, visitor.session, path="/", secure=self._tls, httponly=True, samesite="strict")
        return response

    def _logout(self, asked: Asked) -> Response:
        self._desk.log_out(asked.visitor)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(self._cookie, path="/", secure=self._tls, httponly=True, samesite="strict")
        return response

    def _password_form(self, asked: Asked) -> Response:
        return self._html("password.html.j2", 200, asked.visitor, why="")

    def _change_password(self, asked: Asked) -> Response:
        old, new, again = (asked.fields.get(name, "") for name in ("old", "new", "again"))
        if new != again:
            return self._html("password.html.j2", 400, asked.visitor, why="The new password was typed in two ways.")
        visitor = self._desk.change_own(asked.visitor, old, new, asked.address)
        if isinstance(visitor, Refusal):
            return self._html("password.html.j2", 400, asked.visitor, why=visitor.message)
        return self._let_in(visitor)

    # ------------------------------------------------------------------- views

    def _overview(self, asked: Asked) -> Response:
        now, entries = self._clock(), self._chronicle.entries()
        in_force, refused = views.policies(self._home, now)
        return self._html(
            "overview.html.j2",
            200,
            asked.visitor,
            running=views.running(self._home, entries),
            waiting=views.waiting(self._home),
            policies=in_force,
            refused=refused,
            history=views.history(entries),
        )

    def _run(self, asked: Asked) -> Response:
        entries = self._chronicle.entries()
        running = next((r for r in views.running(self._home, entries) if r.run == asked.run), None)
        waiting = next((w for w in views.waiting(self._home) if w.run == asked.run), None)
        told = next((t for t in views.history(entries, most=len(entries)) if t.run == asked.run), None)
        if running is None and waiting is None and told is None:
            return self._say(404, "Not found", "This site knows no such run.", asked.visitor)
        left = sent.departures(entries, asked.run)
        return self._html(
            "run.html.j2",
            200,
            asked.visitor,
            run=asked.run,
            running=running,
            waiting=waiting,
            told=told,
            left=left,
            size=sent.size_in_words,
        )

    def _stop(self, asked: Asked) -> Response:
        if asked.fields.get("sure") != "yes":
            return self._say(400, "Not stopped", "Tick the box to say that this run shall end.", asked.visitor)
        if asked.run not in answers.running(self._home):
            return self._say(409, "Not stopped", "No such run is running here now.", asked.visitor)
        self._desk.note("staff stops run", asked.run, asked.visitor)
        answers.stop(self._home, asked.run, asked.visitor.account.name)
        return RedirectResponse(f"/runs/{asked.run}", 303)

    def _refuse(self, asked: Asked) -> Response:
        if asked.run not in self._home.pending():
            return self._say(409, "Not refused", "No such run waits here now.", asked.visitor)
        self._desk.note("staff refuses run", asked.run, asked.visitor)
        answers.decline(self._home, asked.run, asked.visitor.account.name)
        return RedirectResponse(f"/runs/{asked.run}", 303)

    def _style(self, request: Request) -> Response:
        return Response(_template("style.css"), media_type="text/css")

    # ------------------------------------------------------------------- small

    def _id(self, request: Request) -> str:
        return request.cookies.get(self._cookie, "")

    def _ask_to_log_in(self, request: Request, why: Refusal) -> Response:
        if self._cookie not in request.cookies and request.method != "POST":
            return RedirectResponse("/login", 303)
        return self._html("login.html.j2", 401, None, why=why.message)

    def _not_here(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = "This page does not know that address." if error.status_code == 404 else "That is not possible here."
        return self._say(error.status_code, "Not found", what, None)

    def _say(self, status: int, head: str, what: str, visitor: Visitor | None) -> Response:
        return self._html("message.html.j2", status, visitor, head=head, what=what)

    def _html(self, template: str, status: int, visitor: Visitor | None, **shown: Any) -> Response:
        text = _TEMPLATES.get_template(template).render(
            site=self._site,
            now=f"{self._clock():%Y-%m-%d %H:%M} UTC",
            account=visitor.account if visitor else None,
            acts=visitor is not None and self._acts(visitor),
            token=csrf_token(visitor.session) if visitor else "",
            **shown,
        )
        return HTMLResponse(text, status)


async def _body(request: Request) -> bytes:
    """At most one byte more than is taken."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            return body[: MOST_BYTES + 1]
    return body


def _address(request: Request) -> str:
    return request.client.host if request.client else "?"


def _template(name: str) -> str:
    return resources.files("msfl.gateway.page").joinpath("templates", name).read_text(encoding="utf-8")


_TEMPLATES = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    loader=jinja2.FunctionLoader(_template),
    trim_blocks=True,
    lstrip_blocks=True,
)
