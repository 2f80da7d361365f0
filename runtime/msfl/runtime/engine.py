"""What a Docker-compatible engine is, and what it enforces: asked once, then decided without it.

    ask(client)          ▸ Engine: what the daemon says of itself
    inside(engine, …)    ▸ as whom a container runs                   pure
    in_force(engine)     ▸ the protections, in plain words            pure

Docker Engine, rootless Docker and podman's compatible socket answer the same questions; where one of them leaves a
protection out, it says so itself, and so do we.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msfl.policies.protections import Protection
from msfl.policies.refusals import CannotProceed
from msfl.runtime.interface import Protections

UNPRIVILEGED = 10001


class EngineFails(CannotProceed):
    """The engine cannot be reached, is too old, or lacks what it is asked for. The message says what to do."""


@dataclass(frozen=True)
class Engine:
    """`remapped`: a container's users are others outside (userns-remap). `rootless`: its root is this user outside.
    `oci_runtime`: the one that is used, the engine's default where empty."""

    name: str
    version: str
    rootless: bool = False
    remapped: bool = False
    seccomp: bool = True
    apparmor: bool = False
    selinux: bool = False
    memory_limit: bool = True
    process_limit: bool = True
    cpu_limit: bool = True
    oci_runtime: str = ""


@dataclass(frozen=True)
class Inside:
    """As whom a container runs. `shared`: other users than ours outside, so that its folders must be open to others;
    the folder around them is ours alone. `groups`: ours, so that it reads what we may. `userns`: the engine's word for
    which user namespace."""

    user: str
    shared: bool
    userns: str | None = None
    groups: tuple[str, ...] = ()


def engine_of(info: Mapping[str, Any], version: Mapping[str, Any], oci_runtime: str) -> Engine:
    """Raises EngineFails when the engine does not know `oci_runtime`."""
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    named = {option.partition("name=")[2].partition(",")[0] or option for option in options}
    known = sorted(info.get("Runtimes") or {})
    if oci_runtime and oci_runtime not in known:
        what = f"the engine knows the OCI runtimes {', '.join(known) or 'none'}, not {oci_runtime}"
        raise EngineFails(f"{what}: add it to the engine's daemon.json, or set oci_runtime otherwise")
    parts = {str(part.get("Name", "")) for part in version.get("Components") or ()}
    name = "podman" if any("Podman" in part for part in parts) else "Docker"
    return Engine(
        name=name,
        version=str(version.get("Version", "")),
        rootless="rootless" in named,
        remapped="userns" in named,
        seccomp="seccomp" in named and not any("profile=unconfined" in option for option in options),
        apparmor="apparmor" in named,
        selinux="selinux" in named,
        memory_limit=bool(info.get("MemoryLimit")),
        process_limit=bool(info.get("PidsLimit")),
        cpu_limit=bool(info.get("CpuCfsQuota", info.get("CPUCfsQuota"))),
        oci_runtime=oci_runtime,
    )


def inside(engine: Engine, uid: int, gid: int, groups: Sequence[int] = ()) -> Inside:
    """`uid`, `gid`, `groups`: ours, outside."""
    if engine.rootless:
        return Inside("0:0", shared=False)  # Nobody outside but this user, and without any capability.
    if uid == 0:
        return Inside(f"{UNPRIVILEGED}:{UNPRIVILEGED}", shared=True)
    # What it writes must be ours to read and to delete; a remapped user's files would not be.
    more = tuple(str(group) for group in groups if group not in (0, gid))
    return Inside(f"{uid}:{gid}", shared=False, userns="host" if engine.remapped else None, groups=more)


# What holds in every container, by how it is started; the keeper bounds time, output and log.
_ALWAYS = frozenset(
    {
        Protection.NO_NETWORK,
        Protection.OWN_PROCESSES,
        Protection.NO_PRIVILEGES,
        Protection.READ_ONLY,
        Protection.OWN_IMAGE,
        Protection.WALL_TIME,
        Protection.OUTPUT_LIMIT,
        Protection.LOG_LIMIT,
        Protection.ENVIRONMENT_VERIFIED,
    }
)
# OCI runtimes under which a container does not share the host's kernel.
_OWN_KERNEL = ("runsc", "kata")


def protections(engine: Engine, within: Inside) -> Protections:
    where_enforced = {
        Protection.SYSCALL_FILTER: engine.seccomp,
        Protection.MEMORY_LIMIT: engine.memory_limit,
        Protection.PROCESS_LIMIT: engine.process_limit,
        Protection.CPU_LIMIT: engine.cpu_limit,
        Protection.KERNEL_OF_ITS_OWN: engine.oci_runtime.startswith(_OWN_KERNEL),
    }
    in_force = _ALWAYS | {name for name, held in where_enforced.items() if held}
    beside = {
        f"user {within.user}": True,
        "AppArmor": engine.apparmor,
        "SELinux": engine.selinux,
        "an engine without root": engine.rootless,
        "users remapped": engine.remapped and within.userns is None,
    }
    runtime = engine.oci_runtime or "the engine's default"
    words = ", ".join(word for word, held in beside.items() if held)
    return Protections.of(f"Container: {engine.name} {engine.version}, OCI runtime {runtime}; {words}.", in_force)
