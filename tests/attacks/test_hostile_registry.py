"""A registry serves something else than what was pushed, or an image packed to break out. Nothing is unpacked."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.registries import CODE, LOCKED, Image, digest_of, tar_of
from msfl.policies.refusals import Code, Refused
from msfl.registry.cache import ImageCache
from msfl.registry.interface import INDEX, LAYER, MANIFEST, Descriptor, NotInRegistry, referrers_tag
from msfl.registry.layer import LayerLimits
from msfl.registry.oci_layout import LayoutRegistry
from msfl.registry.publish import statements_of, submit_statement
from msfl.registry.pull import PullLimits, VerifiedImage, pull

LIMITS = PullLimits(1 << 20, LayerLimits(files=20, file_bytes=1 << 20, total_bytes=4 << 20))


def pulled(image: Image, digest: str, folder: Path) -> VerifiedImage:
    return pull(image.registry, digest, ImageCache(folder), by="run", limits=LIMITS)


def refused(image: Image, digest: str, tmp_path: Path) -> str:
    cache = tmp_path / "cache"
    with pytest.raises(Refused) as error:
        pulled(image, digest, cache)
    assert error.value.refusal.code is Code.IMAGE_BROKEN
    assert {p.name for p in cache.iterdir()} == {"blobs", "held", "used", "looked-at"}, "something was left behind"
    assert not list(cache.glob("blobs/*.part")), "something was half kept"
    assert {p.name for p in tmp_path.iterdir()} == {"cache"}, "something got out"
    return error.value.refusal.message


def refused_tar(tar: bytes, tmp_path: Path) -> str:
    image = Image(tar)
    return refused(image, image.push(), tmp_path)


def test_the_honest_image_is_pulled(tmp_path: Path) -> None:
    image = Image()
    assert (pulled(image, image.push(), tmp_path).root / "msfl/learning/__init__.py").read_bytes() == b"code = 1"


def test_a_tampered_manifest(tmp_path: Path) -> None:
    image = Image()
    digest = image.push()
    image.registry.tamper(digest, image.registry.get_manifest(digest) + b" ")
    assert "does not have this digest" in refused(image, digest, tmp_path)


@pytest.mark.parametrize("what", ["config_digest", "layer"])
@pytest.mark.parametrize("how", ["flip", "longer", "shorter", "empty"])
def test_a_tampered_blob(tmp_path: Path, what: str, how: str) -> None:
    image = Image()
    digest = image.push()
    at = image.config_digest if what == "config_digest" else digest_of(image.layer)
    with image.registry.get_blob(at) as stream:
        data = stream.read()
    harmed = {"flip": bytes([data[0] ^ 1]) + data[1:], "longer": data + b"x", "shorter": data[:-1], "empty": b""}[how]
    image.registry.tamper(at, harmed)
    assert "the registry serves" in refused(image, digest, tmp_path)


def test_an_index_that_chooses_an_image(tmp_path: Path) -> None:
    image = Image()
    child = image.push()
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [Descriptor(MANIFEST, child, 1).to_json()]}
    digest = image.registry.put_manifest(json.dumps(index).encode())
    assert "not name a single image" in refused(image, digest, tmp_path)


def _with(**changes: Any) -> Callable[[Image], None]:
    return lambda image: image.manifest.update(changes)


def _config_with(**changes: Any) -> Callable[[Image], None]:
    return lambda image: image.config.update(changes)


def _container_with(**changes: Any) -> Callable[[Image], None]:
    return lambda image: image.config["config"].update(changes)


HUGE = {"mediaType": LAYER, "digest": "sha256:" + "0" * 64, "size": 1 << 40}


@pytest.mark.parametrize(
    "harm",
    [
        _with(layers=[]),
        _with(layers=[HUGE]),
        _with(layers=[{**HUGE, "size": -1}]),
        _with(layers=[{**HUGE, "digest": "sha256:../../../../etc/passwd", "size": 1}]),
        _with(layers=[{**HUGE, "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "size": 1}]),
        _with(layers=["x"]),
        _with(layers=7),
        _with(config=None),
        _with(schemaVersion=1),
        _with(layers=[{**HUGE, "size": 1}] * 9),
        _config_with(rootfs={"diff_ids": []}),
        _config_with(rootfs={"diff_ids": [digest_of(b"other")]}),
        _config_with(config={}),
        _config_with(config={"Entrypoint": ["python"], "Labels": {}}),
        _config_with(config={"Entrypoint": ["python"], "Labels": {"msfl.environment.sha256": digest_of(b"other")}}),
        _config_with(config=[]),
        _container_with(Volumes={"/scratch": {}}),
        _container_with(OnBuild=["RUN x"]),
        _container_with(Healthcheck={"Test": ["CMD", "x"]}),
        lambda image: image.kinds.reverse(),
        lambda image: image.kinds.__setitem__(1, {"msfl.layer": "environment"}),
        lambda image: image.kinds.__setitem__(1, {}),
        lambda image: image.kinds.__setitem__(0, {"msfl.layer": "base"}),
        lambda image: image.kinds.__setitem__(0, {"msfl.layer": "x" * 10_000}),
    ],
)
def test_documents_that_are_not_what_they_should_be(tmp_path: Path, harm: Callable[[Image], None]) -> None:
    image = Image()
    harm(image)
    refused(image, image.push(), tmp_path)


@pytest.mark.parametrize(
    "body", [b'{"schemaVersion":2,"schemaVersion":2,"mediaType":"x"}', b'{"mediaType":"x","a":NaN}']
)
def test_a_manifest_that_two_readers_read_differently(tmp_path: Path, body: bytes) -> None:
    image = Image()
    refused(image, image.registry.put_manifest(body), tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/cron.d/x",
        "../escape",
        "a/../../escape",
        "./a",
        "a//b",
        ".hidden",
        "a/.wh.b",
        "a\\b",
        "a\nb",
        "ä",
        "a/",
        "a b",
        "-rf",
        "a" * 90 + "/" + "b" * 90 + "/" + "c" * 90,
    ],
)
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    image = Image(tar_of({**CODE, name: b"x"}, format=tarfile.GNU_FORMAT))
    refused(image, image.push(), tmp_path)


@pytest.mark.parametrize("name", ["usr/bin/python", "etc/passwd", "msfl", "msfl.py", "msfl-environment.json", "os.py"])
def test_code_that_would_replace_the_system_below_it(tmp_path: Path, name: str) -> None:
    assert "no place in the layer of the code" in refused_tar(tar_of({**CODE, name: b"x"}), tmp_path)


def test_a_lock_that_brings_code(tmp_path: Path) -> None:
    image = Image()
    image.layers[0] = gzip.compress(lock := tar_of({**LOCKED, "msfl/x.py": b"x"}), mtime=0)
    image.config["rootfs"]["diff_ids"][0] = digest_of(lock)
    assert "no place in the layer of the environment" in refused(image, image.push(), tmp_path)


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
    ],
)
def test_entries_that_are_no_plain_files(tmp_path: Path, kind: bytes) -> None:
    def change(entry: tarfile.TarInfo) -> None:
        if entry.name == "odd":
            entry.type, entry.linkname = kind, "/etc/passwd"

    image = Image(tar_of({**CODE, "odd": b""}, change))
    assert "only plain files" in refused(image, image.push(), tmp_path)


def test_a_link_and_then_a_file_through_it(tmp_path: Path) -> None:
    def change(entry: tarfile.TarInfo) -> None:
        if entry.name == "way":
            entry.type, entry.linkname = tarfile.SYMTYPE, str(tmp_path)

    image = Image(tar_of({**CODE, "way": b"", "way/escaped": b"x"}, change))
    refused(image, image.push(), tmp_path)


def test_a_name_twice_and_a_file_that_is_also_a_folder(tmp_path: Path) -> None:
    twice = tar_of(CODE)[: 2 * 512] + tar_of(CODE)
    assert "twice" in refused_tar(twice, tmp_path)
    both = tar_of({**CODE, "msfl/a": b"x", "msfl/a/b": b"x"})
    assert "file and a folder" in refused_tar(both, tmp_path)


def test_extension_headers_are_not_followed(tmp_path: Path) -> None:
    """A thousand chained headers make tarfile recurse until it breaks; an announced size makes it allocate."""
    long_name = tar_of({"x" * 120: b"y"}, format=tarfile.GNU_FORMAT)[:512]
    assert "only plain files" in refused_tar(long_name * 2000 + bytes(1024), tmp_path)
    pax = tar_of({"x" * 300: b"y"}, format=tarfile.PAX_FORMAT)
    assert "only plain files" in refused_tar(pax, tmp_path)


def test_bombs(tmp_path: Path) -> None:
    big = tar_of({**CODE, "msfl/zeros": bytes(3 << 20)})
    assert "at most" in refused_tar(big, tmp_path)
    many = tar_of({**CODE, **{f"msfl/f{n}": b"" for n in range(30)}})
    assert "more than 20 files" in refused_tar(many, tmp_path)
    total = tar_of({**CODE, **{f"msfl/f{n}": bytes(1 << 20) for n in range(6)}})
    assert "more than is allowed" in refused_tar(total, tmp_path)
    padding = tar_of(CODE) + bytes(8 << 20)
    assert "more than is allowed" in refused_tar(padding, tmp_path)


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"not gzip",
        gzip.compress(tar_of(CODE), mtime=0)[:-20],
        gzip.compress(tar_of(CODE), mtime=0) + b"tail",
        gzip.compress(tar_of(CODE), mtime=0) * 2,
        gzip.compress(tar_of(CODE)[:700], mtime=0),
        gzip.compress(tar_of(CODE) + b"after the end", mtime=0),
        gzip.compress(b"\xff" * 2048, mtime=0),
        gzip.compress(b"", mtime=0),
        tar_of(CODE),
    ],
    ids=["nothing", "no gzip", "cut", "tail", "twice", "half a tar", "after the end", "no tar", "empty", "not packed"],
)
def test_streams_that_are_cut_or_carry_more(tmp_path: Path, packed: bytes) -> None:
    image = Image(packed=packed)
    refused(image, image.push(), tmp_path)


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0", b"garbage!!!!\0"])
def test_sizes_that_lie(tmp_path: Path, size: bytes) -> None:
    header = bytearray(tar_of({"a": b"x"})[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    image = Image(bytes(header) + bytes(2048))
    refused(image, image.push(), tmp_path)


def _rewrite(code: Path) -> None:
    code.chmod(0o644)
    code.write_bytes(b"evil = 1")


def _add(code: Path) -> None:
    code.with_name("more.py").touch()


def _link(code: Path) -> None:
    code.unlink()
    code.symlink_to("/etc/passwd")


def _link_folder(code: Path) -> None:
    (code.parent / "to").symlink_to("/etc")


@pytest.mark.parametrize("harm", [_rewrite, _add, _link, _link_folder, Path.unlink])
def test_an_unpacked_image_that_was_changed_is_not_used(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    image = Image()
    digest = image.push()
    harm(pulled(image, digest, tmp_path).root / "msfl/learning/__init__.py")
    with pytest.raises(Refused, match="has been changed since"):
        pulled(image, digest, tmp_path)


def test_a_cached_blob_that_was_changed_is_fetched_again(tmp_path: Path) -> None:
    image = Image()
    digest = image.push()
    pulled(image, digest, tmp_path)
    for blob in (tmp_path / "blobs").iterdir():
        blob.write_bytes(b"evil")
    assert pulled(image, digest, tmp_path).digest == digest


INDEXES = {
    "no JSON": b"{",
    "very deep": b"[" * 100_000,
    "a list": b"[]",
    "no manifests": b"{}",
    "manifests that are none": b'{"manifests": ["x", null]}',
    "annotations that are none": b'{"manifests": [{"annotations": 7}]}',
    "a path for a digest": b'{"manifests": [{"mediaType": "x", "digest": "../../x", "size": 1, "annotations": {}}]}',
}


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("which", ["index", "referrers"])
def test_a_broken_index_is_a_registry_without_papers(tmp_path: Path, name: str, which: str) -> None:
    """Not an error that ends the gateway which asked."""
    registry = LayoutRegistry.create(tmp_path / "layout")
    body = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": {}, "layers": []}).encode()
    digest = registry.put_manifest(body)
    submit_statement(registry, digest, b"honest")
    assert statements_of(registry, digest) == (b"honest", ())
    if which == "index":
        (registry.root / "index.json").write_bytes(INDEXES[name])
    else:
        at = registry.resolve(referrers_tag(digest)).removeprefix("sha256:")
        (registry.root / "blobs/sha256" / at).write_bytes(INDEXES[name])
    with pytest.raises(NotInRegistry):
        statements_of(registry, digest)


def test_papers_of_another_image_and_unreadable_papers_are_nobodys_word(tmp_path: Path) -> None:
    image = Image()
    digest = image.push()
    submit_statement(image.registry, digest, b"honest")
    for late in (b"tampered", b"gone"):
        at = submit_statement(image.registry, digest, late)
        harmed = {b"tampered": image.registry.get_manifest(at) + b" ", b"gone": b"{"}[late]
        image.registry.tamper(at, harmed)
    assert statements_of(image.registry, digest) == (b"honest", ())
