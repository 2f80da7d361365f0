"""Control groups, version 1 or 2, as far as they are ours: limits on a contained process and all its children together.

    version 2   below our own group, when it was delegated to us: nobody but this process and its children is in it
                (systemd: `Delegate=yes`, best with `DelegateSubgroup=gateway`); the others move to a leaf of their own
    version 1   below our own group of each controller, where we may make one

Nothing is assumed: `Cgroups.find` makes a group, sets each limit and reads it back. What did not work is not claimed,
and limits of the single process (rlimits) are then all there is.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import psutil

Controller: TypeAlias = Literal["pids", "memory", "cpu"]
CONTROLLERS: tuple[Controller, ...] = ("pids", "memory", "cpu")
LEAF = "gateway"
_PERIOD_US = 100_000


@dataclass(frozen=True)
class GroupLimits:
    processes: int
    memory_bytes: int | None
    cpus: float | None


class Cgroups:
    """`roots`: by controller, the folder in which groups are made; `unified`: they are version 2, one for all."""

    def __init__(self, roots: dict[Controller, Path], *, unified: bool) -> None:
        self._roots = roots
        self._unified = unified

    @property
    def controllers(self) -> frozenset[Controller]:
        return frozenset(self._roots)

    @classmethod
    def find(cls, proc: Path = Path("/proc/self")) -> Cgroups:
        """Those that work here, by trying them; without any when there are none."""
        try:
            own, mounts = _own_groups(proc), _mounts(proc)
        except OSError:
            return cls({}, unified=False)
        for unified in (True, False):
            roots = _version_2(own, mounts) if unified else _version_1(own, mounts)
            found = cls(roots, unified=unified)
            works = found._that_work()
            if works:
                return cls({name: roots[name] for name in works}, unified=unified)
        return cls({}, unified=False)

    def make(self, name: str, limits: GroupLimits) -> tuple[Path, ...]:
        """The folders of a new, empty group. Raises OSError; then there is none."""
        folders = self._folders(name)
        try:
            for folder in folders:
                folder.mkdir()
            for controller, root in self._roots.items():
                self._limit(root / name, controller, limits)
        except OSError:
            remove(folders)
            raise
        return folders

    def _folders(self, name: str) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(root / name for root in self._roots.values()))

    def _limit(self, folder: Path, controller: Controller, limits: GroupLimits) -> None:
        match controller:
            case "pids":
                _write(folder / "pids.max", str(limits.processes))
            case "memory" if limits.memory_bytes is not None and self._unified:
                _write(folder / "memory.max", str(limits.memory_bytes))
                for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                    if (folder / name).exists():
                        _write(folder / name, value)
            case "memory" if limits.memory_bytes is not None:
                _write(folder / "memory.limit_in_bytes", str(limits.memory_bytes))
                if (folder / "memory.memsw.limit_in_bytes").exists():
                    _write(folder / "memory.memsw.limit_in_bytes", str(limits.memory_bytes))
            case "cpu" if limits.cpus is not None:
                quota = max(int(limits.cpus * _PERIOD_US), 1000)
                if self._unified:
                    _write(folder / "cpu.max", f"{quota} {_PERIOD_US}")
                else:
                    _write(folder / "cpu.cfs_period_us", str(_PERIOD_US))
                    _write(folder / "cpu.cfs_quota_us", str(quota))
            case _:
                pass

    def _that_work(self) -> list[Controller]:
        works: list[Controller] = []
        limits = GroupLimits(processes=64, memory_bytes=1 << 30, cpus=1.0)
        for controller, root in self._roots.items():
            alone = Cgroups({controller: root}, unified=self._unified)
            with contextlib.suppress(OSError):  # Not ours: that is what was asked.
                remove(alone.make(f"msfl-probe-{os.getpid()}-{controller}", limits))
                works.append(controller)
        return works


def join(folders: tuple[Path, ...], pid: int) -> None:
    """Raises OSError."""
    for folder in folders:
        _write(folder / "cgroup.procs", str(pid))


def remove(folders: tuple[Path, ...], patience_s: float = 5.0) -> None:
    """End who is left in them, and take them away; what is still dying keeps its group until then."""
    give_up = time.monotonic() + patience_s
    for folder in folders:
        while folder.is_dir():
            with contextlib.suppress(OSError):  # Busy: somebody is left, or is just ending.
                folder.rmdir()
                break
            if time.monotonic() > give_up:
                return
            _kill_all(folder)
            time.sleep(0.005)


def _kill_all(folder: Path) -> None:
    with contextlib.suppress(OSError):  # It went away meanwhile.
        if (folder / "cgroup.kill").exists():
            _write(folder / "cgroup.kill", "1")
            return
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)


# ------------------------------------------------------------------ what there is


def _own_groups(proc: Path) -> dict[str, str]:
    """By controller, the path of our group below its mount; "" is version 2. (cgroups(7))"""
    groups = {}
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _mounts(proc: Path) -> dict[str, tuple[Path, str]]:
    """By controller, where its tree is mounted and which of its groups is the root there. (proc(5), mountinfo)"""
    found = {}
    for line in (proc / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(" ", 2)
        if kind == "cgroup2":
            found[""] = (Path(fields[4]), fields[3])
        elif kind == "cgroup":
            for controller in options.split(","):
                if controller in CONTROLLERS:
                    found[controller] = (Path(fields[4]), fields[3])
    return found


def _at(own: dict[str, str], mounts: dict[str, tuple[Path, str]], controller: str) -> Path | None:
    if controller not in own or controller not in mounts:
        return None
    mount, root = mounts[controller]
    path = own[controller]
    below = path.removeprefix(root) if root != "/" and path.startswith(root) else path
    return mount / below.lstrip("/")


def _version_1(own: dict[str, str], mounts: dict[str, tuple[Path, str]]) -> dict[Controller, Path]:
    return {name: at for name in CONTROLLERS if (at := _at(own, mounts, name)) is not None}


def _version_2(own: dict[str, str], mounts: dict[str, tuple[Path, str]]) -> dict[Controller, Path]:
    """Also makes room: a group with processes of its own cannot limit the groups in it."""
    base = _at(own, mounts, "")
    if base is None:
        return {}
    if base.name == LEAF:
        base = base.parent
    try:
        offered = (base / "cgroup.controllers").read_text().split()
        wanted = [name for name in CONTROLLERS if name in offered]
        if wanted and not set(wanted) <= set((base / "cgroup.subtree_control").read_text().split()):
            _make_room(base)
            _write(base / "cgroup.subtree_control", " ".join(f"+{name}" for name in wanted))
    except OSError:
        return {}
    return dict.fromkeys(wanted, base)


def _make_room(base: Path) -> None:
    """Move what is in the group to a leaf in it, if all of it is ours. Raises OSError."""
    inside = {int(pid) for pid in (base / "cgroup.procs").read_text().split()}
    if strangers := inside - set(_ours()):
        raise PermissionError(f"{base} holds processes that are not ours: {sorted(strangers)}")
    if not inside:
        return
    leaf = base / LEAF
    leaf.mkdir(exist_ok=True)
    for pid in inside:
        _write(leaf / "cgroup.procs", str(pid))


def _ours() -> Iterator[int]:
    here = psutil.Process()
    yield here.pid
    for child in here.children(recursive=True):
        yield child.pid


def _write(file: Path, text: str) -> None:
    # Opened without creating: a file that the kernel does not have is no limit.
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
