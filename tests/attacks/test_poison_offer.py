"""An offer or an order that makes the site's decision itself fail: the answer is no, and the gateway lives on.

Whoever offers chooses what is decided on. A gateway that ended there would end again each time the offer is sent anew,
and every other run at the site with it.
"""

from __future__ import annotations

from typing import Any

import pytest

from fakes.governance import AUDIENCE, ISSUER, NOW, key
from fakes.governed_sites import PATIENCE_S, GovernedSite
from msfl.gateway import judge as engine_at_site
from msfl.policies import decide as engine
from msfl.policies.decide import RULES
from msfl.policies.identity import mint_token
from msfl.protos.audit_log import read_entries

SECRET = "/data/ms-trial/imagesTr/DOE_JOHN.nii.gz"


def poisonous(*_: object, **__: object) -> Any:
    raise KeyError(SECRET)


def poison(monkeypatch: pytest.MonkeyPatch, job: str = "") -> None:
    """A rule that raises, for jobs of that name, or for all."""
    name, rule = RULES[0]

    def broken(policy: Any, request: Any, now: Any) -> Any:
        return poisonous() if job in ("", request.job.name) else rule(policy, request, now)

    monkeypatch.setattr(engine, "RULES", ((name, broken), *RULES[1:]))


def whole_log(site: GovernedSite) -> str:
    return (site.home.root / "audit/log.jsonl").read_text()


def errors(site: GovernedSite, action: str) -> list[str]:
    log = read_entries(site.home.root / "audit/log.jsonl")
    return [str(entry.fields.get("error", "")) for entry in log if entry.action == action]


def test_a_poison_offer_is_refused_each_time_and_others_are_served(
    site: GovernedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, "poison")
    for again in range(1, 4):
        assert site.offer(name="poison") == "engine_error"
        site.nothing_started("engine_error")
        assert errors(site, "run decided") == ["KeyError"] * again
    assert not (site.home.run_folder("run-1") / "papers.json").exists()
    assert site.offer("run-2") == "allow"
    site.order()
    assert site.failure() == ""
    assert len(site.runtime.started) == 1


def test_what_went_wrong_stays_in_the_sites_own_log(
    site: GovernedSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch)
    site.send()
    answer = site.line.answers.get(timeout=PATIENCE_S)
    assert answer.verdict == "refuse"
    assert SECRET not in str(answer)
    assert "KeyError" not in str(answer), "errors leave as codes"
    assert SECRET not in whole_log(site)
    logged = capsys.readouterr().out
    assert SECRET in logged
    assert "Traceback" in logged
    assert site.world.token not in logged


@pytest.mark.parametrize("step", ["load_json", "verify_token", "verify_job", "statements_of", "resolve_config"])
def test_whichever_step_fails(site: GovernedSite, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(engine_at_site, step, poisonous)
        assert site.offer() == "engine_error"
        site.nothing_started("engine_error")
    assert site.offer() == "allow"


def test_a_user_whom_no_confirmation_can_name_is_refused(site: GovernedSite) -> None:
    """No bug needs to be made up: a provider may call its users anything, a signed confirmation may not."""
    text = site.world.policy_yaml.replace("  users: [ada@uni.example]\n", "").replace("mode: auto", "mode: confirm")
    site.sign_policy(text=text)
    token = mint_token(key("issuer"), ISSUER, AUDIENCE, "Ada L.", "", "uni.example", key("ada").thumbprint, NOW)
    site.send(token=token)
    assert site.answered() == "engine_error"
    site.nothing_started("engine_error")
    assert site.home.pending() == {}
    assert site.offer("run-2") == "confirm"


def test_an_order_that_cannot_be_decided_on_starts_nothing(site: GovernedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.offer() == "allow"
    with monkeypatch.context() as broken:
        poison(broken)
        site.order()
        assert site.failure() == "engine_error"
    assert site.runtime.started == []
    assert site.audited("task refused") == ["engine_error"]
    assert errors(site, "task refused") == ["KeyError"]
    assert site.offer("run-2") == "allow"


def test_a_running_run_that_cannot_be_decided_on_anew_is_ended(
    site: GovernedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    site.order("prepare")
    assert site.runtime.busy.wait(PATIENCE_S)
    with monkeypatch.context() as broken:
        poison(broken)
        site.runs[0].look_again()  # As the gateway does every two seconds.
        assert site.runtime.ended.wait(PATIENCE_S)
        assert site.failure() == "engine_error"
    assert site.audited("run not allowed any more") == ["engine_error"]
    assert errors(site, "run not allowed any more") == ["KeyError"]
    assert site.line.uploads == []
    assert len(site.runtime.started) == 1, "it was started again"
    assert site.offer("run-2") == "allow"


def test_a_run_that_cannot_be_decided_on_after_a_restart_is_ended(
    site: GovernedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.offer() == "allow"
    with monkeypatch.context() as broken:
        poison(broken)
        site.restart()
        site.come_back("run-1")
        site.order()
        assert site.failure() == "engine_error"
    assert site.runtime.started == []
    assert site.audited("run stopped") == [""]
    site.hear(site.papers())
    assert site.offer("run-2") == "allow"
