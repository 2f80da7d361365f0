"""What a hostile release would try from inside: the module of an image, run as it is by every runtime.

    python -m <module> --folder F …     reads F/inbox/probe.json  {"probe": NAME, …what the probe wants to know}
                                        writes F/outbox/facts     {name: "refused EPERM" | "did …"}

`escapes` tries every way out one after the other; a wall holds where the answer does not begin with "did". The others
(`EXHAUSTIONS`) use up one thing each, write down how far they got as they go, and do not end by themselves.

Standard library only: the image around it may be the smallest there is. Numbers of system calls are those of x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

_NEWNS, _NEWUSER, _NEWNET, _NEWPID, _NEWCGROUP = 0x00020000, 0x10000000, 0x40000000, 0x20000000, 0x02000000
_CALLS: dict[str, tuple[int | bytes, ...]] = {
    # name: number and arguments that would do something if the call were let through
    "ptrace": (101, 0, 0, 0, 0),  # PTRACE_TRACEME
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "add_key": (248, b"user", b"k", b"v", 1, -3),
    "request_key": (249, b"user", b"k", 0, -3),
    "keyctl": (250, 0, -3, 1),
    "bpf": (321, 0, b"\0" * 64, 64),
    "userfaultfd": (323, 1),
    "perf_event_open": (298, b"\0" * 112, 0, -1, -1, 0),
    "io_uring_setup": (425, 4, b"\0" * 120),
    "init_module": (175, b"", 0, b""),
    "finit_module": (313, 0, b"", 0),
    "delete_module": (176, b"x", 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "reboot": (169, 0xFEE1DEAD, 672274793, 0x89ABCDEF, 0),
    "swapon": (167, b"/tmp/x", 0),
    "acct": (163, 0),
    "settimeofday": (164, struct.pack("qq", 1, 0), 0),
    "clock_settime": (227, 0, struct.pack("qq", 1, 0)),
    "sethostname": (170, b"mine", 4),
    "setdomainname": (171, b"mine", 4),
    "iopl": (172, 3),
    "ioperm": (173, 0x80, 1, 1),
    "open_by_handle_at": (304, -100, struct.pack("ii", 8, 1) + b"\2\0\0\0\0\0\0\0", 0),
    "chroot": (161, b"/tmp"),
    "pivot_root": (155, b"/tmp", b"/tmp"),
    "mount": (165, b"none", b"/tmp", b"tmpfs", 0, 0),
    "remount root writable": (165, 0, b"/", 0, 32 | 4096, 0),
    "umount": (166, b"/tmp", 2),
    "open_tree": (428, -100, b"/", 1),
    "fsopen": (430, b"tmpfs", 0),
    "unshare users": (272, _NEWUSER),
    "unshare mounts": (272, _NEWNS),
    "unshare network": (272, _NEWNET),
    "unshare processes": (272, _NEWPID),
    "unshare cgroups": (272, _NEWCGROUP),
    "setuid": (105, 0),
    "setgid": (106, 0),
    "setresuid": (117, 0, 0, 0),
    "setgroups": (116, 1, struct.pack("i", 0)),
    "syslog": (103, 3, b"\0" * 64, 64),
    "quotactl": (179, 0x800002, b"/", 0, 0),
    "fanotify_init": (300, 0, 0),
    "move_pages": (279, 1, 0, 0, 0, 0, 0),
    "name_to_handle_at + mount id": (303, -100, b"/", struct.pack("ii", 128, 0) + b"\0" * 128, b"\0" * 8, 0),
}
# Whose success is no way out by itself: what it gives is of no use while `open_by_handle_at` is refused.
HARMLESS = frozenset({"name_to_handle_at + mount id"})
_READ = (
    "/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
    "/proc/kcore", "/proc/1/root/etc/hostname-of-the-host", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda",
    "/proc/timer_list", "/sys/firmware/efi", "/root/.ssh/id_rsa",
)  # fmt: skip
_WRITE = (
    "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches",
    "/sys/kernel/uevent_helper", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max",
    "/sys/power/state", "/proc/1/oom_score_adj", "/new-file", "/usr/new-file", "/etc/passwd", "/dev/new-file",
)  # fmt: skip


def escapes(folder: Path, data: Path | None, asked: dict[str, Any]) -> dict[str, str]:
    """`asked`: port (a listener on the host's loopback), abstract (name of the host's abstract socket), addresses (of
    the host), secret (a file of the host), pid (of the host process), queue (a System V key of the host)."""
    found = {name: _attempt(partial(_call, *_CALLS[name])) for name in _CALLS}
    for path in (*_READ, asked["secret"]):
        found[f"read {path}"] = _attempt(partial(_read, path))
    inside = [str(folder / "inbox" / "new"), str(folder / "new"), str(folder / "link.sock.new")]
    inside += [str(data / "new"), *(str(f) for f in data.iterdir())] if data is not None else []
    for path in (*_WRITE, *inside, __file__):
        found[f"write {path}"] = _attempt(partial(_write, path))
    found["write /proc/self/exe"] = _attempt(lambda: os.close(os.open("/proc/self/exe", os.O_WRONLY)))
    found["mknod"] = _attempt(lambda: os.mknod(folder / "scratch" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
    found["setns"] = _attempt(lambda: _call(308, os.open("/proc/1/ns/net", os.O_RDONLY), 0))
    found["kill the host"] = _attempt(lambda: os.kill(asked["pid"], 0))
    found["host's System V memory"] = _attempt(lambda: _call(29, asked["queue"], 1, 0))
    found["exec from /tmp"] = _attempt(lambda: _exec("/tmp"))
    found["exec from /dev/shm"] = _attempt(lambda: _exec("/dev/shm"))
    for where, family, address in _addresses(asked):
        found[f"tcp {where}"] = _attempt(partial(_connect, family, address))
    found["udp 8.8.8.8:53"] = _attempt(lambda: socket.socket(2, socket.SOCK_DGRAM).sendto(b"\0" * 12, ("8.8.8.8", 53)))
    found["name of a host"] = _attempt(lambda: socket.getaddrinfo("example.org", 443))
    found["raw socket"] = _attempt(lambda: socket.socket(2, socket.SOCK_RAW, 1))
    found["packet socket"] = _attempt(lambda: socket.socket(17, socket.SOCK_RAW, 3))
    found["vsock"] = _attempt(lambda: socket.socket(40, socket.SOCK_STREAM).connect((2, 22)))
    found["abstract unix socket"] = _attempt(lambda: _connect(1, "\0" + asked["abstract"]))
    found["interfaces"] = "did " + repr(others) if (others := _interfaces()) else "refused: only lo"
    found["capabilities"] = "did " + caps if (caps := _capabilities().strip("0 ")) else "refused: none"
    return found


def facts() -> dict[str, str]:
    """What the kernel says of this process: NoNewPrivs, Seccomp, user, group, number of processes it can see."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    seen = sum(name.isdigit() for name in os.listdir("/proc"))
    mounts = {line.split()[1]: line.split()[3] for line in Path("/proc/self/mounts").read_text().splitlines()}
    return {
        "no_new_privs": status["NoNewPrivs"].strip(),
        "seccomp": status["Seccomp"].strip(),
        "uid": str(os.getuid()),
        "gid": str(os.getgid()),
        "processes": str(seen),
        "tmp": mounts.get("/tmp", ""),
        "shm": mounts.get("/dev/shm", ""),
    }


# ------------------------------------------------------------------ what can be used up


def forks(folder: Path, asked: dict[str, Any]) -> None:
    """Processes, until no more are to be had, up to `asked["most"]`; they stay."""
    for n in range(asked["most"]):
        try:
            if os.fork() == 0:
                while True:
                    time.sleep(60)
        except OSError as error:
            _tell(folder, forked=n, stopped_by=errno.errorcode[error.errno or 0])
            return
    _tell(folder, forked=asked["most"], stopped_by="")


def memory(folder: Path, asked: dict[str, Any]) -> None:
    held = []
    for n in range(0, asked["most"], 16):
        _tell(folder, mib=n)
        try:
            held.append(bytearray(16 << 20))
        except MemoryError:
            _tell(folder, mib=n, stopped_by="MemoryError")
            return
        for page in range(0, 16 << 20, 4096):
            held[-1][page] = 1


def disk(folder: Path, asked: dict[str, Any]) -> None:
    """Many files, so that no limit on one file's size stops it; `where` is a part of F, or a path."""
    _fill(folder, Path(asked["where"]) if asked["where"].startswith("/") else folder / asked["where"], asked["most"])


def hidden_disk(folder: Path, asked: dict[str, Any]) -> None:
    """The same in files that have no name any more."""
    held, piece = [], b"\1" * (1 << 20)
    for n in range(asked["most"]):
        if n % 8 == 0:
            held.append((folder / "scratch" / "gone").open("wb", buffering=0))
            (folder / "scratch" / "gone").unlink()
        held[-1].write(piece)
        _tell(folder, mib=n + 1)
        time.sleep(0.01)


def inodes(folder: Path, asked: dict[str, Any]) -> None:
    for n in range(asked["most"]):
        here = folder / "scratch" / str(n // 1000)
        here.mkdir(exist_ok=True)
        (here / str(n)).touch()
        if n % 500 == 0:
            _tell(folder, files=n)
    _tell(folder, files=asked["most"])


def deep_folders(folder: Path, asked: dict[str, Any]) -> None:
    """A path longer than any that a name can reach."""
    os.chdir(folder / "scratch")
    for _ in range(asked["most"]):
        os.mkdir("d")
        os.chdir("d")
    _tell(folder, deep=asked["most"])


def log(folder: Path, asked: dict[str, Any]) -> None:
    line = b"x" * 1023 + b"\n"
    for n in range(asked["most"]):
        for _ in range(1024):
            os.write(1, line)
        _tell(folder, mib=n + 1)


def forever(folder: Path, asked: dict[str, Any]) -> None:
    """All processors, for ever, deaf to polite words."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _tell(folder, spinning=True)
    for _ in range(asked.get("processes", 2)):
        if os.fork() == 0:
            break
    while True:
        pass


EXHAUSTIONS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "forks": forks,
    "memory": memory,
    "disk": disk,
    "hidden_disk": hidden_disk,
    "inodes": inodes,
    "deep_folders": deep_folders,
    "log": log,
    "forever": forever,
}


# ------------------------------------------------------------------ by hand


def _attempt(act: Callable[[], object]) -> str:
    try:
        got = act()
    except OSError as error:
        return f"refused {errno.errorcode.get(error.errno or 0, type(error).__name__)}"
    except MemoryError:
        return "refused MemoryError"
    return f"did {got!r}"[:120]


def _call(number: int | bytes, *arguments: int | bytes) -> int:
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, "numbers of system calls are those of x86-64")
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(*(a if isinstance(a, bytes) else ctypes.c_long(a) for a in (number, *arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), "system call")
    return int(result)


def _read(path: str) -> bytes:
    if stat.S_ISSOCK(os.stat(path).st_mode):
        with socket.socket(socket.AF_UNIX) as there:
            there.connect(path)
            return b"connected"
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        # A masked file is /dev/null in its place: there is nothing in it.
        if not (data := os.read(descriptor, 16)):
            raise OSError(errno.ENODATA, "empty")
        return data
    finally:
        os.close(descriptor)


def _write(path: str) -> int:
    descriptor = os.open(path, os.O_WRONLY | (0 if os.path.exists(path) else os.O_CREAT), 0o600)
    try:
        return os.write(descriptor, b"")  # Nothing, so that nothing is harmed should it be let through.
    finally:
        os.close(descriptor)


def _exec(folder: str) -> str:
    """A script whose interpreter is not there: the kernel looks for that only where it would execute the script."""
    script = Path(folder) / f"script-{os.getpid()}"
    script.write_bytes(b"#!/no/such/interpreter\n")
    script.chmod(0o755)
    try:
        os.execv(str(script), ["x"])
    except FileNotFoundError:
        return "the kernel would"
    finally:
        script.unlink()


def _connect(family: int, address: Any) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as there:
        there.settimeout(1)
        there.connect(address)
        return "connected"


def _addresses(asked: dict[str, Any]) -> list[tuple[str, int, Any]]:
    port = asked["port"]
    wanted: list[tuple[str, int, Any]] = [
        ("metadata", 2, ("169.254.169.254", 80)),
        ("1.1.1.1:53", 2, ("1.1.1.1", 53)),
        ("host's loopback", 2, ("127.0.0.1", port)),
        ("host's loopback, IPv6", 10, ("::1", port)),
    ]
    return wanted + [(f"host's {address}", 2, (address, port)) for address in asked["addresses"]]


def _interfaces() -> list[str]:
    names = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    return [name for name in names if name not in ("lo", "tunl0", "sit0", "ip6tnl0")]


def _capabilities() -> str:
    status = Path("/proc/self/status").read_text().splitlines()
    return " ".join(line.split()[1].strip("0") for line in status if line.startswith(("CapEff", "CapPrm", "CapBnd")))


def _fill(folder: Path, where: Path, most: int) -> None:
    piece, n = b"\1" * (1 << 20), 0
    try:
        for n in range(most):
            with (where / f"fill-{n // 8}").open("ab", buffering=0) as file:
                file.write(piece)
            _tell(folder, mib=n + 1)
    except OSError as error:
        _tell(folder, mib=n, stopped_by=errno.errorcode[error.errno or 0])


def _tell(folder: Path, **found: Any) -> None:
    new = folder / "outbox" / ".facts"
    new.write_text(json.dumps(found))
    new.replace(folder / "outbox" / "facts")


def main() -> None:
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    folder = Path(given["--folder"])
    data = Path(given["--data"]) if "--data" in given else None
    asked = json.loads((folder / "inbox" / "probe.json").read_text())
    if asked["probe"] == "escapes":
        _tell(folder, escapes=escapes(folder, data, asked), **facts())
        return
    EXHAUSTIONS[asked["probe"]](folder, asked)
    while True:  # What was used up stays so until somebody outside ends it.
        time.sleep(60)


if __name__ == "__main__":
    main()
