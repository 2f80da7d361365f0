"""A centre that goes on with a run which its user has ended, with the token and the proof that it still holds.

A run is resumed by its user's own signature over the job *and* the number of the resumption, so that each signature
takes up a run once. What a site has heard to be over stays over there.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from fakes.governance import AUDIENCE, ISSUER, NOW, key
from fakes.governed_sites import PATIENCE_S, GovernedSite
from msfl.gateway.record import RunRecord
from msfl.policies.identity import mint_token, sign_job
from msfl.protos.audit_log import read_entries
from msfl.protos.messages import Offer, StopOrder

RUN = "run-1"


def resume(site: GovernedSite, generation: int, signed_for: int | None = None) -> str:
    """The answer to an offer of that generation, signed for it or for another one."""
    site.resend(generation, signed_for=signed_for)
    return site.answered()


def abort(site: GovernedSite, generation: int = 1) -> None:
    """The user's word, as an honest centre passes it on."""
    site.runs[-1].hear(StopOrder(RUN, "aborted", generation))


def ran_once(site: GovernedSite) -> None:
    """One worker, of before the abort, and it has ended."""
    assert len(site.runtime.started) == 1
    assert site.runtime.ended.wait(PATIENCE_S)
    assert site.line.uploads == []


@pytest.fixture
def aborted(site: GovernedSite) -> GovernedSite:
    """Has begun, and was aborted by its user."""
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    abort(site)
    return site


def test_its_user_resumes_it(aborted: GovernedSite) -> None:
    assert resume(aborted, 2) == "allow"
    aborted.order("prepare")
    assert aborted.runtime.busy.wait(PATIENCE_S)
    assert len(aborted.runtime.started) == 2


@pytest.mark.parametrize("generation", [2, 3, 4_000_000_000])
def test_the_proof_of_the_submission_resumes_nothing(aborted: GovernedSite, generation: int) -> None:
    assert resume(aborted, generation, signed_for=1) == "proof_invalid"
    aborted.order("prepare")
    ran_once(aborted)
    assert aborted.audited("run decided") == ["", "proof_invalid"]


def test_no_proof_resumes_nothing_also_where_the_policy_asks_for_none(site: GovernedSite) -> None:
    site.sign_policy(text=site.world.policy_yaml.replace("proof: required", "proof: optional"))
    bare = mint_token(key("issuer"), ISSUER, AUDIENCE, "user-1", "ada@uni.example", "uni.example", None, NOW)
    for token in ("", bare):
        run = "run-bound" if not token else "run-bare"
        site.send(run, proof="", token=token)
        assert site.answered() == "allow"
        site.runs[-1].hear(StopOrder(run, "aborted", 1))
        site.resend(2, proof="", token=token)
        assert site.answered() == "proof_required"
    assert site.audited("run decided") == ["", "proof_required"] * 2
    assert site.runtime.started == []


def test_one_signature_resumes_once(aborted: GovernedSite) -> None:
    assert resume(aborted, 2) == "allow"
    abort(aborted, 2)
    aborted.resend(2)  # The very same again: over is over.
    assert resume(aborted, 3, signed_for=2) == "proof_invalid"
    aborted.order()
    ran_once(aborted)
    assert aborted.audited("offer refused") == ["run_over"]
    assert resume(aborted, 3) == "allow"


def test_a_signature_that_was_kept_back_is_good_for_nothing_after_the_next_abort(aborted: GovernedSite) -> None:
    """The user resumes and aborts once more while this site is away; it hears of the abort alone."""
    abort(aborted, 2)
    aborted.resend(2)
    assert resume(aborted, 3, signed_for=2) == "proof_invalid"
    ran_once(aborted)
    assert aborted.audited("offer refused") == ["run_over"]


def test_a_signature_for_a_resumption_submits_nothing_and_asks_nothing(site: GovernedSite) -> None:
    site.send(proof=sign_job(site.spec(), key("ada"), generation=2))
    assert site.answered() == "proof_invalid"
    site.nothing_started("proof_invalid")


@pytest.mark.parametrize("restarts", [0, 1])
def test_an_abort_outlives_the_gateway(aborted: GovernedSite, restarts: int) -> None:
    for _ in range(restarts):
        aborted.restart()
        aborted.come_back(RUN)
    aborted.resend(1)
    assert resume(aborted, 2, signed_for=1) == "proof_invalid"
    assert aborted.audited("offer refused") == ["run_over"]


@pytest.mark.parametrize("mode", ["auto", "confirm"])
def test_what_is_kept_of_it_is_not_kept_for_longer(aborted: GovernedSite, mode: str) -> None:
    """Patient data of a run that may be resumed go after some days, however often somebody tries in vain."""
    record = RunRecord(aborted.home.run_folder(RUN))
    aborted.sign_policy(version=4, text=aborted.world.policy_yaml.replace("mode: auto", f"mode: {mode}"))
    aborted.now += timedelta(hours=2)
    assert resume(aborted, 2, signed_for=1) == "proof_invalid"
    kept = record.load()
    assert kept is not None
    assert kept.ended == NOW
    if mode == "confirm":
        assert resume(aborted, 2) == "confirm"
        aborted.runs[-1].custodian_declines()
        assert aborted.answered() == "custodian_refused"
        kept = record.load()
        assert kept is not None
        assert kept.ended == aborted.now


def test_a_resumed_run_goes_on_after_a_restart_of_the_gateway(aborted: GovernedSite) -> None:
    assert resume(aborted, 2) == "allow"
    aborted.restart()
    aborted.come_back(RUN)
    aborted.order()
    assert aborted.failure() == ""


def whole_log(site: GovernedSite) -> list[tuple[str, str]]:
    """Actions and codes, once everything that was heard has been dealt with."""
    site.close()
    log = read_entries(site.home.root / "audit/log.jsonl")
    site.start_gateway()
    return [(entry.action, str(entry.fields.get("code", ""))) for entry in log]


def agent_hears(site: GovernedSite, *orders: Offer | StopOrder) -> None:
    agent = site.agent()
    for order in orders:
        agent.dispatch(order)
    site.runs += agent.runs()


def offer(site: GovernedSite) -> Offer:
    spec = site.spec(RUN)
    return Offer(RUN, spec, sign_job(spec, key("ada")), site.world.token, dry_run=False)


def test_a_run_that_was_aborted_before_this_site_heard_of_it_does_not_begin(site: GovernedSite) -> None:
    agent_hears(site, StopOrder(RUN, "aborted", 1), offer(site))
    log = whole_log(site)
    assert log[-1] == ("offer refused", "run_over")
    assert "run decided" not in [action for action, _ in log]
    assert RunRecord(site.home.run_folder(RUN)).over(1)
    assert site.line.answers.empty()
    assert site.runtime.started == []


def test_a_refused_run_that_was_aborted_while_the_gateway_was_down_does_not_begin(site: GovernedSite) -> None:
    policy = site.home.root / "policies/one.dsse"
    kept = policy.read_bytes()
    policy.unlink()
    assert site.offer() == "no_policy"
    site.restart(lambda: policy.write_bytes(kept))
    agent_hears(site, StopOrder(RUN, "aborted", 1), offer(site))
    log = whole_log(site)
    assert log[-1] == ("offer refused", "run_over")
    assert site.runtime.started == []


def test_a_stop_order_for_what_is_over_needs_no_thread(aborted: GovernedSite) -> None:
    """An orchestrator says it again on each new stream, for all runs of the last days."""
    aborted.restart()
    agent = aborted.agent()
    agent.dispatch(StopOrder(RUN, "aborted", 1))
    assert agent.runs() == []
