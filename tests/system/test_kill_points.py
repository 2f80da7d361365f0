"""`kill -9` of every process at every step of a run: it finishes, with every site and the same weights, bit for bit.

The steps are not picked by hand: `steps_of` walks the run machine, so a new step is a new test; stages come from the
gateway's machine. A short step is caught in this way: before a step of the centre the aggregator is stopped and let go
for 2 ms at a time, until the run's state shows the step; other steps last long enough to be seen. Afterwards the run's
events say whether the step was still open when the signal was sent. If it was not, the case is tried again with a new
run, and fails when it has missed its step `TRIES` times: nothing passes that did not strike.

Orchestrator, keyring and gateway are started again at once, as a service manager does; aggregator and workers are the
business of those who started them.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from fakes.federations import SITES, LiveFederation, command_of, send, until
from msfl.gateway.machine import LIVING, Stage
from msfl.orchestrator.runs.events import Answered, CentralDone, Submitted, TaskDone
from msfl.orchestrator.runs.machine import advance, submitted
from msfl.policies.documents import JobSpec
from msfl.policies.encoding import encode
from msfl.protos.messages import output_key, result_key
from msfl.sdk.credentials import NotConnected
from msfl.sdk.reporting import report_document
from msfl.sdk.run import Run

pytestmark = [pytest.mark.system, pytest.mark.slow]
SITE = "site-b"
GATEWAYS = tuple(f"gateway:{site}" for site in SITES)
SERVED: dict[str, tuple[str, ...]] = {
    "orchestrator": ("orchestrator",),
    "keyring": ("keyring",),
    "gateway": (f"gateway:{SITE}",),
    "all": (*GATEWAYS, "orchestrator", "keyring"),
}
PROCESSES = ("orchestrator", "keyring", "aggregator", "gateway", "worker", "all")
DONE = ("TaskDone", "CentralDone")
TRIES = 4
PATIENCE_S = 150.0
JOB: dict[str, Any] = {"rounds": 2, "seed": 11, "baseline": "local", "config": {"batches_per_epoch": 200}}


def steps_of(spec: JobSpec) -> dict[str, bool]:
    """Every step of an undisturbed run, in order, by the run machine; whether it is one of the centre."""
    sites = [ref.split("/")[0] for ref in spec.datasets]
    state = submitted(Submitted(0.0, "run-1", encode(spec).decode(), "proof", "token", "ada@uni.example"), spec)
    for site in sites:
        state = advance(state, Answered(0.0, site, "allow", {}, "c2VjcmV0"))
    steps: dict[str, bool] = {}
    while (step := state.step) is not None:
        steps[step.task_id] = step.central
        document = {"sites": {site: {"summaries": {}} for site in sites}, "weights_blake3": "0"}
        if step.central:
            # Of what the centre makes, the order of the steps asks only for the models that every site is to test.
            made = tuple(output_key(step.task_id, site, "federated") for site in sites)
            state = advance(state, CentralDone(0.0, step.task_id, document, files=made))
        for site in sorted(step.waiting):
            key = result_key(step.task_id, site, 1)
            state = advance(state, TaskDone(0.0, site, step.task_id, key, 0.0, 0, 0))
    return steps


_SPEC = JobSpec(
    **{k: v for k, v in JOB.items() if k != "config"},
    name="story",
    release="voxel-logistic:1.0.0",
    datasets=tuple(f"{site}/lesions" for site in SITES),
    profile="demo",
    min_sites=3,
    round_deadline_s=7200,
    nonce="0123456789abcdef",
)
CENTRAL = steps_of(_SPEC)
STEPS = tuple(CENTRAL)
# `open` is over as soon as it begins, as the aggregator was opened while the sites started: nobody is ever seen in it.
STRUCK = tuple(step for step in STEPS if step != "open")


class Missed(Exception):
    """The step was over before it could be struck."""


# ------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def undisturbed(live: LiveFederation) -> list[str]:
    run = live.client.submit(live.job(**JOB))
    state = ended(run)
    seen = dict.fromkeys(doc["task_id"] for _, doc in run.events() if doc.get("event") in DONE)
    assert tuple(seen) == STEPS, "the walk through the machine knows every step of a real run"
    return hashes(state)


@pytest.fixture(autouse=True)
def a_whole_federation(live: LiveFederation) -> Iterator[None]:
    yield
    until(lambda: present(live), "the gateways to be back")
    until(lambda: not any(live.workers(site) for site in SITES), "the workers to end")


def present(live: LiveFederation) -> bool:
    try:
        return live.all_present()
    except NotConnected:
        return False


def ended(run: Run) -> dict[str, Any]:
    give_up = time.monotonic() + PATIENCE_S
    state = None
    while state is None or state["ended_at"] is None:
        assert time.monotonic() < give_up, f"the run stands still: {state and state['step']}"
        time.sleep(0.1)
        try:
            state = run.state()
        except NotConnected:
            continue
    assert state["phase"] == "finished", state["reason"]
    assert all(member["standing"] == "accepted" for member in state["sites"].values()), state["sites"]
    assert all(set(r["sites"]) == set(SITES) and not r["late"] for r in state["rounds"])
    return state


def hashes(state: dict[str, Any]) -> list[str]:
    report = report_document(state)
    return [*(r["weights_blake3"] for r in report["rounds"]), report["final_weights_sha256"]]


def step_now(run: Run) -> str:
    """Empty before the first step, and while nobody answers. Raises Missed at the end."""
    try:
        state = run.state()
    except NotConnected:
        return ""
    if state["ended_at"] is not None:
        raise Missed
    return str(state["step"]["task_id"]) if state["step"] else ""


# ---------------------------------------------------------------------------- striking


def aggregator(live: LiveFederation) -> list[psutil.Process]:
    return [p for p in live.process("orchestrator").children(recursive=True) if "--role" in command_of(p)]


@contextmanager
def reached(live: LiveFederation, run: Run, step: str) -> Iterator[None]:
    """Inside, the run is at the step, as far as one can see. Raises Missed."""
    target = STEPS.index(step)
    # The last step of the sites before it, or itself: from there on the aggregator is on the leash.
    leash = max(i for i in range(target + 1) if not CENTRAL[STEPS[i]])
    held: list[psutil.Process] = []
    try:
        give_up = time.monotonic() + PATIENCE_S
        while (now := step_now(run)) != step:
            assert time.monotonic() < give_up, f"the run never came to {step}"
            at = STEPS.index(now) if now else -1
            if at > target:
                raise Missed
            if not CENTRAL[step] or at < leash:
                time.sleep(0.002)
                continue
            if not held:
                held = aggregator(live)
                send(held, signal.SIGSTOP)
            elif CENTRAL[now]:
                send(held, signal.SIGCONT)
                time.sleep(0.002)
                send(held, signal.SIGSTOP)
        yield
    finally:
        send(held, signal.SIGCONT)


def victims(live: LiveFederation, process: str) -> list[psutil.Process]:
    match process:
        case "aggregator":
            return aggregator(live)
        case "worker":
            return live.workers(SITE)
        case _:
            return [live.process(name) for name in SERVED[process]]


def strike(live: LiveFederation, run: Run, step: str, process: str) -> float:
    """When the signal was sent. Raises Missed."""
    with reached(live, run, step):
        while not (hit := victims(live, process)):  # It is just being started.
            if step_now(run) != step:
                raise Missed
        at = time.time()
        send(hit, signal.SIGKILL)
    revive(live, process)
    return at


def revive(live: LiveFederation, process: str) -> None:
    for name in SERVED.get(process, ()):
        live.kill(name)  # Waits for its end.
    for name in reversed(SERVED.get(process, ())):
        live.start_again(name)


def closed_at(run: Run, step: str) -> float:
    return max(float(doc["at"]) for _, doc in run.events() if doc.get("event") in DONE and doc["task_id"] == step)


def killed_at_each(live: LiveFederation, process: str, steps: tuple[str, ...]) -> tuple[dict[str, bool], list[str]]:
    """Of one run: by step whether it was open when its process was killed; and the hashes of its weights."""
    run = live.client.submit(live.job(**JOB))
    try:
        struck: dict[str, float] = {}
        for step in steps:
            try:
                struck[step] = strike(live, run, step, process)
            except Missed:
                continue
        state = ended(run)
    except BaseException:
        end_anyhow(live, run)
        raise
    return {step: step in struck and closed_at(run, step) >= struck[step] for step in steps}, hashes(state)


def end_anyhow(live: LiveFederation, run: Run) -> None:
    """What failed here shall not fail the next test."""
    until(lambda: present(live), "the centre to be back")
    run.abort()


def check(live: LiveFederation, process: str, steps: tuple[str, ...], undisturbed: list[str]) -> None:
    left = steps
    for _ in range(TRIES):
        hit, weights = killed_at_each(live, process, left)
        assert weights == undisturbed
        left = tuple(step for step in left if not hit[step])
        if not left:
            return
    pytest.fail(f"{process} was never struck in {', '.join(left)}")


# -------------------------------------------------------------------------------- tests


@pytest.mark.parametrize(
    ("process", "step"),
    [
        ("orchestrator", "train/2"),
        ("keyring", "aggregate/1"),
        ("aggregator", "aggregate/2"),
        ("gateway", "train/1"),
        ("worker", "evaluate/test"),
        ("all", "aggregate/1"),
    ],
)
def test_a_process_that_dies_costs_nothing(
    live: LiveFederation, undisturbed: list[str], process: str, step: str
) -> None:
    check(live, process, (step,), undisturbed)


@pytest.mark.full
@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_that_dies_in_every_step_of_one_run(
    live: LiveFederation, undisturbed: list[str], process: str
) -> None:
    check(live, process, STRUCK, undisturbed)


@pytest.mark.full
@pytest.mark.parametrize("step", STRUCK)
@pytest.mark.parametrize("process", PROCESSES)
def test_every_process_at_every_step(live: LiveFederation, undisturbed: list[str], process: str, step: str) -> None:
    check(live, process, (step,), undisturbed)


# ------------------------------------------------------------------- the gateway's own stages


def stage(live: LiveFederation, run: Run) -> str:
    file = live.home(SITE) / "runs" / run.run_id / "state.json"
    return str(json.loads(file.read_text())["state"]["stage"]) if file.exists() else ""


@pytest.mark.full
@pytest.mark.parametrize("at", sorted(LIVING))
def test_the_gateway_dies_in_every_stage(live: LiveFederation, undisturbed: list[str], at: Stage) -> None:
    """The gateway is stopped before one looks, so that it dies in the stage that was seen."""
    gateway = SERVED["gateway"][0]
    for _ in range(TRIES):
        run = live.client.submit(live.job(**JOB))
        try:
            hit = _caught(live, run, gateway, at)
            if hit:
                os.kill(live.process(gateway).pid, signal.SIGKILL)
                revive(live, "gateway")
            state = ended(run)
        except BaseException:
            end_anyhow(live, run)
            raise
        assert hashes(state) == undisturbed
        if hit:
            return
    pytest.fail(f"the gateway was never seen {at.value}")


def _caught(live: LiveFederation, run: Run, gateway: str, at: Stage) -> bool:
    """It is stopped in the stage; False when the run ended first."""
    process = live.process(gateway)
    while True:
        try:
            now = step_now(run)
            if now.startswith("train/") or (now == "start" and at is Stage.STARTING):
                process.send_signal(signal.SIGSTOP)
                if stage(live, run) == at:
                    return True
                process.send_signal(signal.SIGCONT)
        except Missed:
            return False
        time.sleep(0.001)
