"""A contained process as its host sees it through the link: it works, falls silent, dies, speaks out of turn."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msfl.protos.tasklink import Alive, Hello, Progress, Result, Task, TaskLink
from msfl.runtime.hosted import HostedProcess, ProcessGone
from msfl.runtime.interface import Exit, Handle, Protections, StartOrder

TASK = Task("train/1", "train", 1, {})


class NoRuntime:
    """Whoever is asked about has ended."""

    whole_images = False
    reads_as: int | None = None

    def protections(self) -> Protections:
        raise NotImplementedError

    def start(self, order: StartOrder) -> Handle:
        raise NotImplementedError

    def poll(self, handle: Handle) -> Exit | None:
        return Exit(0, None)

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        return Exit(0, None)

    def recover(self, folder: Path) -> Handle | None:
        return None


def call(contained: Callable[[TaskLink], None], folder: Path, silence_s: float = 0.05) -> Result:
    """One call, with `contained` as the process at the other end."""
    host, process = socket.socketpair()
    handle = Handle("run-1", "worker", folder, 1, 1)
    hosted = HostedProcess(NoRuntime(), handle, TaskLink(host, silence_s), folder / "log", Hello("m:1"))
    link = TaskLink(process)
    thread = threading.Thread(target=contained, args=(link,))
    thread.start()
    try:
        return hosted.call(TASK, lambda _: None)
    finally:
        hosted.stop()
        thread.join()
        link.close()


def test_a_process_that_says_it_lives_may_take_its_time(tmp_path: Path) -> None:
    def contained(link: TaskLink) -> None:
        assert link.receive() == TASK
        for _ in range(3):
            link.send(Alive("train/1"))
        link.send(Progress("train/1", "train", 1, 2))
        link.send(Result("train/1", {"n": 1}))

    assert call(contained, tmp_path).document == {"n": 1}


def test_a_process_that_says_nothing_counts_as_gone(tmp_path: Path) -> None:
    def contained(link: TaskLink) -> None:
        assert link.receive() == TASK
        link.receive()  # the Stop that ends it

    with pytest.raises(ProcessGone) as gone:
        call(contained, tmp_path)
    assert gone.value.code == "process_silent"


def test_a_process_that_ends_is_gone_at_once(tmp_path: Path) -> None:
    def contained(link: TaskLink) -> None:
        assert link.receive() == TASK
        link.close()

    with pytest.raises(ProcessGone) as gone:
        call(contained, tmp_path, silence_s=60.0)
    assert gone.value.code == "process_ended"


def test_a_sign_of_life_for_another_task_is_out_of_turn(tmp_path: Path) -> None:
    def contained(link: TaskLink) -> None:
        link.receive()
        link.send(Alive("train/7"))
        link.receive()

    with pytest.raises(ProcessGone) as gone:
        call(contained, tmp_path)
    assert gone.value.code == "process_spoke_out_of_turn"


def test_a_result_that_is_nested_too_deep_is_no_frame(tmp_path: Path) -> None:
    """Whoever copied, checked or printed it would run out of calls, and end the whole host."""
    deep: Any = 1
    for _ in range(100):
        deep = [deep]

    def contained(link: TaskLink) -> None:
        assert link.receive() == TASK
        link.send(Result("train/1", {"n": deep}))

    with pytest.raises(ProcessGone) as gone:
        call(contained, tmp_path, silence_s=60.0)
    assert gone.value.code == "process_link_broken"
