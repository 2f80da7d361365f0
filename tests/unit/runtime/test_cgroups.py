"""Which control groups are ours, from what /proc says of them; trees of plain files stand for the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msfl.runtime.cgroups import LEAF, Cgroups, Controller, GroupLimits, _mounts, _own_groups, _version_1, _version_2

LIMITS = GroupLimits(processes=64, memory_bytes=1 << 30, cpus=1.5)


def proc(folder: Path, cgroup: str, mountinfo: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cgroup").write_text(cgroup)
    (folder / "mountinfo").write_text(mountinfo)
    return folder


def version_2(tmp_path: Path, own: str, controllers: str = "cpu memory pids", inside: str = "") -> Path:
    base = tmp_path / "mount" / own.lstrip("/")
    base.mkdir(parents=True)
    for name, text in (("cgroup.controllers", controllers), ("cgroup.subtree_control", ""), ("cgroup.procs", inside)):
        (base / name).write_text(text)
    proc(tmp_path, f"0::{own}\n", f"30 24 0:27 / {tmp_path}/mount rw shared:9 - cgroup2 cgroup2 rw\n")
    return base


def roots_2(tmp_path: Path) -> dict[Controller, Path]:
    return _version_2(_own_groups(tmp_path), _mounts(tmp_path))


def test_each_controller_of_version_1_has_its_own_tree(tmp_path: Path) -> None:
    proc(
        tmp_path,
        "9:name=systemd:/\n8:pids:/\n4:memory:/docker/abc\n1:cpu,cpuacct:/x\n0::/\n",
        "40 33 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
        "41 33 0:31 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "42 33 0:32 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n",
    )
    assert _version_1(_own_groups(tmp_path), _mounts(tmp_path)) == {
        "pids": Path("/sys/fs/cgroup/pids"),
        "memory": Path("/sys/fs/cgroup/memory"),
        "cpu": Path("/sys/fs/cgroup/cpu,cpuacct/x"),
    }


def test_a_group_of_version_2_that_was_delegated_makes_room_and_passes_its_controllers_on(tmp_path: Path) -> None:
    base = version_2(tmp_path, "/system.slice/msfl.service", inside=f"{os.getpid()}\n")
    (base / LEAF).mkdir()
    (base / LEAF / "cgroup.procs").write_text("")
    assert roots_2(tmp_path) == dict.fromkeys(("pids", "memory", "cpu"), base)
    assert (base / LEAF / "cgroup.procs").read_text() == str(os.getpid())
    assert (base / "cgroup.subtree_control").read_text() == "+pids +memory +cpu"


def test_in_a_leaf_that_systemd_made_the_group_above_it_is_ours(tmp_path: Path) -> None:
    base = version_2(tmp_path, "/system.slice/msfl.service")
    (base / "cgroup.subtree_control").write_text("cpu memory pids")
    proc(
        tmp_path / "leaf",
        f"0::/system.slice/msfl.service/{LEAF}\n",
        f"30 24 0:27 / {tmp_path}/mount rw shared:9 - cgroup2 cgroup2 rw\n",
    )
    assert roots_2(tmp_path / "leaf") == dict.fromkeys(("pids", "memory", "cpu"), base)


def test_strangers_are_not_moved(tmp_path: Path) -> None:
    """In a login's group there are other people's processes, or this user's shell."""
    base = version_2(tmp_path, "/user.slice", inside="1\n")
    assert roots_2(tmp_path) == {}
    assert (base / "cgroup.procs").read_text() == "1\n"


def test_what_takes_no_limit_is_not_claimed(tmp_path: Path) -> None:
    version_2(tmp_path, "/")
    assert Cgroups.find(tmp_path).controllers == frozenset()
    assert Cgroups.find(tmp_path / "nowhere").controllers == frozenset()


def test_half_a_group_is_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Cgroups({"pids": tmp_path}, unified=True).make("one", LIMITS)
    assert not (tmp_path / "one").exists()
