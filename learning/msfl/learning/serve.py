"""The entry of every release: `serve(MyModel())` makes a worker or an aggregator of a model.

    python -m <entry module> --role worker     --folder F --data D --site SITE --release NAME:VERSION
    python -m <entry module> --role aggregator --folder F                      --release NAME:VERSION

F is the folder shared with the host process (`msfl.learning.tasks.Workplace`); the host listens on `F/link.sock`.
The return value is the exit status: 0 after Stop or when the host is gone. A bug ends the process with a traceback on
standard error, which the host keeps in a log file, and status 1.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from msfl.learning.aggregator import Aggregator
from msfl.learning.contract import FederatedModel
from msfl.learning.tasks import Workplace, run_tasks
from msfl.learning.worker import Worker
from msfl.protos.allocator import keep_memory
from msfl.protos.tasklink import Hello, TaskLink


def serve(model: FederatedModel, argv: Sequence[str] | None = None) -> int:
    """Serve tasks until the host says stop. Raises OSError when nobody listens, and whatever a bug raises."""
    arguments = _parser().parse_args(argv)
    keep_memory()
    folder: Path = arguments.folder.resolve()
    link = TaskLink.dial(folder / "link.sock")
    try:
        place = Workplace(folder)
        if arguments.role == "worker":
            worker = Worker(model, place, arguments.site, arguments.data.resolve(), clock=time.monotonic)
            run_tasks(link, Hello(arguments.release), worker.verbs, role="worker", clock=time.monotonic)
        else:
            aggregator = Aggregator(model, place, entropy=os.urandom)
            hello = Hello(arguments.release, aggregator.public_key)
            run_tasks(link, hello, aggregator.verbs, role="aggregator", clock=time.monotonic)
    finally:
        link.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="One contained process of an msfl run; started by a runtime.")
    parser.add_argument("--role", choices=("worker", "aggregator"), required=True)
    parser.add_argument("--folder", type=Path, required=True, help="folder shared with the host, holds link.sock")
    parser.add_argument("--data", type=Path, default=Path("/data"), help="dataset in nnU-Net raw layout, read-only")
    parser.add_argument("--site", default="", help="name of the site, worker only")
    parser.add_argument("--release", default="", help="name:version, told to the host")
    return parser
