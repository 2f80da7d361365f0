"""The loop of a contained process: one task in, progress, one result or one failure out, until Stop.

    Hello ▸ ( Task ▸ (Progress | Alive)* ▸ Result | Failed )* ▸ Stop, or the host closes the socket

A verb is a function `(task, progress) → Outcome`. It ends in one of three ways:

    returns an Outcome                      Result, with this process's peak memory in `peak_rss_mib`
    raises TaskRefusal or ModelRefusal      Failed(code): something the people can act on; the process lives on
    raises anything else                    Failed("<role>_error", traceback), then the process dies of it: a bug

While a verb runs, a thread of its own says `Alive` every few seconds, so that the host can tell a process that computes
from one that is stopped.

`Workplace` is the folder both sides share: `inbox` is read, `outbox` is written whole files only, `scratch` is this
process's own memory across restarts, `figures` holds pictures that never leave the site.
"""

from __future__ import annotations

import contextlib
import math
import resource
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, assert_never

from msfl.learning.contract import JsonObject, ModelRefusal, ReportProgress
from msfl.learning.files import canonical_json
from msfl.protos.tasklink import Alive, BrokenFrame, Failed, Frame, Hello, Progress, Result, Stop, Task, TaskLink

PROGRESS_EVERY_S = 0.2
ALIVE_EVERY_S = 3.0
T = TypeVar("T")


class TaskRefusal(Exception):
    """A task that cannot be done as asked. `code` may leave the host, `detail` stays in its log."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


@dataclass(frozen=True)
class Outcome:
    """What a verb hands back; `files` maps an output's name to a bare file name in the outbox."""

    document: JsonObject = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


class OpenProgress(Protocol):
    """Begin a phase of the running task (`train`, `validate`, …): what comes back reports its steps."""

    def __call__(self, phase: str) -> ReportProgress: ...


Verb: TypeAlias = Callable[[Task, OpenProgress], Outcome]


class Workplace:
    """The folder F of a contained process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inbox = folder / "inbox"
        self.outbox = folder / "outbox"
        self.scratch = folder / "scratch"
        self.figures = folder / "figures"
        for part in (self.scratch, self.figures, self.outbox):
            part.mkdir(mode=0o700, exist_ok=True)
        self._outputs = 0

    def input(self, task: Task, name: str) -> Path:
        """Where the input called `name` lies. Raises TaskRefusal when the task brings none."""
        bare = task.files.get(name)
        if bare is None:
            raise TaskRefusal("input_missing", f"task {task.task_id} brings no file called {name}")
        path = self.inbox / bare
        if Path(bare).name != bare or bare in ("", ".", "..") or path.is_symlink() or not path.is_file():
            raise TaskRefusal("input_missing", f"task {task.task_id} names {bare!r}, which is no file of the inbox")
        return path

    def output(self, ending: str) -> Path:
        """A fresh name in the outbox."""
        self._outputs += 1
        return self.outbox / f"{self._outputs:06d}.{ending}"


def parameter(task: Task, name: str, kind: type[T], default: T | None = None) -> T:
    """A parameter of the task's document. Raises TaskRefusal when it is missing or of another kind."""
    value: Any = task.document.get(name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TaskRefusal("bad_task", f"task {task.task_id}: {name} must be {kind.__name__}, not {value!r}")
    return value


def run_tasks(
    link: TaskLink, hello: Hello, verbs: Mapping[str, Verb], *, role: str, clock: Callable[[], float]
) -> None:
    """Greet, then serve tasks until Stop. Returns when the host closes; raises what a verb dies of, and BrokenFrame."""
    link.send(hello)
    while True:
        frame: Frame | None = link.receive()
        match frame:
            case Task():
                with _alive(link, frame.task_id):
                    answer = _answer(link, frame, verbs, role, clock)
                link.send(answer)
            case Stop() | None:
                return
            case Hello() | Progress() | Alive() | Result() | Failed():
                raise BrokenFrame(f"a host does not send {type(frame).__name__}")
            case _:
                assert_never(frame)


@contextlib.contextmanager
def _alive(link: TaskLink, task_id: str) -> Iterator[None]:
    over = threading.Event()

    def beat() -> None:
        with contextlib.suppress(OSError):  # The host is gone: whoever sends the answer learns it.
            while not over.wait(ALIVE_EVERY_S):
                link.send(Alive(task_id))

    thread = threading.Thread(target=beat, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _answer(
    link: TaskLink, task: Task, verbs: Mapping[str, Verb], role: str, clock: Callable[[], float]
) -> Result | Failed:
    verb = verbs.get(task.verb)
    if verb is None:
        return Failed(task.task_id, "unknown_verb", f"this {role} knows {', '.join(sorted(verbs))}, not {task.verb!r}")

    def open_progress(phase: str) -> ReportProgress:
        return ThrottledProgress(link, task.task_id, phase, clock)

    try:
        outcome = verb(task, open_progress)
        canonical_json(outcome.document)  # A document that is no finite JSON is a bug of the model: it dies here.
    except (TaskRefusal, ModelRefusal) as refusal:
        return Failed(task.task_id, refusal.code, refusal.detail)
    except Exception:
        # The host must hear which task killed us before we die: without this frame it would only see a closed socket.
        link.send(Failed(task.task_id, f"{role}_error", traceback.format_exc()))
        raise
    return Result(task.task_id, {**outcome.document, "peak_rss_mib": peak_rss_mib()}, outcome.files)


def peak_rss_mib() -> float:
    """The most memory this process has held, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)  # Linux counts in KiB


class ThrottledProgress:
    """Sends progress at most every `PROGRESS_EVERY_S`, but always the first and the last step of a phase."""

    def __init__(self, link: TaskLink, task_id: str, phase: str, clock: Callable[[], float]) -> None:
        self._link = link
        self._task_id = task_id
        self._phase = phase
        self._clock = clock
        self._next = -math.inf

    def __call__(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        now = self._clock()
        if now < self._next and done < total:
            return
        self._next = now + PROGRESS_EVERY_S
        finite = {name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)}
        self._link.send(Progress(self._task_id, self._phase, done, total, finite))
