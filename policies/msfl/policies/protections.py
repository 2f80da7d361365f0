"""What can stand between a contained process and its host, each thing by a name that does not change.

A runtime announces which of these are in force (`Protections.in_force`), after it has tried them; the audit log writes
the names down at every start, and policies, `doctor` and answers compare them. `isolation_of` says which level they
amount to: nothing else decides that.

    none        whatever is missing of the sandbox's
    sandbox     no network, own processes, no privileges, everything read-only but the run's own folders
    container   the same, an image that holds everything it runs, a system-call filter, limits on processes and memory
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from msfl.policies.documents import Isolation


class Protection(StrEnum):
    NO_NETWORK = "no_network"
    OWN_PROCESSES = "own_processes"
    NO_PRIVILEGES = "no_privileges"
    READ_ONLY = "read_only"
    OWN_IMAGE = "own_image"
    SYSCALL_FILTER = "syscall_filter"
    PROCESS_LIMIT = "process_limit"
    MEMORY_LIMIT = "memory_limit"
    CPU_LIMIT = "cpu_limit"
    WALL_TIME = "wall_time"
    OUTPUT_LIMIT = "output_limit"
    LOG_LIMIT = "log_limit"
    ENVIRONMENT_VERIFIED = "environment_verified"
    KERNEL_OF_ITS_OWN = "kernel_of_its_own"


# Name: what is said when it is in force, and when it is not.
SENTENCES: dict[Protection, tuple[str, str]] = {
    Protection.NO_NETWORK: ("No network, not even the host's own.", "The process can use the network."),
    Protection.OWN_PROCESSES: (
        "It sees its own processes only: own process ids, own shared memory, own host name.",
        "It sees the host's other processes.",
    ),
    Protection.NO_PRIVILEGES: (
        "Own user ids, no capabilities, no new privileges.",
        "It runs with this user's rights.",
    ),
    Protection.READ_ONLY: (
        "Code, data, inputs and Python are read-only; writable are the run's own outbox, scratch and figures.",
        "It can read and write every file of this user.",
    ),
    Protection.OWN_IMAGE: ("Everything it runs comes from its image.", "Python and its libraries are the host's."),
    Protection.SYSCALL_FILTER: ("System calls are filtered.", "System calls are not filtered."),
    Protection.PROCESS_LIMIT: ("The number of its processes is limited.", "The number of processes is not limited."),
    Protection.MEMORY_LIMIT: (
        "The memory of all its processes together is limited.",
        "Memory is limited for each process, not for all together.",
    ),
    Protection.CPU_LIMIT: ("Its share of the processors can be limited.", "Processor time is not limited."),
    Protection.WALL_TIME: ("It is ended when its time is over.", "Nothing ends it when its time is over."),
    Protection.OUTPUT_LIMIT: (
        "It is ended when it has written more bytes or files than it may.",
        "What it writes is limited by the disk only.",
    ),
    Protection.LOG_LIMIT: ("Its log has an end.", "Its log can fill the disk."),
    Protection.ENVIRONMENT_VERIFIED: (
        "What it runs is verified against the release before every start.",
        "What it runs is not verified.",
    ),
    Protection.KERNEL_OF_ITS_OWN: ("It runs on a kernel of its own.", "It shares the host's kernel."),
}

_SANDBOX = frozenset({Protection.NO_NETWORK, Protection.OWN_PROCESSES, Protection.NO_PRIVILEGES, Protection.READ_ONLY})
_CONTAINER = _SANDBOX | {
    Protection.OWN_IMAGE,
    Protection.SYSCALL_FILTER,
    Protection.PROCESS_LIMIT,
    Protection.MEMORY_LIMIT,
}


def isolation_of(in_force: Collection[Protection]) -> Isolation:
    """The level that these amount to."""
    if set(in_force) >= _CONTAINER:
        return Isolation.CONTAINER
    return Isolation.SANDBOX if set(in_force) >= _SANDBOX else Isolation.NONE


def in_words(in_force: Collection[Protection]) -> tuple[str, ...]:
    """One sentence for each protection, in force or not, in the order of their names above."""
    return tuple(held if name in in_force else lacking for name, (held, lacking) in SENTENCES.items())
