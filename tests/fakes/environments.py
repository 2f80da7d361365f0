"""A small site-packages folder, made as pip would make it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path


def install(
    site_packages: Path,
    name: str,
    version: str = "1.0.0",
    files: dict[str, bytes] | None = None,
    requires: tuple[str, ...] = (),
) -> None:
    """`files` maps paths to bytes; a package of one module when not given. RECORD carries a hash for each."""
    files = files if files is not None else {f"{name}/__init__.py": f"version = {version!r}\n".encode()}
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    everything = {**files, f"{info}/METADATA": metadata.encode()}
    lines = []
    for path, data in everything.items():
        (site_packages / path).parent.mkdir(parents=True, exist_ok=True)
        (site_packages / path).write_bytes(data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}")
    lines += [
        f"{info}/RECORD,,",
        f"../../../bin/{name},sha256=AAAA,3",
        f"{name}/__pycache__/__init__.cpython-311.pyc,,",
    ]
    (site_packages / info / "RECORD").write_text("\n".join(lines) + "\n")
