"""From a digest to a folder with code in it: the only way in which an image becomes something that can be started.

    digest asked for ─▶ manifest whose bytes have it ─▶ config and layers whose bytes have the digests it names
      ─▶ the release's own layers unpacked from the verified bytes, strictly, under bounds
      ─▶ base layers, where they are wanted, looked at as they come (`base_layer`), and kept packed
      ─▶ every layer's tar has the config's diff_id ─▶ the environment lock is the labelled one ─▶ one rename
      ─▶ VerifiedImage

An image is any number of base layers (operating system, Python) and then the release's own two, which the annotation
`msfl.layer` marks: `environment`, the lock, and `code`. With base layers it is self-contained and can run in a
container; without, or with the process runtime, the host's environment is held against the lock.

The registry is not trusted, nor is its tag, header or content type: only the hash of what arrived counts, and it is
checked before anything is parsed. An index (a choice between images) is refused: one digest, one image.
A cached image is unpacked anew from the verified bytes and compared, file by file, before it is used again. Manifest,
config and layers are all kept by digest (`cache`), and hashed again, so an image that was here once needs no registry.

`VerifiedImage` cannot be made elsewhere: its constructor wants a seal that only this module holds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from msfl.policies.encoding import Malformed, read_json, sha256_of
from msfl.policies.refusals import Code, Refusal, Refused, refuse
from msfl.registry.base_layer import BaseLayer, BaseLimits
from msfl.registry.blobs import BeginLook, Look, open_blob
from msfl.registry.cache import ImageCache, NoRoom
from msfl.registry.environment import FILE_NAME, BadEnvironment, EnvironmentLock, verify_environment
from msfl.registry.interface import (
    CONFIG,
    LAYER,
    LAYER_KIND,
    LAYER_TAR,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Descriptor,
    JsonObject,
    NotInRegistry,
    Registry,
    checked_digest,
)
from msfl.registry.layer import BadLayer, LayerLimits, merge, read_layer
from msfl.registry.oci_layout import beside

ENVIRONMENT_LABEL = "msfl.environment.sha256"
NAME_LABEL = "msfl.release.name"
VERSION_LABEL = "msfl.release.version"

LayerKind: TypeAlias = Literal["base", "environment", "code"]
Progress: TypeAlias = Callable[[int, int], None]

_MAX_CONFIG_BYTES = 1 << 20
# Of the container's config: they would run something, or make folders that are neither read-only nor bounded.
_NOT_IN_CONFIG = ("Volumes", "OnBuild", "Healthcheck")
_SEAL = object()


@dataclass(frozen=True)
class PullLimits:
    """`blob_bytes`: the most that one of the release's own layers may have as it comes."""

    blob_bytes: int = 256 << 20
    unpacked: LayerLimits = field(default_factory=LayerLimits)
    base: BaseLimits = field(default_factory=BaseLimits)


@dataclass(frozen=True)
class VerifiedLayer:
    """One layer as it came, tar or tar+gzip: the bytes in `path` have `digest`, the tar inside has `diff_id`."""

    path: Path
    digest: str
    media_type: str
    size: int
    diff_id: str
    kind: LayerKind


@dataclass(frozen=True)
class VerifiedImage:
    """An image, every byte of it verified against `digest`.

    `root` holds the release's own layers, unpacked; `config` is the file of the image's config, whose digest is what
    Docker calls the image's id. `layers` are in the manifest's order: all of them where the whole image was pulled,
    otherwise the release's own two. `self_contained` says whether it has base layers, pulled or not.
    """

    digest: str
    root: Path
    entrypoint: tuple[str, ...]
    labels: Mapping[str, str]
    environment: EnvironmentLock
    environment_sha256: str
    config: Path
    config_digest: str
    layers: tuple[VerifiedLayer, ...]
    self_contained: bool
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("a VerifiedImage is made by msfl.registry.pull from verified bytes, never by hand")

    @property
    def packages(self) -> frozenset[str]:
        return self.environment.packages

    def check_environment(self, site_packages: Path) -> Refusal | None:
        """Hash the installed environment, in full, against the image's lock; None when it is the same."""
        mismatches = verify_environment(self.environment, site_packages)
        if not mismatches:
            return None
        shown = "; ".join(m.detail for m in mismatches[:5])
        more = f"; and {len(mismatches) - 5} more" if len(mismatches) > 5 else ""
        names = sorted({m.distribution for m in mismatches})
        return refuse(
            Code.ENVIRONMENT_DIFFERS,
            f"The Python environment in {site_packages} is not the one this release was reviewed with: {shown}{more}.",
            digest=self.digest,
            distributions=", ".join(names),
        )


def pull(
    registry: Registry,
    digest: str,
    cache: ImageCache,
    *,
    by: str,
    whole: bool = False,
    limits: PullLimits | None = None,
    progress: Progress = lambda done, total: None,
) -> VerifiedImage:
    """Raises Refused: image_broken when the registry lacks the image or serves anything but its bytes,
    image_does_not_fit when there is no room for it. RegistryFails when the registry cannot be asked; OSError when the
    disk is full all the same.

    The image stays in `cache` until `by`, a run's id, lets go of it. `whole`: with its base layers, which only a
    container needs. `progress(done, total)` hears of bytes as they come; what it raises calls the pull off, and the
    next one goes on from there.
    """
    try:
        cache.hold(checked_digest(digest), by)
        return _Pull(registry, digest, cache, limits or PullLimits(), progress).image(whole=whole)
    except NotInRegistry as error:
        raise _broken(digest, f"the registry lacks a part of it ({error})") from error
    except (BadLayer, BadEnvironment, Malformed) as error:
        raise _broken(digest, str(error)) from error
    except NoRoom as error:
        what = f"The image {digest} was not taken: {error}."
        fields = {"digest": digest, "needed_bytes": str(error.needed), "free_bytes": str(max(error.free, 0))}
        raise Refused(refuse(Code.IMAGE_DOES_NOT_FIT, what, **fields)) from error


class _Pull:
    def __init__(
        self, registry: Registry, digest: str, cache: ImageCache, limits: PullLimits, progress: Progress
    ) -> None:
        self._registry = registry
        self._digest = digest
        self._cache = cache
        self._limits = limits
        self._progress = progress
        self._done = self._total = 0

    def image(self, *, whole: bool) -> VerifiedImage:
        config_at, layers_at = _parts(self._manifest(), self._limits)
        wanted = {at.digest: at.size for at in layers_at if whole or _kind(at) != "base"} | {
            config_at.digest: config_at.size
        }
        self._total = sum(wanted.values())
        with self._cache.room_for(wanted):
            return self._image(config_at, layers_at, whole=whole)

    def _image(self, config_at: Descriptor, layers_at: tuple[Descriptor, ...], *, whole: bool) -> VerifiedImage:
        with open_blob(self._registry, config_at, self._cache, self._count) as file:
            config = _config(read_json(file.read(), "image config", max_bytes=_MAX_CONFIG_BYTES))
        if len(config.diff_ids) != len(layers_at):
            raise BadLayer(f"{len(layers_at)} layers, but {len(config.diff_ids)} diff_ids")
        layers = [
            VerifiedLayer(self._cache.blob(at.digest), at.digest, at.media_type, at.size, diff_id, _kind(at))
            for at, diff_id in zip(layers_at, config.diff_ids, strict=True)
            if whole or _kind(at) != "base"
        ]
        for layer in layers:
            if layer.kind == "base":
                self._look_at(layer)
        root, environment = self._unpacked([layer for layer in layers if layer.kind != "base"], config.labels)
        return VerifiedImage(
            digest=self._digest,
            root=root,
            entrypoint=config.entrypoint,
            labels=config.labels,
            environment=environment,
            environment_sha256=config.labels[ENVIRONMENT_LABEL],
            config=self._cache.blob(config_at.digest),
            config_digest=config_at.digest,
            layers=tuple(layers),
            self_contained=any(_kind(at) == "base" for at in layers_at),
            seal=_SEAL,
        )

    def _manifest(self) -> JsonObject:
        kept = self._cache.blob(self._digest)
        body = kept.read_bytes() if kept.is_file() else b""
        if sha256_of(body) != self._digest:
            body = self._registry.get_manifest(self._digest)
            if len(body) > MAX_MANIFEST_BYTES or sha256_of(body) != self._digest:
                raise BadLayer("the registry serves a manifest that does not have this digest")
            with beside(kept) as file:
                file.write(body)
        manifest = read_json(body, "image manifest", max_bytes=MAX_MANIFEST_BYTES)
        single = isinstance(manifest, dict) and manifest.get("schemaVersion") == 2
        if not single or manifest.get("mediaType") != MANIFEST:
            raise BadLayer("the digest does not name a single image (an index or another kind of manifest is refused)")
        return dict(manifest)

    def _look_at(self, layer: VerifiedLayer) -> None:
        """What these bytes unpack to is found out once; that they are these bytes, each time."""
        if self._cache.looked_at(layer.digest) == layer.diff_id:
            self._open(layer).close()
            return
        looks: list[BaseLayer] = []

        def begin() -> Look:
            looks.append(BaseLayer("tar" if layer.media_type == LAYER_TAR else "tar+gzip", self._limits.base))
            return looks[-1].feed

        self._open(layer, begin).close()
        found = looks[-1].diff_id(layer.digest)
        if found != layer.diff_id:
            raise BadLayer(f"a base layer unpacks to {found}, not to {layer.diff_id}")
        self._cache.note_looked_at(layer.digest, found)

    def _open(self, layer: VerifiedLayer, look: BeginLook | None = None) -> IO[bytes]:
        at = Descriptor(layer.media_type, layer.digest, layer.size)
        return open_blob(self._registry, at, self._cache, self._count, look)

    def _unpacked(self, own: list[VerifiedLayer], labels: Mapping[str, str]) -> tuple[Path, EnvironmentLock]:
        root = self._cache.root(self._digest)
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self._cache.folder))
        try:
            found = self._unpack(own, fresh)
            environment = _environment(fresh, labels)
            _settle(fresh, root, found)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return root, environment

    def _unpack(self, own: list[VerifiedLayer], folder: Path) -> dict[str, str]:
        """Write every file below `folder`, which is new and ours alone; name → hex sha256."""
        written: dict[str, str] = {}
        with ExitStack() as stack:
            opened = [
                _of_its_kind(
                    layer.kind,
                    read_layer(stack.enter_context(self._open(layer)), layer.diff_id, self._limits.unpacked),
                )
                for layer in own
            ]
            for name, data in merge(opened, self._limits.unpacked):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
                with os.fdopen(descriptor, "wb") as target:
                    target.write(data)
                written[name] = hashlib.sha256(data).hexdigest()
        return written

    def _count(self, size: int) -> None:
        self._done += size
        self._progress(self._done, self._total)


@dataclass(frozen=True)
class _Config:
    entrypoint: tuple[str, ...]
    labels: Mapping[str, str]
    diff_ids: tuple[str, ...]


def _config(raw: Any) -> _Config:
    try:
        container = raw["config"]
        labels = {str(k): str(v) for k, v in container["Labels"].items()}
        entrypoint = tuple(str(part) for part in container["Entrypoint"])
        diff_ids = tuple(checked_digest(d) for d in raw["rootfs"]["diff_ids"])
        unwanted = [key for key in _NOT_IN_CONFIG if container.get(key)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadLayer("the image's config lacks its entry point, labels or diff_ids") from error
    if unwanted:
        raise BadLayer(f"the image's config asks for {', '.join(unwanted)}, which no run gets")
    return _Config(entrypoint, labels, diff_ids)


def _parts(manifest: JsonObject, limits: PullLimits) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    """The descriptors of the config and of the layers, each of a kind and size that is allowed where it stands."""
    try:
        config = Descriptor.from_json(manifest["config"])
        layers = tuple(Descriptor.from_json(raw) for raw in manifest["layers"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadLayer("the manifest lacks its config or layers") from error
    if config.media_type != CONFIG or config.size > _MAX_CONFIG_BYTES:
        raise BadLayer("the manifest is not that of a container image")
    base, own = layers[:-2], layers[-2:]
    if [_kind(at) for at in own] != ["environment", "code"] or any(_kind(at) != "base" for at in base):
        raise BadLayer(f"the last two layers must be marked {LAYER_KIND}: environment and code, and no others")
    for at in own:
        if at.media_type != LAYER:
            raise BadLayer(f"a layer of media type {at.media_type!r}; only {LAYER} is allowed")
        if at.size > limits.blob_bytes:
            raise BadLayer(f"a blob of {at.size} bytes; at most {limits.blob_bytes} are allowed")
    for at in base:
        if at.media_type not in (LAYER, LAYER_TAR):
            raise BadLayer(f"a base layer of media type {at.media_type!r}; only {LAYER_TAR}, or +gzip, is allowed")
    if len(base) > limits.base.layers or sum(at.size for at in base) > limits.base.packed_bytes:
        raise BadLayer(
            f"base layers of {sum(at.size for at in base)} bytes; at most {limits.base.layers} layers of together "
            f"{limits.base.packed_bytes} bytes are allowed"
        )
    return config, layers


def _kind(at: Descriptor) -> LayerKind:
    match at.annotations.get(LAYER_KIND):
        case None:
            return "base"
        case "environment":
            return "environment"
        case "code":
            return "code"
        case other:
            raise BadLayer(f"a layer that is marked {other[:80]!r}; known are environment and code")


def _of_its_kind(kind: LayerKind, files: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """In a container these layers lie on top of a whole system, none of which they may replace."""
    for name, data in files:
        if name != FILE_NAME if kind == "environment" else not name.startswith("msfl/"):
            raise BadLayer(f"{name} has no place in the layer of the {kind}")
        yield name, data


def _environment(folder: Path, labels: Mapping[str, str]) -> EnvironmentLock:
    path = folder / FILE_NAME
    if not path.is_file():
        raise BadEnvironment(f"the image carries no environment lock ({FILE_NAME})")
    data = path.read_bytes()
    if (found := sha256_of(data)) != labels.get(ENVIRONMENT_LABEL):
        raise BadEnvironment(f"the environment lock has {found}, not what the image's label says")
    return EnvironmentLock.from_bytes(data)


def _settle(fresh: Path, root: Path, expected: Mapping[str, str]) -> None:
    """Put the unpacked image in its place, or find there exactly the same."""
    # Readable for whoever the sandbox maps us to; the cache folder itself is the caller's alone.
    fresh.chmod(0o755)
    if not root.exists():
        try:
            fresh.rename(root)
        except OSError:
            if not root.exists():
                raise
        else:
            return
    if _listing(root) != expected:
        raise BadLayer(f"the unpacked image in {root} has been changed since; remove that folder and pull again")


def _listing(root: Path) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for folder, folders, files in os.walk(root):
        for name in (*files, *(f for f in folders if os.path.islink(os.path.join(folder, f)))):
            path = Path(folder, name)
            plain = path.is_file() and not path.is_symlink()
            found[path.relative_to(root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest() if plain else None
    return found


def _broken(digest: str, why: str) -> Refused:
    return Refused(refuse(Code.IMAGE_BROKEN, f"The image {digest} was not taken: {why}.", digest=digest))
