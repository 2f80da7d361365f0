"""The centre's disk is full, or cannot be written any more: runs wait for it and say so, and lose nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from fakes.disks import filled, read_only, small_disk
from fakes.federations import SITES, STEADY, LiveFederation, until
from msfl.sdk.reporting import report_document

pytestmark = [pytest.mark.system, pytest.mark.slow]
JOB: dict[str, Any] = {"rounds": 3, "seed": 11, **STEADY}


@pytest.fixture(scope="module")
def undisturbed(live: LiveFederation) -> dict[str, Any]:
    run = live.client.submit(live.job(**JOB))
    assert run.wait()["phase"] == "finished"
    return report_document(run.state())


def said(live: LiveFederation) -> int:
    """How often the centre's disk is named: in its own log, or by gateways that it told to come again."""
    return sum(log.read_text().count("cannot be written") for log in live.processes._logs.glob("*.log"))


@pytest.mark.parametrize("trouble", [filled, read_only])
def test_a_run_waits_for_the_disk(
    live: LiveFederation, undisturbed: dict[str, Any], trouble: Callable[[Path], AbstractContextManager[None]]
) -> None:
    artifacts = live.federation.folder / "centre/artifacts"
    with small_disk(artifacts, 16):
        run = live.client.submit(live.job(**JOB))
        until(lambda: run.state()["rounds"], "the first round to close")
        before = said(live)
        with trouble(artifacts):
            until(lambda: said(live) > before, "the centre to say so")
            assert run.state()["phase"] == "running"
            assert live.all_present(), "a full disk does not end the orchestrator"
        state = run.wait()
    assert state["phase"] == "finished", state
    report = report_document(state)
    assert all(set(r["sites"]) == set(SITES) for r in report["rounds"])
    assert [r["weights_blake3"] for r in report["rounds"]] == [r["weights_blake3"] for r in undisturbed["rounds"]]
    assert report["final_weights_sha256"] == undisturbed["final_weights_sha256"]
