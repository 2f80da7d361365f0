"""What tests of both runtimes' walls share: asking the probes, and waiting for what they come to."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

from fakes import probes
from fakes.programs import image_of
from msfl.runtime.interface import Exit, Handle, Limits, Runtime, StartOrder

R = TypeVar("R", bound=Runtime)
PATIENCE_S = 60.0


def ask(folder: Path, **asked: Any) -> None:
    """Lay what the probes are to do into F's inbox."""
    for part in ("inbox", "outbox", "scratch", "figures"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "inbox" / "probe.json").write_text(json.dumps(asked))
    (folder / "inbox" / "probe.json").chmod(0o444)


def told(folder: Path) -> dict[str, Any]:
    """What the probes have written down so far."""
    found = folder / "outbox" / "facts"
    return dict(json.loads(found.read_text())) if found.exists() else {}


def until(happens: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    give_up = time.monotonic() + patience_s
    while not (result := happens()):
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.05)
    return result


@dataclass
class Attack(Generic[R]):
    """A probe at work."""

    runtime: R
    order: StartOrder
    handle: Handle

    def end(self) -> Exit:
        """The one it comes to by itself."""
        return until(lambda: self.runtime.poll(self.handle))  # type: ignore[no-any-return]

    def told(self) -> dict[str, Any]:
        return told(self.order.folder)


def attacked(runtime: R, here: Path, probe: str, limits: Limits, base: Path | None = None, **asked: Any) -> Attack[R]:
    """One probe, begun, with everything of it below `here`."""
    order = StartOrder(
        "run-1", image_of(Path(probes.__file__).read_text(), here / "image", base), "m:1", "worker",
        here / "F", None, None, here / "worker.log", limits,
    )  # fmt: skip
    ask(order.folder, probe=probe, **asked)
    return Attack(runtime, order, runtime.start(order))


def escapes_tried(runtime: Runtime, here: Path, base: Path | None = None) -> dict[str, Any]:
    """What all the probes came to, with everything at the host that they look for."""
    what = StartOrder(
        run_id="run-1",
        image=image_of(Path(probes.__file__).read_text(), here / "image", base),
        release="model:1.0.0",
        role="worker",
        folder=here / "F",
        data=here / "data",
        site="site-a",
        log=here / "worker.log",
        limits=Limits(memory_bytes=1 << 30, processes=128, tmp_bytes=16 << 20),
    )
    (here / "data").mkdir()
    (here / "data" / "case").write_text("patient")
    (here / "secret").write_text("the site's key")
    abstract = f"msfl-{os.getpid()}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("0.0.0.0", 0))
        tcp.listen(4)
        unix.bind("\0" + abstract)
        unix.listen(4)
        addresses = [a.address for n in psutil.net_if_addrs().values() for a in n if a.family == socket.AF_INET]
        ask(
            what.folder,
            probe="escapes",
            port=tcp.getsockname()[1],
            abstract=abstract,
            addresses=addresses,
            secret=str(here / "secret"),
            pid=os.getpid(),
            queue=4711,
        )
        handle = runtime.start(what)
        assert until(lambda: runtime.poll(handle)) == Exit(0, None), what.log.read_text()
    return {**json.loads((what.folder / "outbox" / "facts").read_text()), "folder": what.folder, "data": what.data}
