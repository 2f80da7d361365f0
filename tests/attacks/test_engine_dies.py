"""Attack 8 at a site: deciding hits a bug. The gateway ends, as for every bug; nothing started, nothing was answered,
and its audit log says that it ended by a bug, and in which run.
"""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest

from fakes.governance import key
from fakes.governed_sites import PATIENCE_S, GovernedSite
from msfl.gateway import main
from msfl.gateway.site_run import RunAtSite
from msfl.policies import decide as engine
from msfl.policies.decide import RULES
from msfl.policies.encoding import encode
from msfl.policies.identity import sign_job
from msfl.protos.messages import Offer


@pytest.mark.parametrize(
    ("place", "error"), [(0, KeyError), (7, AttributeError), (-1, ZeroDivisionError)], ids=["first", "one", "last"]
)
def test_a_rule_that_raises_ends_the_gateway_and_starts_nothing(
    site: GovernedSite, monkeypatch: pytest.MonkeyPatch, place: int, error: type[Exception]
) -> None:
    def broken(*_: object) -> object:
        raise error("the patient DOEJOHN")

    rules = list(RULES)
    rules[place] = (rules[place][0], broken)  # type: ignore[assignment]
    monkeypatch.setattr(engine, "RULES", tuple(rules))
    ended, exits = threading.Event(), list[int]()

    def noted(code: int) -> None:
        exits.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", noted)
    monkeypatch.setattr(threading, "excepthook", partial(main._end_of_a_thread, site.audit_log))
    spec = encode(site.world.job.model_copy(update={"digest": site.digest}))
    run = RunAtSite("run-1", site.around)
    site.runs.append(run)
    run.hear(Offer("run-1", spec, sign_job(spec, key("ada")), site.fresh_token(), dry_run=False))
    assert ended.wait(PATIENCE_S)
    assert exits == [70]
    assert site.audited("gateway ends") == ["bug"]
    assert site.audited("run decided") == site.audited("worker starts") == []
    assert site.line.answers.empty()
    assert site.line.reports.empty()
    assert (site.runtime.started, site.line.uploads) == ([], [])
    assert "DOEJOHN" not in (site.home.root / "audit/log.jsonl").read_text()
