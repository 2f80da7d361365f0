"""The runtime seam: how a gateway or the orchestrator starts, watches and ends one contained process.

    start(order)   ▸ the image's environment is verified ▸ Handle          raises Refused: nothing was started
    poll(handle)   ▸ None while it runs ▸ Exit, once and for ever
    stop(handle)   ▸ SIGTERM, grace, SIGKILL; on return no process of it is left
    recover(F)     ▸ after a restart of the host: the Handle of what still runs in folder F, or None after tidying up

Between host and process stands a keeper (`msfl.runtime.keeper`): it holds the process's socket and its limits, so that
a host that is killed can come back to a process that worked on.

A contained process sees its folder F (link.sock, inbox, outbox, scratch, figures), its data read-only, the code of its
image, the verified Python environment, and nothing else, as far as the runtime can enforce it: `protections()` says
honestly how far that is, and the site's policy decides whether it is enough.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from msfl.policies.documents import Isolation
from msfl.policies.protections import Protection, in_words, isolation_of
from msfl.policies.refusals import Refusal

Role: TypeAlias = Literal["worker", "aggregator"]


class ImageLayer(Protocol):
    """One layer's verified bytes in a file, `tar` or `tar+gzip` as `media_type` says; `diff_id` is that of the tar."""

    @property
    def path(self) -> Path: ...

    @property
    def digest(self) -> str: ...

    @property
    def media_type(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def diff_id(self) -> str: ...

    @property
    def kind(self) -> Literal["base", "environment", "code"]: ...


class Image(Protocol):
    """What a runtime needs of an image. `msfl.registry.pull.VerifiedImage` is the one that fulfils it."""

    @property
    def digest(self) -> str: ...

    @property
    def root(self) -> Path:
        """The release's own layers, verified and unpacked; nobody changes them while a process runs from them."""
        ...

    @property
    def entrypoint(self) -> Sequence[str]: ...

    @property
    def config(self) -> Path:
        """The image's config, verified against `config_digest`, which is what Docker calls the image's id."""
        ...

    @property
    def config_digest(self) -> str: ...

    @property
    def layers(self) -> Sequence[ImageLayer]:
        """In the manifest's order: all of them where the whole image was pulled, otherwise the release's own two."""
        ...

    @property
    def self_contained(self) -> bool:
        """Whether the image has base layers, so that it holds all that it needs."""
        ...

    @property
    def packages(self) -> Set[str]:
        """The names that can be imported of what the image's lock holds; of site-packages nothing else is found."""
        ...

    def check_environment(self, site_packages: Path) -> Refusal | None:
        """Hash the installed environment against the image's lock, in full."""
        ...


@dataclass(frozen=True)
class Limits:
    """What a process and all its children may take together, but where it says otherwise. None: no limit.

    `orphan_s`: how long it may go on while nobody watches it: the host that started it is gone and no other has come.
    """

    gpus: int = 0
    threads: int = 1
    memory_bytes: int | None = None  # also of private memory of each process (RLIMIT_DATA)
    processes: int = 1024
    cpus: float | None = None
    wall_time_s: float | None = None
    orphan_s: float = 0.0
    file_bytes: int = 16 << 30  # of one file
    open_files: int = 4096  # of each process
    output_bytes: int = 256 << 30  # in outbox, scratch and figures together
    output_files: int = 200_000  # there, folders included
    log_bytes: int = 32 << 20
    tmp_bytes: int = 2 << 30  # of /tmp and of /dev/shm, each, where the runtime makes them


@dataclass(frozen=True)
class StartOrder:
    """One process to start. `folder` is F; `data` is None for an aggregator; `log` takes stdout and stderr, mode 0600.

    `log` lies outside F, so that the process cannot change what it once said.
    """

    run_id: str
    image: Image
    release: str  # "name:version", for the process's greeting
    role: Role
    folder: Path
    data: Path | None
    site: str | None
    log: Path
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Handle:
    """A started process: `pid` on this host and `started`, its start in clock ticks since boot, which together name it
    for as long as the machine is up. `container`: its id where an engine keeps it."""

    run_id: str
    role: Role
    folder: Path
    pid: int
    started: int
    container: str = ""


@dataclass(frozen=True)
class Exit:
    """`status` is None when a signal ended it; both are None when the process was not our child and is gone.

    `excess`: what it used too much of, in one sentence, when it was ended for that. Starting it again would not help.
    """

    status: int | None
    signal: int | None
    excess: str = ""


@dataclass(frozen=True)
class Protections:
    """`detail`: one plain sentence for each thing that is, or is not, in force; `in_force`: the names of those that
    are, each tried before it is announced."""

    isolation: Isolation
    detail: tuple[str, ...]
    in_force: frozenset[Protection] = frozenset()

    @classmethod
    def of(cls, first: str, in_force: frozenset[Protection]) -> Protections:
        """`first`: what there is to say before all else."""
        return cls(isolation_of(in_force), (first, *in_words(in_force)), in_force)


class Runtime(Protocol):
    whole_images: bool
    """Whether it runs everything from the image, so that its base layers are needed, too."""
    reads_as: int | None
    """The user, on this machine, who reads what a process is given; None where that is our own."""

    def protections(self) -> Protections: ...

    def start(self, order: StartOrder) -> Handle:
        """Raises Refused when the environment differs or the image cannot be run; then nothing was started."""
        ...

    def poll(self, handle: Handle) -> Exit | None: ...

    def stop(self, handle: Handle, grace_s: float) -> Exit: ...

    def recover(self, folder: Path) -> Handle | None: ...


def ended_within(runtime: Runtime, handle: Handle, patience_s: float) -> Exit | None:
    """How it ended, None where it is still running after `patience_s`."""
    give_up = time.monotonic() + patience_s
    while (ended := runtime.poll(handle)) is None and time.monotonic() < give_up:
        time.sleep(0.02)
    return ended
