"""A reviewed image whose base layers are packed to break out of Docker, fill the disk, or stand in for the release.

Docker unpacks them, not we; so each is looked at while it comes, and Docker never sees one of these.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.registries import Image, digest_of, tar_of
from msfl.policies.refusals import Code, Refused
from msfl.registry.base_layer import BaseLayer, BaseLimits
from msfl.registry.cache import ImageCache
from msfl.registry.layer import BadLayer
from msfl.registry.pull import PullLimits, VerifiedImage, pull

LIMITS = PullLimits(base=BaseLimits(layers=3, packed_bytes=1 << 20, unpacked_bytes=8 << 20, entries=50))
# A system as debootstrap and Docker pack them: folders, links of both kinds, long names, set-user-id, capabilities.
LONG = "usr/lib/python3/" + "/".join(["a" * 60] * 4)


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"", **more: object) -> bytes:
    """One entry as it stands in a tar, extension headers first; no end of the archive."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data)
    for key, value in more.items():
        setattr(info, key, value)
    padding = bytes(-len(data) % 512)
    return info.tobuf(tarfile.PAX_FORMAT) + data + padding


END = bytes(1024)
FOLDER, LINK, HARD_LINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
HONEST = (
    entry("./", FOLDER)
    + entry("./bin", LINK, "usr/bin")
    + entry("./usr/bin/", FOLDER)
    + entry("./usr/bin/python3.11", data=b"ELF" * 1000, mode=0o755)
    + entry("./usr/bin/python", LINK, "python3.11")
    + entry("./usr/bin/perl5.36", HARD_LINK, "./usr/bin/python3.11")
    + entry("./usr/bin/su", mode=0o4755, pax_headers={"SCHILY.xattr.security.capability": "\x01\0\0\x02"})
    + entry("./etc/mtab", LINK, "/proc/mounts")
    + entry("./usr/lib/ssl/certs", LINK, "../../../etc/ssl/certs")
    + entry("./usr/share/ca-certificates/Főtanúsítvány.crt", data=b"x")
    + entry(f"./{LONG}", data=b"x")
    + entry("./tmp/", FOLDER, mode=0o1777)
    + entry("./usr/share/doc/.wh.old", data=b"")
    + entry("./var/lib/.wh..wh..opq", data=b"")
)


def refused(image: Image, tmp_path: Path) -> str:
    tmp_path.mkdir(exist_ok=True)
    cache = ImageCache(tmp_path / "cache")
    digest = image.push()
    with pytest.raises(Refused) as error:
        pull(image.registry, digest, cache, by="run", whole=True, limits=LIMITS)
    assert error.value.refusal.code is Code.IMAGE_BROKEN
    assert {p.name for p in tmp_path.iterdir()} == {"cache"}, "something got out"
    assert not cache.root(digest).exists()
    for layer in image.layers[:-2]:
        assert not cache.looked_at(digest_of(layer)), "it would pass the next time"
    with pytest.raises(Refused):
        pull(image.registry, digest, cache, by="run", whole=True, limits=LIMITS)
    return error.value.refusal.message


def refused_tar(tar: bytes, tmp_path: Path) -> str:
    """The same, packed and plain, and for the same reason."""
    packed, plain = (
        refused(Image(base=(tar,), compress=compress), tmp_path / name).partition("was not taken: ")[2]
        for name, compress in (("packed", gzip.compress), ("plain", None))
    )
    assert packed == plain
    return packed


@pytest.mark.parametrize(
    "compress", [None, gzip.compress, lambda tar: gzip.compress(tar[:999]) + gzip.compress(tar[999:])]
)
def test_an_honest_system_is_taken(tmp_path: Path, compress: Callable[[bytes], bytes] | None) -> None:
    image = Image(base=(HONEST + END,), compress=compress)
    assert pulled(image, tmp_path).layers[0].diff_id == digest_of(HONEST + END)


def pulled(image: Image, tmp_path: Path) -> VerifiedImage:
    return pull(image.registry, image.push(), ImageCache(tmp_path), by="run", whole=True, limits=LIMITS)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_come_in_two_forms_and_both_are_read(tmp_path: Path, form: int) -> None:
    honest = tar_of({f"{LONG}/é": b"x"}, format=form)
    pulled(Image(base=(honest,)), tmp_path)
    hostile = tar_of({f"{LONG}/../../../../../../../../escape": b"x"}, format=form)
    assert "leads out of the image" in refused_tar(hostile, tmp_path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../etc/passwd", "usr/../../etc/passwd", "./../x", "usr/..", "/", "//x"]
)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, FOLDER, LINK])
def test_names_that_lead_out(tmp_path: Path, name: str, kind: bytes) -> None:
    assert "leads out of the image" in refused_tar(HONEST + entry(name, kind, "x") + END, tmp_path)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "\u202etxt.exe", ""])
def test_names_that_cannot_be_shown(tmp_path: Path, name: str) -> None:
    assert "printable" in refused_tar(HONEST + entry(name) + END, tmp_path)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    block = bytearray(entry("x" * 20))
    block[0:3] = b"\xff\xfe\xfd"
    assert "printable" in refused_tar(checksummed(block) + END, tmp_path)


@pytest.mark.parametrize(
    "target", ["../x", "../../../../etc/shadow", "usr/../../x", "./../x", "..", "a/b/c/../../../../x"]
)
def test_links_that_lead_above_the_root(tmp_path: Path, target: str) -> None:
    assert "leads out of the image" in refused_tar(HONEST + entry("way", LINK, target) + END, tmp_path)


@pytest.mark.parametrize("target", ["../etc/shadow", "/etc/shadow", "usr/../../x"])
def test_hard_links_that_lead_out(tmp_path: Path, target: str) -> None:
    assert "leads out of the image" in refused_tar(HONEST + entry("way", HARD_LINK, target) + END, tmp_path)


def test_entries_through_a_link(tmp_path: Path) -> None:
    way = HONEST + entry("way", LINK, "/var/run")
    assert "leads through the link way" in refused_tar(way + entry("way/docker.sock", data=b"x") + END, tmp_path)
    assert "leads through the link way" in refused_tar(way + entry("way/a/b/", FOLDER) + END, tmp_path)
    assert "through a link" in refused_tar(way + entry("x", HARD_LINK, "way/docker.sock") + END, tmp_path)


@pytest.mark.parametrize(
    "kind",
    [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"V", b"M", b"g"],
)
def test_devices_pipes_and_odd_kinds(tmp_path: Path, kind: bytes) -> None:
    odd = entry("dev/sda", kind, devmajor=8)
    assert "pack it without /dev" in refused_tar(HONEST + odd + END, tmp_path)


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99999999999"},
        {"SCHILY.xattr.trusted.overlay.opaque": "y"},
        {"SCHILY.xattr.trusted.overlay.redirect": "/etc"},
        {"SCHILY.xattr.user.overlay.whiteout": "y"},
        {"SCHILY.xattr.system.posix_acl_access": "x"},
        {"hdrcharset": "BINARY"},
        {"no such key": "1"},
    ],
)
def test_extensions_that_are_orders_to_somebody(tmp_path: Path, headers: dict[str, str]) -> None:
    said = refused_tar(HONEST + entry("x", data=b"1", pax_headers=headers) + END, tmp_path)
    assert "not allowed in an image" in said


def pax(text: bytes) -> bytes:
    block = bytearray(entry("PaxHeader/x", data=text))
    block[156:157] = b"x"
    return checksummed(block)


def checksummed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


@pytest.mark.parametrize(
    "text",
    [
        b"8 path=x\n",
        b"99999 path=x\n",
        b"0 path=x\n",
        b"-5 path=x\n",
        b"11 path=x\n",
        b"path=x\n",
        b"12 path=x\0y\n",
        b"6 size\n",
        b"12 size=-12\n",
        b"14 size=1_000\n",
        b"x",
    ],
)
def test_extension_headers_that_two_readers_read_differently(tmp_path: Path, text: bytes) -> None:
    said = refused_tar(HONEST + pax(text) + entry("x", data=b"1") + END, tmp_path)
    assert "broken extension header" in said or "not allowed" in said


def test_a_size_that_the_extension_hides_is_believed_as_docker_believes_it(tmp_path: Path) -> None:
    """What one reader takes for a file's bytes, another takes for the next entry."""
    inner = entry("etc/shadow-of", tarfile.CHRTYPE)
    hidden = pax(b"12 size=512\n") + entry("x") + inner
    pulled(Image(base=(HONEST + hidden + END,)), tmp_path)
    seen = pax(b"10 size=0\n") + entry("x", data=inner)
    assert "pack it without /dev" in refused_tar(HONEST + seen + END, tmp_path)


def test_extension_headers_without_end(tmp_path: Path) -> None:
    assert "at most" in refused_tar(pax(b"%d path=%s\n" % (70012, b"x" * 70000)) + entry("x") + END, tmp_path)
    assert "without its entry" in refused_tar(HONEST + pax(b"9 path=y\n") + END, tmp_path)


@pytest.mark.parametrize("kind", [FOLDER, LINK, HARD_LINK])
def test_what_is_no_file_has_no_bytes(tmp_path: Path, kind: bytes) -> None:
    assert "is no file and yet has" in refused_tar(HONEST + entry("x/y", kind, "usr", data=b"1") + END, tmp_path)


def test_a_name_twice(tmp_path: Path) -> None:
    assert "twice" in refused_tar(HONEST + entry("x") + entry("./x", data=b"other") + END, tmp_path)
    assert "twice" in refused_tar(HONEST + entry("x", LINK, "y") + entry("x/", FOLDER) + END, tmp_path)
    pulled(Image(base=(HONEST + entry("usr/bin/", FOLDER) + END,)), tmp_path)


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "usr/.wh..wh.plnk", "usr/.wh..wh.aufs"])
def test_whiteouts_that_hide_more_than_a_name(tmp_path: Path, name: str) -> None:
    assert "whiteout" in refused_tar(HONEST + entry(name) + END, tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("msfl/learning/worker.py", tarfile.REGTYPE),
        ("./msfl/learning/", FOLDER),
        ("msfl-environment.json", tarfile.REGTYPE),
        ("msfl", LINK),
        ("msfl/.wh.learning", tarfile.REGTYPE),
    ],
)
def test_the_release_itself_cannot_come_from_below(tmp_path: Path, name: str, kind: bytes) -> None:
    """In Docker it would run beside the reviewed code; the process runtime would not even have it."""
    said = refused_tar(HONEST + entry(name, kind, "usr") + END, tmp_path)
    assert "own layers" in said or "must be a folder" in said


@pytest.mark.parametrize("name", ["proc", "sys", "dev", "run", "run/msfl", "in"])
def test_a_mount_point_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    assert "must be a folder" in refused_tar(HONEST + entry(name, LINK, "/etc") + END, tmp_path)


# ---------------------------------------------------------------------------------------------------------------- bombs


def test_bombs(tmp_path: Path) -> None:
    zeros = HONEST + entry("zeros", data=bytes(9 << 20)) + END
    assert "unpacks to more than" in refused(Image(base=(zeros,)), tmp_path / "gzip")
    assert "at most 3 layers of together 1048576 bytes" in refused(
        Image(base=(zeros,), compress=None), tmp_path / "tar"
    )
    many = b"".join(entry(f"f{n}") for n in range(60))
    assert "more entries than are allowed" in refused_tar(many + END, tmp_path)


def test_a_megabyte_that_claims_to_be_a_terabyte_is_stopped_early() -> None:
    """Far below what all base layers may have together."""
    bomb = gzip.compress(bytes(300 << 20))
    layer = BaseLayer("tar+gzip", BaseLimits())
    with pytest.raises(BadLayer, match="100 times its size"):
        layer.feed(bomb)


def test_more_or_larger_layers_than_allowed_are_not_even_asked_for(tmp_path: Path) -> None:
    for image in (Image(base=(HONEST + END,) * 4), Image(base=(HONEST + END,))):
        image.registry.get_blob = None  # type: ignore[method-assign,assignment]  # asked for, it would be an error
        if len(image.layers) == 3:
            image.manifest["layers"] = [{**image.descriptors()[0], "size": 1 << 40}, *image.descriptors()[1:]]
        assert "at most 3 layers" in refused(image, tmp_path)


STREAMS = {
    "nothing": b"",
    "no gzip": b"not gzip",
    "cut": gzip.compress(HONEST + END)[:-20],
    "with a tail": gzip.compress(HONEST + END) + b"tail",
    "with another stream": gzip.compress(HONEST + END) + gzip.compress(b"tail"),
    "without an end": gzip.compress(HONEST),
    "cut inside": gzip.compress(HONEST[:-700]),
    "going on behind the end": gzip.compress(HONEST + END + b"x" * 512),
    "beginning anew": gzip.compress(HONEST + bytes(512) + HONEST + END),
    "no tar": gzip.compress(b"\xff" * 2048),
    "of nothing": gzip.compress(b""),
}


@pytest.mark.parametrize("packed", STREAMS.values(), ids=STREAMS)
def test_streams_that_are_cut_or_carry_more(tmp_path: Path, packed: bytes) -> None:
    image = Image(base=(HONEST + END,))
    image.layers[0] = packed
    refused(image, tmp_path)


def test_a_layer_that_unpacks_to_something_else_than_the_config_says(tmp_path: Path) -> None:
    image = Image(base=(HONEST + END,))
    image.layers[0] = gzip.compress(HONEST + entry("more") + END)
    assert "unpacks to sha256:" in refused(image, tmp_path)
    plain = Image(base=(HONEST + END,), compress=None)
    plain.layers[0] = HONEST + entry("more") + END
    assert "unpacks to sha256:" in refused(plain, tmp_path)


def test_the_cuts_between_pieces_change_nothing() -> None:
    tar = HONEST + entry("last", data=b"x" * 1000) + END
    for piece in (1, 7, 511, 512, 513, 4096):
        layer = BaseLayer("tar+gzip", BaseLimits())
        stream = io.BytesIO(gzip.compress(tar))
        while data := stream.read(piece):
            layer.feed(data)
        assert layer.diff_id("") == digest_of(tar)
