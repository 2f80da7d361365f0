"""A release that tries every way out of its sandbox: to the host's files, kernel, users, processes and network.

The same probes as from a container (`test_container_escapes.py`); they are `fakes/probes.py`, and none may succeed.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import stat
from typing import Any

import pytest

from fakes import probes
from fakes.walls import escapes_tried
from msfl.policies.documents import Isolation
from msfl.policies.protections import Protection
from msfl.runtime import seccomp
from msfl.runtime.process import ProcessRuntime

REAL = [pytest.mark.system, pytest.mark.slow]
# bubblewrap mounts no folder that nothing can be executed from. What is executed there has the same walls around it.
OPEN = frozenset({"exec from /tmp", "exec from /dev/shm"})


@pytest.fixture(scope="module")
def runtime() -> ProcessRuntime:
    runtime = ProcessRuntime()
    if runtime.protections().isolation is not Isolation.SANDBOX:
        pytest.skip(runtime.protections().detail[0])
    return runtime


@pytest.fixture(scope="module")
def tried(runtime: ProcessRuntime, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return escapes_tried(runtime, tmp_path_factory.mktemp("escapes"))


@pytest.mark.system
@pytest.mark.slow
def test_no_way_out_is_open(tried: dict[str, Any]) -> None:
    found = {k: v for k, v in tried["escapes"].items() if k not in probes.HARMLESS | OPEN}
    assert len(found) > 90
    assert {name: said for name, said in found.items() if said.startswith("did")} == {}


@pytest.mark.system
@pytest.mark.slow
def test_system_calls_are_refused_by_the_filter_and_not_by_chance(
    runtime: ProcessRuntime, tried: dict[str, Any]
) -> None:
    if Protection.SYSCALL_FILTER not in runtime.protections().in_force:
        pytest.skip("there is no filter for this architecture")
    said = tried["escapes"]
    for name in ("ptrace", "keyctl", "bpf", "userfaultfd", "perf_event_open", "io_uring_setup", "unshare users"):
        assert said[name] == "refused EPERM", name
    for name in ("vsock", "packet socket", "raw socket", "tcp host's loopback", "udp 8.8.8.8:53"):
        assert said[name] == "refused EAFNOSUPPORT", name
    assert tried["seccomp"] == "2"


@pytest.mark.system
@pytest.mark.slow
def test_it_is_nobody_and_sees_nobody(tried: dict[str, Any]) -> None:
    assert (tried["no_new_privs"], tried["uid"], tried["gid"]) == ("1", "10001", "10001")
    assert tried["processes"] == "2", "itself, and the first process of its sandbox"
    for mount in ("tmp", "shm"):
        assert {"nosuid", "nodev", "size=16384k"} <= set(tried[mount].split(",")), tried[mount]


@pytest.mark.system
@pytest.mark.slow
def test_nothing_at_the_host_was_touched(tried: dict[str, Any]) -> None:
    assert [f.name for f in tried["data"].iterdir()] == ["case"]
    assert (tried["data"] / "case").read_text() == "patient"
    left = [f for f in tried["folder"].rglob("*") if stat.S_ISCHR(f.lstat().st_mode) or stat.S_ISBLK(f.lstat().st_mode)]
    assert left == []


# ------------------------------------------------------------------ the filter itself


@pytest.mark.parametrize("machine", sorted(seccomp.ARCHITECTURES))
def test_every_jump_of_the_filter_stays_inside_it_and_it_ends_in_an_answer(machine: str) -> None:
    program = seccomp.program(machine)
    assert program is not None
    assert len(program) % 8 == 0
    code = [program[i : i + 8] for i in range(0, len(program), 8)]
    assert len(code) < 4096  # BPF_MAXINSNS
    for at, op in enumerate(code):
        assert at + 1 + max(op[2], op[3]) < len(code) or op[0] == 0x06
    assert code[-1][0] == 0x06


@pytest.mark.parametrize("machine", sorted(seccomp.ARCHITECTURES))
def test_the_filter_decides_as_its_table_says(machine: str) -> None:
    here = seccomp.ARCHITECTURES[machine]
    run = partial_run(seccomp.program(machine) or b"", here.audit)
    allow, kill, errno_of = 0x7FFF0000, 0x80000000, 0x00050000
    for name, numbers in seccomp.DENIED.items():
        if (number := numbers[here.column]) is not None:
            assert run(number) == errno_of | 1, name
    assert run(here.clone, 0x11) == allow
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert run(here.clone, flag | 0x11) == errno_of | 1
    assert run(here.clone3) == errno_of | 38
    assert run(here.socket, 1) == allow
    for family in (2, 10, 16, 17, 38, 40):
        assert run(here.socket, family) == errno_of | 97
    assert run(here.ioctl, 3, 0x5412) == run(here.ioctl, 3, 0x541C) == errno_of | 1
    assert run(here.ioctl, 3, 0x5401) == allow
    assert run(seccomp.NEWEST_KNOWN + 1) == errno_of | 38
    others = set(range(seccomp.NEWEST_KNOWN + 1)) - {n[here.column] for n in seccomp.DENIED.values()}
    others -= {here.clone, here.clone3, here.socket, here.ioctl}
    assert all(run(number) == allow for number in others)
    assert partial_run(seccomp.program(machine) or b"", 0x40000003)(0) == kill  # 32-bit calls
    if machine == "x86_64":
        assert run(0x40000000 | 101) == errno_of | 38  # x32's ptrace


def test_an_architecture_that_is_not_known_has_no_filter() -> None:
    assert seccomp.program("riscv64") is None


def test_numbers_are_those_of_libseccomp() -> None:
    """Which has them from the kernel's tables, for every architecture."""
    found = ctypes.util.find_library("seccomp") or "libseccomp.so.2"
    try:
        library = ctypes.CDLL(found)
    except OSError:
        pytest.skip("libseccomp is not installed (Debian: libseccomp2)")
    numbers = library.seccomp_syscall_resolve_name_arch
    numbers.argtypes, numbers.restype = [ctypes.c_uint32, ctypes.c_char_p], ctypes.c_int
    newer = {"statmount", "listmount", "lsm_set_self_attr"}  # than the library of this machine may be
    for here in seccomp.ARCHITECTURES.values():
        for name, column in seccomp.DENIED.items():
            known = numbers(here.audit, name.encode())
            ours = column[here.column]
            if known >= 0 or name not in newer:
                assert (ours if ours is not None else -1) == max(known, -1), name
        for name in ("clone", "clone3", "socket", "ioctl"):
            assert numbers(here.audit, name.encode()) == getattr(here, name)


def partial_run(program: bytes, audit: int) -> Any:
    """The filter as the kernel runs it: `(number, first argument, second argument) → what it returns`."""
    code = [
        (int.from_bytes(op[:2], "little"), op[2], op[3], int.from_bytes(op[4:], "little"))
        for op in (program[i : i + 8] for i in range(0, len(program), 8))
    ]

    def run(number: int, first: int = 0, second: int = 0) -> int:
        data = {0: number, 4: audit, 16: first, 24: second}
        held, at = 0, 0
        while True:
            op, if_true, if_false, k = code[at]
            at += 1
            match op:
                case 0x20:
                    held = data[k]
                case 0x06:
                    return k
                case 0x15:
                    at += if_true if held == k else if_false
                case 0x25:
                    at += if_true if held > k else if_false
                case 0x35:
                    at += if_true if held >= k else if_false
                case 0x45:
                    at += if_true if held & k else if_false
                case _:
                    raise AssertionError(hex(op))

    return run
