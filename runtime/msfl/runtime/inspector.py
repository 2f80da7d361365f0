"""What really holds inside a sandbox, found by trying it; started by path in one, so the standard library only.

    python -I -S -B inspector.py '{"net": "net:[4026531840]", …}'    the host's namespaces, as /proc/self/ns names them

prints the names of those protections (`msfl.policies.protections`) that hold, as a JSON list. Each is an attempt that
must fail, or a fact of /proc; a sandbox that was asked for but does not hold is not announced.
"""

import ctypes
import errno
import json
import os
import resource
import socket
import sys

_CLONE_NEWUSER = 0x1000_0000
_FORKS = 24
# Files of the kernel's through which its owner rules the whole machine. Opened only, never written to.
_SWITCHES = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper",
)


def main() -> None:
    host: dict[str, str] = json.loads(sys.argv[1])
    own = {name: os.readlink(f"/proc/self/ns/{name}") != space for name, space in host.items()}
    status = dict(line.split(":\t", 1) for line in _lines("/proc/self/status") if ":\t" in line)
    holds = {
        "no_network": own["net"] and _interfaces() <= {"lo"},
        "own_processes": own["pid"] and own["ipc"] and own["uts"] and os.getpid() < 10,
        "no_privileges": own["user"]
        and int(status["CapEff"], 16) == int(status["CapBnd"], 16) == int(status["CapPrm"], 16) == 0
        and status["NoNewPrivs"].strip() == "1"
        and os.getuid() != 0,
        "read_only": own["mnt"]
        and all(_refused(path) for path in ("/written", f"{sys.prefix}/written", *_SWITCHES) if _may_be(path)),
        "syscall_filter": status["Seccomp"].strip() == "2" and _filtered(),
        "process_limit": _limits_processes(),
    }
    sys.stdout.write(json.dumps([name for name, held in holds.items() if held]))


def _lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().splitlines()


def _interfaces() -> set[str]:
    return {line.split(":")[0].strip() for line in _lines("/proc/net/dev")[2:]}


def _may_be(path: str) -> bool:
    return path not in _SWITCHES or os.path.exists(path)


def _refused(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | (0 if path in _SWITCHES else os.O_CREAT), 0o600))
    except OSError as error:
        return error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
    return False


def _filtered() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) == 0 or ctypes.get_errno() != errno.EPERM:
        return False
    try:
        socket.socket(socket.AF_INET).close()
    except OSError as error:
        return error.errno == errno.EAFNOSUPPORT
    return False


def _limits_processes() -> bool:
    """By rlimit: it counts per user and namespace, but not for everybody who may start one."""
    resource.setrlimit(resource.RLIMIT_NPROC, (_FORKS // 2, _FORKS // 2))
    children: list[int] = []
    refused = False
    reader, writer = os.pipe()
    for _ in range(_FORKS):
        try:
            pid = os.fork()
        except OSError:
            refused = True
            break
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        children.append(pid)
    os.close(writer)
    os.close(reader)
    for pid in children:
        os.waitpid(pid, 0)
    return refused


if __name__ == "__main__":
    main()
