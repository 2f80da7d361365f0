"""Ctrl-C in the middle of the demo, or worse: everything that it started ends."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fakes.federations import alive, command_of, tiny_sites, until
from msfl.sdk.demo.processes import msfl

pytestmark = [pytest.mark.system, pytest.mark.slow]


@contextmanager
def working_demo(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A demo in the middle of its run, and all that it has started."""
    tiny_sites(folder / "data")
    command = msfl("demo", "--data", folder / "data", "--runs", folder / "runs", "--release", "logistic")
    with subprocess.Popen(
        [*command, "--rounds", "200"], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as demo:
        me = psutil.Process(demo.pid)

        def working() -> bool:
            assert demo.poll() is None
            return any("--role" in command_of(p) for p in me.children(recursive=True))

        try:
            until(working, "a worker to start")
            family = me.children(recursive=True)
            # By their homes: one that starts a worker is there twice for a moment.
            homes = {command[-1] for command in map(command_of, family) if "gateway" in command}
            assert len(homes) == 3
            yield demo, family
        finally:
            demo.kill()


def test_the_demo_stops_everything_it_started(tmp_path: Path) -> None:
    with working_demo(tmp_path) as (demo, family):
        asked = time.monotonic()
        demo.send_signal(signal.SIGINT)
        said, _ = demo.communicate(timeout=30)
        took = time.monotonic() - asked
    assert demo.returncode == 130
    assert took < 15
    assert "nothing is left running" in said
    assert alive(family) == []
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_demo_that_is_killed_takes_everything_with_it(tmp_path: Path) -> None:
    with working_demo(tmp_path) as (demo, family):
        demo.kill()
        until(lambda: not alive(family), "the demo's processes to end")
