"""What stays of the images that were pulled, what goes to make room, and what a dead process leaves."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path

import pytest

from fakes.registries import Image, MemoryRegistry, digest_of, tar_of
from msfl.policies.refusals import Code, Refused
from msfl.registry.cache import CacheFacts, ImageCache, KeptImage, evictions
from msfl.registry.interface import RegistryFails
from msfl.registry.pull import VerifiedImage, pull

SYSTEM = tar_of({"usr/bin/python": os.urandom(3 << 20)})


class Line(MemoryRegistry):
    """A registry that counts what it is asked for, and breaks off after `most` bytes of a blob."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.starts: list[int] = []
        self.most = 1 << 60

    @contextmanager
    def get_blob(self, digest: str, start: int = 0) -> Iterator[BufferedIOBase]:
        self.asked["blob"] += 1
        self.starts.append(start)
        with super().get_blob(digest, start) as stream:
            data = stream.read()
        yield _Cut(data, self.most)

    def get_manifest(self, digest: str) -> bytes:
        self.asked["manifest"] += 1
        return super().get_manifest(digest)


class _Cut(BytesIO):
    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self._most = most

    def read1(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= self._most:
            raise RegistryFails("the line was cut")
        return super().read1(size)


def image_on(line: Line, code: bytes = b"code = 1", base: tuple[bytes, ...] = (SYSTEM,)) -> str:
    return Image(tar_of({"msfl/x.py": code}), base=base).push(line)


def pulled(line: Line, digest: str, cache: ImageCache, by: str = "run", whole: bool = True) -> VerifiedImage:
    return pull(line, digest, cache, by=by, whole=whole)


# ------------------------------------------------------------------------------------------------------------ at hand


def test_a_second_pull_asks_the_registry_for_nothing(tmp_path: Path) -> None:
    line = Line()
    digest = image_on(line)
    first = pulled(line, digest, ImageCache(tmp_path))
    asked = dict(line.asked)
    assert asked == {"manifest": 1, "blob": 4}
    assert pulled(line, digest, ImageCache(tmp_path), by="another") == first
    assert dict(line.asked) == asked


def test_what_two_images_share_is_pulled_and_counted_once(tmp_path: Path) -> None:
    line, cache = Line(), ImageCache(tmp_path)
    pulled(line, image_on(line), cache, by="one")
    before = cache.facts().bytes
    asked = line.asked["blob"]
    pulled(line, image_on(line, b"code = 2"), cache, by="two")
    assert line.asked["blob"] - asked == 2, "its own config and code"
    assert cache.facts().images == 2
    assert cache.facts().bytes - before < 10_000


def test_a_blob_damaged_on_disk_is_noticed_and_pulled_anew(tmp_path: Path) -> None:
    line, cache = Line(), ImageCache(tmp_path)
    digest = image_on(line)
    base = pulled(line, digest, cache).layers[0]
    with base.path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"rotten")
    asked = line.asked["blob"]
    assert digest_of(pulled(line, digest, cache).layers[0].path.read_bytes()) == base.digest
    assert line.asked["blob"] == asked + 1


# ----------------------------------------------------------------------------------------------------- cut and resumed


def test_a_cut_pull_goes_on_where_it_was(tmp_path: Path) -> None:
    line = Line()
    digest = image_on(line)
    line.most = 2 << 20
    with pytest.raises(RegistryFails):
        pulled(line, digest, ImageCache(tmp_path))
    (part,) = (tmp_path / "blobs").glob("*.part")
    assert part.stat().st_size == 2 << 20
    line.most, line.starts = 1 << 60, []
    cache = ImageCache(tmp_path)
    cache.tidy(living=())
    assert len(pulled(line, digest, cache).layers) == 3
    assert line.starts == [2 << 20, 0, 0], "the rest of the base layer, and the two that had not come"
    assert not list((tmp_path / "blobs").glob("*.part"))


@pytest.mark.parametrize("spoiled", [bytes(2 << 20), b"short", bytes(9 << 20)])
def test_a_spoiled_beginning_is_thrown_away_and_no_fault_of_the_registry(tmp_path: Path, spoiled: bytes) -> None:
    line = Line()
    digest = image_on(line)
    line.most = 1 << 20
    with pytest.raises(RegistryFails):
        pulled(line, digest, ImageCache(tmp_path))
    (part,) = (tmp_path / "blobs").glob("*.part")
    part.write_bytes(spoiled)
    line.most = 1 << 60
    assert len(pulled(line, digest, ImageCache(tmp_path)).layers) == 3


def test_progress_is_heard_and_may_call_it_off(tmp_path: Path) -> None:
    line, heard = Line(), list[tuple[int, int]]()

    class Enough(Exception):
        pass

    def progress(done: int, total: int) -> None:
        heard.append((done, total))
        if len(heard) == 3:
            raise Enough

    digest = image_on(line)
    with pytest.raises(Enough):
        pull(line, digest, ImageCache(tmp_path), by="run", whole=True, progress=progress)
    pull(line, digest, ImageCache(tmp_path), by="run", whole=True, progress=lambda *said: heard.append(said))
    assert heard[-1][0] == heard[-1][1] > 3 << 20
    assert len({total for _, total in heard}) == 1


# ------------------------------------------------------------------------------------------------------------ the quota


def kept(name: str, used: float, *parts: str, held: bool = False) -> KeptImage:
    return KeptImage(name, frozenset(parts), 1, used, held)


SIZES = {"os": 100, "a": 10, "b": 20, "c": 30}
OLD, MIDDLE, NEW = kept("old", 1, "os", "a"), kept("middle", 2, "os", "b"), kept("new", 3, "os", "c")


@pytest.mark.parametrize(
    ("images", "to_free", "gone", "freed"),
    [
        ((NEW, OLD, MIDDLE), 0, (), 0),
        ((NEW, OLD, MIDDLE), 5, ("old",), 11),
        ((NEW, OLD, MIDDLE), 12, ("old", "middle"), 32),
        ((NEW, OLD, MIDDLE), 33, ("old", "middle", "new"), 163),
        ((NEW, kept("old", 1, "os", "a", held=True), MIDDLE), 5, ("middle",), 21),
        ((NEW, kept("old", 1, "os", "a", held=True), MIDDLE), 999, ("middle", "new"), 52),
        ((), 5, (), 0),
    ],
)
def test_least_recently_used_goes_first_and_what_is_held_never(
    images: tuple[KeptImage, ...], to_free: int, gone: tuple[str, ...], freed: int
) -> None:
    chosen, bytes_freed = evictions(images, SIZES, to_free)
    assert (tuple(image.name for image in chosen), bytes_freed) == (gone, freed)


def big(n: int) -> tuple[bytes, ...]:
    return (tar_of({f"usr/{n}": os.urandom(1 << 20)}),)


def test_room_is_made_by_giving_up_what_nobody_uses(tmp_path: Path) -> None:
    line, cache = Line(), ImageCache(tmp_path, quota_bytes=5 << 19)
    digests = [image_on(line, base=big(n)) for n in range(3)]
    for n, digest in enumerate(digests[:2]):
        pulled(line, digest, cache, by=f"run-{n}")
        os.utime(tmp_path / "used" / digest.removeprefix("sha256:"), (n, n))
    cache.release("run-0")
    cache.release("run-1")
    pulled(line, digests[2], cache, by="run-2")
    assert cache.facts().images == 2
    assert not cache.root(digests[0]).exists()
    assert cache.root(digests[1]).exists()
    assert cache.facts().bytes <= 5 << 19
    asked = line.asked["blob"]
    pulled(line, digests[1], cache)
    assert line.asked["blob"] == asked, "it is whole, the blobs that it shares with the one that went among them"


def test_a_pull_that_does_not_fit_is_refused_and_nothing_goes_for_it(tmp_path: Path) -> None:
    line, cache = Line(), ImageCache(tmp_path, quota_bytes=5 << 19)
    digests = [image_on(line, base=big(n)) for n in range(3)]
    for n, digest in enumerate(digests[:2]):
        pulled(line, digest, cache, by=f"run-{n}")
    before = cache.facts()
    with pytest.raises(
        Refused, match=r"2 MiB are still to come, and the quota leaves room for 1 MiB\. .*images_gib"
    ) as no:
        pulled(line, digests[2], cache, by="run-2")
    assert no.value.refusal.code is Code.IMAGE_DOES_NOT_FIT
    assert 1 << 20 < int(no.value.refusal.fields["needed_bytes"]) < 3 << 19
    assert cache.facts().bytes - before.bytes < 5000, "its manifest at most"
    cache.release("run-0")
    assert pulled(line, digests[2], cache, by="run-2").digest == digests[2]
    assert cache.facts().held == 2


def test_two_pulls_at_once_do_not_promise_the_same_room(tmp_path: Path) -> None:
    line, cache = Line(), ImageCache(tmp_path, quota_bytes=5 << 19)
    cache.hold(digest_of(b"first"), "run-1")
    with cache.room_for({digest_of(b"first"): 2 << 20}), pytest.raises(Refused, match="the quota"):
        pulled(line, image_on(line, base=big(1)), cache, by="run-2")
    digest = image_on(line, base=big(2))
    assert pulled(line, digest, cache, by="run-2").digest == digest


def test_a_disk_without_room_is_known_before_anything_is_asked_for(tmp_path: Path) -> None:
    line, cache = Line(), ImageCache(tmp_path, spare_bytes=1 << 60)
    digest = image_on(line)
    with pytest.raises(Refused, match="the disk leaves room for 0 MiB"):
        pulled(line, digest, cache)
    assert line.asked["blob"] == 0


# ------------------------------------------------------------------------------------------------- after a dead process


def test_what_a_dead_process_left_is_tidied_at_the_next_start(tmp_path: Path) -> None:
    line, cache = Line(), ImageCache(tmp_path)
    digest = image_on(line)
    image = pulled(line, digest, cache, by="run-1")
    cache.hold(digest, "run-2")
    (tmp_path / ".new-x/msfl").mkdir(parents=True)
    (tmp_path / f".gone-{'0' * 64}").mkdir()
    (tmp_path / ("f" * 64) / "msfl").mkdir(parents=True)
    for name in (".new-y", "e" * 64, f"{'e' * 64}.part"):
        (tmp_path / "blobs" / name).write_bytes(b"left")
    ImageCache(tmp_path).tidy(living={"run-2"})
    assert {p.name for p in tmp_path.iterdir()} == {image.root.name, "blobs", "held", "used", "looked-at"}
    assert {p.name for p in (tmp_path / "held").iterdir()} == {"run-2"}
    assert len(list((tmp_path / "blobs").iterdir())) == 5
    asked = line.asked["blob"]
    assert pulled(line, digest, ImageCache(tmp_path), by="run-2") == image
    assert line.asked["blob"] == asked


def test_an_image_whose_manifest_was_spoiled_is_pulled_anew(tmp_path: Path) -> None:
    line = Line()
    digest = image_on(line)
    pulled(line, digest, ImageCache(tmp_path))
    ImageCache(tmp_path).blob(digest).write_bytes(b"{")
    cache = ImageCache(tmp_path)
    cache.tidy(living=())
    assert pulled(line, digest, cache).digest == digest


def test_looking_at_a_cache_that_is_not_there_makes_none(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "none", 1)
    assert cache.facts() == CacheFacts(0, 0, 0, 1)
    cache.release("nobody")
    cache.tidy(living=())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("by", ["", "../run", "a/b", ".", "a b", "x" * 200])
def test_who_holds_an_image_has_a_plain_name(tmp_path: Path, by: str) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        ImageCache(tmp_path).hold(digest_of(b""), by)
