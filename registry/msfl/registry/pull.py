"""From a digest to a folder with code in it: the only way in which an image becomes something that can be started.

    digest asked for ─▶ manifest whose bytes have it ─▶ config and layers whose bytes have the digests it names
      ─▶ each layer unpacked from the verified bytes, strictly, under bounds ─▶ its tar has the config's diff_id
      ─▶ the environment lock is the labelled one ─▶ one rename ─▶ VerifiedImage

The registry is not trusted, nor is its tag, header or content type: only the hash of what arrived counts, and it is
checked before anything is parsed. An index (a choice between images) is refused: one digest, one image.
A cached image is unpacked anew from the verified bytes and compared, file by file, before it is used again. Manifest,
config and layers are all kept by digest, and hashed again, so an image that was here once needs no registry.

`VerifiedImage` cannot be made elsewhere: its constructor wants a seal that only this module holds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import IO, Any

from msfl.policies.encoding import Malformed, read_json, sha256_of
from msfl.policies.refusals import Code, Refusal, Refused, refuse
from msfl.registry.environment import FILE_NAME, BadEnvironment, EnvironmentLock, verify_environment
from msfl.registry.interface import (
    CONFIG,
    LAYER,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Descriptor,
    JsonObject,
    NotInRegistry,
    Registry,
    checked_digest,
)
from msfl.registry.layer import BadLayer, LayerLimits, merge, read_layer

ENVIRONMENT_LABEL = "msfl.environment.sha256"
NAME_LABEL = "msfl.release.name"
VERSION_LABEL = "msfl.release.version"

_MAX_CONFIG_BYTES = 1 << 20
_MAX_LAYERS = 8
_CHUNK = 1 << 20
_SEAL = object()


@dataclass(frozen=True)
class PullLimits:
    blob_bytes: int = 256 << 20
    unpacked: LayerLimits = field(default_factory=LayerLimits)


@dataclass(frozen=True)
class VerifiedImage:
    """An image as it lies unpacked under `root`, every byte of it verified against `digest`."""

    digest: str
    root: Path
    entrypoint: tuple[str, ...]
    labels: Mapping[str, str]
    environment: EnvironmentLock
    environment_sha256: str
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("a VerifiedImage is made by msfl.registry.pull from verified bytes, never by hand")

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


def pull(registry: Registry, digest: str, cache: Path, limits: PullLimits | None = None) -> VerifiedImage:
    """Raises Refused (image_broken) when the registry lacks the image or serves anything but its bytes, RegistryFails
    when it cannot be asked.

    `cache` is the caller's own folder; the image is unpacked to `cache/<hex>`, and its blobs are kept beside it.
    """
    limits = limits or PullLimits()
    (cache / "blobs").mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return _pull(registry, checked_digest(digest), cache, limits)
    except NotInRegistry as error:
        raise _broken(digest, f"the registry lacks a part of it ({error})") from error
    except (BadLayer, BadEnvironment, Malformed) as error:
        raise _broken(digest, str(error)) from error


def _pull(registry: Registry, digest: str, cache: Path, limits: PullLimits) -> VerifiedImage:
    config_at, layers = _parts(_manifest(registry, digest, cache))
    with _verified_blob(registry, config_at, cache, _MAX_CONFIG_BYTES) as file:
        config = _config(read_json(file.read(), "image config", max_bytes=_MAX_CONFIG_BYTES))
    if len(config.diff_ids) != len(layers):
        raise BadLayer(f"{len(layers)} layers, but {len(config.diff_ids)} diff_ids")
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    try:
        found = _unpack(registry, layers, config.diff_ids, cache, limits, fresh)
        environment, environment_sha256 = _environment(fresh, config.labels)
        root = cache / digest.removeprefix("sha256:")
        _settle(fresh, root, found)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return VerifiedImage(digest, root, config.entrypoint, config.labels, environment, environment_sha256, _SEAL)


@dataclass(frozen=True)
class _Config:
    entrypoint: tuple[str, ...]
    labels: Mapping[str, str]
    diff_ids: tuple[str, ...]


def _config(raw: Any) -> _Config:
    try:
        labels = {str(k): str(v) for k, v in raw["config"]["Labels"].items()}
        entrypoint = tuple(str(part) for part in raw["config"]["Entrypoint"])
        return _Config(entrypoint, labels, tuple(checked_digest(d) for d in raw["rootfs"]["diff_ids"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadLayer("the image's config lacks its entry point, labels or diff_ids") from error


def _parts(manifest: JsonObject) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    """The descriptors of the config and of the layers."""
    try:
        config = Descriptor.from_json(manifest["config"])
        layers = tuple(Descriptor.from_json(raw) for raw in manifest["layers"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadLayer("the manifest lacks its config or layers") from error
    if config.media_type != CONFIG or not 1 <= len(layers) <= _MAX_LAYERS:
        raise BadLayer("the manifest is not that of a container image")
    for part in layers:
        if part.media_type != LAYER:
            raise BadLayer(f"a layer of media type {part.media_type!r}; only {LAYER} is allowed")
    return config, layers


def _manifest(registry: Registry, digest: str, cache: Path) -> JsonObject:
    kept = cache / "blobs" / digest.removeprefix("sha256:")
    body = kept.read_bytes() if kept.is_file() else b""
    if sha256_of(body) != digest:
        body = registry.get_manifest(digest)
        if len(body) > MAX_MANIFEST_BYTES or sha256_of(body) != digest:
            raise BadLayer("the registry serves a manifest that does not have this digest")
        _keep(kept, body)
    manifest = read_json(body, "image manifest", max_bytes=MAX_MANIFEST_BYTES)
    if not isinstance(manifest, dict) or manifest.get("schemaVersion") != 2 or manifest.get("mediaType") != MANIFEST:
        raise BadLayer("the digest does not name a single image (an index or another kind of manifest is refused)")
    return manifest


def _keep(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _unpack(
    registry: Registry,
    layers: tuple[Descriptor, ...],
    diff_ids: tuple[str, ...],
    cache: Path,
    limits: PullLimits,
    folder: Path,
) -> dict[str, str]:
    """Write every file below `folder`, which is new and ours alone; name → hex sha256."""
    written: dict[str, str] = {}
    with ExitStack() as stack:
        verified = [stack.enter_context(_verified_blob(registry, part, cache, limits.blob_bytes)) for part in layers]
        opened = [read_layer(file, diff_id, limits.unpacked) for file, diff_id in zip(verified, diff_ids, strict=True)]
        for name, data in merge(opened, limits.unpacked):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
            with os.fdopen(descriptor, "wb") as target:
                target.write(data)
            written[name] = hashlib.sha256(data).hexdigest()
    return written


def _environment(folder: Path, labels: Mapping[str, str]) -> tuple[EnvironmentLock, str]:
    path = folder / FILE_NAME
    if not path.is_file():
        raise BadEnvironment(f"the image carries no environment lock ({FILE_NAME})")
    data = path.read_bytes()
    if (found := sha256_of(data)) != labels.get(ENVIRONMENT_LABEL):
        raise BadEnvironment(f"the environment lock has {found}, not what the image's label says")
    return EnvironmentLock.from_bytes(data), found


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


class _verified_blob:
    """The bytes of a blob as an open file, from the cache or the registry, after their hash has been checked.

    The hash is that of the open file which is then read: nobody can put another file in between.
    """

    def __init__(self, registry: Registry, wanted: Descriptor, cache: Path, limit: int) -> None:
        if wanted.size > limit:
            raise BadLayer(f"a blob of {wanted.size} bytes; at most {limit} are allowed")
        self._registry = registry
        self._wanted = wanted
        self._kept = cache / "blobs" / wanted.digest.removeprefix("sha256:")

    def __enter__(self) -> IO[bytes]:
        self._file = self._cached() or self._fetched()
        self._file.seek(0)
        return self._file

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _cached(self) -> IO[bytes] | None:
        try:
            file = self._kept.open("rb")
        except FileNotFoundError:
            return None
        if hashlib.file_digest(file, "sha256").hexdigest() == self._kept.name:
            return file
        file.close()
        return None

    def _fetched(self) -> IO[bytes]:
        descriptor, name = tempfile.mkstemp(prefix=".new-", dir=self._kept.parent)
        file = os.fdopen(descriptor, "w+b")
        try:
            digest, left = hashlib.sha256(), self._wanted.size
            with self._registry.get_blob(self._wanted.digest) as stream:
                while chunk := stream.read(min(_CHUNK, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        raise BadLayer(
                            f"the registry serves more bytes for {self._wanted.digest} than the manifest says"
                        )
                    digest.update(chunk)
                    file.write(chunk)
            if left or f"sha256:{digest.hexdigest()}" != self._wanted.digest:
                raise BadLayer(f"the registry serves other bytes for {self._wanted.digest}")
            file.flush()
            os.replace(name, self._kept)
        except BaseException:
            file.close()
            Path(name).unlink(missing_ok=True)
            raise
        return file


def _broken(digest: str, why: str) -> Refused:
    return Refused(refuse(Code.IMAGE_BROKEN, f"The image {digest} was not taken: {why}.", digest=digest))
