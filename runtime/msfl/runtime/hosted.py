"""A contained process together with its task link: what the gateway and the orchestrator hold of a worker or an
aggregator.

    start:     listen beside F ▸ start the process ▸ its keeper dials ▸ Hello
    take_back: after a restart of this host, listen there again ▸ its keeper dials ▸ Hello, with the task it was given
    call:      Task ▸ (Progress | Alive)* ▸ Result    TaskFailed: it says Failed; ProcessGone: it dies or is silent
    stop:      Stop frame, then the runtime ends whatever is left

The keeper (`msfl.runtime.keeper`) stands between: it bears that this host dies, and says again what was said since.
A process that was taken back still answers `unfinished`, the task that an earlier host gave it: `call` with `begun`
waits for that answer, any other call passes it over.

A process that works says so every 3 s (`msfl.learning.tasks`); one that has said nothing for `SILENT_S` is stopped, or
its machine is, and counts as gone. That a verb itself makes no progress is for the host's time limits to notice.

The host trusts nothing that comes through the link but the shape of its frames (`msfl.protos.tasklink`); what the
process leaves in its outbox is read through `msfl.runtime.collect` only.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msfl.protos import unix_sockets
from msfl.protos.tasklink import Alive, BrokenFrame, Failed, Hello, Progress, Result, Stop, Task, TaskLink
from msfl.runtime.interface import Handle, Runtime, StartOrder
from msfl.runtime.keeper import door

SILENT_S = 12.0
OnProgress = Callable[[Progress], None]


class ProcessGone(Exception):
    """The contained process ended or spoke nonsense. `code` may leave the host; its log stays here."""

    def __init__(self, code: str, log: Path) -> None:
        super().__init__(f"{code}; its own words are in {log}")
        self.code = code
        self.log = log


class TaskFailed(Exception):
    """The process could not do a task and said so. `code` may leave the host, `detail` may not."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail


class HostedProcess:
    """One contained process that answers tasks, one at a time."""

    def __init__(self, runtime: Runtime, handle: Handle, link: TaskLink, log: Path, hello: Hello) -> None:
        self._runtime = runtime
        self._link = link
        self._log = log
        self._busy = threading.Lock()
        self.handle = handle
        self.hello = hello
        self.unfinished = hello.task

    @classmethod
    def start(
        cls,
        runtime: Runtime,
        order: StartOrder,
        *,
        patience_s: float = 120.0,
        silence_s: float = SILENT_S,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> HostedProcess:
        """Raises ProcessGone when the process does not come up, Refused when the runtime will not start it.

        `cancelled` is asked while waiting: a host that goes down does not wait for a worker that comes up.
        """
        for name in ("inbox", "outbox", "scratch", "figures"):
            (order.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        with _listening(order.folder) as listener:
            handle = runtime.start(order)
            return cls._greeted(listener, runtime, handle, order.log, patience_s, silence_s, cancelled)

    @classmethod
    def take_back(
        cls, runtime: Runtime, handle: Handle, log: Path, *, patience_s: float = 5.0, silence_s: float = SILENT_S
    ) -> HostedProcess:
        """The process that `runtime.recover` has found. Raises ProcessGone; then nothing of it is left."""
        with _listening(handle.folder) as listener:
            return cls._greeted(listener, runtime, handle, log, patience_s, silence_s, lambda: False)

    @classmethod
    def _greeted(
        cls,
        listener: socket.socket,
        runtime: Runtime,
        handle: Handle,
        log: Path,
        patience_s: float,
        silence_s: float,
        cancelled: Callable[[], bool],
    ) -> HostedProcess:
        try:
            connection = cls._accept(listener, runtime, handle, log, patience_s, cancelled)
        except ProcessGone:
            runtime.stop(handle, 1.0)
            raise
        link = TaskLink(connection, silence_s)
        try:
            hello = link.receive()
        except (BrokenFrame, OSError):
            hello = None
        if not isinstance(hello, Hello):
            link.close()
            runtime.stop(handle, 1.0)
            raise ProcessGone("process_did_not_greet", log)
        return cls(runtime, handle, link, log, hello)

    @staticmethod
    def _accept(
        listener: socket.socket,
        runtime: Runtime,
        handle: Handle,
        log: Path,
        patience_s: float,
        cancelled: Callable[[], bool],
    ) -> socket.socket:
        give_up = time.monotonic() + patience_s
        listener.settimeout(0.2)
        while time.monotonic() < give_up and not cancelled():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()  # It waits for ever itself, whatever the listener does.
                return connection
            if runtime.poll(handle) is not None:
                raise ProcessGone("process_ended_at_start", log)
        raise ProcessGone("start_cancelled" if cancelled() else "process_too_slow_to_start", log)

    def call(self, task: Task, on_progress: OnProgress, *, begun: bool = False) -> Result:
        """`begun`: it was given this very task by an earlier host; only wait for it. Raises TaskFailed, ProcessGone."""
        with self._busy:
            left_over, self.unfinished = ("" if begun else self.unfinished), ""
            if left_over == task.task_id:  # Whose answer would come could not be told.
                raise ProcessGone("process_of_another_task", self._log)
            try:
                if not begun:
                    for bare in task.files.values():
                        # Whoever it is inside may read them; around F there is nobody but the host.
                        (self.handle.folder / "inbox" / bare).chmod(0o644)
                    self._link.send(task)
                while True:
                    match self._link.receive():
                        case Progress() | Alive() | Result() | Failed() as said if said.task_id == left_over:
                            continue
                        case Progress() as progress if progress.task_id == task.task_id:
                            on_progress(progress)
                        case Alive() as alive if alive.task_id == task.task_id:
                            continue
                        case Result() as result if result.task_id == task.task_id:
                            return result
                        case Failed() as failed if failed.task_id == task.task_id:
                            raise TaskFailed(failed.code, failed.detail)
                        case None:
                            raise ProcessGone("process_ended", self._log)
                        case _:
                            raise ProcessGone("process_spoke_out_of_turn", self._log)
            except TimeoutError as error:
                raise ProcessGone("process_silent", self._log) from error
            except (BrokenFrame, OSError) as error:
                raise ProcessGone("process_link_broken", self._log) from error

    def let_go(self) -> None:
        """This host goes down; the process works on, until its keeper has waited in vain for another one."""
        self._link.close()

    def stop(self, grace_s: float = 5.0) -> None:
        """Ask it to end, then make sure. Safe to call twice and from another thread than `call`."""
        with contextlib.suppress(OSError):  # Gone already: the runtime cleans up behind it.
            self._link.send(Stop(), patience_s=1.0)
        give_up = time.monotonic() + grace_s
        while self._runtime.poll(self.handle) is None and time.monotonic() < give_up:
            time.sleep(0.02)
        self._runtime.stop(self.handle, 1.0)
        self._link.close()


@contextlib.contextmanager
def _listening(folder: Path) -> Iterator[socket.socket]:
    """Where the keeper of the process in `folder` dials, for the `with` block."""
    at = door(folder)
    at.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        unix_sockets.bind(listener, at)
        listener.listen(1)
        yield listener
    at.unlink(missing_ok=True)
