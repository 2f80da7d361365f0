"""Every site keeps the last word: each reason to refuse is found at the site, and then nothing starts anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from fakes.federations import DATASET, SITES, LiveFederation, until
from fakes.governance import edit
from msfl.gateway.home import Home
from msfl.policies.encoding import canonical_json
from msfl.policies.envelope import RUN_CONFIRMATION, sign
from msfl.policies.keys import KeyPair
from msfl.sdk.run import SiteRefusal

pytestmark = [pytest.mark.system, pytest.mark.slow]
Spoil = Callable[[LiveFederation], None]
SITE = "site-b"


@pytest.fixture(autouse=True)
def a_quiet_federation(live: LiveFederation) -> Iterator[None]:
    """The workers of an earlier story have ended, and this one's policies are not the next one's."""
    until(lambda: not any(live.workers(site) for site in SITES), "earlier workers to end")
    with live.policies_put_back():
        yield


def no_policy(live: LiveFederation) -> None:
    live.remove_policy(SITE)


def wrong_signer(live: LiveFederation) -> None:
    live.sign_policy(SITE, live.policy(SITE), KeyPair.generate())


def other_sites_custodian(live: LiveFederation) -> None:
    live.sign_policy(SITE, live.policy(SITE), live.custodian_key("site-a"))


def other_dataset(live: LiveFederation) -> None:
    live.sign_policy(SITE, edit(live.policy(SITE), f"datasets: [{DATASET}]", "datasets: [ms-other]"))


def other_digest(live: LiveFederation) -> None:
    assert live.federation.statement is not None
    live.sign_policy(SITE, edit(live.policy(SITE), live.federation.statement.digest, "sha256:" + "0" * 64))


def config_out_of_range(live: LiveFederation) -> None:
    (line,) = (row for row in live.policy(SITE).splitlines() if row.strip().startswith("initial_lr:"))
    live.sign_policy(SITE, edit(live.policy(SITE), line, "  initial_lr: {max: 0.001}"))


def config_not_listed(live: LiveFederation) -> None:
    (line,) = (row for row in live.policy(SITE).splitlines() if row.strip().startswith("batches_per_epoch:"))
    live.sign_policy(SITE, edit(live.policy(SITE), line + "\n", ""))


def expired(live: LiveFederation) -> None:
    site = next(s for s in live.federation.sites if s.name == SITE)
    long_ago = datetime.now(UTC).replace(microsecond=0) - timedelta(days=90)
    live.sign_policy(SITE, live.federation.policy(site, long_ago))


def other_user(live: LiveFederation) -> None:
    live.sign_policy(SITE, edit(live.policy(SITE), "ada@uni.example", "bob@uni.example"))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (no_policy, "no_policy"),
        (wrong_signer, "wrong_signer"),
        (other_sites_custodian, "wrong_signer"),
        (other_dataset, "dataset_not_named"),
        (other_digest, "digest_not_named"),
        (config_out_of_range, "config_out_of_range"),
        (config_not_listed, "config_key_not_listed"),
        (expired, "policy_expired"),
        (other_user, "user_not_named"),
    ],
)
def test_a_site_refuses_with_its_own_code_and_nothing_starts(live: LiveFederation, spoil: Spoil, code: str) -> None:
    spoil(live)
    run = live.client.submit(live.job())
    with pytest.raises(SiteRefusal) as refused:
        run.wait()
    said, why = refused.value.refusals[SITE]
    assert set(refused.value.refusals) == {SITE}
    assert said == code
    assert why
    assert SITE in str(refused.value)
    assert code in str(refused.value)
    assert run.state()["phase"] == "refused"
    decided = [e for e in live.audit(SITE, run.run_id) if e["action"] == "run decided"]
    assert [(e["fields"]["verdict"], e["fields"]["code"]) for e in decided] == [("refuse", code)]
    for site in SITES:
        assert "worker starts" not in live.actions(site, run.run_id)
        assert live.workers(site) == []


def test_the_others_go_on_without_a_site_that_refuses(live: LiveFederation) -> None:
    live.remove_policy(SITE)
    run = live.client.submit(live.job(min_sites=2))
    state = run.wait()
    assert state["phase"] == "finished"
    assert state["sites"][SITE]["code"] == "no_policy"
    assert set(state["rounds"][0]["sites"]) == {"site-a", "site-c"}
    assert live.actions(SITE, run.run_id) == ["run decided"]
    assert "worker starts" in live.actions("site-a", run.run_id)


def test_an_explanation_says_who_would_do_what_and_starts_nothing(live: LiveFederation) -> None:
    live.sign_policy("site-a", edit(live.policy("site-a"), "mode: auto", "mode: confirm"))
    live.remove_policy(SITE)
    answers = live.client.explain(live.job())
    assert {site: answer["standing"] for site, answer in answers.items()} == {
        "site-a": "needs confirmation",
        "site-b": "refused",
        "site-c": "accepted",
    }
    assert answers[SITE]["refusal"]["code"] == "no_policy"
    last = {site: live.audit(site)[-1] for site in SITES}
    assert {e["action"] for e in last.values()} == {"run explained"}
    assert len({e["object"] for e in last.values()}) == 1
    assert all(live.workers(site) == [] for site in SITES)
    assert live.command("gateway", "pending", "--home", live.home("site-a"), "--json").stdout.strip() == "{}"


# --------------------------------------------------------------------------------------------------- confirmation


def parked(live: LiveFederation, **changes: int) -> str:
    """A run that waits for the custodian of one site."""
    live.sign_policy(SITE, edit(live.policy(SITE), "mode: auto", "mode: confirm"))
    run = live.client.submit(live.job(**changes))

    def standings() -> dict[str, str]:
        return {site: member["standing"] for site, member in run.state()["sites"].items()}

    waiting = {"site-a": "accepted", "site-b": "needs confirmation", "site-c": "accepted"}
    until(lambda: standings() == waiting, "the sites to answer")
    assert run.state()["phase"] == "offered"
    assert all(live.workers(site) == [] for site in SITES)
    shown = json.loads(live.command("gateway", "pending", "--home", live.home(SITE), "--json").stdout)
    assert shown[run.run_id]["job"]["name"] == "story"
    return run.run_id


def test_a_parked_run_begins_when_the_custodian_confirms(live: LiveFederation) -> None:
    run_id = parked(live)
    said = live.confirm(SITE, run_id)
    assert said.returncode == 0, said.stderr
    assert live.job().release in said.stdout
    assert "reviewed by linus@clinic-a.example, mary@clinic-b.example" in said.stdout
    assert "May leave this site:" in said.stdout
    state = live.client.run(run_id).wait()
    assert state["phase"] == "finished"
    actions = live.actions(SITE, run_id)
    assert actions.index("run decided") < actions.index("custodian answered") < actions.index("worker starts")
    answered = next(e for e in live.audit(SITE, run_id) if e["action"] == "custodian answered")
    assert answered["fields"]["verdict"] == "allow"
    assert answered["fields"]["by"] == "custodian@site-b.example"

    # The next one is compared with it.
    until(lambda: not any(live.workers(site) for site in SITES), "the workers to end")
    again = parked(live, rounds=2)
    shown = live.confirm(SITE, again).stdout
    assert f"Compared with {run_id}" in shown
    assert "  rounds: 1 → 2" in shown
    assert live.client.run(again).wait()["phase"] == "finished"


def test_a_yes_that_no_custodian_signed_starts_nothing(live: LiveFederation) -> None:
    run_id = parked(live)
    shown = json.loads((live.home(SITE) / f"pending/{run_id}.json").read_text())
    mine, other = live.custodian_key(SITE), KeyPair.generate()

    def put(fields: dict[str, object], key: KeyPair) -> None:
        envelope = sign(canonical_json({**shown["asked"], **fields}), RUN_CONFIRMATION, [key])
        Home(live.home(SITE)).confirm(run_id, envelope)

    def refused() -> list[str]:
        return [e["fields"]["code"] for e in live.audit(SITE, run_id) if e["action"] == "confirmation not taken"]

    put({}, other)
    until(lambda: refused() == ["wrong_signer"], "the gateway to look at it")
    put({"run": "20260101-000000-00000000"}, mine)
    until(lambda: refused() == ["wrong_signer", "confirmation_differs"], "the gateway to look at it")
    assert live.client.run(run_id).state()["phase"] == "offered"
    assert all("worker starts" not in live.actions(site, run_id) for site in SITES)
    assert live.confirm(SITE, run_id).returncode == 0
    assert live.client.run(run_id).wait()["phase"] == "finished"


def test_a_parked_run_never_begins_when_the_custodian_refuses(live: LiveFederation) -> None:
    run_id = parked(live)
    said = live.command("gateway", "refuse", run_id, "--home", live.home(SITE), "--by", "cleo")
    assert said.returncode == 0, said.stderr
    with pytest.raises(SiteRefusal) as refused:
        live.client.run(run_id).wait()
    assert refused.value.refusals[SITE][0] == "custodian_refused"
    for site in SITES:
        assert "worker starts" not in live.actions(site, run_id)


def test_a_run_that_does_not_wait_cannot_be_confirmed(live: LiveFederation) -> None:
    said = live.confirm(SITE, "20260101-000000-00000000")
    assert said.returncode == 1
    assert "no run" in said.stdout + said.stderr
