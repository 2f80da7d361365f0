"""A release that uses up what its container shares with the host: processes, memory, disk, inodes, shared memory, the
log, time. Each has its bound, the reason is known, and the host goes on as if nothing had been."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.programs import image_of, program
from fakes.walls import Attack, attacked, told, until
from msfl.runtime.docker import DockerRuntime
from msfl.runtime.interface import Exit, Limits, StartOrder

pytestmark = [pytest.mark.system, pytest.mark.slow]
MIB = 1 << 20


@pytest.fixture
def runtime(engine: str) -> Iterator[DockerRuntime]:
    runtime = DockerRuntime(engine, keeper="exhaustion")
    yield runtime
    for found in runtime._mine(None):
        runtime._remove(found["Id"])
    runtime.close()


@pytest.fixture
def attack(runtime: DockerRuntime, base: Path, tmp_path: Path) -> Iterator[Any]:
    def begin(probe: str, limits: Limits, **asked: Any) -> Attack[DockerRuntime]:
        return attacked(runtime, tmp_path, probe, limits, base, **asked)

    yield begin
    # The host is well: another process starts, works and ends beside whatever is left.
    text = program("tell(F, well=True)")
    order = StartOrder(
        "run-2", image_of(text, tmp_path / "after" / "image", base), "m:1", "worker", tmp_path / "after" / "F",
        None, None, tmp_path / "after" / "log",
    )  # fmt: skip
    handle = runtime.start(order)
    assert until(lambda: runtime.poll(handle)) == Exit(0, None)
    assert told(order.folder) == {"well": True}
    shutil.rmtree(tmp_path / "F", ignore_errors=True)


def test_processes(attack: Any) -> None:
    here = attack("forks", Limits(processes=50), most=5000)
    found = until(lambda: here.told())
    assert found["stopped_by"] == "EAGAIN"
    assert 40 < found["forked"] < 50
    assert len(psutil.pids()) < 5000
    assert here.runtime.stop(here.handle, 0) == Exit(None, 9)
    until(lambda: not psutil.pid_exists(here.handle.pid))


def test_memory(attack: Any) -> None:
    here = attack("memory", Limits(memory_bytes=128 * MIB), most=4096)
    ended = here.end()
    assert ended.signal == 9
    assert "memory" in ended.excess
    assert here.told()["mib"] <= 128


def test_shared_memory_and_tmp_are_bounded_and_count_as_memory(attack: Any) -> None:
    here = attack("disk", Limits(tmp_bytes=8 * MIB), where="/dev/shm", most=64)
    assert until(lambda: "stopped_by" in here.told() and here.told()) == {"mib": 8, "stopped_by": "ENOSPC"}
    here.runtime.stop(here.handle, 0)
    here = attack("disk", Limits(tmp_bytes=8 * MIB), where="/tmp", most=64)
    assert until(lambda: here.told().get("stopped_by") == "ENOSPC" and here.told())["mib"] == 8
    here.runtime.stop(here.handle, 0)


@pytest.mark.parametrize("where", ["outbox", "scratch", "figures"])
def test_disk(attack: Any, where: str) -> None:
    here = attack("disk", Limits(output_bytes=32 * MIB), where=where, most=100_000)
    ended = here.end()
    assert ended.signal == 9
    assert "bytes" in ended.excess
    # What it could write until somebody looked: seconds of it, not the disk.
    assert sum(f.stat().st_size for f in here.order.folder.rglob("*") if f.is_file()) < 8192 * MIB


def test_one_file_alone(attack: Any) -> None:
    here = attack("disk", Limits(file_bytes=4 * MIB), where="scratch", most=64)
    until(lambda: here.told().get("stopped_by") == "EFBIG")
    here.runtime.stop(here.handle, 0)
    assert max(f.stat().st_size for f in (here.order.folder / "scratch").iterdir()) <= 4 * MIB


def test_disk_that_has_no_name_any_more(attack: Any) -> None:
    here = attack("hidden_disk", Limits(output_bytes=32 * MIB), most=100_000)
    assert "bytes" in here.end().excess


def test_inodes(attack: Any) -> None:
    here = attack("inodes", Limits(output_files=2000), most=10_000_000)
    assert "files" in here.end().excess
    shutil.rmtree(here.order.folder)


def test_folders_too_deep_to_be_looked_through(attack: Any) -> None:
    here = attack("deep_folders", Limits(), most=500)
    assert "deep" in here.end().excess


def test_the_log(attack: Any) -> None:
    here = attack("log", Limits(log_bytes=2 * MIB), most=64)
    until(lambda: here.told().get("mib") == 64)
    here.runtime.stop(here.handle, 0)
    assert 0 < here.order.log.stat().st_size <= 2 * MIB


def test_time(attack: Any) -> None:
    since = time.monotonic()
    here = attack("forever", Limits(wall_time_s=3.0, cpus=0.5))
    until(lambda: here.told().get("spinning"))
    used = psutil.Process(here.handle.pid).cpu_times()
    ended = here.end()
    assert "time" in ended.excess
    assert 2.5 < time.monotonic() - since < 20
    assert used.user < 3.0
