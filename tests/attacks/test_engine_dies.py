"""A bug outside the decision (one inside it refuses, `test_poison_offer`) ends the gateway, as every bug does: nothing
started, and its audit log says that it ended by a bug.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import NoReturn

import pytest

from fakes.governed_sites import PATIENCE_S, GovernedSite
from msfl.gateway import main
from msfl.gateway.site_run import RunAtSite


def test_a_bug_outside_the_decision_ends_the_gateway_and_starts_nothing(
    site: GovernedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> NoReturn:
        raise KeyError("the patient DOEJOHN")

    monkeypatch.setattr(RunAtSite, "_answer", broken)
    ended, exits = threading.Event(), list[int]()

    def noted(code: int) -> None:
        exits.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", noted)
    monkeypatch.setattr(threading, "excepthook", partial(main._end_of_a_thread, site.audit_log))
    site.send()
    assert ended.wait(PATIENCE_S)
    assert exits == [70]
    assert site.audited("gateway ends") == ["bug"]
    assert site.audited("worker starts") == []
    assert site.line.answers.empty()
    assert site.line.reports.empty()
    assert (site.runtime.started, site.line.uploads) == ([], [])
    assert "DOEJOHN" not in (site.home.root / "audit/log.jsonl").read_text()
