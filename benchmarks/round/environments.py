"""A virtual environment for each peer, made from PyPI with every version pinned, kept until its list changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from measured import CannotMeasure


def environment(name: str, requirements: Path, cache: Path) -> Path:
    """The environment's `bin` folder; made when it is not there. Raises CannotMeasure in one line."""
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache / f"{name}-{digest}"
    ready = folder / "ready"
    if ready.exists():
        return folder / "bin"
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
        install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        install += ["--retries", "2", "--no-deps", "--requirement", requirements]
        subprocess.run(install, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(folder, ignore_errors=True)
        said = [line for line in error.stderr.decode(errors="replace").splitlines() if line.startswith("ERROR")]
        why = said[-1] if said else f"{error.cmd[0]} ended with status {error.returncode}"
        raise CannotMeasure(
            f"{name} cannot be installed from PyPI ({why}); without it: --arms floor,floor+M,product"
        ) from error
    ready.touch()
    return folder / "bin"


def clean_environment(home: Path, bin_folder: Path) -> dict[str, str]:
    """This process's variables without what would lead a peer into our packages; its home is the run's own folder."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return kept | {"HOME": str(home), "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
