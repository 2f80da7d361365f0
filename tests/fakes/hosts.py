"""`Host`: the other end of a contained process's link, for tests: a real unix socket, the process in a thread.

    with Host.of(model, tmp_path, role="worker", data=...) as host:
        answer = host.ask(Task(...))        the Result or Failed; what came before it is in `host.progress`

Leaving the block sends Stop and joins the thread; `host.died_of` is the exception that ended it, if one did.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msfl.learning.contract import FederatedModel, JsonObject
from msfl.learning.serve import serve
from msfl.protos.tasklink import Alive, Failed, Hello, Progress, Result, Stop, Task, TaskLink

CONFIG: JsonObject = {"seed": 1, "validation_fraction": 0.25, "strategy": "fedavg", "weighting": "cases"}


class Host:
    def __init__(self, folder: Path, link: TaskLink, hello: Hello) -> None:
        self.folder = folder
        self.hello = hello
        self.progress: list[Progress] = []
        self.died_of: BaseException | None = None
        self.status: int | None = None
        self._link = link
        self._numbers = itertools.count()

    @classmethod
    @contextmanager
    def of(
        cls, model: FederatedModel, folder: Path, *, role: str, data: Path | None = None, site: str = "site-a"
    ) -> Iterator[Host]:
        for part in ("inbox", "outbox", "scratch", "figures"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        door = folder / "link.sock"
        door.unlink(missing_ok=True)
        argv = ["--role", role, "--folder", str(folder), "--release", "fake:1.0.0"]
        if data is not None:
            argv += ["--data", str(data), "--site", site]
        ended: dict[str, Any] = {}

        def process() -> None:
            try:
                ended["status"] = serve(model, argv)
            except Exception as error:  # noqa: BLE001  # what a real process would die of
                ended["error"] = error

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(door))
            listener.listen(1)
            thread = threading.Thread(target=process)
            thread.start()
            connection, _ = listener.accept()
        link = TaskLink(connection)
        hello = link.receive()
        assert isinstance(hello, Hello)
        host = cls(folder, link, hello)
        try:
            yield host
        finally:
            with suppress(OSError):  # The process may have died; the test looks at `died_of`.
                link.send(Stop())
            thread.join()
            link.close()
            host.died_of, host.status = ended.get("error"), ended.get("status")

    def ask(self, task: Task) -> Result | Failed:
        self._link.send(task)
        self.progress = []
        while True:
            frame = self._link.receive()
            match frame:
                case Progress():
                    self.progress.append(frame)
                case Alive():
                    continue
                case Result() | Failed():
                    return frame
                case _:
                    raise AssertionError(f"the process sent {frame}")

    def do(
        self,
        verb: str,
        document: JsonObject | None = None,
        files: Mapping[str, Path] | None = None,
        *,
        round: int = 0,
        config: JsonObject | None = None,
    ) -> Result | Failed:
        """Ask with the files brought into the inbox, as a real host does."""
        bare: dict[str, str] = {}
        for name, path in (files or {}).items():
            bare[name] = f"{next(self._numbers):04d}.bin"
            (self.folder / "inbox" / bare[name]).write_bytes(path.read_bytes())
        task = Task(f"{verb}/{round}", verb, round, {**CONFIG, **(config or {})}, document or {}, bare)
        return self.ask(task)

    def output(self, result: Result | Failed, name: str) -> Path:
        """Taken away at once, as a real host does: the process may write over it."""
        assert isinstance(result, Result), result
        made = self.folder / "outbox" / result.files[name]
        taken = self.folder / f"taken-{result.task_id.replace('/', '-')}-{made.name}"
        taken.write_bytes(made.read_bytes())
        return taken
