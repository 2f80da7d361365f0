"""A release that uses up what its sandbox shares with the host: processes, memory, disk, inodes, shared memory, the
log, time. Each has its bound, the reason is known, and the host goes on as if nothing had been.

With control groups and, where these are not ours, with what the kernel offers without them.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.programs import image_of, program
from fakes.walls import Attack, ask, attacked, told, until
from msfl.policies.documents import Isolation
from msfl.policies.protections import Protection
from msfl.runtime.cgroups import Cgroups
from msfl.runtime.interface import Exit, Limits, StartOrder
from msfl.runtime.process import ProcessRuntime

pytestmark = [pytest.mark.system, pytest.mark.slow]
MIB = 1 << 20


@pytest.fixture(scope="module")
def runtime() -> ProcessRuntime:
    runtime = ProcessRuntime()
    if runtime.protections().isolation is not Isolation.SANDBOX:
        pytest.skip(runtime.protections().detail[0])
    return runtime


@pytest.fixture
def attack(runtime: ProcessRuntime, tmp_path: Path) -> Iterator[Callable[..., Attack[ProcessRuntime]]]:
    begun: list[Attack[ProcessRuntime]] = []

    def begin(probe: str, limits: Limits, **asked: Any) -> Attack[ProcessRuntime]:
        begun.append(attacked(runtime, tmp_path / str(len(begun)), probe, limits, **asked))
        return begun[-1]

    groups = leftover_groups(runtime)
    yield begin
    # The host is well: another process starts, works and ends beside whatever is left.
    order = StartOrder(
        "run-2", image_of(program("tell(F, well=True)"), tmp_path / "after" / "image"), "m:1", "worker",
        tmp_path / "after" / "F", None, None, tmp_path / "after" / "log",
    )  # fmt: skip
    ask(order.folder)
    handle = runtime.start(order)
    assert until(lambda: runtime.poll(handle)) == Exit(0, None), order.log.read_text()
    assert told(order.folder) == {"well": True}
    for one in begun:
        runtime.stop(one.handle, 0)
        shutil.rmtree(one.order.folder, ignore_errors=True)
    assert leftover_groups(runtime) <= groups


def leftover_groups(runtime: ProcessRuntime) -> set[Path]:
    return {found for root in runtime._groups._roots.values() for found in root.glob("msfl-*")}


def stopped(attack: Attack[ProcessRuntime]) -> bool:
    return bool(attack.told().get("stopped_by"))


def must_be_in_force(runtime: ProcessRuntime, protection: Protection) -> None:
    if protection not in runtime.protections().in_force:
        pytest.skip(f"{protection.value} is not in force here, and not claimed")


def test_processes(runtime: ProcessRuntime, attack: Any) -> None:
    must_be_in_force(runtime, Protection.PROCESS_LIMIT)
    here = attack("forks", Limits(processes=50), most=5000)
    found = until(lambda: here.told())
    assert found["stopped_by"] == "EAGAIN"
    assert 40 < found["forked"] < 50
    assert runtime.stop(here.handle, 0) == Exit(None, 9)
    assert not psutil.pid_exists(here.handle.pid)


def test_without_control_groups_nothing_of_them_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an rlimit does instead is tried; for root it limits no processes, and then that is not claimed either."""
    monkeypatch.setattr("msfl.runtime.process.Cgroups.find", lambda: Cgroups({}, unified=False))
    alone = ProcessRuntime().protections()
    assert alone.isolation is Isolation.SANDBOX
    assert not {Protection.MEMORY_LIMIT, Protection.CPU_LIMIT} & alone.in_force
    assert "The number of processes is not limited." in alone.detail or os.getuid() != 0


def test_memory(runtime: ProcessRuntime, attack: Any) -> None:
    here = attack("memory", Limits(memory_bytes=128 * MIB), most=4096)
    until(lambda: here.told().get("stopped_by") == "MemoryError" or runtime.poll(here.handle))
    assert here.told()["mib"] <= 128
    runtime.stop(here.handle, 0)


def test_memory_of_all_together(runtime: ProcessRuntime, attack: Any) -> None:
    """Shared memory is nobody's own, and so under no limit of a single process."""
    must_be_in_force(runtime, Protection.MEMORY_LIMIT)
    here = attack("disk", Limits(memory_bytes=96 * MIB, tmp_bytes=1 << 30), where="/dev/shm", most=4096)
    assert "memory" in here.end().excess
    assert here.told()["mib"] <= 96


def test_shared_memory_and_tmp_are_bounded(attack: Any) -> None:
    for where in ("/dev/shm", "/tmp"):
        here = attack("disk", Limits(tmp_bytes=8 * MIB), where=where, most=64)
        until(partial(stopped, here))
        assert here.told() == {"mib": 8, "stopped_by": "ENOSPC"}


@pytest.mark.parametrize("where", ["outbox", "scratch", "figures"])
def test_disk(attack: Any, where: str) -> None:
    here = attack("disk", Limits(output_bytes=32 * MIB), where=where, most=100_000)
    assert "bytes" in here.end().excess
    # What it could write until somebody looked: seconds of it, not the disk.
    assert sum(f.stat().st_size for f in here.order.folder.rglob("*") if f.is_file()) < 8192 * MIB


def test_one_file_alone(attack: Any) -> None:
    here = attack("disk", Limits(file_bytes=4 * MIB), where="scratch", most=64)
    until(lambda: here.told().get("stopped_by") == "EFBIG")
    assert max(f.stat().st_size for f in (here.order.folder / "scratch").iterdir()) <= 4 * MIB


def test_disk_that_has_no_name_any_more(attack: Any) -> None:
    here = attack("hidden_disk", Limits(output_bytes=32 * MIB), most=100_000)
    assert "bytes" in here.end().excess


def test_inodes(attack: Any) -> None:
    here = attack("inodes", Limits(output_files=2000), most=10_000_000)
    assert "files" in here.end().excess


def test_folders_too_deep_to_be_looked_through(attack: Any) -> None:
    here = attack("deep_folders", Limits(), most=500)
    assert "deep" in here.end().excess


def test_the_log(attack: Any) -> None:
    """It has an end, and the end of what was said is in it."""
    here = attack("log", Limits(log_bytes=2 * MIB), most=64)
    until(lambda: here.told().get("mib") == 64)
    here.runtime.stop(here.handle, 0)
    assert 0 < here.order.log.stat().st_size <= 2 * MIB + 200_000


def test_time(runtime: ProcessRuntime, attack: Any) -> None:
    since = time.monotonic()
    cpus = 0.5 if Protection.CPU_LIMIT in runtime.protections().in_force else None
    here = attack("forever", Limits(wall_time_s=4.0, cpus=cpus))
    until(lambda: here.told().get("spinning"))
    family = psutil.Process(here.handle.pid).children(recursive=True)
    time.sleep(2.0)
    used = sum(p.cpu_times().user for p in family if p.is_running())
    assert "time" in here.end().excess
    assert time.monotonic() - since < 20
    if cpus is not None:
        assert used < 2.5, "half a processor for a few seconds, however many try"
