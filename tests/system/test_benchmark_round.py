"""`benchmarks/round.py`: measures the product with a small model, says what is missing, leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fakes.federations import alive, command_of

SCRIPT = Path(__file__).parents[2] / "benchmarks/round.py"

pytestmark = pytest.mark.system


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def test_a_small_model_is_measured(tmp_path: Path) -> None:
    out, scratch = tmp_path / "out.json", tmp_path / "scratch"
    scratch.mkdir()
    asked = ("--arms", "product", "--model-mb", "1", "--repeats", "1", "--rounds", "60")
    done = subprocess.run(
        command(*asked, "--json", out, "--scratch", scratch), capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    product = json.loads(out.read_text())["arms"]["product"]
    assert 0 < product["wall_s"] < 30
    assert product["cpu_s"] > 0
    assert {"orchestrator", "keyring", "aggregator", "gateway:site-1", "worker:site-3"} <= set(product["peak_mib"])
    assert not list(scratch.iterdir())


def test_a_missing_floor_is_said_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        command("--arms", "floor", "--floor", tmp_path), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"round.py: {tmp_path} has no grpc_floor.py: name the floor's folder with --floor or MSFL_FLOOR"
    ]


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    child = subprocess.Popen(
        command("--arms", "product", "--model-mb", "1", "--rounds", "1000", "--scratch", tmp_path),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        began = psutil.Process(child.pid)
        give_up = time.monotonic() + 60
        while not any("--role" in command_of(p) for p in began.children(recursive=True)):  # until workers train
            assert time.monotonic() < give_up
            time.sleep(0.1)
        family = began.children(recursive=True)
        os.kill(child.pid, signal.SIGINT)
        _, said = child.communicate(timeout=60)
        assert child.returncode == 130
        assert said.decode().splitlines()[-1] == "round.py: stopped; every process it started has ended"
        assert not alive(family)
        assert not list(tmp_path.iterdir())
    finally:
        child.kill()
        child.wait()
