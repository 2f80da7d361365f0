"""The operating system with a Python that images of tests lie on: Debian, by `debootstrap`, made once.

    build/base/os.tar           in the repository's folder, ignored by git (elsewhere with MSFL_TEST_BASE)
    saved_base(…)               that, and as a second layer the files of installed distributions as pip laid them down

What is copied are the files of the environment that the tests run in, so that an image's lock is that of the host: one
digest, two runtimes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fakes.bases import config_of
from fakes.engines import none
from msfl.registry.environment import lock_environment

_HERE = Path(__file__).parents[2] / "build" / "base"
_INCLUDE = "python3-minimal,libpython3-stdlib"
_PACKAGES = "usr/local/lib/python3.11/dist-packages"


def os_tar() -> Path:
    """The first layer, not packed. Makes it where it is not there yet: a minute, and Debian's mirror is asked."""
    folder = Path(os.environ.get("MSFL_TEST_BASE", _HERE))
    made = folder / "os.tar"
    if not made.exists():
        if os.getuid() != 0 or shutil.which("debootstrap") is None:
            none("debootstrap is not installed, or this is not root (Debian: apt-get install debootstrap)")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="msfl-os-") as scratch:
            root = Path(scratch) / "root"
            command = ["debootstrap", "--variant=minbase", f"--include={_INCLUDE}", "bookworm", str(root)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
            if done.returncode != 0:
                none(f"debootstrap fails: {done.stdout.splitlines()[-1:]}")
            (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
            new = made.with_suffix(".new")
            with tarfile.open(new, "w", format=tarfile.GNU_FORMAT) as tar:
                tar.add(root, arcname=".", filter=_kept)
            new.replace(made)
    return made


def saved_base(folder: Path, requires: Iterable[str] = ()) -> Path:
    """The base as `docker save` would have written it: the operating system and, above it, what `requires` needs."""
    tars = {"os.tar": os_tar(), "packages.tar": packages(folder / "packages.tar", requires)}
    config = config_of([], diff_ids=[_digest(tar) for tar in tars.values()])
    manifest = [{"Config": "config.json", "RepoTags": ["msfl-base:1"], "Layers": list(tars)}]
    with tarfile.open(folder / "base.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in {"config.json": config, "manifest.json": json.dumps(manifest).encode()}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for name, tar in tars.items():
            archive.add(tar, name)
    (folder / "packages.tar").unlink()
    return folder / "base.tar"


def packages(made: Path, requires: Iterable[str]) -> Path:
    """A tar of the installed distributions that these need, and of theirs."""
    here = Path(sysconfig.get_paths()["purelib"])
    lock = lock_environment(requires, here)
    names = {path for distribution in lock.distributions.values() for path in distribution.files}
    # What installers write for themselves is not locked, and without it nothing counts as installed.
    names |= {f"{path.rpartition('/')[0]}/RECORD" for path in names if path.endswith(".dist-info/METADATA")}
    # Byte code holds the time of its source, which is kept: nothing could write it in a container, and without it each
    # start would compile everything anew.
    names |= {code for name in names if (code := _byte_code(name)) and (here / code).exists()}
    with tarfile.open(made, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted(names):
            entry = tar.gettarinfo(here / name, f"{_PACKAGES}/{name}")
            entry.type, entry.linkname = tarfile.REGTYPE, ""  # Two names of one file on this disk are two files there.
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            entry.size = (here / name).stat().st_size
            with (here / name).open("rb") as file:
                tar.addfile(entry, file)
    return made


def _byte_code(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/__pycache__/{file[:-3]}.{sys.implementation.cache_tag}.pyc" if name.endswith(".py") else ""


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    top, _, below = entry.name.removeprefix("./").partition("/")
    if top in ("dev", "proc", "sys") and below:
        return None
    if entry.name.startswith(("./var/cache/apt/", "./var/lib/apt/lists/", "./usr/share/doc/", "./usr/share/man/",
                              "./usr/share/locale/", "./var/log/")):  # fmt: skip
        return None
    return entry
