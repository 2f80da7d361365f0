"""The runtime seam without a process: what is contained is a thread of this one.

Programs of the contract suite are written once, as the text of a module with `main(given, F, D, stop)`; real runtimes
start that module, this one runs its `main`. Only what the seam promises is there: no walls.
"""

from __future__ import annotations

import io
import itertools
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from msfl.policies.documents import Isolation
from msfl.policies.refusals import Code, Refused, refuse
from msfl.runtime.interface import Exit, Handle, Protections, StartOrder
from msfl.runtime.keeper import door
from msfl.runtime.quota import Quota, Watch

_KILLED = 9


@dataclass
class _Running:
    handle: Handle
    asked: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    ended: Exit | None = None

    def end(self, ended: Exit) -> None:
        if self.ended is None:
            self.ended = ended
        self.over.set()


class FakeRuntime:
    """All of them share what runs, as real ones share the machine; so one can `recover` what another has started."""

    whole_images = False
    reads_as: int | None = None
    running: ClassVar[dict[Path, _Running]] = {}
    _numbers = itertools.count(1)

    def __init__(self) -> None:
        self._known: dict[Handle, _Running] = {}

    def protections(self) -> Protections:
        return Protections(Isolation.NONE, ("It is a thread of the tests.",))

    def start(self, order: StartOrder) -> Handle:
        if refusal := order.image.check_environment(Path()):
            raise Refused(refusal)
        if tuple(order.image.entrypoint[:2]) != ("python", "-m") or len(order.image.entrypoint) != 3:
            raise Refused(refuse(Code.IMAGE_BROKEN, "no module"))
        number = next(self._numbers)
        handle = Handle(order.run_id, order.role, order.folder, -number, number)
        run = _Running(handle)
        # Its own `print`: the output of this process is that of whichever test runs when the thread ends.
        said = io.StringIO()
        program: dict[str, Any] = {"print": partial(print, file=said)}
        exec((order.image.root / f"{order.image.entrypoint[2]}.py").read_text(), program)
        given = {"--role": order.role, "--folder": str(order.folder), "--release": order.release}
        given |= {"--data": str(order.data)} if order.data else {}
        given |= {"--site": order.site} if order.site else {}
        order.log.parent.mkdir(parents=True, exist_ok=True)
        order.log.touch(0o600)
        # Real runtimes have a keeper between the two.
        (order.folder / "link.sock").unlink(missing_ok=True)
        (order.folder / "link.sock").symlink_to(door(order.folder))

        def contained() -> None:
            status = program["main"](given, order.folder, order.data, run.asked)
            with order.log.open("a") as log:
                log.write(said.getvalue())
            run.end(Exit(status, None))

        threading.Thread(target=contained, daemon=True).start()
        limits = order.limits
        deadline = None if limits.wall_time_s is None else time.monotonic() + limits.wall_time_s
        quota = Quota(limits.output_bytes, limits.output_files)
        Watch(
            [order.folder / part for part in ("outbox", "scratch", "figures")],
            quota,
            lambda why: run.end(Exit(None, _KILLED, why)),
            deadline=deadline,
            every_s=0.05,
        )
        self.running[order.folder] = self._known[handle] = run
        return handle

    def poll(self, handle: Handle) -> Exit | None:
        run = self._known[handle]
        if run.over.is_set():
            self.running.pop(handle.folder, None)
        return run.ended if run.over.is_set() else None

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        run = self._known[handle]
        if grace_s > 0:
            run.asked.set()
            run.over.wait(grace_s)
        run.end(Exit(None, _KILLED))
        self.running.pop(handle.folder, None)
        assert run.ended is not None
        return run.ended

    def recover(self, folder: Path) -> Handle | None:
        run = self.running.get(folder)
        if run is None or run.over.is_set():
            return None
        self._known[run.handle] = run
        return run.handle
