"""The product, as users run it: orchestrator, keyring, a gateway per site, workers and aggregator, each a process.

Mutual TLS, enrolment, signed policies, sandbox where the machine has it, sealing, egress checks, durable state: all on.
As the arm `containers` the same, with workers and aggregator in containers of an engine of the benchmark's own, whose
processor time counts. The release is `echo_release`. A round ends when its aggregate is recorded
(`CentralDone(aggregate/r)`), at the orchestrator's own clock. What follows the rounds is not measured.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

# msfl is a namespace package: with the release's folder on the path it holds msfl.echo too.
sys.path.insert(1, str(Path(__file__).parent / "echo_release"))
sys.path.insert(1, str(Path(__file__).parents[2] / "tests"))

from fakes.engines import container_engine
from fakes.os_image import saved_base
from fakes.tiny_data import tiny_dataset
from measured import CannotMeasure, Measured, Task, from_marks
from meter import Meter
from msfl.echo.shapes import drift, first_model, shapes
from msfl.learning.weights import load
from msfl.policies.documents import Isolation
from msfl.policies.refusals import CannotProceed
from msfl.runtime.process import ProcessRuntime
from msfl.sdk.client import Client
from msfl.sdk.credentials import Credentials
from msfl.sdk.demo.federation import DemoSite, Federation
from msfl.sdk.demo.processes import Processes

RELEASE = Path(__file__).parent / "echo_release"
DATASET = "lesions"
PATIENCE_S = 120.0
CENTRE = ("orchestrator", "aggregator")


def measure(task: Task, containers: bool = False) -> Measured:
    """Raises CannotMeasure."""
    processes = Processes(task.scratch / "logs")
    try:
        return _measure(task, processes, containers)
    except pytest.skip.Exception as why:
        raise CannotMeasure(f"the product in containers: {why}") from why
    except CannotProceed as error:
        raise CannotMeasure(f"the product: {error}") from error
    finally:
        processes.close()


@contextmanager
def _chosen(task: Task, containers: bool) -> Iterator[tuple[Isolation, str, tuple[str, ...]]]:
    """What policies ask for, the base of the image, and what chooses the runtime."""
    if not containers:
        yield ProcessRuntime().protections().isolation, "", ()
        return
    base = saved_base(task.scratch, ("numpy", "cryptography", "blake3"))
    with container_engine() as engine:
        yield Isolation.CONTAINER, str(base), ("--runtime", "docker", "--engine", engine)


def _measure(task: Task, processes: Processes, containers: bool) -> Measured:
    now = datetime.now(UTC).replace(microsecond=0)
    names = [f"site-{n}" for n in range(1, task.sites + 1)]
    sites = tuple(
        DemoSite(name, DATASET, tiny_dataset(task.scratch / "data" / name, n_train=5, n_test=2, seed=i))
        for i, name in enumerate(names)
    )
    with Meter(_name) as meter, _chosen(task, containers) as (isolation, base, runtime):
        federation = Federation(task.scratch, processes, sites, isolation, rounds_max=1000, base=base, runtime=runtime)
        federation.publish_release(str(RELEASE), now)
        federation.start_centre(now)
        meter.port = federation.link_port
        federation.check_data()
        federation.serve_centre()
        federation.join_sites(now)
        client = Client(Credentials.read(federation.write_credentials(now)))
        _until_present(client, task.sites)
        assert federation.statement is not None
        run = client.run_federated(
            release=federation.statement.ref,
            datasets=[f"{name}/{DATASET}" for name in names],
            rounds=task.rounds,
            config={"model_mb": task.model_mb, "wire": task.wire},
            baseline=None,
            keep="last",
            seed=0,
        )
        ends: list[float] = []
        disk: list[int] = []
        for _, document in run.events():
            if document.get("event") == "CentralDone" and document["task_id"].startswith("aggregate/"):
                ends.append(float(document["at"]))
                disk.append(_bytes_below(task.scratch / "centre"))
        state = run.wait()
        measured = from_marks("containers" if containers else "product", ends, meter)
        measured.extra |= {"isolation": isolation.value, "sites": task.sites, **_extra(state, ends, disk, meter)}
        values = sum(math.prod(shape) for shape in shapes(task.model_mb).values())
        measured.extra["payload_mb"] = 4 * values * task.sites / 1e6  # one way
        _check(client.fetch(run.run_id, "weights", task.scratch / "final.safetensors"), task)
        client.close()
        processes.close()
    return measured


def _extra(state: dict, ends: list[float], disk: list[int], meter: Meter) -> dict:
    """What only the product is asked: memory of the centre over time, its disk, its own count."""
    last = len(ends)
    early, late = min(10, max(2, last // 2)), last
    window = max(1, min(5, early - 1, last - early))
    before = meter.resident_together(CENTRE, ends[early - 1 - window], ends[early - 1])
    after = meter.resident_together(CENTRE, ends[late - 1 - window], ends[late - 1])
    return {
        "centre_peak_mib": meter.resident_together(CENTRE, 0, ends[-1]),
        "centre_growth": {"from_round": early, "to_round": late, "mib": [before, after]},
        "centre_disk_mb": {"round": [early, late], "mb": [disk[early - 1] / 1e6, disk[late - 1] / 1e6]},
        "round_records": [r["seconds"] for r in state["rounds"]],
        "own_bytes_per_round": {k: state["rounds"][-1][k] for k in ("bytes_down", "bytes_up")},
    }


def _until_present(client: Client, sites: int) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while sum(bool(row["present"]) for row in client.datasets()) < sites:
        if time.monotonic() > give_up:
            raise CannotMeasure(f"the product: not all {sites} gateways are on the line after {PATIENCE_S:.0f} s")
        time.sleep(0.1)


def _check(weights: Path, task: Task) -> None:
    """The final model is the first one moved by what the sites added."""
    tensors, by = load(weights), np.float32(drift(task.sites, task.rounds))
    for name, values in first_model(task.model_mb).items():
        worst = float(np.abs(tensors[name] - values - by).max())
        # What rounding to 16 bits leaves over is of the last round alone.
        if worst > 1e-5 * task.rounds + (0 if task.wire == "float32" else 2**-8 * abs(float(by))):
            raise CannotMeasure(f"the product: {name} is off by {worst:.2g} after {task.rounds} rounds")


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue  # Freed while we look.
    return total


def _name(command: list[str]) -> str | None:
    """`orchestrator`, `keyring`, `gateway:site-1`, `worker:site-1`, `aggregator`."""
    if not command or "bwrap" in command[0]:
        return None
    if "--role" in command:
        role = command[command.index("--role") + 1]
        return f"{role}:{command[command.index('--site') + 1]}" if "--site" in command else role
    match command:
        case [_, "-m", "msfl.sdk.main", "orchestrator", "serve", *_]:
            return "orchestrator"
        case [_, "-m", "msfl.sdk.main", "orchestrator", "keyring", *_]:
            return "keyring"
        case [_, "-m", "msfl.sdk.main", "gateway", "serve", "--home", home]:
            return f"gateway:{Path(home).parent.name}"
        case _:
            return None
