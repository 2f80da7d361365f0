"""Images for tests of a runtime: one module, as the code layer, on the base of tests where a container is to run it."""

from __future__ import annotations

import gzip
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fakes.bases import layer
from fakes.os_image import os_tar
from fakes.registries import digest_of
from msfl.policies.refusals import Refusal
from msfl.registry.interface import LAYER

BEGINS = """
import json, os, pathlib, sys, time
def tell(F, **facts):
    (F / "outbox" / ".facts").write_text(json.dumps(facts)); (F / "outbox" / ".facts").rename(F / "outbox" / "facts")
"""
ENDS = """
if __name__ == "__main__":
    import signal, threading
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    data = pathlib.Path(given["--data"]) if "--data" in given else None
    sys.exit(main(given, pathlib.Path(given["--folder"]), data, stop))
"""


@dataclass(frozen=True)
class Layer:
    path: Path
    digest: str
    media_type: str
    size: int
    diff_id: str
    kind: Literal["base", "environment", "code"]


@dataclass(frozen=True)
class ProgramImage:
    """An image whose environment is as it should be, or for which `refusal` speaks."""

    root: Path
    config: Path = Path("config")
    config_digest: str = "sha256:" + "0" * 64
    layers: tuple[Layer, ...] = ()
    digest: str = "sha256:" + "0" * 64
    entrypoint: tuple[str, ...] = ("python", "-m", "release")
    refusal: Refusal | None = None
    packages: frozenset[str] = frozenset()

    @property
    def self_contained(self) -> bool:
        return bool(self.layers)

    def check_environment(self, site_packages: Path) -> Refusal | None:
        del site_packages
        return self.refusal


def program(main: str) -> str:
    """The text of a module around `main`: the body of `main(given, F, D, stop)`."""
    body = textwrap.indent(textwrap.dedent(main).strip(), "    ")
    return f"{BEGINS}\ndef main(given, F, D, stop):\n{body}\n    return 0\n{ENDS}"


def image_of(text: str, root: Path, base: Path | None = None) -> ProgramImage:
    """`text` is the module `release`. `base`: a folder with the packed base layer, for an image that holds all."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "release.py").write_text(text)
    if base is None:
        return ProgramImage(root)
    code = layer({"release.py": text.encode()})
    layers = [json.loads((base / "layer.json").read_text())]
    (root.parent / "code.tar.gz").write_bytes(packed := gzip.compress(code, 1, mtime=0))
    parts = (
        Layer(base / "os.tar.gz", layers[0]["digest"], LAYER, layers[0]["size"], layers[0]["diff_id"], "base"),
        Layer(root.parent / "code.tar.gz", digest_of(packed), LAYER, len(packed), digest_of(code), "code"),
    )
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/bin:/usr/bin", "PYTHONPATH=/", "PYTHONDONTWRITEBYTECODE=1"],
                "Entrypoint": ["python", "-m", "release"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [part.diff_id for part in parts]},
        }
    ).encode()
    (root.parent / "config.json").write_bytes(config)
    return ProgramImage(root, root.parent / "config.json", digest_of(config), parts)


def packed_base(folder: Path) -> Path:
    """The base of tests as one packed layer in `folder`. Skips where none can be made."""
    tar = os_tar().read_bytes()
    packed = gzip.compress(tar, 1, mtime=0)
    (folder / "os.tar.gz").write_bytes(packed)
    facts = {"digest": digest_of(packed), "size": len(packed), "diff_id": digest_of(tar)}
    (folder / "layer.json").write_text(json.dumps(facts))
    return folder
