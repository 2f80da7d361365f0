"""Work on many cases at once, in processes that may die.

::

    orders ─▶ hand 1 (a process) ──order, a line of JSON──▶ does it ──answer, a line of JSON──▶ answers, as they come
           ─▶ hand 2

Decoders of images are written in C and meet damaged bytes here; one that dies takes its process along. Then this case
has an answer that says so (None), a fresh process takes its place, and the others go on. Nothing but JSON passes
between them. What a hand's libraries say goes to a log of the custodian's, never to the terminal: it may
quote a header.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Final

from msfl.imaging.workspace import JsonObject

COMMAND: Final = (sys.executable, "-m", "msfl.imaging.hand")
Answer = JsonObject | None
Do = Callable[[JsonObject], JsonObject]


def at_work(
    orders: Sequence[JsonObject], do: Do, *, hands: int, log: Path
) -> Generator[tuple[int, Answer], None, None]:
    """(Number of the order, its answer), in the order of completion; None for an order on which the process died.

    When the caller stops listening, the processes are ended. With no hands at all, this process does the work (`do`).
    """
    if not hands:
        yield from ((number, do(order)) for number, order in enumerate(orders))
        return
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(orders)):
        waiting.put(number)
    answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
    crew = [_Hand(orders, waiting, answers, log) for _ in range(max(1, min(hands, len(orders))))]
    try:
        for hand in crew:
            hand.start()
        for _ in orders:
            yield answers.get()
    finally:
        for hand in crew:
            hand.end()


class _Hand(threading.Thread):
    """Keeps one process and gives it one order after the other."""

    def __init__(
        self,
        orders: Sequence[JsonObject],
        waiting: queue.SimpleQueue[int],
        answers: queue.SimpleQueue[tuple[int, Answer]],
        log: Path,
    ) -> None:
        super().__init__(daemon=True)
        self._orders, self._waiting, self._answers, self._log = orders, waiting, answers, log
        self._process: subprocess.Popen[str] | None = None
        self._ending = False

    def run(self) -> None:
        while not self._ending:
            try:
                number = self._waiting.get_nowait()
            except queue.Empty:
                break
            self._answers.put((number, self._ask(self._orders[number])))
        self.end()

    def _ask(self, order: JsonObject) -> Answer:
        process = self._process or self._spawn()
        assert process.stdin is not None, "piped"
        assert process.stdout is not None, "piped"
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line.endswith("\n"):
            answer: JsonObject = json.loads(line)
            return answer
        self.end(stop=False)
        return None

    def _spawn(self) -> subprocess.Popen[str]:
        self._log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as log:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # One thread for each: several hands share the cores.
                env={**os.environ, "OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"},
            )
        return self._process

    def end(self, stop: bool = True) -> None:
        self._ending = self._ending or stop
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None and not stream.closed:
                    stream.close()


def serve(do: Do) -> None:
    """What a hand's process does: orders from standard input, answers to standard output, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not answer for us
    for line in sys.stdin:
        answers.write(json.dumps(do(json.loads(line))) + "\n")
        answers.flush()
