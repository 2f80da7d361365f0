"""The first lines that run inside a contained process; started by path, so it imports the standard library only.

    python -I -S -B launcher.py '{"root", "site_packages", "packages", "module", "limits"}' arguments of the module…

`-I -S` keep the host's environment variables, user site, `.pth` files and sitecustomize out. Then:
1. without a sandbox: die with the keeper, the parent, as bubblewrap's --die-with-parent does in one (PR_SET_PDEATHSIG);
   its number comes in the environment, and does not stay there
2. limits that hold for everything the process starts
3. sys.path = the image's layer, the standard library, site-packages appended as a plain folder, in which only the
   release's own packages are found: what else is installed was not reviewed and is not verified, and a container of
   the same release does not have it. (Children of multiprocessing's spawn find all of it.)
4. the module runs as `python -m` would run it
"""

import ctypes
import json
import os
import resource
import runpy
import signal
import sys
from collections.abc import Callable
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from types import ModuleType
from typing import Any

_PR_SET_PDEATHSIG = 1


def main() -> None:
    spec: dict[str, Any] = json.loads(sys.argv[1])
    if (keeper := os.environ.pop("MSFL_KEEPER", None)) is not None:
        _die_with(int(keeper))
    for name, value in spec["limits"].items():
        _limit(getattr(resource, name), value)
    sys.path[:] = [spec["root"], *sys.path, spec["site_packages"]]
    sys.path_hooks.insert(0, _only(spec["site_packages"], frozenset(spec["packages"])))
    sys.argv = [spec["module"], *sys.argv[2:]]
    runpy.run_module(spec["module"], run_name="__main__", alter_sys=True)


def _only(folder: str, packages: frozenset[str]) -> Callable[[str], FileFinder]:
    """A path hook, for this folder alone: what lies in a package that is found is found as ever."""

    class Finder(FileFinder):
        def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
            return super().find_spec(fullname, target) if fullname in packages else None

    def hook(path: str) -> FileFinder:
        if path != folder:
            raise ImportError(path)
        return Finder(
            path,
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (SourceFileLoader, SOURCE_SUFFIXES),
            (SourcelessFileLoader, BYTECODE_SUFFIXES),
        )

    return hook


def _die_with(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # It died before the line above.
        os.kill(os.getpid(), signal.SIGKILL)


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


if __name__ == "__main__":  # Children of multiprocessing's spawn import this file under another name.
    main()
