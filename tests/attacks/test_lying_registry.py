"""A registry behind HTTP, or one in a folder, that serves something else than was pushed, whatever it says of it.

`test_hostile_registry.py` has what may be wrong with the bytes; here are the ways in which a real registry can lie: its
disk is changed behind its back (Debian's docker-registry serves what lies there, unchecked), it names the right digest
over other bytes, moves a tag, or answers for one image with a choice between several.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from fakes.registries import Image, digest_of, tar_of
from fakes.registry_server import INSTALLED, MISSING, Server, registry_server
from msfl.policies.refusals import Code, Refused
from msfl.registry.cache import ImageCache
from msfl.registry.distribution import Address, DistributionRegistry
from msfl.registry.interface import INDEX, MANIFEST, Descriptor, Registry
from msfl.registry.oci_layout import LayoutRegistry
from msfl.registry.pull import VerifiedImage, pull


class Lying:
    """A registry of either kind, and its disk."""

    def __init__(self, registry: Registry, blobs: Callable[[str], Path]) -> None:
        self.registry = registry
        self._blobs = blobs

    def tamper(self, digest: str, change: Callable[[bytes], bytes]) -> None:
        file = self._blobs(digest.removeprefix("sha256:"))
        file.write_bytes(change(file.read_bytes()))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registry_server(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(
    params=[
        "layout",
        pytest.param("distribution", marks=[pytest.mark.system, pytest.mark.skipif(not INSTALLED, reason=MISSING)]),
    ]
)
def lying(request: pytest.FixtureRequest, tmp_path: Path) -> Lying:
    if request.param == "layout":
        layout = LayoutRegistry.create(tmp_path / "registry")
        return Lying(layout, lambda name: layout.root / "blobs/sha256" / name)
    server: Server = request.getfixturevalue("server")
    repository = f"attacks/{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"
    kept = server.data / "docker/registry/v2/blobs/sha256"
    registry = DistributionRegistry(Address.parse(f"{server.base}/{repository}"))
    return Lying(registry, lambda name: kept / name[:2] / name / "data")


@pytest.fixture
def image(request: pytest.FixtureRequest) -> Image:
    """Its own for each test: a registry keeps a blob once, whoever pushed it."""
    return Image(
        tar_of({"msfl/x.py": request.node.name.encode()}), base=(tar_of({"usr/x": request.node.name.encode()}),)
    )


def pulled(registry: Registry, digest: str, tmp_path: Path) -> VerifiedImage:
    return pull(registry, digest, ImageCache(tmp_path / "cache"), by="run", whole=True)


def refused(registry: Registry, digest: str, tmp_path: Path) -> str:
    with pytest.raises(Refused) as no:
        pulled(registry, digest, tmp_path)
    assert no.value.refusal.code is Code.IMAGE_BROKEN
    left = {p.name for p in (tmp_path / "cache").iterdir()}
    assert left == {"blobs", "held", "used", "looked-at"}, "nothing is unpacked"
    for blob in (tmp_path / "cache/blobs").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name, "nothing else is kept"
    return no.value.refusal.message


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "longer": lambda data: data + b"x",
    "shorter": lambda data: data[:-1],
    "empty": lambda data: b"",
    "another": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("part", ["config", "base", "environment", "code"])
def test_a_registry_whose_disk_was_tampered_with(
    lying: Lying, image: Image, tmp_path: Path, part: str, harm: str
) -> None:
    digest = image.push(lying.registry)
    layers = dict(zip(("base", "environment", "code"), map(digest_of, image.layers), strict=True))
    at = {"config": image.config_digest, **layers}[part]
    # The lock is the same in all images here: another test may have harmed it in the one registry that they share.
    whole = image.layers[1] if part == "environment" else None
    lying.tamper(at, HARMS[harm])
    try:
        refused(lying.registry, digest, tmp_path)
    finally:
        if whole is not None:
            lying.tamper(at, lambda _: whole)


def more_labels(manifest: bytes) -> bytes:
    return json.dumps({**json.loads(manifest), "annotations": {"harmless": "label"}}).encode()


@pytest.mark.parametrize("change", [lambda manifest: manifest + b" ", more_labels])
def test_a_manifest_tampered_with_on_the_registrys_disk(
    lying: Lying, image: Image, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    """Still one that the registry itself can read: what it cannot, it does not serve."""
    digest = image.push(lying.registry)
    lying.tamper(digest, change)
    assert "does not have this digest" in refused(lying.registry, digest, tmp_path)


def test_a_tag_that_was_moved_moves_nobody(lying: Lying, image: Image, tmp_path: Path) -> None:
    """Sites ask by digest; what a tag says is heard by people only."""
    digest = image.push(lying.registry)
    evil = Image(tar_of({"msfl/x.py": b"evil = 1"}))
    lying.registry.put_manifest(lying.registry.get_manifest(digest), "model_1.0.0")
    moved = evil.push(lying.registry)
    lying.registry.put_manifest(lying.registry.get_manifest(moved), "model_1.0.0")
    assert lying.registry.resolve("model_1.0.0") == moved
    assert b"evil" not in (pulled(lying.registry, digest, tmp_path).root / "msfl/x.py").read_bytes()


def test_a_choice_between_images_under_the_digest_that_was_asked_for(
    lying: Lying, image: Image, tmp_path: Path
) -> None:
    honest = image.push(lying.registry)
    lying.tamper(honest, lambda _: index_of(honest))
    refused(lying.registry, honest, tmp_path)


def test_an_index_that_was_itself_approved_by_mistake(lying: Lying, image: Image, tmp_path: Path) -> None:
    index = lying.registry.put_manifest(index_of(image.push(lying.registry)))
    assert "does not name a single image" in refused(lying.registry, index, tmp_path)


def index_of(child: str) -> bytes:
    manifests = [{**Descriptor(MANIFEST, child, 1).to_json(), "platform": {"os": "linux", "architecture": "amd64"}}]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode()


# ------------------------------------------------------------------------------------------------------ lies in headers


def liar(serve: Callable[[str], bytes]) -> DistributionRegistry:
    """Answers every request with these bytes, and with every header that says they are what was asked for."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked = request.url.path.rpartition("/")[2]
        body = serve(asked)
        headers = {"Docker-Content-Digest": asked, "ETag": f'"{asked}"', "Content-Length": str(len(body))}
        if "/manifests/" in request.url.path:
            headers["Content-Type"] = MANIFEST
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(body))

    address = Address.parse("https://registry.example/ms/releases")
    return DistributionRegistry(address, transport=httpx.MockTransport(answer))


def test_the_right_digest_in_the_header_over_other_bytes(image: Image, tmp_path: Path) -> None:
    digest = image.push()
    evil = Image(tar_of({"msfl/x.py": b"evil = 1"}))
    evil_digest = evil.push()
    assert "does not have this digest" in refused(
        liar(lambda _: evil.registry.get_manifest(evil_digest)), digest, tmp_path
    )


@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_right_digest_in_the_header_over_another_layer(image: Image, tmp_path: Path, at: int) -> None:
    digest = image.push()
    whole = {digest_of(data): data for data in image.layers}
    config = next(iter({image.config_digest} - set(whole)))
    with image.registry.get_blob(config) as stream:
        whole[config] = stream.read()
    whole[digest] = image.registry.get_manifest(digest)
    asked = digest_of(image.layers[at])
    whole[asked] = HARMS["flipped"](whole[asked])
    assert "the registry serves other bytes" in refused(liar(lambda name: whole[name]), digest, tmp_path)


def test_a_content_length_that_lies(image: Image, tmp_path: Path) -> None:
    digest = image.push()
    body = image.registry.get_manifest(digest)

    def answer(request: httpx.Request) -> httpx.Response:
        if "/manifests/" in request.url.path:
            return httpx.Response(200, stream=httpx.ByteStream(body))
        # Says that it is small, and does not end.
        return httpx.Response(200, headers={"Content-Length": "10"}, stream=Endless())

    address = Address.parse("https://registry.example/ms/releases")
    endless = DistributionRegistry(address, transport=httpx.MockTransport(answer))
    assert "the registry serves other bytes" in refused(endless, digest, tmp_path)
    assert Endless.sent < 16 << 20


class Endless(httpx.SyncByteStream):
    sent = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            Endless.sent += 1 << 16
            yield bytes(1 << 16)
