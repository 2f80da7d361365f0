"""A site says as much of a refusal as it wants to, and no more; what it allows it says the same way always."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.governance import World
from fakes.governed_sites import JOB, OfferedSite
from msfl.gateway.home import Home
from msfl.gateway.reveal import Reveal, revealed
from msfl.policies.documents import Isolation
from msfl.policies.protections import Protection
from msfl.policies.refusals import CannotProceed
from msfl.runtime.interface import Protections

HERE = Protections(Isolation.SANDBOX, ("no network",), frozenset({Protection.NO_NETWORK}))
REFUSED = World().decide(proof_given=False)
ALLOWED = World().decide()


def test_reason_gives_every_rule_and_the_reason() -> None:
    said = revealed(REFUSED, Reveal.REASON, HERE, "refuse")
    assert said["refusal"]["code"] == "proof_required"
    assert "not signed" in said["refusal"]["message"]
    assert [r["rule"] for r in said["rules"] if not r["passed"]] == ["proof"]
    assert said["isolation"] == {"level": "sandbox", "detail": ["no network"], "in_force": ["no_network"]}


def test_code_gives_the_code_alone_and_nothing_gives_nothing() -> None:
    assert revealed(REFUSED, Reveal.CODE, HERE, "refuse") == {
        "refusal": {"code": "proof_required", "message": "", "fields": {}}
    }
    assert revealed(REFUSED, Reveal.NOTHING, HERE, "refuse") == {}


def test_a_custodians_no_is_hidden_as_any_other() -> None:
    assert revealed(ALLOWED, Reveal.REASON, HERE, "refuse")["refusal"]["code"] == "custodian_refused"
    assert revealed(ALLOWED, Reveal.CODE, HERE, "refuse")["refusal"]["code"] == "custodian_refused"
    assert revealed(ALLOWED, Reveal.NOTHING, HERE, "refuse") == {}


@pytest.mark.parametrize("reveal", Reveal)
def test_what_is_allowed_is_said_the_same_way_always(reveal: Reveal) -> None:
    said = revealed(ALLOWED, reveal, HERE, "allow")
    assert set(said) == {"policy_id", "policy_sha256", "isolation"}


@pytest.mark.parametrize(
    ("reveal", "code"), [("reason", "config_out_of_range"), ("code", "config_out_of_range"), ("nothing", "")]
)
def test_the_setting_of_the_site_is_obeyed_and_its_own_log_knows_all(tmp_path: Path, reveal: str, code: str) -> None:
    site = OfferedSite(tmp_path)
    site.home.write_settings(replace(site.home.settings(), reveal=Reveal(reveal)))
    told = site.told(JOB.model_copy(update={"rounds": 61}), dry_run=True)
    assert (told.verdict, told.code, told.logged["code"]) == ("refuse", code, "config_out_of_range")
    assert told.started == []


def test_a_word_that_is_none_of_them_is_one_clear_line(tmp_path: Path) -> None:
    site = OfferedSite(tmp_path)
    file = site.home.root / "site.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "reveal": "no"}))
    with pytest.raises(CannotProceed, match=r"reveal is 'no'; it must be one of reason, code, nothing"):
        Home(site.home.root).settings()
