"""A release that tries every way out of its container: to the host's files, kernel, users, processes and network.

The probes are `fakes/probes.py`; what they try is listed there, and none may succeed.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import probes
from fakes.programs import image_of
from fakes.walls import escapes_tried
from msfl.runtime.docker import DockerRuntime
from msfl.runtime.engine import UNPRIVILEGED
from msfl.runtime.interface import Limits, StartOrder

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def runtime(engine: str) -> Iterator[DockerRuntime]:
    runtime = DockerRuntime(engine, keeper="escapes")
    yield runtime
    runtime._tidy()
    runtime.close()


@pytest.fixture(scope="module")
def tried(runtime: DockerRuntime, base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return escapes_tried(runtime, tmp_path_factory.mktemp("escapes"), base)


def test_no_way_out_is_open(tried: dict[str, Any]) -> None:
    found = {k: v for k, v in tried["escapes"].items() if k not in probes.HARMLESS}
    assert len(found) > 90
    assert {name: said for name, said in found.items() if said.startswith("did")} == {}


def test_the_probes_themselves_see_what_is_open() -> None:
    """Outside, these succeed: inside, they would have been seen."""
    assert probes._attempt(lambda: probes._read("/etc/passwd")).startswith("did")
    assert probes._attempt(lambda: probes._exec("/tmp")).startswith("did")
    assert probes._attempt(lambda: os.kill(os.getpid(), 0)).startswith("did")
    assert probes._attempt(lambda: probes._call(*probes._CALLS["name_to_handle_at + mount id"])).startswith("did")


def test_it_is_nobody_and_sees_nobody(tried: dict[str, Any]) -> None:
    uid = UNPRIVILEGED if os.getuid() == 0 else os.getuid()
    assert (tried["no_new_privs"], tried["seccomp"], tried["uid"]) == ("1", "2", str(uid))
    assert tried["processes"] == "1"
    for mount in ("tmp", "shm"):
        assert {"noexec", "nosuid", "nodev", "size=16384k"} <= set(tried[mount].split(",")), tried[mount]


def test_nothing_at_the_host_was_touched(tried: dict[str, Any]) -> None:
    assert [f.name for f in tried["data"].iterdir()] == ["case"]
    assert (tried["data"] / "case").read_text() == "patient"
    left = [f for f in tried["folder"].rglob("*") if stat.S_ISCHR(f.lstat().st_mode) or stat.S_ISBLK(f.lstat().st_mode)]
    assert left == []


def test_what_the_engine_was_told_is_what_it_does(runtime: DockerRuntime, base: Path, tmp_path: Path) -> None:
    """Asked of the engine itself, while it runs."""
    if runtime.engine.name != "Docker":
        pytest.skip("podman words it otherwise; what a container can do is tried above, whatever the engine")
    what = StartOrder(
        run_id="run-2",
        image=image_of("import time; time.sleep(60)", tmp_path / "image", base),
        release="model:1.0.0",
        role="worker",
        folder=tmp_path / "F",
        data=tmp_path,
        site="site-a",
        log=tmp_path / "worker.log",
        limits=Limits(memory_bytes=512 << 20, processes=64, cpus=1.5, wall_time_s=600),
    )
    handle = runtime.start(what)
    found = runtime._client.inspect_container(handle.container)
    runtime.stop(handle, 0)
    host = found["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["Privileged"] is False
    assert "no-new-privileges" in host["SecurityOpt"][0]
    assert any("SCMP_ACT_ERRNO" in option for option in host["SecurityOpt"]), "its own list of system calls"
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"], host["NanoCpus"]) == (
        512 << 20, 512 << 20, 64, 1_500_000_000,
    )  # fmt: skip
    assert host["IpcMode"] == "private"
    assert not host["Devices"]
    assert not host["DeviceRequests"]
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert found["Config"]["User"] not in ("", "0", "root", "0:0")
    bound = {m["Destination"]: m["RW"] for m in found["Mounts"]}
    writable = {f"/run/msfl/{part}": True for part in ("outbox", "scratch", "figures")}
    assert bound == {"/run/msfl": False, "/in": False, **writable}
    assert not any("docker.sock" in m["Source"] for m in found["Mounts"])
    labels = found["Config"]["Labels"]
    assert (labels["msfl.run"], labels["msfl.keeper"]) == ("run-2", "escapes")


def test_a_container_of_another_keeper_is_not_ours_to_find(runtime: DockerRuntime, base: Path, tmp_path: Path) -> None:
    what = StartOrder(
        "run-3", image_of("import time; time.sleep(60)", tmp_path / "image", base), "m:1", "worker", tmp_path / "F",
        None, None, tmp_path / "log",
    )  # fmt: skip
    other = DockerRuntime(runtime._socket, keeper="somebody else")
    handle = runtime.start(what)
    try:
        other._tidy()
        assert other.recover(what.folder) is None
        assert runtime.poll(handle) is None
    finally:
        runtime.stop(handle, 0)
        other.close()


def test_the_engines_socket_is_not_for_others(engine: str) -> None:
    """Who may use it is root: the tests' own engine gives it to nobody either."""
    if os.environ.get("MSFL_TEST_ENGINE"):
        pytest.skip("the engine is not the tests' own")
    mode = subprocess.run(["stat", "-c", "%a", engine.removeprefix("unix://")], capture_output=True, text=True)
    assert int(mode.stdout.strip()[-1]) == 0, mode.stdout
