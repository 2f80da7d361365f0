"""A registry that speaks the OCI distribution protocol, at `https://host[:port]/repository`.

    get_blob        GET  blobs/<digest>          a cut stream goes on at its byte (Range); redirects within `hosts` only
    get_manifest    GET  manifests/<digest>      no more than a manifest may have
    resolve         GET  manifests/<tag>         the digest of the bytes that came, never the one a header claims
    put_blob        POST, PATCH, PUT uploads     hashed on the way; bytes under another digest are not finished
    put_manifest    PUT  manifests/<digest|tag>  a referrer also gets its own tag and joins the index `sha256-<hex>`,
                                                 where the registry keeps none itself (no OCI-Subject in its answer)
    referrers       GET  referrers/<digest>      where that is unknown (404): those tags, and the index

Nothing that arrives is trusted here or later (`msfl.registry.interface`). What this module guards is where it connects
to: HTTPS, or HTTP on this machine; no host but the registry's own and those named in `hosts`, whatever a redirect, an
upload's address or a token's address says; and credentials go to none but these.

A registry keeps no lock: of two who write the index of referrers in the same moment one writes over the other. Other
tools read the index alone; so that no paper is lost, each referrer has a tag that nobody else writes, and which is read
with it: `sha256-<hex>.<how many there were>-<the referrer's first digits>`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import ipaddress
import json
import re
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from msfl.policies.refusals import Code, Refused, refuse
from msfl.registry.interface import (
    INDEX,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    BadUpload,
    Descriptor,
    JsonObject,
    NotInRegistry,
    RegistryFails,
    checked_digest,
    checked_manifest,
    checked_tag,
    referrers_tag,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

# As the distribution specification spells a repository; a host may not hide in it.
_REPOSITORY = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_CHALLENGE = re.compile(r'([a-z]+)="([^"]*)"', re.IGNORECASE)
_ACCEPT = {"Accept": f"{MANIFEST}, {INDEX}"}
_CHUNK = 1 << 20
_MOMENT_S = 0.5
_MAX_ANSWER_BYTES = 1 << 20
_MAX_REDIRECTS = 3
_MAX_PAGES = 1000
_MAX_UNLISTED = 64
_MAX_REFERRERS = 4096
_TRIES = 4
# For a byte, not for a whole blob: a slow line is no error, a silent one is.
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)


@dataclass(frozen=True)
class Stall:
    """A blob of which less than `bytes` come in `seconds` is given up: a line that only looks alive."""

    seconds: float = 60.0
    bytes: int = 256 << 10


@dataclass(frozen=True)
class Credentials:
    user: str
    password: str = field(repr=False)

    @property
    def header(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Address:
    """Where a registry is. `hosts` are further hosts (`host` or `host:port`) that it may send us to."""

    base: str  # scheme://host[:port]
    repository: str
    hosts: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, location: str, hosts: Iterable[str] = ()) -> Address:
        """Raises ValueError, with what is wrong with the location."""
        parts = urlsplit(location)
        repository = parts.path.strip("/")
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise ValueError(f"{location!r} is no registry: write https://host/repository")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(f"the registry's location {parts.hostname} holds more than host and repository")
        if parts.scheme == "http" and not _on_this_machine(parts.hostname):
            raise ValueError(
                f"the registry {parts.netloc} would be asked without TLS; that is allowed on this machine only"
            )
        if not _REPOSITORY.fullmatch(repository):
            raise ValueError(f"{location!r} names no repository: write https://host/repository, in lower case")
        return cls(f"{parts.scheme}://{parts.netloc}", repository, frozenset(hosts))

    @property
    def host(self) -> str:
        return urlsplit(self.base).netloc

    def admits(self, url: str) -> bool:
        """Whether we may go there: as safe as the registry itself, and a host that somebody here has named."""
        parts = urlsplit(url)
        same = f"{parts.scheme}://{parts.netloc}" == self.base
        return same or (parts.scheme == "https" and parts.username is None and parts.netloc in self.hosts)


class DistributionRegistry:
    """A `Registry` behind HTTP. Every method raises RegistryFails when the registry cannot be reached or does not do
    what the protocol says."""

    def __init__(
        self,
        address: Address,
        credentials: Credentials | None = None,
        *,
        ca: Path | None = None,
        stall: Stall | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`ca`: certificate authorities to trust instead of the system's, PEM. `transport`: for tests."""
        self._address = address
        self._credentials = credentials
        self._stall = stall or Stall()
        self._authorization: dict[str, str] = {}
        verify = ssl.create_default_context(cafile=ca) if ca is not None else ssl.create_default_context()
        # No line is kept open between requests: there are few of them, and there is nothing that must be closed.
        unkept = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(
            verify=verify, transport=transport, timeout=_TIMEOUT, limits=unkept, follow_redirects=False
        )

    # ------------------------------------------------------------------ blobs

    def put_blob(self, digest: str, data: Iterable[bytes]) -> None:
        checked_digest(digest)
        with self._asked("POST", self._url("blobs/uploads/"), content=b"") as begun:
            self.expect(begun, 202)
            upload = self._next_address(begun)
        found = hashlib.sha256()

        def hashed() -> Iterator[bytes]:
            for chunk in data:
                found.update(chunk)
                yield chunk

        octets = {"Content-Type": "application/octet-stream"}
        with self._asked("PATCH", upload, content=hashed(), headers=octets) as sent:
            self.expect(sent, 202)
            upload = self._next_address(sent)
        if f"sha256:{found.hexdigest()}" != digest:
            with self._asked("DELETE", upload):
                pass  # Whatever it answers: an unfinished upload is nothing that anybody can ask for.
            raise BadUpload(f"the uploaded bytes have sha256:{found.hexdigest()}, not {digest}")
        finished = str(httpx.URL(upload).copy_merge_params({"digest": digest}))
        with self._asked("PUT", finished, content=b"", headers=octets) as done:
            self.expect(done, 201)

    @contextmanager
    def get_blob(self, digest: str, start: int = 0) -> Iterator[io.BufferedIOBase]:
        url = self._url(f"blobs/{checked_digest(digest)}")
        try:
            blob = _Blob(self, url, digest, start, self._stall)
        except httpx.HTTPError as error:
            raise RegistryFails(f"{self._address.host} cannot be asked: {_why(error)}") from error
        with blob, io.BufferedReader(blob, _CHUNK) as stream:
            yield stream

    # -------------------------------------------------------------- manifests

    def put_manifest(self, body: bytes, tag: str | None = None) -> str:
        manifest = checked_manifest(body)
        if tag is not None:
            checked_tag(tag)
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        media_type = str(manifest["mediaType"])
        keeps_referrers = self._put_manifest(body, media_type, digest)
        if "subject" in manifest and not keeps_referrers:
            self._refer(Descriptor.from_json(manifest["subject"]).digest, body, _described(manifest, body))
        if tag is not None:
            self._put_manifest(body, media_type, tag)
        return digest

    def get_manifest(self, digest: str) -> bytes:
        return self._manifest(checked_digest(digest))

    def resolve(self, tag: str) -> str:
        return "sha256:" + hashlib.sha256(self._manifest(checked_tag(tag))).hexdigest()

    def tags(self) -> tuple[str, ...]:
        return tuple(tag for tag in self._all_tags() if not tag.startswith("sha256-"))

    def referrers(self, digest: str, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        """Raises Refused where there are too many: of a list that is cut, nobody knows what stands on the rest."""
        with self._asked("GET", self._url(f"referrers/{checked_digest(digest)}")) as answer:
            known = answer.status_code == 200 and answer.headers.get("Content-Type", "").startswith(INDEX)
            found = self._listed(self._json(answer)) if known else ()
            url = self._link(answer) if known else None
        if not known:
            found = self._known_referrers(digest)
        for _ in range(_MAX_PAGES):
            if url is None or len(found) > _MAX_REFERRERS:
                break
            with self._asked("GET", url) as answer:
                self.expect(answer, 200)
                found, url = (*found, *self._listed(self._json(answer))), self._link(answer)
        if url is not None:
            raise _too_many(len(found), digest)
        return tuple(d for d in found if artifact_type is None or d.artifact_type == artifact_type)

    # ---------------------------------------------------------- its own pieces

    def _put_manifest(self, body: bytes, media_type: str, reference: str) -> bool:
        """Whether the registry said that it keeps the index of referrers itself."""
        headers = {"Content-Type": media_type}
        with self._asked("PUT", self._url(f"manifests/{reference}"), content=body, headers=headers) as answer:
            self.expect(answer, 201)
            return "OCI-Subject" in answer.headers

    def _manifest(self, reference: str) -> bytes:
        """Asked for again where the registry stumbles: some do while somebody else writes the same tag."""
        for n in range(_TRIES):
            with self._asked("GET", self._url(f"manifests/{reference}"), headers=_ACCEPT) as answer:
                if answer.status_code == 404:
                    raise NotInRegistry(f"{self._address.host} holds no {reference} in {self._address.repository}")
                if answer.status_code < 500 or n == _TRIES - 1:
                    self.expect(answer, 200)
                    return self._body(answer, MAX_MANIFEST_BYTES + 1)
            time.sleep(0.05 * 2**n)
        raise AssertionError("the last try answers or raises")

    def _refer(self, subject: str, body: bytes, referrer: Descriptor) -> None:
        places = self._referrer_tags(subject)
        if _short(referrer.digest) not in places:
            tag = f"{referrers_tag(subject)}.{len(places):04d}-{_short(referrer.digest)}"
            self._put_manifest(body, referrer.media_type, tag)
        for _ in range(_TRIES):
            if any(d.digest == referrer.digest for d in self._index_of(subject)):
                return
            manifests = [d.to_json() for d in self._known_referrers(subject)]
            index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode()
            self._put_manifest(index, INDEX, referrers_tag(subject))

    def _known_referrers(self, subject: str) -> tuple[Descriptor, ...]:
        """Of the index and of the tags, in the order in which they came. Raises Refused."""
        places, found = self._referrer_tags(subject), list(self._index_of(subject))
        unlisted = places.keys() - {_short(d.digest) for d in found}
        if len(unlisted) > _MAX_UNLISTED:
            raise _too_many(len(unlisted), subject)
        for short in sorted(unlisted, key=lambda short: places[short]):
            try:
                body = self._manifest(f"{referrers_tag(subject)}.{places[short]:04d}-{short}")
            except NotInRegistry:
                continue  # Listed already, and still being put.
            referrer = _described(self._parsed(body), body)
            if _short(referrer.digest) == short:
                found.append(referrer)
        return tuple(sorted(found, key=lambda d: places.get(_short(d.digest), -1)))

    def _referrer_tags(self, subject: str) -> dict[str, int]:
        """The first digits of each referrer that has a tag, and how many there were before it."""
        own = re.compile(re.escape(referrers_tag(subject)) + r"\.(\d{4})-([0-9a-f]{12})")
        return {m[2]: int(m[1]) for tag in self._all_tags() if (m := own.fullmatch(tag))}

    def _all_tags(self) -> tuple[str, ...]:
        found: set[str] = set()
        url: str | None = self._url("tags/list")
        for _ in range(_MAX_PAGES):
            if url is None:
                break
            with self._asked("GET", url) as answer:
                if answer.status_code == 404:
                    break
                self.expect(answer, 200)
                found.update(tag for tag in self._json(answer).get("tags") or [] if isinstance(tag, str))
                url = self._link(answer)
        return tuple(sorted(found))

    def _index_of(self, subject: str) -> tuple[Descriptor, ...]:
        try:
            body = self._manifest(referrers_tag(subject))
        except NotInRegistry:
            return ()
        return self._listed(self._parsed(body))

    def _listed(self, index: JsonObject) -> tuple[Descriptor, ...]:
        try:
            return tuple(Descriptor.from_json(raw) for raw in index["manifests"])
        except (KeyError, TypeError, ValueError) as error:
            raise RegistryFails(f"{self._address.host} serves an index of referrers that is none: {error}") from error

    # -------------------------------------------------------------------- HTTP

    def _url(self, path: str) -> str:
        return f"{self._address.base}/v2/{self._address.repository}/{path}"

    @contextmanager
    def _asked(
        self,
        method: str,
        url: str,
        *,
        content: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        """The answer, its body not read yet. What HTTP itself raises inside the block becomes RegistryFails."""
        try:
            with self.answer(method, url, content=content, headers=headers) as answer:
                yield answer
        except httpx.HTTPError as error:
            raise RegistryFails(f"{self._address.host} cannot be asked: {_why(error)}") from error

    @contextmanager
    def answer(
        self,
        method: str,
        url: str,
        *,
        content: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        """As `_asked`, for who deals with a line that breaks. Where the registry wants to know who asks, it is told and
        asked again. Raises httpx.HTTPError, RegistryFails."""
        scope = "pull" if method == "GET" else "pull,push"
        answer = self._send(method, url, scope, content, headers)
        try:
            if answer.status_code == 401 and not isinstance(content, Iterator):
                answer.close()
                self._authorization[scope] = self._authorized(answer.headers.get("WWW-Authenticate", ""), scope)
                answer = self._send(method, url, scope, content, headers)
            yield answer
        finally:
            answer.close()

    def _send(
        self,
        method: str,
        url: str,
        scope: str,
        content: bytes | Iterator[bytes] | None,
        headers: Mapping[str, str] | None,
    ) -> httpx.Response:
        for _ in range(_MAX_REDIRECTS + 1):
            sent = dict(headers or {})
            # Compressed answers would have other bytes than the digest is of.
            sent["Accept-Encoding"] = "identity"
            if scope in self._authorization and url.startswith(f"{self._address.base}/"):
                sent["Authorization"] = self._authorization[scope]
            answer = self._http.send(self._http.build_request(method, url, content=content, headers=sent), stream=True)
            if method != "GET" or answer.status_code not in (301, 302, 303, 307, 308):
                return answer
            answer.close()
            url = self._next_address(answer)
        raise RegistryFails(f"{self._address.host} sends us round in circles")

    def _next_address(self, answer: httpx.Response) -> str:
        """Where `Location` points, if we may go there."""
        location = answer.headers.get("Location", "")
        return self._admitted(str(answer.url.join(location)) if location else "", "sends us to")

    def _link(self, answer: httpx.Response) -> str | None:
        found = answer.links.get("next", {}).get("url")
        return None if found is None else self._admitted(str(answer.url.join(found)), "continues its list at")

    def _admitted(self, url: str, does: str) -> str:
        """The same address, if we may go there."""
        if self._address.admits(url):
            return url
        elsewhere = urlsplit(url).netloc or "nowhere"
        raise RegistryFails(
            f"{self._address.host} {does} {elsewhere}; if that is right, name it among the registry's hosts"
        )

    def _authorized(self, challenge: str, scope: str) -> str:
        """The header for this scope, as the challenge asks: HTTP basic, or a token from where the challenge says."""
        kind, _, rest = challenge.partition(" ")
        match kind.lower():
            case "basic" if self._credentials is not None:
                return self._credentials.header
            case "bearer":
                said = {name.lower(): value for name, value in _CHALLENGE.findall(rest)}
                return f"Bearer {self._token(said.get('realm', ''), said.get('service', ''), scope)}"
            case "basic":
                raise RegistryFails(f"{self._address.host} wants a user and a password, and none was given")
            case _:
                raise RegistryFails(f"{self._address.host} refuses us and does not say how to log in")

    def _token(self, realm: str, service: str, scope: str) -> str:
        self._admitted(realm, "wants us to log in at")
        asked = {"service": service, "scope": f"repository:{self._address.repository}:{scope}"}
        who = {} if self._credentials is None else {"Authorization": self._credentials.header}
        with self._http.stream("GET", realm, params=asked, headers=who) as answer:
            if answer.status_code in (401, 403):
                raise RegistryFails(f"{self._address.host} does not accept the user or the password")
            self.expect(answer, 200)
            said = self._json(answer)
        token = said.get("token") or said.get("access_token")
        if not isinstance(token, str) or not token:
            raise RegistryFails(f"{urlsplit(realm).netloc} answers without a token")
        return token

    def expect(self, answer: httpx.Response, status: int) -> None:
        """Raises RegistryFails, in plain words, for any other status."""
        if answer.status_code == status:
            return
        asked = f"{answer.request.method} {answer.request.url.path}"
        if answer.status_code == 401 and answer.request.headers.get("Authorization", "").startswith("Basic "):
            raise RegistryFails(f"{self._address.host} does not accept the user or the password")
        if answer.status_code in (401, 403):
            raise RegistryFails(f"{self._address.host} does not let us do {asked} ({answer.status_code})")
        codes = self._error_codes(answer)
        raise RegistryFails(f"{self._address.host} answers {asked} with {answer.status_code}{codes}")

    def _error_codes(self, answer: httpx.Response) -> str:
        """The protocol's codes; never its free text, which anybody may have written."""
        try:
            errors = json.loads(self._body(answer, _MAX_ANSWER_BYTES))["errors"]
            codes = sorted({str(e["code"]) for e in errors if re.fullmatch(r"[A-Z_]{1,40}", str(e["code"]))})
        except (ValueError, KeyError, TypeError, httpx.HTTPError):
            return ""
        return f" ({', '.join(codes)})" if codes else ""

    def _body(self, answer: httpx.Response, limit: int) -> bytes:
        """At most `limit` bytes of it."""
        body = bytearray()
        for chunk in answer.iter_raw():
            body += chunk
            if len(body) >= limit:
                break
        return bytes(body[:limit])

    def _json(self, answer: httpx.Response) -> JsonObject:
        return self._parsed(self._body(answer, MAX_MANIFEST_BYTES))

    def _parsed(self, body: bytes) -> JsonObject:
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RegistryFails(f"{self._address.host} answers with something else than JSON") from error
        if not isinstance(found, dict):
            raise RegistryFails(f"{self._address.host} answers with something else than a JSON object")
        return found


class _Blob(io.RawIOBase):
    """A blob as it comes. A cut stream is asked for again from its byte on, as long as each try brings something; one
    that brings next to nothing is given up."""

    def __init__(self, registry: DistributionRegistry, url: str, digest: str, start: int, stall: Stall) -> None:
        self._registry, self._url, self._digest, self._stall = registry, url, digest, stall
        self._at = start
        self._total: int | None = None
        self._rest = memoryview(b"")
        self._failed: RegistryFails | None = None
        self._in_vain = 0
        self._window = (time.monotonic(), start)  # since when the pace is taken, and at which byte
        self._open = ExitStack()
        self._chunks: Iterator[bytes] = iter(())
        self._ask()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        """As much as comes within a moment: large pieces of a fast line, small ones of a slow one."""
        target, n = memoryview(buffer).cast("B"), 0
        until = time.monotonic() + _MOMENT_S
        while n < len(target) and (n == 0 or time.monotonic() < until):
            try:
                if not self._more():
                    break
            except RegistryFails as error:
                if n == 0:
                    raise
                self._failed = error  # After what has come.
                break
            step = min(len(target) - n, len(self._rest))
            target[n : n + step], self._rest = self._rest[:step], self._rest[step:]
            n += step
        return n

    def close(self) -> None:
        self._open.close()
        super().close()

    def _more(self) -> bool:
        """Whether `_rest` holds something; waits for it."""
        if self._failed is not None:
            raise self._failed
        while not self._rest:
            try:
                chunk = next(self._chunks, b"")
            except httpx.HTTPError as error:
                self._ask_again(error)
                continue
            if chunk:
                self._rest = memoryview(chunk)
                self._at += len(chunk)
                self._in_vain = 0
                self._keep_pace()
            elif self._total is None or self._at >= self._total:
                return False
            else:
                self._ask_again(None)
        return True

    def _keep_pace(self) -> None:
        now, (since, at) = time.monotonic(), self._window
        if now - since < self._stall.seconds:
            return
        if self._at - at < self._stall.bytes:
            raise RegistryFails(
                f"the registry sends {self._digest} at less than {self._stall.bytes} bytes in "
                f"{self._stall.seconds:.0f} seconds"
            )
        self._window = (now, self._at)

    def _ask_again(self, error: httpx.HTTPError | None) -> None:
        self._open.close()
        self._in_vain += 1
        if self._in_vain >= _TRIES:
            raise RegistryFails(f"the registry breaks off {self._digest} at byte {self._at}") from error
        time.sleep(0.1 * 2**self._in_vain)
        try:
            self._ask()
        except httpx.HTTPError as why:
            self._ask_again(why)

    def _ask(self) -> None:
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        with ExitStack() as opened:
            answer = opened.enter_context(self._registry.answer("GET", self._url, headers=headers))
            if answer.status_code == 404:
                raise NotInRegistry(f"the registry holds no blob {self._digest}")
            if answer.status_code != 206 or not self._at:
                self._registry.expect(answer, 200)
            self._open = opened.pop_all()
        length = answer.headers.get("Content-Length", "")
        passed_over = self._at if answer.status_code == 200 else 0  # It does not go on at a byte: here it begins anew.
        self._total = self._at - passed_over + int(length) if length.isdecimal() else None
        # As they come: what a chunk of our size waited for would be lost in a cut.
        self._chunks = _after(passed_over, answer.iter_raw())


def _after(passed_over: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        if len(chunk) > passed_over:
            yield chunk[passed_over:]
        passed_over = max(passed_over - len(chunk), 0)


def _described(manifest: JsonObject, body: bytes) -> Descriptor:
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    return Descriptor(str(manifest.get("mediaType", "")), digest, len(body), str(manifest.get("artifactType", "")))


def _too_many(number: int, subject: str) -> Refused:
    what = f"The registry lists {number} papers and more for {subject}, which are too many to be read."
    return Refused(refuse(Code.TOO_MANY_PAPERS, what, digest=subject))


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _why(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


def _on_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
