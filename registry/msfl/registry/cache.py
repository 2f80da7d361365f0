"""Images at a site, by digest: what was pulled once is not pulled again, and all of it stays within a quota.

    <folder>/blobs/<hex>          manifests, configs, layers: each once, whoever names it; complete, or not there
    <folder>/blobs/<hex>.part     what has come of one so far; the next pull of it goes on from here
    <folder>/<hex>/               an image's own layers, unpacked
    <folder>/looked-at/<hex>      what a base layer unpacks to (`base_layer`), so that it is unpacked once to see it
    <folder>/used/<hex>           an image, begun or complete; its time is when it was last asked for
    <folder>/held/<who>           the digest of the image that a run (or whoever) uses, until it lets go

Before a pull, room is made for all that is still to come: images that nobody holds go, least recently used first, and a
blob goes with the last image that names it (`evictions`). Where that is not enough nothing goes, the pull is refused
with what it needs (NoRoom). A process that dies leaves nothing that counts: `tidy` at the next start removes what is no
image's, and holds of runs that are over; what had come of a blob stays, for the next pull of it.

Nothing here is believed: `msfl.registry.pull` hashes what it takes from this folder as it does what it takes from a
registry. The folder is its owner's alone, and of one process at a time; its threads may pull at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from msfl.registry.base_layer import RULES
from msfl.registry.interface import MAX_MANIFEST_BYTES, Descriptor

_WHO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{64}")
PART = ".part"
_NEW, _GONE = ".new-", ".gone-"
# Left free on the disk, for what else is written there: an audit log that cannot grow stops every run.
SPARE_BYTES = 64 << 20


class NoRoom(Exception):
    """The bytes still to come do not fit, whatever of the unused is given up. `limit`: the quota, or the disk."""

    def __init__(self, needed: int, free: int, limit: str) -> None:
        super().__init__(f"{_mib(needed)} MiB are still to come, and {limit} leaves room for {_mib(max(free, 0))} MiB")
        self.needed, self.free, self.limit = needed, free, limit


@dataclass(frozen=True)
class KeptImage:
    """`parts`: names in `blobs` that belong to it, its manifest's among them. `used`: seconds since the epoch."""

    name: str
    parts: frozenset[str]
    unpacked_bytes: int
    used: float
    held: bool


@dataclass(frozen=True)
class CacheFacts:
    """`quota_bytes`: None for no quota. Blobs that several images name are counted once."""

    images: int
    held: int
    bytes: int
    quota_bytes: int | None


def evictions(images: Sequence[KeptImage], sizes: Mapping[str, int], to_free: int) -> tuple[tuple[KeptImage, ...], int]:
    """The images to give up so that `to_free` bytes go, or all that may go; and how many bytes that frees.

    `sizes` of the files in `blobs`. Least recently used first, never one that is held; a blob counts as freed once no
    image that stays names it.
    """
    naming = Counter(part for image in images for part in image.parts)
    gone: list[KeptImage] = []
    freed = 0
    for image in sorted((i for i in images if not i.held), key=lambda i: (i.used, i.name)):
        if freed >= to_free:
            break
        gone.append(image)
        naming.subtract(image.parts)
        freed += image.unpacked_bytes + sum(sizes.get(part, 0) for part in image.parts if naming[part] == 0)
    return tuple(gone), freed


class ImageCache:
    """`quota_bytes`: the most that all of it may take, None for no such bound; `spare_bytes` stay free on its disk."""

    def __init__(self, folder: Path, quota_bytes: int | None = None, spare_bytes: int = SPARE_BYTES) -> None:
        self.folder = folder
        self._quota = quota_bytes
        self._spare = spare_bytes
        self._lock = threading.Lock()
        self._coming: list[Mapping[str, int]] = []

    # ------------------------------------------------------------------ places

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    def blob(self, digest: str) -> Path:
        return self.blobs / _name(digest)

    def root(self, digest: str) -> Path:
        return self.folder / _name(digest)

    def looked_at(self, digest: str) -> str:
        """The diff_id of a base layer that was looked at by the rules of today; "" otherwise."""
        try:
            rules, _, diff_id = (self.folder / "looked-at" / _name(digest)).read_text().partition(" ")
        except (FileNotFoundError, UnicodeDecodeError):
            return ""
        return diff_id if rules == str(RULES) else ""

    def note_looked_at(self, digest: str, diff_id: str) -> None:
        (self.folder / "looked-at" / _name(digest)).write_text(f"{RULES} {diff_id}")

    # ----------------------------------------------------------------- holding

    def hold(self, digest: str, by: str) -> None:
        """From now on this image stays, until `by` lets go. One image for each; raises ValueError for no plain name."""
        if not _WHO.fullmatch(by):
            raise ValueError(f"{by[:140]!r} cannot hold an image: letters, digits, dot, dash and underscore")
        with self._lock:
            for made in ("blobs", "looked-at", "used", "held"):
                (self.folder / made).mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.folder / "used" / _name(digest)).touch()
            (self.folder / "held" / by).write_text(_name(digest))

    def release(self, by: str) -> None:
        with self._lock:
            (self.folder / "held" / by).unlink(missing_ok=True)

    # -------------------------------------------------------------------- room

    @contextmanager
    def room_for(self, sizes: Mapping[str, int]) -> Iterator[None]:
        """Room for these blobs, digest → bytes, as far as they are not here yet, kept free for as long as they come.

        Raises NoRoom."""
        wanted = {_name(digest): size for digest, size in sizes.items()}
        with self._lock:
            self._make_room(wanted)
            self._coming.append(wanted)
        try:
            yield
        finally:
            with self._lock:
                self._coming.remove(wanted)

    def _make_room(self, wanted: Mapping[str, int]) -> None:
        sizes = self._sizes()
        to_come = {name: size for names in (*self._coming, wanted) for name, size in names.items()}
        needed = sum(max(size - sizes.get(f"{n}{PART}", 0), 0) for n, size in to_come.items() if n not in sizes)
        if needed == 0:
            return
        images = self._images(sizes)
        taken = sum(sizes.values()) + sum(image.unpacked_bytes for image in images)
        rooms = {"the disk": shutil.disk_usage(self.folder).free - self._spare}
        if self._quota is not None:
            rooms["the quota"] = self._quota - taken
        limit = min(rooms, key=lambda name: rooms[name])
        if needed <= rooms[limit]:
            return
        gone, freed = evictions(images, sizes, needed - rooms[limit])
        if freed < needed - rooms[limit]:
            raise NoRoom(needed, rooms[limit] + freed, limit)
        for image in gone:
            self._remove(image)
        self._remove_nobodys()

    def facts(self) -> CacheFacts:
        sizes = self._sizes()
        images = self._images(sizes)
        taken = sum(sizes.values()) + sum(image.unpacked_bytes for image in images)
        return CacheFacts(len(images), sum(image.held for image in images), taken, self._quota)

    # ---------------------------------------------------------------- tidying

    def tidy(self, living: Collection[str]) -> None:
        """At the start of the process that owns this folder, before anything is pulled: `living` go on holding."""
        with self._lock:
            for held in _entries(self.folder / "held"):
                if held.name not in living:
                    Path(held).unlink()
            for left in (*_entries(self.folder), *_entries(self.blobs)):
                if left.name.startswith((_NEW, _GONE)):
                    shutil.rmtree(left) if left.is_dir() else Path(left).unlink()
            self._remove_nobodys()

    def _remove(self, image: KeptImage) -> None:
        root = self.folder / image.name
        if root.exists():
            # First of all: an unpacked image that is not whole would be taken for one that somebody has changed.
            gone = self.folder / f"{_GONE}{image.name}"
            os.rename(root, gone)
            shutil.rmtree(gone)
        (self.folder / "used" / image.name).unlink(missing_ok=True)

    def _remove_nobodys(self) -> None:
        """What no image names: it went, or its manifest did."""
        sizes = self._sizes()
        images = self._images(sizes)
        named = {part for image in images for part in image.parts}
        for name in sizes.keys() - named:
            if not name.startswith(_NEW):  # Another thread is writing it.
                (self.blobs / name).unlink(missing_ok=True)
        for looked_at in _entries(self.folder / "looked-at"):
            if looked_at.name not in named:
                Path(looked_at).unlink()
        for root in _entries(self.folder):
            if _HEX.fullmatch(root.name) and root.name not in {image.name for image in images}:
                self._remove(KeptImage(root.name, frozenset(), 0, 0.0, held=False))

    # ----------------------------------------------------------------- looking

    def _sizes(self) -> dict[str, int]:
        sizes = {}
        for entry in _entries(self.blobs):
            with contextlib.suppress(FileNotFoundError):  # What has just come whole is not called a part any more.
                sizes[entry.name] = entry.stat().st_size
        return sizes

    def _images(self, sizes: Mapping[str, int]) -> list[KeptImage]:
        held = {Path(entry).read_text() for entry in _entries(self.folder / "held")}
        return [
            KeptImage(
                entry.name,
                self._parts(entry.name, sizes),
                sum(p.lstat().st_size for p in (self.folder / entry.name).rglob("*")),
                entry.stat().st_mtime,
                entry.name in held,
            )
            for entry in _entries(self.folder / "used")
        ]

    def _parts(self, name: str, sizes: Mapping[str, int]) -> frozenset[str]:
        """As its manifest says, where that is here and is one."""
        named = {name}
        try:
            if sizes.get(name, MAX_MANIFEST_BYTES + 1) <= MAX_MANIFEST_BYTES:
                manifest = json.loads((self.blobs / name).read_bytes())
                for part in (manifest["config"], *manifest["layers"]):
                    named.add(_name(Descriptor.from_json(part).digest))
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # Damaged: the next pull of this image notices, and asks for it anew.
        return frozenset(f"{n}{suffix}" for n in named for suffix in ("", PART))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _name(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _mib(size: int) -> int:
    """Rounded up: what is said to be enough must be."""
    return -(-size // (1 << 20))
