"""What a registry behind HTTP may make us do, and what not. No network: the other end is a function."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from io import BufferedIOBase

import httpx
import pytest

from msfl.registry.distribution import Address, Credentials, DistributionRegistry
from msfl.registry.interface import EMPTY, INDEX, MANIFEST, MAX_MANIFEST_BYTES, BadUpload, NotInRegistry, RegistryFails

HOME = "https://registry.example/ms/releases"
ADA = Credentials("ada", "correct horse")
BLOB = b"layer" * 1000
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()
TAGS = "/v2/ms/releases/tags/list"

Answer = Callable[[httpx.Request], httpx.Response]


def said(status: int = 200, body: bytes | object = b"", headers: dict[str, str] | None = None) -> httpx.Response:
    """An answer as it comes from a line: not read yet."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.Response(status, headers=headers, stream=httpx.ByteStream(content))


def registry(
    answer: Answer, credentials: Credentials | None = None, hosts: tuple[str, ...] = ()
) -> DistributionRegistry:
    address = Address.parse(HOME, hosts)
    return DistributionRegistry(address, credentials, transport=httpx.MockTransport(answer))


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("registry.example/ms", "no registry"),
        ("ftp://registry.example/ms", "no registry"),
        ("https://registry.example", "names no repository"),
        ("https://registry.example/MS", "names no repository"),
        ("https://registry.example/../ms", "names no repository"),
        ("https://registry.example/ms?x=1", "more than host and repository"),
        ("https://ada:secret@registry.example/ms", "more than host and repository"),
        ("http://registry.example/ms", "without TLS"),
        ("http://127.0.0.1.registry.example/ms", "without TLS"),
    ],
)
def test_a_location_is_a_host_a_repository_and_safe(location: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        Address.parse(location)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("host", ["localhost:5000", "127.0.0.1:5000", "[::1]:5000"])
def test_on_this_machine_no_tls_is_needed(host: str) -> None:
    assert Address.parse(f"http://{host}/ms").host == host


# ----------------------------------------------------------------------------------------------------------- logging in


def with_token(realm: str, seen: list[httpx.Request]) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path == "/token":
            return said(200, {"token": "t-" + request.url.params["scope"].rpartition(":")[2]})
        if "Authorization" not in request.headers:
            challenge = f'Bearer realm="{realm}",service="registry.example",scope="repository:other:push"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        return said(200, {"tags": ["model_1.0.0"]})

    return answer


def test_a_token_is_asked_for_our_repository_and_kept() -> None:
    seen: list[httpx.Request] = []
    asked = registry(with_token("https://registry.example/token", seen), ADA)
    assert asked.tags() == asked.tags() == ("model_1.0.0",)
    assert [r.url.path for r in seen] == [TAGS, "/token", TAGS, TAGS]
    assert seen[1].url.params["scope"] == "repository:ms/releases:pull"
    assert seen[1].headers["Authorization"] == ADA.header
    assert seen[2].headers["Authorization"] == "Bearer t-pull"


@pytest.mark.parametrize("realm", ["https://evil.example/token", "http://registry.example/token", "", "file:///token"])
def test_nobody_else_gets_our_password(realm: str) -> None:
    seen: list[httpx.Request] = []
    with pytest.raises(RegistryFails, match="wants us to log in at"):
        registry(with_token(realm, seen), ADA).tags()
    assert [r.url.path for r in seen] == [TAGS]


def test_a_host_that_was_named_may_give_the_token() -> None:
    seen: list[httpx.Request] = []
    asked = registry(with_token("https://login.example/token", seen), ADA, hosts=("login.example",))
    assert asked.tags() == ("model_1.0.0",)


def test_basic_authentication() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers.get("Authorization") != ADA.header:
            return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        return said(200, {"tags": []})

    assert registry(answer, ADA).tags() == ()
    with pytest.raises(RegistryFails, match="wants a user and a password"):
        registry(answer).tags()
    with pytest.raises(RegistryFails, match="does not accept the user or the password") as raised:
        registry(answer, Credentials("ada", "wrong")).tags()
    assert "wrong" not in str(raised.value)


# ---------------------------------------------------------------------------------------------------- where it sends us


def blobs_at(where: str, seen: list[httpx.Request]) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if "Authorization" not in request.headers and request.url.host == "registry.example":
            return httpx.Response(401, headers={"WWW-Authenticate": "Basic"})
        if request.url.path.startswith("/v2/"):
            return httpx.Response(307, headers={"Location": where})
        return said(200, BLOB)

    return answer


def test_a_redirect_to_a_named_host_is_followed_without_our_credentials() -> None:
    seen: list[httpx.Request] = []
    asked = registry(blobs_at("https://cdn.example/b", seen), ADA, hosts=("cdn.example",))
    with asked.get_blob(DIGEST) as stream:
        assert stream.read() == BLOB
    assert seen[-1].url.host == "cdn.example"
    assert "Authorization" not in seen[-1].headers


@pytest.mark.parametrize(
    "where",
    [
        "https://intranet.example/b",
        "http://registry.example/b",
        "http://cdn.example/b",
        "https://cdn.example:8443/b",
        "https://ada@cdn.example/b",
        "file:///etc/passwd",
        "",
    ],
)
def test_we_are_not_sent_anywhere_else(where: str) -> None:
    seen: list[httpx.Request] = []
    asked = registry(blobs_at(where, seen), ADA, hosts=("cdn.example",))
    with pytest.raises(RegistryFails, match="sends us to"), asked.get_blob(DIGEST):
        pass
    assert {r.url.host for r in seen} == {"registry.example"}


def test_round_in_circles_ends() -> None:
    with pytest.raises(RegistryFails, match="circles"):
        registry(lambda r: httpx.Response(302, headers={"Location": str(r.url)})).get_manifest(DIGEST)


def test_an_upload_goes_nowhere_else() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "registry.example"
        return httpx.Response(202, headers={"Location": "https://evil.example/upload"})

    with pytest.raises(RegistryFails, match=r"sends us to evil\.example"):
        registry(answer).put_blob(DIGEST, [BLOB])


# ----------------------------------------------------------------------------------------------------------- what comes


class Cut(httpx.SyncByteStream):
    """Some bytes, and then the line breaks."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        if self._data:
            yield self._data
        raise httpx.ReadError("cut")


def cut_every(n: int, asked: list[int]) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        at = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        asked.append(at)
        rest = BLOB[at:]
        headers = {"Content-Length": str(len(rest))}
        if len(rest) <= n:
            return said(206, rest, headers)
        return httpx.Response(206 if at else 200, headers=headers, stream=Cut(rest[:n]))

    return answer


def test_a_cut_stream_goes_on_at_its_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msfl.registry.distribution.time.sleep", lambda s: None)
    asked: list[int] = []
    with registry(cut_every(1500, asked)).get_blob(DIGEST) as stream:
        assert stream.read() == BLOB
    assert asked == [0, 1500, 3000, 4500]


def test_a_line_that_brings_nothing_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msfl.registry.distribution.time.sleep", lambda s: None)
    asked: list[int] = []
    with (
        registry(cut_every(0, asked)).get_blob(DIGEST) as stream,
        pytest.raises(RegistryFails, match=r"breaks off .* at byte 0"),
    ):
        stream.read()
    assert asked == [0, 0, 0, 0]


def test_a_stream_that_ends_early_without_a_word_is_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msfl.registry.distribution.time.sleep", lambda s: None)

    class Short(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield BLOB[:10]

    answers = iter(
        [
            httpx.Response(200, headers={"Content-Length": str(len(BLOB))}, stream=Short()),
            said(206, BLOB[10:], {"Content-Length": str(len(BLOB) - 10)}),
        ]
    )
    with registry(lambda request: next(answers)).get_blob(DIGEST) as stream:
        assert stream.read() == BLOB


def test_a_registry_that_always_begins_anew_is_read_past_what_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msfl.registry.distribution.time.sleep", lambda s: None)
    answer = cut_every(1500, [])

    def whole(request: httpx.Request) -> httpx.Response:
        return said(200, BLOB) if "Range" in request.headers else answer(request)

    with registry(whole).get_blob(DIGEST) as stream:
        assert stream.read() == BLOB
    with registry(whole).get_blob(DIGEST, 1234) as stream:
        assert stream.read() == BLOB[1234:]


def test_a_blob_is_asked_for_from_a_byte_on() -> None:
    asked: list[int] = []
    with registry(cut_every(len(BLOB), asked)).get_blob(DIGEST, 1234) as stream:
        assert stream.read() == BLOB[1234:]
    assert asked == [1234]


class Clock:
    """Each look at it takes `step` seconds."""

    def __init__(self, step: float) -> None:
        self._now, self._step = 0.0, step

    def monotonic(self) -> float:
        self._now += self._step
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


class Trickle(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        for at in range(0, len(BLOB), 10):
            yield BLOB[at : at + 10]


def test_a_slow_blob_comes_in_small_pieces_so_that_it_is_seen_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msfl.registry.distribution.time", Clock(0.2))
    with registry(lambda request: httpx.Response(200, stream=Trickle())).get_blob(DIGEST) as stream:
        pieces = [stream.read1(1 << 20) for _ in range(3)]
    assert b"".join(pieces) == BLOB[: sum(map(len, pieces))]
    assert all(0 < len(piece) <= 50 for piece in pieces)


def read_on(stream: BufferedIOBase, into: bytearray) -> None:
    while piece := stream.read1(1 << 20):
        into += piece


def test_a_trickle_is_given_up_after_what_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msfl.registry.distribution.time", Clock(0.2))
    got = bytearray()
    with (
        registry(lambda request: httpx.Response(200, stream=Trickle())).get_blob(DIGEST) as stream,
        pytest.raises(RegistryFails, match="less than 262144 bytes in 60 seconds"),
    ):
        read_on(stream, got)
    assert got == BLOB[: len(got)]
    assert len(got) > 100


def test_a_tag_is_what_its_bytes_are_whatever_the_header_says() -> None:
    body = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST}).encode()
    lie = {"Docker-Content-Digest": "sha256:" + "0" * 64}
    asked = registry(lambda r: said(200, body, lie))
    assert asked.resolve("model_1.0.0") == "sha256:" + hashlib.sha256(body).hexdigest()


def test_a_manifest_without_end_is_not_read_to_its_end() -> None:
    read = 0

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            nonlocal read
            while True:
                read += 1 << 20
                yield b" " * (1 << 20)

    body = registry(lambda r: httpx.Response(200, stream=Endless())).get_manifest(DIGEST)
    assert len(body) == MAX_MANIFEST_BYTES + 1
    assert read <= MAX_MANIFEST_BYTES + (2 << 20)


def test_what_is_not_there() -> None:
    asked = registry(lambda r: httpx.Response(404))
    assert asked.tags() == ()
    assert asked.referrers(DIGEST) == ()
    with pytest.raises(NotInRegistry):
        asked.resolve("model_1.0.0")
    with pytest.raises(NotInRegistry), asked.get_blob(DIGEST):
        pass


@pytest.mark.parametrize(
    "answer",
    [
        said(500, {"errors": [{"code": "UNKNOWN", "message": "call 0900-EVIL"}]}),
        said(200, b"<html>please log in to the hotel's network</html>"),
        said(200, b"[" * 100000),
        said(200, ["tags"]),
    ],
)
def test_what_is_no_registry_is_said_to_be_none(answer: httpx.Response) -> None:
    with pytest.raises(RegistryFails, match=r"registry\.example answers") as raised:
        registry(lambda r: answer).tags()
    assert "EVIL" not in str(raised.value)
    assert "hotel" not in str(raised.value)


def test_a_registry_that_stumbles_over_a_tag_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msfl.registry.distribution.time.sleep", lambda s: None)
    body = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST}).encode()
    answers = [said(500), said(503), said(200, body)]
    assert registry(lambda r: answers.pop(0)).get_manifest(DIGEST) == body
    answers = [said(500) for _ in range(4)]
    with pytest.raises(RegistryFails, match="with 500"):
        registry(lambda r: answers.pop(0)).get_manifest(DIGEST)


def test_a_dead_line_is_said_to_be_one() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route to host")

    asked = registry(answer)
    with pytest.raises(RegistryFails, match="cannot be asked: no route to host"):
        asked.tags()
    with pytest.raises(RegistryFails, match="cannot be asked: no route to host"), asked.get_blob(DIGEST):
        pass


# ---------------------------------------------------------------------------------------------------------- what is put


def test_bytes_under_another_digest_are_never_finished() -> None:
    methods = []

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        methods.append(request.method)
        return httpx.Response(202, headers={"Location": "/v2/ms/releases/blobs/uploads/1?state=x"})

    with pytest.raises(BadUpload):
        registry(answer).put_blob(DIGEST, [b"other bytes"])
    assert methods == ["POST", "PATCH", "DELETE"]


def test_the_address_of_an_upload_keeps_its_own_parameters() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        asked.append(request)
        return httpx.Response(
            201 if request.method == "PUT" else 202, headers={"Location": "/v2/ms/releases/blobs/uploads/1?state=x%3D"}
        )

    registry(answer).put_blob(DIGEST, [BLOB])
    assert dict(asked[-1].url.params) == {"state": "x=", "digest": DIGEST}
    assert asked[1].content == BLOB


@pytest.mark.parametrize("keeps", [True, False])
def test_a_registry_that_keeps_referrers_itself_is_not_given_an_index(keeps: bool) -> None:
    put = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            put.append(request.url.path.rpartition("/")[2])
            return httpx.Response(201, headers={"OCI-Subject": DIGEST} if keeps else {})
        known = [p for p in put if p == DIGEST.replace(":", "-")]
        if request.url.path.endswith(DIGEST.replace(":", "-")) and known:
            listed = [{"mediaType": MANIFEST, "digest": put[0], "size": len(body)}]
            return said(200, {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed})
        return httpx.Response(404)

    subject = {"mediaType": MANIFEST, "digest": DIGEST, "size": 1}
    config = {"mediaType": EMPTY, "digest": DIGEST, "size": 2}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [], "subject": subject}
    body = json.dumps(manifest).encode()
    digest = registry(answer).put_manifest(body)
    index = DIGEST.replace(":", "-")
    assert put == ([digest] if keeps else [digest, f"{index}.0000-{digest[7:19]}", index])
