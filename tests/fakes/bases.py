"""A small base image with a Python in it, as an OCI layout folder or as an archive of `docker save`."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes.registries import digest_of
from msfl.registry.base import ARCHITECTURES
from msfl.registry.interface import CONFIG, LAYER, MANIFEST, Descriptor
from msfl.registry.oci_layout import LayoutRegistry

SITE_PACKAGES = "usr/local/lib/python3.11/site-packages"
PYTHON: dict[str, bytes | str] = {
    "usr/local/bin/python3.11": b"\x7fELF",
    "usr/local/bin/python3": "-> python3.11",
    "usr/local/bin/python": "-> /usr/local/bin/python3",
    "usr/local/lib/python3.11/_sysconfigdata__linux_x86_64-linux-gnu.py": b"vars = {'SOABI': 'cpython-311-base'}",
    "lib": "-> usr/lib",
    "etc/os-release": b"ID=debian\n",
}


def distribution(name: str, version: str, requires: tuple[str, ...] = (), where: str = SITE_PACKAGES) -> dict[str, Any]:
    """One package as pip would have installed it."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    files = {f"{name}/__init__.py": f"version = {version!r}\n".encode(), f"{info}/METADATA": metadata.encode()}
    lines = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}")
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]).encode()
    return {f"{where}/{path}": data for path, data in files.items()}


def layer(files: dict[str, bytes | str]) -> bytes:
    """A tar. Text that begins with `-> ` is a symbolic link, with `=> ` a hard one, `/` a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
                continue
            entry.type = {"-": tarfile.SYMTYPE, "=": tarfile.LNKTYPE, "/": tarfile.DIRTYPE}[data[0]]
            entry.linkname = data[3:]
            tar.addfile(entry)
    return buffer.getvalue()


def config_of(
    tars: list[bytes],
    environment: tuple[str, ...] = ("PATH=/usr/local/bin:/usr/bin",),
    diff_ids: Sequence[str] = (),
) -> bytes:
    """`diff_ids`: of layers that are not at hand as bytes."""
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    return json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "created": "2026-11-01T00:00:00Z",
            "config": {"Env": list(environment), "Cmd": ["bash"]},
            "rootfs": {"type": "layers", "diff_ids": [*(digest_of(tar) for tar in tars), *diff_ids]},
        }
    ).encode()


def as_layout(root: Path, tars: list[bytes], *, level: int = 9, config: bytes | None = None) -> str:
    """Returns the manifest's digest."""
    registry = LayoutRegistry.create(root)
    config = config or config_of(tars)
    packed = [gzip.compress(tar, level, mtime=0) for tar in tars]
    for blob in (config, *packed):
        registry.put_blob(digest_of(blob), [blob])
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": Descriptor(CONFIG, digest_of(config), len(config)).to_json(),
        "layers": [Descriptor(LAYER, digest_of(blob), len(blob)).to_json() for blob in packed],
    }
    return registry.put_manifest(json.dumps(manifest).encode(), "base-1")


def as_archive(file: Path, tars: list[bytes], *, name: str = "base:1") -> str:
    """As Docker 20.10 saves it. Returns the config's digest, Docker's image id."""
    config = config_of(tars)
    names = [f"{number}/layer.tar" for number in range(len(tars))]
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": names}]
    members = {
        "config.json": config,
        **dict(zip(names, tars, strict=True)),
        "manifest.json": json.dumps(manifest).encode(),
    }
    file.write_bytes(layer(dict(members)))
    return digest_of(config)
