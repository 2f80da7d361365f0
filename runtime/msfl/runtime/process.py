"""The embedded runtime: an own process per worker, inside bubblewrap where that works on this machine.

    with bubblewrap  (isolation: sandbox)            without  (isolation: none)
    no network, not even the host's loopback         the host's network
    own process ids, own users, no capabilities      the host's
    system calls filtered (`seccomp`)                all of them
    /msfl/image, data, site-packages read-only       read-only by agreement
    /msfl/run = F: outbox, scratch, figures writable   whatever this user may write
    dies with its keeper, and all its children       the process itself dies with its keeper

Both: the environment is verified against the image's lock before every start; the process gets a cleaned environment,
no `.pth` file, no user site; no core dumps; a keeper (`keeper`) that bounds time, output and log, and ends it when
nobody watches it any more. Processes, memory and processors are limited by control group where there is one
(`cgroups`); otherwise each process by rlimits, and their number where that works.

`protections` announces only what `_Tried`, a real run in a sandbox at the start of the host, has found to hold.

What runs is written down beside F (`<F>.process.json`: pid and start time of the keeper, boot), where the process
cannot reach it, so that after a restart `recover` finds exactly that process and never another one that got its number.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from msfl.policies.documents import Isolation
from msfl.policies.protections import Protection, isolation_of
from msfl.policies.refusals import Code, Refused, refuse
from msfl.runtime import keeper, seccomp
from msfl.runtime.bounded_log import log_file
from msfl.runtime.cgroups import Cgroups, GroupLimits, remove
from msfl.runtime.environment import environment, granted_gpus
from msfl.runtime.interface import Exit, Handle, Limits, Protections, StartOrder, ended_within
from msfl.runtime.keeper import Spec, door, excess_of
from msfl.runtime.processes import Process, end, family, kill, kill_session, lives, read

Sandbox: TypeAlias = Literal["auto", "none"]

_LAUNCHER = Path(__file__).with_name("launcher.py")
_INSPECTOR = Path(__file__).with_name("inspector.py")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_INSIDE = Path("/msfl")
_UNPRIVILEGED = 10001


# The parts of F that a contained process writes; everything else in it is the host's.
_WRITABLE = ("outbox", "scratch", "figures")
_KEPT = frozenset(
    {Protection.WALL_TIME, Protection.OUTPUT_LIMIT, Protection.LOG_LIMIT, Protection.ENVIRONMENT_VERIFIED}
)
_BY_GROUP = {
    "pids": Protection.PROCESS_LIMIT,
    "memory": Protection.MEMORY_LIMIT,
    "cpu": Protection.CPU_LIMIT,
}


@dataclass(frozen=True)
class _View:
    """Where the process finds things: the host's paths, or those of the sandbox."""

    launcher: Path
    root: Path
    site_packages: Path
    folder: Path
    data: Path
    tmp: Path


@dataclass(frozen=True)
class _Note:
    """What is known of a started process, beside F. `members`: pid and start of those that its keeper started first;
    `groups`: its control groups."""

    run_id: str
    role: Literal["worker", "aggregator"]
    pid: int
    started: int
    boot: str
    members: list[tuple[int, int]]
    groups: list[str]


class ProcessRuntime:
    """`sandbox="none"` does without bubblewrap even where it works (for tests, and to measure what it costs)."""

    def __init__(self, *, site_packages: Path | None = None, sandbox: Sandbox = "auto") -> None:
        self._site_packages = site_packages or Path(sysconfig.get_paths()["purelib"])
        self._python = Path(os.path.realpath(sys.executable))
        self._groups = Cgroups.find()
        tried = _try(self._python) if sandbox == "auto" else _Tried(None, b"", "it was not asked for")
        self._bwrap, self._syscalls = tried.bwrap, tried.syscalls
        self._limits_processes_by_rlimit = Protection.PROCESS_LIMIT in tried.in_force
        in_force = tried.in_force | _KEPT | {_BY_GROUP[name] for name in self._groups.controllers}
        self._protections = Protections.of(
            f"Sandbox: bubblewrap.{' It is root who starts it: give the host a user of its own.' * (os.getuid() == 0)}"
            if tried.bwrap
            else f"No sandbox: {tried.why_none}. The process can use the network and every file of this user.",
            in_force,
        )
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._ended: dict[Handle, Exit] = {}
        self._lock = threading.Lock()

    whole_images = False
    reads_as: int | None = None

    def protections(self) -> Protections:
        return self._protections

    def start(self, order: StartOrder) -> Handle:
        module = _module(order)
        if refusal := order.image.check_environment(self._site_packages):
            raise Refused(refusal)
        view = self._view(order)
        command = [*self._sandbox(order, view), *self._command(order, view, module)]
        limits = order.limits
        groups = self._groups.make(
            f"msfl-{secrets.token_hex(8)}", GroupLimits(limits.processes, limits.memory_bytes, limits.cpus)
        )
        told, telling = os.pipe()
        try:
            spec = self._spec(order, view, [str(group) for group in groups], telling)
            with log_file(order.log, limits.log_bytes) as log:
                # Not `with`: this Popen is kept, and reaped by poll or stop.
                child = keeper.start(spec, command, log)
        except OSError:
            remove(groups)
            os.close(told)
            raise
        finally:
            os.close(telling)
        found = read(child.pid)
        assert found is not None, "a child that nobody has reaped has its line in /proc"
        handle = Handle(order.run_id, order.role, order.folder, child.pid, found.started)
        self._write_down(handle, [], spec.groups)
        with open(told, "rb") as words:  # Until the keeper has started it, or has ended.
            members = [p for pid in json.loads(words.readline() or b"[]") if (p := read(pid)) is not None]
        self._write_down(handle, members, spec.groups)
        with self._lock:
            self._children[child.pid] = child
        return handle

    def poll(self, handle: Handle) -> Exit | None:
        """When the process has ended, whatever it left running is ended too, before this returns its Exit."""
        with self._lock:
            if handle in self._ended:
                return self._ended[handle]
            child = self._children.get(handle.pid)
            if child is None:
                if lives(handle.pid, handle.started):
                    return None
                _tidy(handle.folder, since=handle.started)
                ended = Exit(None, None, excess_of(handle.folder))
            else:
                # WNOWAIT: while the dead leader is not reaped, its number, and with it the session's, is not reused.
                if os.waitid(os.P_PID, handle.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    return None
                _tidy(handle.folder)
                status, excess = child.wait(), excess_of(handle.folder)
                ended = Exit(status, None, excess) if status >= 0 else Exit(None, -status, excess)
                del self._children[handle.pid]
            self._ended[handle] = ended
            return ended

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        """SIGTERM to the process and its children; after `grace_s` SIGKILL. On return nothing of it is left."""
        if grace_s > 0 and self.poll(handle) is None:
            self._signal(handle, signal.SIGTERM)
        ended = ended_within(self, handle, grace_s)
        while ended is None:
            hit = self._signal(handle, signal.SIGKILL)
            ended = ended_within(self, handle, 1.0)
            end(hit)
        return ended

    def recover(self, folder: Path) -> Handle | None:
        """After a restart of the host process: what still runs in F. Leftovers of a dead keeper are ended."""
        note = _noted(folder)
        if note is None:
            return None
        if note.boot == _boot() and lives(note.pid, note.started):
            return Handle(note.run_id, note.role, folder, note.pid, note.started)
        _tidy(folder, since=note.started)
        return None

    # ------------------------------------------------------------- how it is started

    def _view(self, order: StartOrder) -> _View:
        if self._bwrap is None:
            data = order.data or order.folder
            scratch = order.folder / "scratch"
            return _View(_LAUNCHER, order.image.root, self._site_packages, order.folder, data, scratch)
        return _View(
            _INSIDE / "launcher.py",
            _INSIDE / "image",
            _INSIDE / "site-packages",
            _INSIDE / "run",
            _INSIDE / "data",
            Path("/tmp"),  # noqa: S108 - the sandbox's own
        )

    def _command(self, order: StartOrder, view: _View, module: str) -> list[str]:
        limits = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": order.limits.open_files, "RLIMIT_FSIZE": order.limits.file_bytes}
        if order.limits.memory_bytes is not None:
            limits["RLIMIT_DATA"] = order.limits.memory_bytes
        if self._limits_processes_by_rlimit and "pids" not in self._groups.controllers:
            limits["RLIMIT_NPROC"] = order.limits.processes
        spec = {
            "root": str(view.root),
            "site_packages": str(view.site_packages),
            "packages": sorted(order.image.packages),
            "module": module,
            "limits": limits,
        }
        command = [str(self._python), "-I", "-S", "-B", str(view.launcher), json.dumps(spec)]
        command += ["--role", order.role, "--folder", str(view.folder), "--release", order.release]
        if order.data is not None:
            command += ["--data", str(view.data)]
        if order.site is not None:
            command += ["--site", order.site]
        return command

    def _spec(self, order: StartOrder, view: _View, groups: list[str], telling: int) -> Spec:
        limits = order.limits
        return Spec(
            folder=str(order.folder),
            door=str(door(order.folder)),
            environment=_environment(limits, view),
            host=os.getpid(),
            told=telling,
            written=[str(order.folder / part) for part in _WRITABLE],
            groups=groups,
            orphan_s=limits.orphan_s,
            wall_time_s=limits.wall_time_s,
            log_bytes=limits.log_bytes,
            output_bytes=limits.output_bytes,
            output_files=limits.output_files,
            sandbox=self._bwrap is not None,
            syscalls=base64.b64encode(self._syscalls).decode(),
        )

    def _sandbox(self, order: StartOrder, view: _View) -> list[str]:
        if self._bwrap is None:
            return []
        size = str(order.limits.tmp_bytes)
        command = [
            *_walls(self._bwrap, self._python),
            *("--size", size, "--tmpfs", "/tmp"),  # noqa: S108 - the sandbox's own
            *("--size", size, "--tmpfs", "/dev/shm"),  # noqa: S108 - the sandbox's own
            *("--ro-bind", str(_LAUNCHER), str(view.launcher)),
            *("--ro-bind", str(order.image.root), str(view.root)),
            *("--ro-bind", str(self._site_packages), str(view.site_packages)),
            # The folder itself cannot be written: what the host makes in it, the inbox above all, the process can
            # neither change nor swap for a link to somewhere else.
            *("--ro-bind", str(order.folder), str(view.folder)),
        ]
        for part in _WRITABLE:
            (order.folder / part).mkdir(mode=0o700, exist_ok=True)
            command += ["--bind", str(order.folder / part), str(view.folder / part)]
        if order.data is not None:
            command += ["--ro-bind", str(order.data), str(view.data)]
        if order.limits.gpus > 0:
            for device in sorted(Path("/dev").glob("nvidia*")):
                command += ["--dev-bind", str(device), str(device)]
        return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(view.folder), "--"]

    # ------------------------------------------------------------- how it is ended

    def _signal(self, handle: Handle, number: signal.Signals) -> list[Process]:
        """SIGKILL goes to all; SIGTERM to the release's processes, not to the keeper, nor to bubblewrap and the first
        process inside, which would not pass it on."""
        hit = family(handle.pid)
        spared = {handle.pid}
        if self._bwrap is not None:
            note = _noted(handle.folder)
            spared |= {pid for pid, _ in note.members} if note is not None else set()
        for process in hit:
            if number is not signal.SIGTERM or process.pid not in spared:
                kill(process.pid, number)
        return hit

    def _write_down(self, handle: Handle, members: list[Process], groups: list[str]) -> None:
        known = [(p.pid, p.started) for p in members]
        note = _Note(handle.run_id, handle.role, handle.pid, handle.started, _boot(), known, groups)
        path = _notes(handle.folder)
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(asdict(note)))
        new.replace(path)


def _module(order: StartOrder) -> str:
    match tuple(order.image.entrypoint):
        case ("python", "-m", module) if _MODULE.fullmatch(module):
            return module
        case other:
            what = f"The image's entry point {list(other)} is not python -m <module>, so it cannot be run here."
            raise Refused(refuse(Code.IMAGE_BROKEN, what, digest=order.image.digest))


def _environment(limits: Limits, view: _View) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        **environment(limits, str(view.folder / "scratch"), str(view.tmp)),
        "CUDA_VISIBLE_DEVICES": ",".join(granted_gpus(limits, os.environ)),
    }


# ------------------------------------------------------------------ bubblewrap


def _walls(bwrap: str, python: Path) -> list[str]:
    """Everything that does not depend on the order: namespaces, the system's libraries, the interpreter."""
    command = [
        bwrap,
        *("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--uid", str(_UNPRIVILEGED), "--gid", str(_UNPRIVILEGED), "--hostname", "worker"),
        *("--proc", "/proc", "--dev", "/dev"),
    ]
    # Inside, a file of /proc that asks for root is open to whoever is root outside, capabilities or not.
    for name in ("sys", "irq", "bus", "fs", "acpi", "scsi", "sysrq-trigger"):
        if Path("/proc", name).exists():
            command += ["--ro-bind", f"/proc/{name}", f"/proc/{name}"]
    for name in ("kcore", "keys", "key-users", "timer_list", "latency_stats", "sched_debug", "kmsg", "kallsyms"):
        if Path("/proc", name).exists():
            command += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    for name in ("lib", "lib32", "lib64", "libx32"):
        here, usr = Path("/", name), Path("/usr", name)
        if usr.is_dir() and not usr.is_symlink():
            command += ["--ro-bind", str(usr), str(usr)]
        if here.is_symlink():
            command += ["--symlink", str(here.readlink()), str(here)]
        elif here.is_dir():
            command += ["--ro-bind", str(here), str(here)]
    for path in ("/etc/ld.so.cache", "/etc/alternatives", "/usr/share/zoneinfo"):
        command += ["--ro-bind-try", path, path]
    prefix = Path(os.path.realpath(sys.base_prefix))
    if prefix in (Path("/usr"), Path("/")):
        command += ["--ro-bind", str(python), str(python)]
    else:
        command += ["--ro-bind", str(prefix), str(prefix)]
    return command


@dataclass(frozen=True)
class _Tried:
    """What a run in a sandbox has shown. `bwrap`: the path of one that works here; None: `why_none`."""

    bwrap: str | None
    syscalls: bytes
    why_none: str = ""
    in_force: frozenset[Protection] = frozenset()


def _try(python: Path) -> _Tried:
    """A real, tiny run: `inspector.py` inside says what it finds, and with which filter of system calls it starts."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return _Tried(None, b"", "bubblewrap (bwrap) is not installed")
    filters = seccomp.program()
    found = _inspect(bwrap, python, filters) if filters is not None else "unknown architecture"
    if isinstance(found, str):
        filters = b""
        found = _inspect(bwrap, python, filters)
    if isinstance(found, str):
        return _Tried(None, b"", found)
    if isolation_of(found) is Isolation.NONE:
        lacking = ", ".join(sorted({Protection.NO_NETWORK, Protection.OWN_PROCESSES, Protection.NO_PRIVILEGES} - found))
        return _Tried(None, b"", f"bubblewrap starts here, but does not keep what it promises ({lacking})")
    return _Tried(bwrap, filters or b"", "", found)


def _inspect(bwrap: str, python: Path, filters: bytes | None) -> frozenset[Protection] | str:
    """What holds inside, or why nothing does."""
    spaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("net", "pid", "ipc", "uts", "user", "mnt")}
    walls = [*_walls(bwrap, python), "--ro-bind", str(_INSPECTOR), "/inspector.py"]
    given: tuple[int, ...] = ()
    if filters:
        descriptor = os.memfd_create("syscalls")
        os.write(descriptor, filters)
        os.lseek(descriptor, 0, os.SEEK_SET)
        given = (descriptor,)
        walls += ["--seccomp", str(descriptor)]
    inside = [str(python), "-I", "-S", "-B", "/inspector.py", json.dumps(spaces)]
    try:
        tried = subprocess.run(
            [*walls, "--remount-ro", "/", "--", *inside],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env={},
            pass_fds=given,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not start ({error})"
    finally:
        for descriptor in given:
            os.close(descriptor)
    if tried.returncode != 0 or not tried.stdout.startswith("["):
        said = (tried.stderr.strip().splitlines() or ["no message"])[-1]
        return f"bubblewrap does not work here ({said})"
    return frozenset(map(Protection, json.loads(tried.stdout)))


# ------------------------------------------------------------------ files beside F


def _notes(folder: Path) -> Path:
    return folder.with_name(folder.name + ".process.json")


def _noted(folder: Path) -> _Note | None:
    try:
        return _Note(**json.loads(_notes(folder).read_bytes()))
    except FileNotFoundError:
        return None


def _tidy(folder: Path, since: int = 0) -> None:
    """End what a dead keeper left, and take away its groups and its note. `since`: its start, where its number may have
    been given to another since."""
    note = _noted(folder)
    if note is None:
        return
    if note.boot == _boot():
        kill_session(note.pid, since)
        # bubblewrap ends a moment before the kernel has emptied the sandbox.
        end(p for pid, started in note.members if (p := read(pid)) is not None and p.started == started)
        remove(tuple(map(Path, note.groups)))
    door(folder).unlink(missing_ok=True)
    _notes(folder).unlink(missing_ok=True)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
