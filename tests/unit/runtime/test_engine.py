"""What an engine says of itself, and what is made of that; the archive it is given; how a runtime is chosen."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from fakes.bases import layer
from fakes.programs import Layer, ProgramImage
from fakes.registries import digest_of
from msfl.policies.documents import Isolation
from msfl.policies.refusals import CannotProceed, Refused
from msfl.registry.interface import LAYER
from msfl.runtime.archive import archive
from msfl.runtime.choice import DEFAULT_ENGINE, RuntimeChoice, RuntimeKind
from msfl.runtime.docker import SECCOMP, DockerRuntime, ulimits
from msfl.runtime.engine import Engine, EngineFails, Inside, engine_of, inside, protections
from msfl.runtime.interface import Limits

DOCKER = {
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=default"],
    "MemoryLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "Runtimes": {"runc": {}, "runsc": {}},
}
VERSION = {"Version": "20.10.24", "Components": [{"Name": "Engine"}]}
OURS = Inside("1000:1000", shared=False)


def test_an_engine_is_what_it_says() -> None:
    found = engine_of(DOCKER, VERSION, "runsc")
    assert found == Engine("Docker", "20.10.24", apparmor=True, oci_runtime="runsc")
    podman = engine_of({**DOCKER, "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]},
                       {"Version": "4.3.1", "Components": [{"Name": "Podman Engine"}]}, "")  # fmt: skip
    assert (podman.name, podman.rootless, podman.apparmor) == ("podman", True, False)


def test_an_oci_runtime_that_the_engine_does_not_know_is_an_error_not_another_one() -> None:
    with pytest.raises(EngineFails, match="runc, runsc, not kata"):
        engine_of(DOCKER, VERSION, "kata")


@pytest.mark.parametrize(
    ("said", "isolation", "word"),
    [
        ({}, Isolation.CONTAINER, ""),
        ({"SecurityOptions": []}, Isolation.SANDBOX, "system calls"),
        ({"SecurityOptions": ["name=seccomp,profile=unconfined"]}, Isolation.SANDBOX, "system calls"),
        ({"MemoryLimit": False}, Isolation.SANDBOX, "memory"),
        ({"PidsLimit": False}, Isolation.SANDBOX, "processes"),
        ({"CpuCfsQuota": False}, Isolation.CONTAINER, "processor"),
    ],
)
def test_what_an_engine_does_not_enforce_is_not_announced(
    said: dict[str, object], isolation: Isolation, word: str
) -> None:
    found = protections(engine_of({**DOCKER, **said}, VERSION, ""), OURS)
    assert found.isolation is isolation
    if word:
        assert any(word in s.lower() and ("not" in s or "for each" in s) for s in found.detail), found.detail


def test_nobody_inside_is_root_but_where_the_engine_itself_is_not() -> None:
    plain = Engine("Docker", "20.10")
    assert inside(plain, 1000, 1000) == Inside("1000:1000", shared=False)
    assert inside(plain, 1000, 1000, [1000, 0, 44]).groups == ("44",), "what we may read, and never root's"
    assert inside(plain, 0, 0, [0, 44]) == Inside("10001:10001", shared=True)
    remapped = Engine("Docker", "20.10", remapped=True)
    assert inside(remapped, 0, 0).userns is None
    assert inside(remapped, 1000, 1000).userns == "host", "what it writes must be the gateway's to delete"
    assert inside(Engine("Docker", "27", rootless=True), 1000, 1000) == Inside("0:0", shared=False)


def test_the_list_of_system_calls_lets_none_through_that_reaches_out() -> None:
    profile = json.loads(SECCOMP.read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    unconditional = {
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")
        for name in rule["names"]
    }
    reaching = {
        "ptrace", "process_vm_readv", "process_vm_writev", "keyctl", "add_key", "request_key", "bpf", "userfaultfd",
        "perf_event_open", "io_uring_setup", "mount", "umount2", "unshare", "setns", "pivot_root", "chroot",
        "init_module", "finit_module", "kexec_load", "reboot", "swapon", "acct", "settimeofday", "iopl", "ioperm",
        "open_by_handle_at", "fsopen", "open_tree", "move_mount", "pidfd_getfd", "kcmp", "syslog", "quotactl", "clone3",
    }  # fmt: skip
    assert not reaching & allowed
    assert not {"clone", "socket", "personality"} & unconditional


@pytest.fixture
def image(tmp_path: Path) -> ProgramImage:
    parts = []
    for name in ("base", "code"):
        data = layer({name: name.encode()})
        (tmp_path / name).write_bytes(data)
        kind = "base" if name == "base" else "code"
        parts.append(Layer(tmp_path / name, digest_of(data), LAYER, len(data), digest_of(data), kind))  # type: ignore[arg-type]  # of a Literal
    (tmp_path / "config").write_bytes(b"{}")
    return ProgramImage(tmp_path, tmp_path / "config", digest_of(b"{}"), tuple(parts))


def test_the_archive_names_nothing_but_digests(image: ProgramImage) -> None:
    with tarfile.open(fileobj=io.BytesIO(b"".join(archive(image)))) as tar:
        held = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]  # all are files
    (manifest,) = json.loads(held.pop("manifest.json"))
    assert manifest["RepoTags"] is None
    assert manifest["Layers"] == [f"blobs/{part.digest.replace(':', '/')}" for part in image.layers]
    for name, data in held.items():
        assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
    assert len(held) == 3


@pytest.mark.parametrize("change", [b"other bytes", b"", b"longer" * 10_000])
def test_a_blob_that_was_changed_since_is_not_handed_over(image: ProgramImage, change: bytes) -> None:
    image.layers[0].path.write_bytes(change)
    with pytest.raises(Refused, match="image_broken"):
        b"".join(archive(image))


def test_only_an_engine_of_this_machine_can_be_used() -> None:
    with pytest.raises(EngineFails, match="no socket of this machine"):
        DockerRuntime("tcp://10.0.0.1:2375", keeper="site-a")
    with pytest.raises(EngineFails, match="No such file"):
        DockerRuntime("unix:///nowhere.sock", keeper="site-a")


def test_a_runtime_is_chosen_by_settings_and_for_once_by_options() -> None:
    assert RuntimeChoice.read(None, "site.json") == RuntimeChoice()
    chosen = RuntimeChoice.read({"kind": "docker", "oci_runtime": "runsc"}, "site.json")
    assert chosen == RuntimeChoice(RuntimeKind.DOCKER, DEFAULT_ENGINE, "runsc")
    assert chosen.but(RuntimeKind.PROCESS, None, None).kind is RuntimeKind.PROCESS
    assert chosen.but(None, "unix:///x", "") == RuntimeChoice(RuntimeKind.DOCKER, "unix:///x", "")


@pytest.mark.parametrize(
    ("given", "word"),
    [("docker", "object"), ({"kind": "vm"}, "vm"), ({"kind": "docker", "tls": "x"}, "tls"), ([], "object")],
)
def test_settings_that_name_no_runtime_are_said_in_a_line(given: object, word: str) -> None:
    with pytest.raises(CannotProceed, match=word):
        RuntimeChoice.read(given, "site.json")


def test_podman_is_told_how_many_processes_a_user_may_have() -> None:
    """It would ask for more than a container without capabilities may be given, and not start."""
    bounds = {bound.name: bound for bound in ulimits(Limits(), Engine("podman", "4.3.1"))}
    assert bounds["nproc"].soft == bounds["nproc"].hard
    assert 0 < bounds["nproc"].hard <= 16384
    assert "nproc" not in {bound.name for bound in ulimits(Limits(), Engine("Docker", "20.10.24"))}
