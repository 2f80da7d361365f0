"""The embedded runtime: an own process per worker, inside bubblewrap where that works on this machine.

    with bubblewrap  (isolation: sandbox)            without  (isolation: none)
    no network, not even the host's loopback         the host's network
    own process ids, own users, no capabilities      the host's
    /msfl/image, data, site-packages read-only       read-only by agreement
    /msfl/run = F: outbox, scratch, figures writable   whatever this user may write
    dies with the host process, and all its children the process itself dies with the host process

Both: the environment is verified against the image's lock before every start; the process gets a cleaned environment,
no `.pth` file, no user site; limits on memory, open files and file size; no core dumps; a log of mode 0600.

The kernel ties "dies with the parent" to the *thread* that started the child. Starts therefore happen in one thread
that lives as long as the host process, whatever thread `start` is called from.

What runs is written down beside F (`<F>.process.json`: pid, start time, boot), where the process cannot reach it, so
that after a restart `recover` finds exactly that process and never another one that got its number.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from msfl.policies.documents import Isolation
from msfl.policies.refusals import Code, Refused, refuse
from msfl.runtime.interface import Exit, Handle, Limits, Protections, StartOrder

Sandbox: TypeAlias = Literal["auto", "none"]

_LAUNCHER = Path(__file__).with_name("launcher.py")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_INSIDE = Path("/msfl")
_UNPRIVILEGED = 10001
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="msfl-spawner")


# The parts of F that a contained process writes; everything else in it is the host's.
_WRITABLE = ("outbox", "scratch", "figures")


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
class _Process:
    """One line of /proc: what is needed to find a process's family."""

    pid: int
    parent: int
    session: int
    started: int
    zombie: bool


class ProcessRuntime:
    """`sandbox="none"` does without bubblewrap even where it works (for tests, and to measure what it costs)."""

    def __init__(self, *, site_packages: Path | None = None, sandbox: Sandbox = "auto") -> None:
        self._site_packages = site_packages or Path(sysconfig.get_paths()["purelib"])
        self._python = Path(os.path.realpath(sys.executable))
        self._bwrap, self._why_none = _probe(self._python) if sandbox == "auto" else (None, "it was not asked for")
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._first_inside: dict[int, list[_Process]] = {}
        self._ended: dict[Handle, Exit] = {}
        self._lock = threading.Lock()

    whole_images = False

    def protections(self) -> Protections:
        always = (
            "The Python environment is verified against the release's lock before every start.",
            "Environment variables are cleaned; open files, file size and core dumps are limited.",
        )
        if self._bwrap is None:
            return Protections(
                Isolation.NONE,
                (
                    f"No sandbox: {self._why_none}. The process can use the network and every file of this user.",
                    *always,
                ),
            )
        return Protections(
            Isolation.SANDBOX,
            (
                "bubblewrap: no network, own process and user ids, no capabilities, no new privileges.",
                "Code, data, inputs and Python are read-only; writable are the run's own outbox, scratch and figures.",
                "No system-call filter and no limit on processor time.",
                *always,
            ),
        )

    def start(self, order: StartOrder) -> Handle:
        module = _module(order)
        if refusal := order.image.check_environment(self._site_packages):
            raise Refused(refusal)
        view = self._view(order)
        with _log(order.log) as log, _Told() as told:
            command = [*self._sandbox(order, view, told.descriptor), *self._command(order, view, module)]
            # Not `with`: this Popen is kept, and reaped by poll or stop.
            child = _SPAWNER.submit(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=order.folder,
                env=_environment(order.limits, view),
                start_new_session=True,
                pass_fds=(told.descriptor,) if self._bwrap else (),
            ).result()
            started = _read(child.pid)
            assert started is not None, "a child that nobody has reaped has its line in /proc"
            handle = Handle(order.run_id, order.role, order.folder, child.pid, started.started)
            _note(handle)
            first_inside = told.first_inside(child.pid)
        with self._lock:
            self._children[child.pid] = child
            self._first_inside[child.pid] = first_inside
        return handle

    def poll(self, handle: Handle) -> Exit | None:
        """When the process has ended, whatever it left running is ended too, before this returns its Exit."""
        with self._lock:
            if handle in self._ended:
                return self._ended[handle]
            child = self._children.get(handle.pid)
            if child is None:
                found = _read(handle.pid)
                if found is not None and found.started == handle.started and not found.zombie:
                    return None
                ended = Exit(None, None)
            else:
                # WNOWAIT: while the dead leader is not reaped, its number, and with it the session's, is not reused.
                if os.waitid(os.P_PID, handle.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    return None
                _kill_session(handle.pid)
                # bubblewrap ends a moment before the kernel has emptied the sandbox.
                _end(self._first_inside.pop(handle.pid))
                status = child.wait()
                ended = Exit(status, None) if status >= 0 else Exit(None, -status)
                del self._children[handle.pid]
            self._ended[handle] = ended
            _notes(handle.folder).unlink(missing_ok=True)
            return ended

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        """SIGTERM to the process and its children; after `grace_s` SIGKILL. On return nothing of it is left."""
        if grace_s > 0 and self.poll(handle) is None:
            self._signal(handle, signal.SIGTERM)
        ended = self._wait(handle, grace_s)
        while ended is None:
            family = self._signal(handle, signal.SIGKILL)
            ended = self._wait(handle, 1.0)
            _end(family)
        return ended

    def recover(self, folder: Path) -> Handle | None:
        """After a restart of the host process: what still runs in F. Leftovers of a dead leader are ended."""
        try:
            note = json.loads(_notes(folder).read_bytes())
        except FileNotFoundError:
            return None
        handle = Handle(note["run_id"], note["role"], folder, note["pid"], note["started"])
        if note["boot"] == _boot():
            found = _read(handle.pid)
            if found is not None and found.started == handle.started and not found.zombie:
                return handle
            _kill_session(handle.pid, since=handle.started)
        _notes(folder).unlink(missing_ok=True)
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
        spec = {
            "root": str(view.root),
            "site_packages": str(view.site_packages),
            "module": module,
            "parent": None if self._bwrap else os.getpid(),
            "limits": limits,
        }
        command = [str(self._python), "-I", "-S", "-B", str(view.launcher), json.dumps(spec)]
        command += ["--role", order.role, "--folder", str(view.folder), "--release", order.release]
        if order.data is not None:
            command += ["--data", str(view.data)]
        if order.site is not None:
            command += ["--site", order.site]
        return command

    def _sandbox(self, order: StartOrder, view: _View, told: int) -> list[str]:
        if self._bwrap is None:
            return []
        size = str(order.limits.tmp_bytes)
        command = [
            *_walls(self._bwrap, self._python),
            *("--info-fd", str(told)),
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

    def _wait(self, handle: Handle, patience_s: float) -> Exit | None:
        give_up = time.monotonic() + patience_s
        while (ended := self.poll(handle)) is None and time.monotonic() < give_up:
            time.sleep(0.02)
        return ended

    def _signal(self, handle: Handle, number: signal.Signals) -> list[_Process]:
        """SIGKILL goes to all; SIGTERM to the release's processes, not to bubblewrap, which would not pass it on."""
        family = _family(handle.pid)
        for process in family:
            outermost = process.pid == handle.pid or process.parent == handle.pid
            if number is signal.SIGTERM and self._bwrap is not None and outermost:
                continue
            _kill(process.pid, number)
        return family


def _module(order: StartOrder) -> str:
    match tuple(order.image.entrypoint):
        case ("python", "-m", module) if _MODULE.fullmatch(module):
            return module
        case other:
            what = f"The image's entry point {list(other)} is not python -m <module>, so it cannot be run here."
            raise Refused(refuse(Code.IMAGE_BROKEN, what, digest=order.image.digest))


def _environment(limits: Limits, view: _View) -> dict[str, str]:
    scratch = str(view.folder / "scratch")
    threads = str(limits.threads)
    environment = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": scratch,
        "TMPDIR": str(view.tmp),
        "USER": "msfl",
        "LOGNAME": "msfl",
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "GOMP_SPINCOUNT": "0",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": scratch,
        "CUDA_VISIBLE_DEVICES": "",
    }
    if limits.gpus > 0:
        mine = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(limits.gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine[: limits.gpus])
    return environment


# ------------------------------------------------------------------ bubblewrap


def _walls(bwrap: str, python: Path) -> list[str]:
    """Everything that does not depend on the order: namespaces, the system's libraries, the interpreter."""
    command = [
        bwrap,
        *("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--uid", str(_UNPRIVILEGED), "--gid", str(_UNPRIVILEGED), "--hostname", "worker"),
        *("--proc", "/proc", "--dev", "/dev"),
    ]
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


def _probe(python: Path) -> tuple[str | None, str]:
    """The path of a bubblewrap that works here, by a real, tiny run; else None and why not."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return None, "bubblewrap (bwrap) is not installed"
    command = [*_walls(bwrap, python), "--remount-ro", "/", "--", str(python), "-I", "-S", "-c", "print('inside')"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, env={})
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"bubblewrap does not start ({error})"
    if tried.returncode != 0 or tried.stdout != "inside\n":
        said = (tried.stderr.strip().splitlines() or ["no message"])[-1]
        return None, f"bubblewrap does not work here ({said})"
    return bwrap, ""


# ------------------------------------------------------------------ files beside F


class _Told:
    """A pipe through which bubblewrap says which process is the first one inside: the kernel calls it dead only once
    all others in there are."""

    def __enter__(self) -> _Told:
        self._reader, self.descriptor = os.pipe()
        return self

    def first_inside(self, leader: int) -> list[_Process]:
        """Waits until bubblewrap has said it, or has ended; without bubblewrap there is nobody.

        It is heard out to the end: closing the pipe before would end bubblewrap in the middle of its sentence. Was it
        killed in there, its half-made child may wait for it for ever with the pipe in its hand, and is ended.
        """
        os.close(self.descriptor)
        self.descriptor = -1
        said = b""
        waiting = select.poll()  # `select` ends at descriptor 1024.
        waiting.register(self._reader, select.POLLIN)
        while True:
            if not waiting.poll(200):
                if os.waitid(os.P_PID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    continue
                _kill_session(leader)
                break
            if not (more := os.read(self._reader, 4096)):
                break
            said += more
        found = _read(json.loads(said)["child-pid"]) if said.rstrip().endswith(b"}") else None
        return [found] if found is not None else []

    def __exit__(self, *_: object) -> None:
        os.close(self._reader)
        if self.descriptor >= 0:
            os.close(self.descriptor)


class _log:
    """The log file, opened for appending with mode 0600, for the `with` block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        os.fchmod(self._descriptor, 0o600)
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _notes(folder: Path) -> Path:
    return folder.with_name(folder.name + ".process.json")


def _note(handle: Handle) -> None:
    note = {
        "run_id": handle.run_id,
        "role": handle.role,
        "pid": handle.pid,
        "started": handle.started,
        "boot": _boot(),
    }
    path = _notes(handle.folder)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(note))
    new.replace(path)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


# ------------------------------------------------------------------ processes of this machine


def _read(pid: int) -> _Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may hold anything; the fields that count come after the last one.
    fields = text.rpartition(")")[2].split()
    return _Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), fields[0] in "ZX")


def _all() -> Iterator[_Process]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := _read(int(name))) is not None:
            yield found


def _family(pid: int) -> list[_Process]:
    """The process, all its descendants, and whoever is still in its session."""
    everyone = {p.pid: p for p in _all()}
    wanted = {pid}
    grown = True
    while grown:
        more = {p.pid for p in everyone.values() if p.parent in wanted or p.session == pid} - wanted
        wanted |= more
        grown = bool(more)
    return [everyone[p] for p in sorted(wanted) if p in everyone]


def _kill_session(session: int, since: int = 0) -> None:
    """SIGKILL whoever is left in the session of a dead leader, until nobody is."""
    while left := [p for p in _all() if p.session == session and not p.zombie and p.started >= since]:
        for process in left:
            _kill(process.pid, signal.SIGKILL)
        time.sleep(0.005)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # It ended by itself in the meantime.
        os.kill(pid, number)


def _end(processes: list[_Process]) -> None:
    """SIGKILL, until they are gone: the kernel takes a moment, most of all for those inside a sandbox.

    A sandbox whose bubblewrap died while it was being built does not know yet that it should die with it.
    """
    for process in processes:
        while (found := _read(process.pid)) is not None and found.started == process.started and not found.zombie:
            _kill(process.pid, signal.SIGKILL)
            time.sleep(0.005)
