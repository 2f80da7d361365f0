"""A base image, read once: its layers as blobs that are the same whoever packed them, and the Python inside it.

    where it comes from                       how it is named
    an engine (DOCKER_HOST, Docker or podman) debian:12, host/name@sha256:…         `docker save`, over the engine's API
    an OCI layout folder                      ./base, ./base@sha256:…
    an archive that `docker save` made        ./base.tar

Each layer is read as the tar it is, looked at as a site will look at it (`base_layer`), and packed anew: one setting of
gzip, no time. So the base's layers in a release depend on the tars alone, whether an engine, a registry or a file
brought them. While a layer passes, what its Python consists of is noted (`Contents`): the engine starts nothing, and
nothing of a base is ever unpacked or run here. Layers lie above each other as overlayfs has it: `.wh.name` takes `name`
away.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

from msfl.registry.base_layer import BaseLayer, BaseLimits
from msfl.registry.interface import INDEX, LAYER, Descriptor, JsonObject, checked_digest
from msfl.registry.layer import BadLayer

Progress: TypeAlias = Callable[[int, int], None]
BASE_DIGEST = "org.opencontainers.image.base.digest"
BASE_NAME = "org.opencontainers.image.base.name"
ARCHITECTURES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64"}

_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_INDEXES = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
_REF_NAME = "org.opencontainers.image.ref.name"
_CHUNK = 1 << 20
LIMITS = BaseLimits()
_MAX_JSON = 4 << 20
_MAX_KEPT_FILE = 16 << 20
_PACKAGES = re.compile(r"(?:^|/)(?:site|dist)-packages/")
_KEPT = re.compile(
    r"(?:(?:site|dist)-packages/[^/]+\.(?:dist-info|egg-info)/(?:METADATA|RECORD|INSTALLER)"
    r"|_sysconfigdata_[^/]*\.py|pyvenv\.cfg|^var/lib/dpkg/status|^etc/os-release|^usr/lib/os-release)$"
)


class BadBase(ValueError):
    """The base cannot be had, or is not an image that a release can lie on. The message says what to do."""


@dataclass(frozen=True)
class PackedLayer:
    """One layer as it goes into the release: the file `path` holds it, packed."""

    path: Path
    diff_id: str
    digest: str
    size: int

    def to_descriptor(self) -> Descriptor:
        return Descriptor(LAYER, self.digest, self.size)

    def chunks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk


@dataclass
class Contents:
    """The merged file system, as far as a release asks. Paths are relative to the root, without a leading slash.

    `links` are symbolic; `kept` are the bytes of the few files that describe packages; `hashes` are of every file of
    Python packages, hex sha256.
    """

    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def resolve(self, path: str) -> str:
        """Follows symbolic links, in folders too. Raises BadBase for a circle."""
        done: list[str] = []
        todo = [part for part in path.split("/") if part not in ("", ".")]
        for _ in range(1000):
            if not todo:
                return "/".join(done)
            part = todo.pop(0)
            if part == "..":
                done = done[:-1]
                continue
            target = self.links.get("/".join([*done, part]))
            if target is None:
                done.append(part)
                continue
            if target.startswith("/"):
                done = []
            todo = [p for p in target.split("/") if p not in ("", ".")] + todo
        raise BadBase(f"the base's links at /{path} lead in a circle")

    @property
    def top(self) -> frozenset[str]:
        """The names in the root folder."""
        return frozenset(n for names in (self.files, self.folders, self.links) for n in names if "/" not in n)

    def remove(self, path: str) -> None:
        """The file or link, or the folder with all that is in it."""
        if path in self.folders:
            for names in (self.files, self.folders, self.links):
                for name in [n for n in names if n.startswith(path + "/")]:
                    self._forget(name)
        self._forget(path)

    def _forget(self, name: str) -> None:
        self.files.discard(name)
        self.folders.discard(name)
        tables: tuple[MutableMapping[str, Any], ...] = (self.links, self.kept, self.hashes)
        for table in tables:
            table.pop(name, None)


@dataclass(frozen=True)
class BaseImage:
    """`digest` names it for who wants it again: its manifest's where that is known, else its config's (Docker's id)."""

    name: str
    digest: str
    architecture: str
    environment: Mapping[str, str]
    layers: tuple[PackedLayer, ...]
    contents: Contents

    @property
    def annotations(self) -> dict[str, str]:
        return {BASE_DIGEST: self.digest, **({BASE_NAME: self.name} if self.name else {})}


@contextmanager
def _source(spec: str, folder: Path) -> Iterator[_Source]:
    path, _, wanted = spec.partition("@")
    if Path(spec).is_file():
        with Path(spec).open("rb") as file, _archive(file, spec) as source:
            yield source
    elif (Path(path) / "oci-layout").is_file():
        yield _Layout(Path(path), wanted)
    elif Path(path).is_dir():
        raise BadBase(f"{path} is a folder, but not an OCI image layout (it holds no oci-layout)")
    else:
        saved = folder / "saved.tar"
        name, digest = _save(spec, saved)
        with saved.open("rb") as file, _archive(file, spec) as source:
            yield _Named(source, name, digest)
        saved.unlink()


def read_base(spec: str, folder: Path, progress: Progress = lambda done, total: None) -> BaseImage:
    """Read the base and write its layers, packed, into `folder`, which is the caller's. Raises BadBase.

    `progress` hears of layers' bytes as they lie in the base.
    """
    try:
        with _source(spec, folder) as source:
            return _read(source, folder, progress)
    except BadLayer as error:
        raise BadBase(f"no site would take the base {spec}: {error}") from error
    except (OSError, tarfile.TarError, zlib.error, EOFError) as error:
        raise BadBase(f"the base {spec} cannot be read: {error}") from error


def _read(source: _Source, folder: Path, progress: Progress) -> BaseImage:
    config = source.config
    try:
        diff_ids = [checked_digest(d) for d in config["rootfs"]["diff_ids"]]
        architecture, system = str(config["architecture"]), str(config["os"])
        settings = config.get("config") or {}
        environment = dict(str(pair).split("=", 1) for pair in settings.get("Env") or [])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadBase(f"the config of the base {source.name} lacks its layers or its architecture") from error
    if not 0 < len(diff_ids) <= LIMITS.layers:
        raise BadBase(f"the base {source.name} has {len(diff_ids)} layers; sites take 1 to {LIMITS.layers}")
    here = ARCHITECTURES.get(platform.machine(), platform.machine())
    if (system, architecture) != ("linux", here):
        raise BadBase(f"the base {source.name} is for {system}/{architecture}; this machine builds for linux/{here}")
    contents = Contents()
    layers: list[PackedLayer] = []
    sizes, done = source.sizes, 0
    if len(sizes) != len(diff_ids):
        raise BadBase(f"the base {source.name} has {len(sizes)} layers, and its config names {len(diff_ids)}")
    for number, diff_id in enumerate(diff_ids):
        with source.layer(number) as stream:
            counted = _Counted(stream, done, sum(sizes), progress)
            layers.append(_pack(_unpacked(counted), diff_id, folder / f"layer-{number:03d}", contents))
        done += sizes[number]
    return BaseImage(source.name, source.digest, architecture, environment, tuple(layers), contents)


def _pack(stream: IO[bytes], diff_id: str, path: Path, contents: Contents) -> PackedLayer:
    with path.open("wb") as file:
        packing = _Packing(stream, file)
        # Links are followed only inside the merged paths of `Contents`, never on this machine's disk.
        with tarfile.open(fileobj=packing, mode="r|", ignore_zeros=False) as tar:
            _note(tar, contents)
        packing.finish()
    if packing.diff_id != diff_id:
        raise BadBase(f"a layer of the base unpacks to {packing.diff_id}, not to {diff_id}; get the base anew")
    return PackedLayer(path, diff_id, packing.digest, packing.size)


def _note(tar: tarfile.TarFile, contents: Contents) -> None:
    """Put one layer on top of what lies below it."""
    here: set[str] = set()
    for entry in tar:
        name = posixpath.normpath("/" + entry.name).lstrip("/")
        head, _, last = name.rpartition("/")
        if last == ".wh..wh..opq":
            for below in [n for n in (*contents.files, *contents.links) if n.startswith(head + "/") and n not in here]:
                contents.remove(below)
            continue
        if last.startswith(".wh."):
            contents.remove(posixpath.join(head, last.removeprefix(".wh.")))
            continue
        if not name:
            continue
        parts = name.split("/")
        contents.folders.update("/".join(parts[:n]) for n in range(1, len(parts)))
        if entry.isdir():
            # A folder over a folder keeps what is in it; over a link or a file it takes its place.
            if name in contents.links or name in contents.files:
                contents.remove(name)
            contents.folders.add(name)
            continue
        contents.remove(name)
        here.add(name)
        if entry.issym():
            contents.links[name] = entry.linkname
            continue
        contents.files.add(name)
        if entry.islnk():
            target = posixpath.normpath("/" + entry.linkname).lstrip("/")
            if target in contents.kept:
                contents.kept[name] = contents.kept[target]
            if target in contents.hashes:
                contents.hashes[name] = contents.hashes[target]
        elif entry.isfile():
            _note_file(tar, entry, name, contents)


def _note_file(tar: tarfile.TarFile, entry: tarfile.TarInfo, name: str, contents: Contents) -> None:
    kept = _KEPT.search(name) is not None
    if not kept and not _PACKAGES.search(name):
        return
    if kept and entry.size > _MAX_KEPT_FILE:
        raise BadBase(f"/{name} of the base has {entry.size} bytes; at most {_MAX_KEPT_FILE} are read")
    stream = tar.extractfile(entry)
    assert stream is not None, "a regular file has bytes"
    if kept:
        contents.kept[name] = stream.read()
        contents.hashes[name] = hashlib.sha256(contents.kept[name]).hexdigest()
    else:
        contents.hashes[name] = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


class _Packing(io.RawIOBase):
    """What is read through it is looked at as a site will (`base_layer`), and written packed. Raises BadLayer."""

    def __init__(self, source: IO[bytes], target: IO[bytes]) -> None:
        self._source = source
        self._target = target
        # A base is large, and is packed at every build: a tenth more bytes for a third of the time.
        self._deflate = zlib.compressobj(1, zlib.DEFLATED, wbits=31)
        self._checked = BaseLayer("tar", LIMITS)
        self._diff = hashlib.sha256()
        self._packed = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._checked.feed(data)
        self._diff.update(data)
        self._write(self._deflate.compress(data))
        return data

    def finish(self) -> None:
        while self.read(_CHUNK):
            pass
        self._write(self._deflate.flush())
        self.diff_id = self._checked.diff_id(f"sha256:{self._diff.hexdigest()}")
        self.digest = f"sha256:{self._packed.hexdigest()}"

    def _write(self, data: bytes) -> None:
        self._packed.update(data)
        self._target.write(data)
        self.size += len(data)


# ------------------------------------------------------------------------------------------------ where it comes from


class _Counted(io.RawIOBase):
    """A layer as it lies in the base, and whoever wants to hear how far it has been read."""

    def __init__(self, file: IO[bytes], before: int, total: int, progress: Progress) -> None:
        self._file, self._done, self._total, self._progress = file, before, total, progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._done += len(data)
        self._progress(min(self._done, self._total), self._total)
        return data


class _Source(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def sizes(self) -> list[int]:
        """Of the layers, as they lie there."""
        ...

    @property
    def digest(self) -> str: ...
    @property
    def config(self) -> JsonObject: ...
    def layer(self, number: int) -> Any:
        """A context with the layer as it lies there, packed or not."""
        ...


class _Named:
    """A source under the name and digest by which the engine knows it."""

    def __init__(self, source: _Source, name: str, digest: str) -> None:
        self.name, self.digest = name, digest or source.digest
        self.config, self.sizes, self.layer = source.config, source.sizes, source.layer


class _Layout:
    def __init__(self, root: Path, wanted: str) -> None:
        self._blobs = root / "blobs" / "sha256"
        entries = _entries(_json((root / "index.json").read_bytes(), "index.json"))
        if wanted:
            entries = [e for e in entries if e["digest"] == wanted] or [{"digest": wanted}]
        if len(entries) != 1:
            known = ", ".join(f"{root}@{e['digest']}" for e in entries)
            raise BadBase(f"{root} holds {len(entries)} images; name one of them: {known or 'there is none'}")
        (entry,) = entries
        self.name = str((entry.get("annotations") or {}).get(_REF_NAME, ""))
        self.digest = str(entry["digest"])
        manifest = _json(self._read(self.digest), "manifest")
        if manifest.get("mediaType") in _INDEXES or "manifests" in manifest:
            here = ARCHITECTURES.get(platform.machine(), platform.machine())
            fitting = [e for e in _entries(manifest) if (e.get("platform") or {}).get("architecture") == here]
            if len(fitting) != 1:
                raise BadBase(f"{self.digest} in {root} holds {len(fitting)} images for linux/{here}, not one")
            self.digest = str(fitting[0]["digest"])
            manifest = _json(self._read(self.digest), "manifest")
        try:
            self._layers = [checked_digest(layer["digest"]) for layer in manifest["layers"]]
            self.sizes = [int(layer["size"]) for layer in manifest["layers"]]
            self.config = _json(self._read(manifest["config"]["digest"]), "config")
        except (KeyError, TypeError, ValueError) as error:
            raise BadBase(f"the manifest {self.digest} in {root} lacks its config or layers") from error

    @contextmanager
    def layer(self, number: int) -> Iterator[IO[bytes]]:
        with self._path(self._layers[number]).open("rb") as file:
            yield file

    def _read(self, digest: str) -> bytes:
        data = self._path(digest).read_bytes()
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise BadBase(f"{self._path(digest)} does not have the bytes that its name says")
        return data

    def _path(self, digest: str) -> Path:
        return self._blobs / checked_digest(digest).removeprefix("sha256:")


class _Archive:
    def __init__(self, tar: tarfile.TarFile, where: str) -> None:
        self._tar = tar
        images = _json(self._member("manifest.json", where), "manifest.json")
        if not isinstance(images, list) or len(images) != 1:
            raise BadBase(f"{where} must hold exactly one image, as `docker save IMAGE` writes it")
        try:
            config = self._member(str(images[0]["Config"]), where)
            self._layers = [str(name) for name in images[0]["Layers"]]
            self.sizes = [tar.getmember(name).size for name in self._layers]
            self.name = str((images[0].get("RepoTags") or [""])[0])
        except (KeyError, TypeError, IndexError) as error:
            raise BadBase(f"the manifest.json of {where} lacks the image's config or layers") from error
        self.digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
        self.config = _json(config, "config")

    @contextmanager
    def layer(self, number: int) -> Iterator[IO[bytes]]:
        stream = self._tar.extractfile(self._layers[number])
        if stream is None:
            raise BadBase(f"{self._layers[number]} in the base's archive is no file")
        with stream:
            yield stream

    def _member(self, name: str, where: str) -> bytes:
        try:
            entry = self._tar.getmember(name)
            stream = self._tar.extractfile(entry)
        except KeyError as error:
            raise BadBase(f"{where} holds no {name}; make it with: docker save --output FILE IMAGE") from error
        if stream is None or entry.size > _MAX_JSON:
            raise BadBase(f"{name} in {where} is no file, or one of more than {_MAX_JSON} bytes")
        return stream.read()


@contextmanager
def _archive(file: IO[bytes], where: str) -> Iterator[_Archive]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        yield _Archive(tar, where)


def _save(name: str, target: Path) -> tuple[str, str]:
    """`docker save` over the engine's API; the name and the digest of what was saved. Asks no registry by itself
    but for an image that the engine does not have."""
    try:
        import docker
        from docker.errors import DockerException, ImageNotFound
    except ModuleNotFoundError as error:
        raise BadBase(
            f"{name} is no file or folder, and to ask an engine needs: pip install 'msfl[registry]'"
        ) from error
    try:
        client = docker.from_env(timeout=600)
        try:
            image = client.images.get(name)
        except ImageNotFound:
            image = client.images.pull(name)
        digests = [d.rpartition("@")[2] for d in image.attrs.get("RepoDigests") or []]
        wanted = name.rpartition("@")[2] if "@" in name else ""
        with target.open("wb") as file:
            for chunk in client.api.get_image(image.id):
                file.write(chunk)
        client.close()
    except DockerException as error:
        raise BadBase(
            f"{name} is no file or folder here, and the container engine does not give it: {error}. The engine is "
            "found by DOCKER_HOST; a base without an engine is an OCI layout folder or a file of `docker save`"
        ) from error
    return "" if name.startswith("sha256:") else name.partition("@")[0], wanted or (digests[0] if digests else "")


class _Again(io.RawIOBase):
    """A stream whose first bytes have been looked at."""

    def __init__(self, first: bytes, rest: io.RawIOBase) -> None:
        self._first, self._rest = first, rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._first:
            return self._rest.read(size) or b""
        head, self._first = (self._first, b"") if size < 0 else (self._first[:size], self._first[size:])
        return head

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _unpacked(file: io.RawIOBase) -> IO[bytes]:
    """The tar inside, whatever its media type claims."""
    magic = file.read(4) or b""
    if magic == b"\x28\xb5\x2f\xfd":
        raise BadBase("a layer of the base is packed with zstd, which is not read here; save it with: docker save")
    whole = _Again(magic, file)
    packed: Any = gzip.GzipFile(fileobj=io.BufferedReader(whole)) if magic[:2] == b"\x1f\x8b" else whole
    return packed  # type: ignore[no-any-return]


def _entries(index: Any) -> list[JsonObject]:
    try:
        return [e for e in index["manifests"] if e.get("mediaType", _MANIFESTS[0]) in (*_MANIFESTS, *_INDEXES)]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadBase("an index of the base names no manifests") from error


def _json(data: bytes, what: str) -> Any:
    if len(data) > _MAX_JSON:
        raise BadBase(f"the base's {what} has more than {_MAX_JSON} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadBase(f"the base's {what} is not JSON") from error
