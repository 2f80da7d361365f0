"""The system-call filter of a contained process, as classic BPF for `bubblewrap --seccomp FD`.

    another architecture's calls (32-bit ones on a 64-bit machine)   the process is killed
    a call on the list below                                         EPERM
    clone with any new namespace                                     EPERM; clone3 is ENOSYS, so that libc uses clone
    a socket that is not a unix socket                               EAFNOSUPPORT: no vsock, netlink, packet, IP
    ioctl that types into a terminal (TIOCSTI, TIOCLINUX)            EPERM
    a call that is newer than this list                              ENOSYS
    everything else                                                  allowed

What is denied is what Docker's default profile denies (github.com/moby/profiles, seccomp/default.json) without its
exceptions for capabilities, which a contained process does not have, and what can read or change other processes.
Docker lists what is allowed; here the end of the list of known calls closes it against what kernels will yet invent.
The numbers are those of the kernel's own headers; a test asks libseccomp, where it is installed.

The program is `struct sock_filter[]` (linux/filter.h) over `struct seccomp_data {int nr; u32 arch; u64 ip; u64
args[6]}`; only low halves of arguments are looked at: all those compared here are 32 bits wide to the kernel.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass
from typing import Final

# name: (number on x86_64, number on aarch64; None where there is no such call)
DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "listmount": (458, 458),
    "lookup_dcookie": (212, 18),
    "lsm_set_self_attr": (460, 460),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "statmount": (457, 457),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}
NEWEST_KNOWN = 462  # mseal, the same on both architectures; what has a larger number was not judged.

_NEW_NAMESPACES = 0x7E02_0000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} of linux/sched.h
_AF_UNIX, _TIOCSTI, _TIOCLINUX = 1, 0x5412, 0x541C
_X32 = 0x4000_0000

# linux/filter.h, linux/bpf_common.h, linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24


@dataclass(frozen=True)
class Architecture:
    """AUDIT_ARCH of linux/audit.h, its column in DENIED, and the numbers of the calls whose arguments are looked at."""

    audit: int
    column: int
    clone: int
    clone3: int
    socket: int
    ioctl: int


ARCHITECTURES: Final = {
    "x86_64": Architecture(0xC000_003E, 0, clone=56, clone3=435, socket=41, ioctl=16),
    "aarch64": Architecture(0xC000_00B7, 1, clone=220, clone3=435, socket=198, ioctl=29),
}


def program(machine: str = "") -> bytes | None:
    """The filter for `platform.machine()`, or another one by name; None for an architecture that is not known here."""
    here = ARCHITECTURES.get(machine or platform.machine())
    if here is None:
        return None
    code = [
        _op(_LOAD, _ARCH),
        _op(_EQUAL, here.audit, 1, 0),
        _op(_RETURN, _KILL),
        _op(_LOAD, _NR),
    ]
    if here.column == 0:
        # x32: the same calls under other numbers, which the list below would not see.
        code += [_op(_AT_LEAST, _X32, 0, 1), _op(_RETURN, _refuse(errno.ENOSYS))]
    code += [_op(_GREATER, NEWEST_KNOWN, 0, 1), _op(_RETURN, _refuse(errno.ENOSYS))]
    for numbers in DENIED.values():
        if (number := numbers[here.column]) is not None:
            code += [_op(_EQUAL, number, 0, 1), _op(_RETURN, _refuse(errno.EPERM))]
    code += [_op(_EQUAL, here.clone3, 0, 1), _op(_RETURN, _refuse(errno.ENOSYS))]
    code += [
        *(_op(_EQUAL, here.clone, 0, 4), _op(_LOAD, _ARG0), _op(_ANY_BIT, _NEW_NAMESPACES, 0, 1)),
        *(_op(_RETURN, _refuse(errno.EPERM)), _op(_RETURN, _ALLOW)),
        *(_op(_EQUAL, here.socket, 0, 4), _op(_LOAD, _ARG0), _op(_EQUAL, _AF_UNIX, 1, 0)),
        *(_op(_RETURN, _refuse(errno.EAFNOSUPPORT)), _op(_RETURN, _ALLOW)),
        *(_op(_EQUAL, here.ioctl, 0, 5), _op(_LOAD, _ARG1), _op(_EQUAL, _TIOCSTI, 1, 0)),
        *(_op(_EQUAL, _TIOCLINUX, 0, 1), _op(_RETURN, _refuse(errno.EPERM)), _op(_RETURN, _ALLOW)),
        _op(_RETURN, _ALLOW),
    ]
    return b"".join(code)


def _op(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, k)


def _refuse(number: int) -> int:
    return _ERRNO | number
