"""The runtime for a Docker-compatible engine (Docker, rootless Docker, podman): one container per process.

    image      the verified blobs are loaded once (`archive`), and started by the digest of the verified config; the
               engine pulls nothing and believes no tag
    network    none
    file       root, data and inputs read-only; outbox, scratch and figures of F writable; /tmp and /dev/shm in memory,
    system     sized, nothing in them can be executed
    rights     a user without any, no capability, no new ones, own list of system calls (`seccomp.json`), no device but
               the GPUs that are granted, no volume, no health check, never the engine's own socket
    bounds     memory, processes, processors, open files, file size, bytes and files written (`quota`), log, wall time

A container outlives the process that started it: labels say whose it is, so that `recover` finds it again, and what
nobody claims any more is removed. A keeper (`msfl.runtime.keeper`) holds its socket, counts what it writes and how long
it takes, and ends it when nobody watches it any more. The engine must be on this machine, since folders are bound into
the container by their paths, and who may use its socket is as mighty as root: it is for the gateway's user alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import docker
import requests
import structlog
from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

from msfl.policies.refusals import Code, Refused, refuse
from msfl.runtime import keeper
from msfl.runtime.archive import archive
from msfl.runtime.bounded_log import log_file
from msfl.runtime.engine import UNPRIVILEGED, Engine, EngineFails, engine_of, inside, protections
from msfl.runtime.environment import environment, granted_gpus
from msfl.runtime.interface import Exit, Handle, Image, Limits, Protections, StartOrder, ended_within
from msfl.runtime.processes import lives, read

JsonObject: TypeAlias = dict[str, Any]
T = TypeVar("T")
WRITABLE = ("outbox", "scratch", "figures")
SECCOMP = Path(__file__).with_name("seccomp.json")

_FOLDER, _DATA = "/run/msfl", "/in"
_KEEPER, _RUN, _ROLE, _AT, _LOG, _LIMITS = (f"msfl.{n}" for n in ("keeper", "run", "role", "folder", "log", "limits"))
_MOST_OF_A_USER = 16384  # processes, all containers together; each has its own limit
_PATIENCE_S = 60
_LOAD_PATIENCE_S = 600
log = structlog.get_logger()


@dataclass
class _Kept:
    """What this process does for one running container."""

    log: threading.Thread
    keeper: subprocess.Popen[bytes] | None = None


class DockerRuntime:
    """`keeper` names whose containers these are: no other gateway or orchestrator on this engine has the same."""

    def __init__(self, engine: str, *, keeper: str, oci_runtime: str = "") -> None:
        """Raises EngineFails when the engine cannot be used."""
        if not engine.startswith("unix://"):
            raise EngineFails(f"{engine} is no socket of this machine: give unix:///path/to/docker.sock")
        self._socket = engine
        self._keeper = keeper
        self._client = self._dial()
        self._engine = self._ask(oci_runtime)
        self._inside = inside(self._engine, os.getuid(), os.getgid(), os.getgroups())
        self.reads_as = UNPRIVILEGED if self._inside.shared else None
        # Docker is sent the list, podman reads it from where it lies.
        self._seccomp = str(SECCOMP) if self._engine.name == "podman" else json.dumps(json.loads(SECCOMP.read_text()))
        self._loading = threading.Lock()
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._ended: dict[str, Exit] = {}
        self._tidy()

    whole_images = True

    @property
    def engine(self) -> Engine:
        return self._engine

    def close(self) -> None:
        """Hang up; what runs goes on."""
        self._client.close()

    def protections(self) -> Protections:
        return protections(self._engine, self._inside)

    # ------------------------------------------------------------- the protocol

    def start(self, order: StartOrder) -> Handle:
        _must_hold_all(order.image)
        with _as_refusal():
            self._load(order.image)
            self._share(order.folder)
            container = self._create(order)
            try:
                kept_by = self._start(container, order)
                found = self._client.inspect_container(container)
            except BaseException:
                self._remove(container)
                raise
        handle = _handle(found)
        self._keep(handle, found, kept_by)
        return handle

    def poll(self, handle: Handle) -> Exit | None:
        with self._lock:
            if handle.container in self._ended:
                return self._ended[handle.container]
        try:
            found = self._client.inspect_container(handle.container)
        except docker.errors.NotFound:
            return self._over(handle, Exit(None, None))
        except (docker.errors.DockerException, requests.RequestException) as error:
            # A container may outlive its engine, and an engine comes back: only the kernel knows for now.
            if lives(handle.pid, handle.started):
                return None
            log.error("the engine does not answer, and the container is gone", why=str(error), run=handle.run_id)
            return Exit(None, None)
        state = found["State"]
        if state["Running"] or state["Status"] in ("created", "paused", "restarting"):
            return None
        return self._over(handle, self._exit(handle, state))

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        """SIGTERM to the container's first process; after `grace_s` the kernel kills all of its processes."""
        if grace_s > 0 and self.poll(handle) is None:
            self._kill(handle, "SIGTERM")
        ended = ended_within(self, handle, grace_s)
        while ended is None:
            self._kill(handle, "SIGKILL")
            ended = ended_within(self, handle, 1.0)
        return ended

    def recover(self, folder: Path) -> Handle | None:
        """The newest running container of F; whatever else of F is there is removed."""
        running = None
        for found in self._mine(folder):
            if found["State"]["Running"] and running is None:
                running = found
            else:
                self._remove(found["Id"])
        if running is None:
            return None
        handle = _handle(running)
        self._keep(handle, running)
        return handle

    def _tidy(self) -> None:
        """Remove what of ours has ended, or whose folder is gone: nobody will ask for it any more."""
        for found in self._mine(None):
            folder = Path(found["Config"]["Labels"][_AT])
            if not found["State"]["Running"] or not folder.is_dir():
                self._remove(found["Id"])

    # ------------------------------------------------------------- the engine

    def _dial(self, patience_s: float = _PATIENCE_S) -> Any:
        try:
            # Whether somebody listens, in plain words.
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tried:
                tried.connect(self._socket.removeprefix("unix://"))
            return docker.APIClient(base_url=self._socket, version="auto", timeout=patience_s)
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            raise EngineFails(
                f"the container engine at {self._socket} does not answer ({_why(error)}): is it running, and may this "
                "user use its socket?"
            ) from error

    def _ask(self, oci_runtime: str) -> Engine:
        try:
            return engine_of(self._client.info(), self._client.version(), oci_runtime)
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise EngineFails(
                f"the container engine at {self._socket} says nothing of itself: {_why(error)}"
            ) from error

    def _load(self, image: Image) -> None:
        """So that the engine has an image whose id is the digest of the verified config."""
        with self._loading:
            if self._has(image):
                return
            began = time.monotonic()
            client = self._dial(_LOAD_PATIENCE_S)
            try:
                for said in client.load_image(archive(image)):
                    if "error" in said:
                        raise _broken(image, f"the engine does not take it: {said['error']}")
            finally:
                client.close()
            if not self._has(image):
                raise _broken(
                    image,
                    f"the engine loaded it under another name than {image.config_digest}; with Docker, switch the "
                    "containerd image store off",
                )
            log.info("the image is loaded", digest=image.digest, seconds=round(time.monotonic() - began, 1))

    def _has(self, image: Image) -> bool:
        try:
            found = self._client.inspect_image(image.config_digest)
        except docker.errors.ImageNotFound:
            return False
        if _digest(found["Id"]) != image.config_digest:
            return False
        if (layers := found["RootFS"]["Layers"]) != [part.diff_id for part in image.layers]:
            raise _broken(image, f"the engine has {len(layers)} other layers under its name")
        return True

    def _create(self, order: StartOrder) -> str:
        limits, within = order.limits, self._inside
        arguments = ["--role", order.role, "--folder", _FOLDER, "--release", order.release]
        mounts = [_bind(order.folder, _FOLDER, read_only=True)]
        mounts += [_bind(order.folder / part, f"{_FOLDER}/{part}", read_only=False) for part in WRITABLE]
        if order.data is not None:
            arguments += ["--data", _DATA]
            mounts.append(_bind(order.data, _DATA, read_only=True))
        if order.site is not None:
            arguments += ["--site", order.site]
        labels = {
            _KEEPER: self._keeper,
            _RUN: order.run_id,
            _ROLE: order.role,
            _AT: str(order.folder),
            _LOG: str(order.log),
            _LIMITS: json.dumps(asdict(limits)),
        }
        memory = {"mem_limit": limits.memory_bytes, "memswap_limit": limits.memory_bytes} if limits.memory_bytes else {}
        host = self._client.create_host_config(
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges", f"seccomp={self._seccomp}"],
            pids_limit=limits.processes,
            nano_cpus=int((limits.cpus or os.cpu_count() or 1) * 1e9),
            cpu_shares=512,  # The gateway comes first.
            ipc_mode="private",
            shm_size=limits.tmp_bytes,
            tmpfs={"/tmp": f"rw,noexec,nosuid,nodev,size={limits.tmp_bytes},mode=1777"},  # noqa: S108 - its own
            mounts=mounts,
            ulimits=ulimits(limits, self._engine),
            # Bounded by the engine, and read from there: it is still told when nobody listens for a while.
            log_config=LogConfig(type="json-file", config={"max-size": str(limits.log_bytes), "max-file": "1"}),
            restart_policy={"Name": "no"},
            group_add=list(within.groups),
            userns_mode=within.userns,
            runtime=self._engine.oci_runtime or None,
            device_requests=_gpus(limits),
            **memory,
        )
        return str(
            self._client.create_container(
                image=order.image.config_digest,
                command=arguments,
                entrypoint=list(order.image.entrypoint),
                user=within.user,
                working_dir="/",
                environment=_environment(limits),
                hostname="worker",
                network_disabled=True,
                healthcheck={"test": ["NONE"]},
                stop_signal="SIGTERM",
                labels=labels,
                host_config=host,
                name=f"msfl-{order.role}-{order.run_id[:80]}-{secrets.token_hex(4)}",
            )["Id"]
        )

    def _mine(self, folder: Path | None) -> list[JsonObject]:
        """Inspected, the newest first. Raises EngineFails."""
        wanted = [f"{_KEEPER}={self._keeper}"] + ([f"{_AT}={folder}"] if folder is not None else [])
        found = []
        try:
            for row in self._client.containers(all=True, filters={"label": wanted}):
                with contextlib.suppress(docker.errors.NotFound):
                    found.append(self._client.inspect_container(row["Id"]))
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise EngineFails(f"the container engine at {self._socket} does not answer: {_why(error)}") from error
        return sorted(found, key=lambda c: str(c["Created"]), reverse=True)

    def _kill(self, handle: Handle, signal: str) -> None:
        # It ended in the meantime, or the engine is away: whoever asked looks again.
        with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
            self._client.kill(handle.container, signal)

    def _remove(self, container: str) -> None:
        try:
            self._client.remove_container(container, v=True, force=True)
        except docker.errors.NotFound:
            return
        except (docker.errors.DockerException, requests.RequestException) as error:
            # Removed by the engine already, or by who starts here next.
            log.warning("a container is not removed yet", container=container[:12], why=_why(error))

    # ------------------------------------------------------------- what runs

    def _share(self, folder: Path) -> None:
        """Open F's parts to the user inside where that is another one than us; what is around F stays ours alone."""
        for part in ("inbox", *WRITABLE):
            (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._inside.shared:
            return
        folder.chmod(0o755)
        (folder / "inbox").chmod(0o755)
        for part in WRITABLE:
            (folder / part).chmod(0o777)
        if (door := folder / "link.sock").exists():
            door.chmod(0o666)

    def _start(self, container: str, order: StartOrder) -> subprocess.Popen[bytes]:
        """Its keeper first, so that its door is open when it comes."""
        limits = order.limits
        told, telling = os.pipe()
        hearing, speaking = os.pipe()
        spec = keeper.Spec(
            folder=str(order.folder),
            door=str(keeper.door(order.folder)),
            environment={},
            host=os.getpid(),
            told=telling,
            written=[str(order.folder / part) for part in WRITABLE],
            groups=[],
            orphan_s=limits.orphan_s,
            wall_time_s=limits.wall_time_s,
            log_bytes=limits.log_bytes,
            output_bytes=limits.output_bytes,
            output_files=limits.output_files,
            hear=hearing,
        )
        try:
            with log_file(order.log, limits.log_bytes) as log:
                kept_by = keeper.start(spec, (), log)
            os.close(telling)
            with open(told, "rb") as words:
                words.readline()
            self._share(order.folder)
            try:
                self._client.start(container)
                pid = int(self._client.inspect_container(container)["State"]["Pid"])
                os.write(speaking, f"{pid}\n".encode())
            except BaseException:
                kept_by.kill()  # There is nothing to keep.
                kept_by.wait()
                raise
        finally:
            os.close(hearing)
            os.close(speaking)
        return kept_by

    def _keep(self, handle: Handle, found: JsonObject, kept_by: subprocess.Popen[bytes] | None = None) -> None:
        """Write down what it says."""
        with self._lock:
            if handle.container in self._kept:
                return
            labels = found["Config"]["Labels"]
            path = Path(labels[_LOG])
            arguments = (handle.container, path, Limits(**json.loads(labels[_LIMITS])).log_bytes)
            follower = threading.Thread(target=self._follow, args=arguments, name="container log", daemon=True)
            self._kept[handle.container] = _Kept(follower, kept_by)
            follower.start()

    def _follow(self, container: str, path: Path, most: int) -> None:
        """Append what it says to its log file, until it ends; the file takes no more than the engine keeps."""
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        since = path.stat().st_mtime if path.exists() else None
        descriptor = os.open(path, flags, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            left = most - os.fstat(descriptor).st_size
            options = {"since": since} if since is not None else {}
            dialled = self._dial(None)  # type: ignore[arg-type]  # it may say nothing for hours
            with contextlib.closing(dialled) as client:
                for said in client.logs(container, stream=True, follow=True, **options):
                    if left > 0:
                        left -= os.write(descriptor, said[:left])
        except (docker.errors.DockerException, requests.RequestException, EngineFails, OSError) as error:
            # Its log is for people who look for a cause; the run does not depend on it.
            log.warning("the log of a container breaks off", container=container[:12], why=_why(error))
        finally:
            os.close(descriptor)

    def _exit(self, handle: Handle, state: JsonObject) -> Exit:
        excess = keeper.excess_of(handle.folder)
        if state.get("OOMKilled"):
            excess = excess or "it needs more memory than it may have"
        status = int(state["ExitCode"])
        if status > 128:  # What shells and engines say of a process that a signal ended.
            return Exit(None, status - 128, excess)
        return Exit(status, None, excess)

    def _over(self, handle: Handle, ended: Exit) -> Exit:
        with self._lock:
            kept = self._kept.pop(handle.container, None)
        if kept is not None:
            kept.log.join(2.0)
            if kept.keeper is not None:
                kept.keeper.wait()  # It sees the container's end by itself.
        self._remove(handle.container)
        with self._lock:
            return self._ended.setdefault(handle.container, ended)


# ------------------------------------------------------------------ how it is started


def _must_hold_all(image: Image) -> None:
    if not image.self_contained:
        what = f"The image {image.digest} holds no operating system and no Python, so it cannot run in a container."
        raise Refused(refuse(Code.IMAGE_NOT_SELF_CONTAINED, what, digest=image.digest))


def _bind(source: Path, target: str, *, read_only: bool) -> Mount:
    mount = Mount(target, str(source.resolve()), type="bind", read_only=read_only, propagation="rprivate")
    # A mount below it would come along writable: engines before Docker 25 make the topmost one read-only alone.
    mount["BindOptions"]["NonRecursive"] = True
    return mount


def ulimits(limits: Limits, engine: Engine) -> list[Ulimit]:
    bounds = {"core": 0, "nofile": limits.open_files, "fsize": limits.file_bytes, "memlock": 64 << 10, "msgqueue": 0}
    if limits.wall_time_s is not None:
        # The kernel's own word, should nobody be there to watch: no process computes for longer than the run may take.
        bounds["cpu"] = int(limits.wall_time_s * (os.cpu_count() or 1)) + 60
    if engine.name == "podman":
        # Left out, podman asks for more processes of a user than a container without capabilities may be given.
        ours = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        bounds["nproc"] = _MOST_OF_A_USER if ours == resource.RLIM_INFINITY else min(ours, _MOST_OF_A_USER)
    return [Ulimit(name=name, soft=value, hard=value) for name, value in bounds.items()]


def _gpus(limits: Limits) -> list[DeviceRequest]:
    if limits.gpus == 0:
        return []
    granted = granted_gpus(limits, os.environ)
    return [DeviceRequest(driver="nvidia", device_ids=granted, capabilities=[["gpu"]])]


def _environment(limits: Limits) -> dict[str, str]:
    inside = environment(limits, f"{_FOLDER}/scratch", "/tmp")  # noqa: S108 - the container's own
    return {**inside, "CUDA_VISIBLE_DEVICES": ""} if limits.gpus == 0 else inside


# ------------------------------------------------------------------ what the engine says


def _handle(found: JsonObject) -> Handle:
    labels, pid = found["Config"]["Labels"], int(found["State"]["Pid"])
    process = read(pid)
    return Handle(
        labels[_RUN],
        labels[_ROLE],
        Path(labels[_AT]),
        pid,
        0 if process is None or process.zombie else process.started,
        found["Id"],
    )


def _digest(identity: str) -> str:
    return identity if identity.startswith("sha256:") else f"sha256:{identity}"  # podman leaves the prefix out


def _why(error: Exception) -> str:
    return str(getattr(error, "explanation", None) or error)[:300]


def _broken(image: Image, why: str) -> Refused:
    return Refused(refuse(Code.IMAGE_BROKEN, f"The image {image.digest} was not started: {why}.", digest=image.digest))


@contextlib.contextmanager
def _as_refusal() -> Iterator[None]:
    try:
        yield
    except (docker.errors.DockerException, requests.RequestException, EngineFails) as error:
        what = f"The container engine did not start it: {_why(error)}."
        raise Refused(refuse(Code.RUNTIME_FAILED, what)) from error
