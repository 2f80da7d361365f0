"""The lock of a Python environment: what it holds, and that no difference passes unseen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.environments import install
from msfl.registry.environment import (
    BadEnvironment,
    EnvironmentLock,
    lock_environment,
    verify_environment,
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """torch → numpy (and, only with an extra, plotter); unrelated stands beside them."""
    folder = tmp_path / "site-packages"
    torch = {"torch/__init__.py": b"1", "torch/lib/big.so": b"x" * 3_000_000, "torchtop.py": b"2"}
    install(folder, "torch", "2.13.0", torch, ("numpy>=2", "plotter; extra == 'plot'", "winonly; os_name == 'nt'"))
    install(folder, "numpy", "2.4.6")
    install(folder, "plotter")
    install(folder, "unrelated")
    return folder


def test_a_lock_is_the_closure_with_every_file(site: Path) -> None:
    lock = lock_environment(["Torch>=2"], site)
    assert set(lock.distributions) == {"numpy", "torch"}
    assert lock.distributions["torch"].version == "2.13.0"
    assert set(lock.distributions["torch"].files) == {
        "torch/__init__.py",
        "torch/lib/big.so",
        "torchtop.py",
        "torch-2.13.0.dist-info/METADATA",
    }
    assert set(lock_environment(["torch[plot]"], site).distributions) == {"numpy", "plotter", "torch"}


def test_a_lock_is_the_same_bytes_each_time_and_comes_back(site: Path, tmp_path: Path) -> None:
    lock = lock_environment(["torch"], site)
    assert lock_environment(["numpy", "torch"], site).to_bytes() == lock.to_bytes()
    assert EnvironmentLock.from_bytes(lock.to_bytes()) == lock
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(site, elsewhere)
    record = elsewhere / "torch-2.13.0.dist-info" / "RECORD"
    record.write_text(record.read_text() + "../../../bin/other,sha256=BBBB,3\n")
    (elsewhere / "torch-2.13.0.dist-info" / "INSTALLER").write_text("uv")
    assert verify_environment(lock, elsewhere) == ()


@pytest.mark.parametrize(
    ("requires", "why"),
    [
        ("absent", "not installed"),
        ("torch<2", "2.13.0 is installed"),
        ("torch; drop table", "no requirement"),
        ("", "no requirement"),
    ],
)
def test_what_cannot_be_met_is_not_locked(site: Path, requires: str, why: str) -> None:
    with pytest.raises(BadEnvironment, match=why):
        lock_environment([requires], site)


def test_an_altered_environment_does_not_become_the_reference(site: Path) -> None:
    (site / "numpy" / "__init__.py").write_bytes(b"evil")
    with pytest.raises(BadEnvironment, match=r"numpy/__init__.py of numpy 2.4.6 is not what"):
        lock_environment(["torch"], site)


def test_without_record_nothing_is_known(site: Path) -> None:
    (site / "numpy-2.4.6.dist-info" / "RECORD").unlink()
    with pytest.raises(BadEnvironment, match="without a RECORD"):
        lock_environment(["torch"], site)


def _upgrade(site: Path) -> None:
    shutil.rmtree(site / "numpy-2.4.6.dist-info")
    install(site, "numpy", "2.5.0")


def _link(site: Path) -> None:
    (site / "copy").write_bytes((site / "torchtop.py").read_bytes())
    (site / "torchtop.py").unlink()
    (site / "torchtop.py").symlink_to(site / "copy")


def _shorten_metadata(site: Path) -> None:
    (site / "torch-2.13.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.13.0\n")


def _same_size_same_time(site: Path) -> None:
    path = site / "torch" / "lib" / "big.so"
    before = path.stat()
    path.write_bytes(b"y" + path.read_bytes()[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda s: shutil.rmtree(s / "numpy-2.4.6.dist-info"), ("numpy", "missing")),
        (_upgrade, ("numpy", "version")),
        (lambda s: install(s, "numpy", "2.4.5"), ("numpy", "twice")),
        (lambda s: (s / "torch" / "lib" / "big.so").unlink(), ("torch", "absent")),
        (_same_size_same_time, ("torch", "changed")),
        (_shorten_metadata, ("torch", "changed")),
        (_link, ("torch", "absent")),
        (lambda s: (s / "numpy" / "__init__.cpython-311-x86_64-linux-gnu.so").touch(), ("numpy", "extra")),
        (lambda s: (s / "torch" / "lib" / "more.py").touch(), ("torch", "extra")),
        (lambda s: (s / "torchtop.so").touch(), ("torch", "extra")),
        (lambda s: (s / "torchtop").mkdir(), ("torch", "extra")),
    ],
    ids=["gone", "upgraded", "twice", "file-gone", "bytes", "metadata", "link", "shadowed", "inner", "top", "folder"],
)
def test_no_difference_passes(site: Path, harm: Callable[[Path], object], expected: tuple[str, str]) -> None:
    lock = lock_environment(["torch"], site)
    harm(site)
    (mismatch,) = verify_environment(lock, site)
    assert (mismatch.distribution, mismatch.kind) == expected
    assert expected[0] in mismatch.detail


def test_what_no_release_uses_may_change(site: Path) -> None:
    lock = lock_environment(["torch"], site)
    (site / "unrelated" / "__init__.py").write_bytes(b"new")
    (site / "torch" / "__pycache__").mkdir()
    (site / "torch" / "__pycache__" / "x.cpython-311.pyc").touch()
    (site / "torch" / "notes.txt").touch()
    (site / "torch.libs").mkdir()
    install(site, "torchother")
    assert verify_environment(lock, site) == ()


def test_another_python_is_another_environment(site: Path) -> None:
    lock = replace(lock_environment(["torch"], site), python="cpython-312-x86_64-linux-gnu")
    (mismatch,) = verify_environment(lock, site)
    assert (mismatch.distribution, mismatch.kind) == ("python", "python")


def _lock_with(path: str, digest: str) -> bytes:
    distribution = {"version": "1", "files": {path: digest}}
    document = {"format": "msfl-environment/v1", "python": "p", "distributions": {"a": distribution}}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format":"msfl-environment/v1"}',
        b'{"format":"msfl-environment/v2","python":"p","distributions":{}}',
        _lock_with("../x", "0" * 64),
        _lock_with("/x", "0" * 64),
        _lock_with("a/../../x", "0" * 64),
        _lock_with("x", "0"),
        b"[" * 100_000,
    ],
)
def test_only_a_lock_is_a_lock(data: bytes) -> None:
    with pytest.raises(BadEnvironment):
        EnvironmentLock.from_bytes(data)
