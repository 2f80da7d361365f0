"""The engine itself fails: a rule that raises, or a rule with nothing to say, never allows anything.

In `decide` a bug is an exception that nobody catches: no decision comes out. At a site the judge makes a no of it, so
that there is nothing that could start a worker; `test_poison_offer` has what the gateway does then.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.governance import NOW, World, key
from fakes.governed_sites import JOB, OfferedSite
from msfl.gateway.judge import EngineError
from msfl.policies import decide as engine
from msfl.policies.decide import RULES, Verdict, decide
from msfl.policies.encoding import encode
from msfl.policies.identity import sign_job
from msfl.policies.refusals import Code
from msfl.protos.messages import Offer

PLACES = range(len(RULES))


@pytest.mark.parametrize("place", PLACES)
def test_a_rule_that_raises_decides_nothing(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    def broken(*_: object) -> object:
        raise KeyError("an attribute that is not there")

    rules = [*RULES[:place], (RULES[place][0], broken), *RULES[place + 1 :]]
    monkeypatch.setattr(engine, "RULES", tuple(rules))
    with pytest.raises(KeyError):
        World().decide()


@pytest.mark.parametrize("place", PLACES)
def test_each_rule_alone_can_refuse(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    name = RULES[place][0]
    rules = [*RULES[:place], (name, lambda *_: (Code.JOB_INCONSISTENT, "no")), *RULES[place + 1 :]]
    monkeypatch.setattr(engine, "RULES", tuple(rules))
    decision = World().decide(confirmed=True)
    assert decision.verdict is Verdict.REFUSE
    assert [rule.rule for rule in decision.rules if not rule.passed] == [name]


def test_a_rule_that_is_lost_on_the_way_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "RULES", RULES[:-1])
    with pytest.raises(ValueError, match="zip"):
        World().decide()


def test_at_a_site_no_decision_is_a_no_without_papers_and_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = OfferedSite(tmp_path)
    data = encode(JOB)
    offer = Offer("run-1", data, sign_job(data, key("ada")), site.world.token, False)
    monkeypatch.setattr(engine, "RULES", (("not_refused", lambda *_: 1 / 0), *RULES[1:]))
    site.start_gateway()
    assert site.hear(site.papers()) == []
    judgement = site.judge.judge(offer, NOW)
    assert judgement.decision.verdict is Verdict.REFUSE
    assert isinstance(judgement.decision.refusal, EngineError)
    assert judgement.decision.refusal.error == "ZeroDivisionError"
    assert "ZeroDivisionError" not in str(judgement.decision.to_json())
    assert (judgement.accepted, judgement.papers) == (None, None)
    assert site.audited("run decided") == []
    assert not site.home.runs.exists()
    assert site.ledger.runs("ms-trial-lesion-segmentation") == 0
    site.close()


def test_a_release_that_nobody_verified_is_no_request() -> None:
    with pytest.raises(TypeError, match="never by hand"):
        type(World().request().release)(World().statement, "sha256:0", "paul", (), object())


def test_without_a_policy_the_engine_is_not_even_asked() -> None:
    assert decide(World().request(), (), NOW).verdict is Verdict.REFUSE
