"""batch: many cases through a few worker processes, so that one bad case, whatever it does, stops none of the others.

A worker that dies over a case (out of memory, a crash in a library, a bug) is replaced; the case is tried once more,
alone in its new process, and then listed as `process_died`. What workers say goes to a log beside the report.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from msfl.imaging.workspace import Case
from msfl.policies.refusals import CannotProceed

TIME_LIMIT_S: Final = 1800.0
PROCESS_DIED: Final = "process_died"
# One thread per process: several processes share the cores, and sums are the same whatever the machine.
_ENVIRONMENT: Final[Mapping[str, str]] = {
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
}


@dataclass(frozen=True)
class Outcome:
    """What became of one case: done, kept (nothing had changed), unusable, or died."""

    case: Case
    outcome: str
    code: str = ""
    reason: str = ""


def run_batch(
    cases: Sequence[Case],
    settings: str,
    *,
    log: Path,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    command: Sequence[str] = (sys.executable, "-m", "msfl.imaging.quality.worker"),
) -> tuple[Outcome, ...]:
    """In the order of `cases`. `settings` is the worker's first line (JSON). Raises CannotProceed where a tool that
    every case needs does not work: then nothing more is begun."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(cases)):
        waiting.put(index)
    outcomes: dict[int, Outcome] = {}
    stopped = threading.Event()
    counted = threading.Lock()

    def feed() -> None:
        with log.open("ab") as said:
            worker = _Worker(command, settings, said)
            try:
                while not stopped.is_set():
                    try:
                        index = waiting.get_nowait()
                    except queue.Empty:
                        return
                    found = worker.take(cases[index])
                    with counted:
                        outcomes[index] = found
                        if progress is not None:
                            progress(len(outcomes), len(cases))
            except BaseException:
                stopped.set()
                raise
            finally:
                worker.stop()

    log.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max(1, min(workers, len(cases)))) as pool:
        feeding = [pool.submit(feed) for _ in range(max(1, min(workers, len(cases))))]
        try:
            for one in feeding:
                one.result()
        except BaseException:
            stopped.set()
            raise
    return tuple(outcomes[index] for index in range(len(cases)))


class _Worker:
    def __init__(self, command: Sequence[str], settings: str, said: IO[bytes]) -> None:
        self._command, self._settings, self._said = command, settings, said
        self._process: subprocess.Popen[bytes] | None = None

    def take(self, case: Case) -> Outcome:
        answer = self._ask(case)
        if answer is None:
            self.stop()
            answer = self._ask(case)
        if answer is None:
            code = self._process.wait() if self._process is not None else None
            self.stop()
            reason = f"The process that worked on this case ended twice (exit code {code}); the log says with what words."
            return Outcome(case, "died", PROCESS_DIED, reason)
        if answer["outcome"] == "cannot":
            raise CannotProceed(answer["reason"])
        return Outcome(case, answer["outcome"], answer.get("code", ""), answer.get("reason", ""))

    def _ask(self, case: Case) -> dict[str, str] | None:
        """None when the process died over it, or took too long."""
        process = self._process if self._process is not None else self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        alarm = threading.Timer(TIME_LIMIT_S, process.kill)
        alarm.start()
        try:
            process.stdin.write(json.dumps(str(case.folder)).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            return None
        finally:
            alarm.cancel()
        return json.loads(line) if line.endswith(b"\n") else None

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **_ENVIRONMENT},
        )
        assert process.stdin is not None
        try:
            process.stdin.write(self._settings.encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; whoever asks it something finds that out
        self._process = process
        return process

    def stop(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        process.kill()
        process.wait()
