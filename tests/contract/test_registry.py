"""What every registry does, run against the embedded one, the fake, and a real one that speaks OCI distribution."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fakes.registries import MemoryRegistry
from fakes.registry_server import GUARD, INSTALLED, MISSING, Server, registry_server
from msfl.registry.distribution import Address, Credentials, DistributionRegistry
from msfl.registry.interface import (
    EMPTY,
    INDEX,
    MANIFEST,
    BadUpload,
    Descriptor,
    NotInRegistry,
    Registry,
    RegistryFails,
    referrers_tag,
)
from msfl.registry.oci_layout import LayoutRegistry

NOWHERE = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registry_server(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(
    params=[
        "layout",
        "memory",
        pytest.param("distribution", marks=[pytest.mark.system, pytest.mark.skipif(not INSTALLED, reason=MISSING)]),
    ]
)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    match request.param:
        case "layout":
            yield _with_config(LayoutRegistry.create(tmp_path / "registry"))
        case "memory":
            yield _with_config(MemoryRegistry())
        case _:
            # A repository of its own for each test.
            repository = f"tests/{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"
            real = DistributionRegistry(Address.parse(f"{request.getfixturevalue('server').base}/{repository}"))
            yield _with_config(real)


def _with_config(registry: Registry) -> Registry:
    registry.put_blob(digest_of(CONFIG), [CONFIG])
    return registry


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


CONFIG = b"{}"
BLOB = bytes(range(250)) * 20


def manifest(**extra: Any) -> bytes:
    """Its config must be there before it is put: real registries look."""
    config = Descriptor(EMPTY, digest_of(CONFIG), len(CONFIG)).to_json()
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [], **extra}).encode()


class TestRegistry:
    def test_a_blob_comes_back_as_it_was_put(self, registry: Registry) -> None:
        data = b"layer" * 1000
        registry.put_blob(digest_of(data), [data[:7], data[7:]])
        registry.put_blob(digest_of(data), [data])
        with registry.get_blob(digest_of(data)) as stream:
            assert stream.read() == data

    def test_bytes_under_another_digest_are_not_taken(self, registry: Registry) -> None:
        with pytest.raises(BadUpload):
            registry.put_blob(digest_of(b"good"), [b"evil"])
        with pytest.raises(NotInRegistry), registry.get_blob(digest_of(b"good")):
            pass

    @pytest.mark.parametrize("digest", ["", "sha256:", "sha512:" + "0" * 128, "sha256:../../../etc/passwd", "latest"])
    def test_only_sha256_digests_are_names(self, registry: Registry, digest: str) -> None:
        with pytest.raises(ValueError, match="digest"):
            registry.put_blob(digest, [b""])
        with pytest.raises(ValueError, match="digest"), registry.get_blob(digest):
            pass

    def test_what_is_not_there_says_so(self, registry: Registry) -> None:
        with pytest.raises(NotInRegistry):
            registry.get_manifest(NOWHERE)
        with pytest.raises(NotInRegistry):
            registry.resolve("model_1.0.0")
        assert registry.tags() == ()
        assert registry.referrers(NOWHERE) == ()

    def test_a_tag_points_at_the_last_manifest(self, registry: Registry) -> None:
        registry.put_manifest(manifest(n=1), "model_1.0.0")
        second = registry.put_manifest(manifest(n=2), "model_1.0.0")
        assert registry.resolve("model_1.0.0") == second == digest_of(manifest(n=2))
        assert registry.get_manifest(second) == manifest(n=2)
        assert registry.tags() == ("model_1.0.0",)

    @pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", manifest(subject="sha256:0")])
    def test_a_manifest_is_a_manifest(self, registry: Registry, body: bytes) -> None:
        with pytest.raises(BadUpload):
            registry.put_manifest(body)

    @pytest.mark.parametrize("tag", ["", "a/b", "..", "a b", "x" * 129, "-a"])
    def test_a_tag_is_a_plain_name(self, registry: Registry, tag: str) -> None:
        with pytest.raises(BadUpload):
            registry.put_manifest(manifest(), tag)

    def test_referrers_are_found_by_subject_and_kind_in_order(self, registry: Registry) -> None:
        image = manifest()
        subject = Descriptor(MANIFEST, registry.put_manifest(image, "model_1.0.0"), len(image)).to_json()
        statement = registry.put_manifest(manifest(subject=subject, artifactType="a/statement"))
        reviews = [registry.put_manifest(manifest(subject=subject, artifactType="a/review", by=n)) for n in "xy"]
        registry.put_manifest(manifest(subject=subject, artifactType="a/statement"))
        digest = str(subject["digest"])
        assert [d.digest for d in registry.referrers(digest)] == [statement, *reviews]
        assert [d.digest for d in registry.referrers(digest, "a/review")] == reviews
        assert registry.tags() == ("model_1.0.0",)

    @pytest.mark.parametrize("start", [0, 1, 4999])
    def test_a_blob_is_read_from_a_byte_on(self, registry: Registry, start: int) -> None:
        """What a pull that was cut asks for."""
        registry.put_blob(digest_of(BLOB), [BLOB])
        with registry.get_blob(digest_of(BLOB), start) as stream:
            assert stream.read() == BLOB[start:]

    def test_a_blob_that_is_there_is_put_again_by_who_has_other_bytes_and_stays(self, registry: Registry) -> None:
        registry.put_blob(digest_of(BLOB), [BLOB])
        registry.put_blob(digest_of(BLOB), [BLOB])
        with pytest.raises(BadUpload):
            registry.put_blob(digest_of(BLOB), [b"evil"])
        with registry.get_blob(digest_of(BLOB)) as stream:
            assert stream.read() == BLOB

    def test_a_manifest_put_again_is_the_same_one_and_one_referrer(self, registry: Registry) -> None:
        image = manifest()
        subject = Descriptor(MANIFEST, registry.put_manifest(image), len(image)).to_json()
        for _ in range(2):
            registry.put_manifest(manifest(subject=subject, artifactType="a/review"))
        assert len(registry.referrers(str(subject["digest"]))) == 1

    def test_of_referrers_pushed_at_once_none_is_lost(self, registry: Registry) -> None:
        """Two reviewers sign in the same moment: a lost approval would be a nuisance, a lost rejection a danger."""
        image = manifest()
        subject = Descriptor(MANIFEST, registry.put_manifest(image), len(image)).to_json()
        bodies = [manifest(subject=subject, artifactType="a/review", by=n) for n in range(8)]
        with ThreadPoolExecutor(len(bodies)) as reviewers:
            pushed = set(reviewers.map(registry.put_manifest, bodies))
        found = registry.referrers(str(subject["digest"]))
        assert {d.digest for d in found} == pushed
        assert len(found) == len(bodies)
        last = registry.put_manifest(manifest(subject=subject, artifactType="a/review", by="last"))
        assert registry.referrers(str(subject["digest"]))[-1].digest == last
        assert registry.tags() == ()

    def test_a_moved_tag_leaves_the_manifest_it_pointed_at(self, registry: Registry) -> None:
        first = registry.put_manifest(manifest(n=1), "model_1.0.0")
        second = registry.put_manifest(manifest(n=2), "model_1.0.0")
        assert registry.get_manifest(first) == manifest(n=1)
        assert registry.resolve("model_1.0.0") == second


class TestDistribution:
    """What only a real server shows."""

    pytestmark: ClassVar = [pytest.mark.system, pytest.mark.skipif(not INSTALLED, reason=MISSING)]

    def test_the_index_of_referrers_is_where_other_tools_look(self, server: Server) -> None:
        """The fallback of OCI 1.1 for registries without a referrers API."""
        registry = _with_config(DistributionRegistry(Address.parse(f"{server.base}/tests/fallback")))
        image = manifest()
        subject = Descriptor(MANIFEST, registry.put_manifest(image), len(image))
        reviews = [
            registry.put_manifest(manifest(subject=subject.to_json(), artifactType="a/review", by=n)) for n in "xy"
        ]
        index = json.loads(registry.get_manifest(registry.resolve(referrers_tag(subject.digest))))
        assert index["mediaType"] == INDEX
        assert [d["digest"] for d in index["manifests"]] == reviews
        assert {d["artifactType"] for d in index["manifests"]} == {"a/review"}

    def test_who_is_not_let_in_hears_so_and_who_is_may_all(self, tmp_path: Path) -> None:
        with registry_server(tmp_path, guarded=True) as server:
            address = Address.parse(f"{server.base}/tests/auth")
            for nobody, why in (
                (None, "wants a user and a password, and none was given"),
                (Credentials("ada", "wrong"), "does not accept the user or the password"),
                (Credentials("eve", GUARD[1]), "does not accept the user or the password"),
            ):
                closed = DistributionRegistry(address, nobody)
                with pytest.raises(RegistryFails, match=why):
                    closed.put_blob(digest_of(BLOB), [BLOB])
                with pytest.raises(RegistryFails, match=why):
                    closed.get_manifest(NOWHERE)
                with (
                    pytest.raises(RegistryFails, match=why),
                    closed.get_blob(NOWHERE),
                ):
                    pass
            let_in = DistributionRegistry(address, Credentials(*GUARD))
            let_in.put_blob(digest_of(BLOB), [BLOB])
            with let_in.get_blob(digest_of(BLOB), 7) as stream:
                assert stream.read() == BLOB[7:]
            with pytest.raises(NotInRegistry):
                let_in.get_manifest(NOWHERE)

    def test_a_registry_that_is_down_cannot_be_asked(self, tmp_path: Path) -> None:
        with registry_server(tmp_path) as server:
            registry = DistributionRegistry(Address.parse(f"{server.base}/tests/down"))
            registry.put_blob(digest_of(BLOB), [BLOB])
            server.stop()
            with pytest.raises(RegistryFails, match="cannot be asked"), registry.get_blob(digest_of(BLOB)):
                pass
            server.start()
            with registry.get_blob(digest_of(BLOB)) as stream:
                assert stream.read() == BLOB


def test_another_process_sees_the_same_layout(tmp_path: Path) -> None:
    body = manifest()
    digest = LayoutRegistry.create(tmp_path).put_manifest(body, "model_1.0.0")
    LayoutRegistry.create(tmp_path)
    assert LayoutRegistry(tmp_path).resolve("model_1.0.0") == digest
    index = json.loads((tmp_path / "index.json").read_bytes())
    assert index["mediaType"] == INDEX
    assert index["manifests"][0]["digest"] == digest
    assert [p.name for p in (tmp_path / "blobs" / "sha256").iterdir()] == [digest.removeprefix("sha256:")]


def test_any_other_folder_is_no_registry(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an OCI image layout"):
        LayoutRegistry(tmp_path)
