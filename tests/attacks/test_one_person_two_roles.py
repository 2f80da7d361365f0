"""One person, or one key, stands for two of the people who must agree: the threshold is not reached, nothing starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes.governance import NOW, key, member
from fakes.governed_sites import GovernedSite, later
from msfl.gateway.confirmations import confirmation, signed
from msfl.gateway.home import write
from msfl.gateway.main import app
from msfl.gateway.standing import next_of
from msfl.policies.documents import Member, RunConfirmation
from msfl.policies.encoding import encode
from msfl.policies.envelope import SITE_ROOT, sign
from msfl.policies.refusals import Code, Refused

TWICE = Code.ONE_PERSON_TWO_ROLES.value


def hand_over(site: GovernedSite, *custodians: Member, threshold: int = 1, by: tuple[str, ...]) -> None:
    """The site's own custodians do this: no forgery, only a mistake, or friends."""
    following = later(site.site_root, custodians=custodians, threshold=threshold)
    write(next_of(site.home.site_root_file), sign(encode(following), SITE_ROOT, [key(n) for n in ("cleo", *by)]))
    site.standing.look_at_words(NOW)
    assert site.audited("document refused") == []


@pytest.mark.parametrize("person", ["paul", "rosa"])
def test_the_publisher_or_a_reviewer_lets_their_own_release_in(site: GovernedSite, person: str) -> None:
    hand_over(site, member(person, f"{person}-at-home"), by=(f"{person}-at-home",))
    site.sign_policy(version=4, by=(f"{person}-at-home",))
    assert site.offer() == TWICE
    site.nothing_started(TWICE)


@pytest.mark.parametrize("name", ["otto", "tim", "paul", "raya"])
def test_a_key_of_the_federation_under_a_custodians_name(site: GovernedSite, name: str) -> None:
    hand_over(site, member("carl", name), by=(name,))
    site.sign_policy(version=4, by=(name,))
    assert site.offer() == TWICE
    site.nothing_started(TWICE)


def test_with_another_custodian_beside_them_the_threshold_is_reached(site: GovernedSite) -> None:
    hand_over(site, member("cleo"), member("rosa", "rosa-at-home"), by=())
    site.sign_policy(version=4, by=("cleo", "rosa-at-home"))
    assert site.offer() == "allow"


def wait_for_a_yes(site: GovernedSite, *custodians: Member, by: tuple[str, ...]) -> RunConfirmation:
    """Under a policy that cleo signed alone: what is asked of the custodians."""
    hand_over(site, member("cleo"), *custodians, by=by)
    site.sign_policy(version=4, text=site.world.policy_yaml.replace("mode: auto", "mode: confirm"))
    assert site.offer() == "confirm"
    return confirmation(site.home.pending()["run-1"]["asked"])


@pytest.mark.parametrize(
    "custodian", [member("paul"), member("paul", "paul-at-home"), member("rosa", "rosa-at-home"), member("carl", "tim")]
)
def test_the_publisher_or_a_reviewer_or_a_steward_of_the_federation_confirms_a_run(
    site: GovernedSite, tmp_path: Path, custodian: Member
) -> None:
    names = ("paul", "paul-at-home", "rosa-at-home", "tim")
    (name,) = [n for n in names if key(n).id == custodian.key_id]
    asked = wait_for_a_yes(site, custodian, by=())
    file = tmp_path / "key.pem"
    file.write_bytes(key(name).to_pem())
    told = CliRunner().invoke(app, ["confirm", "run-1", "--home", str(site.home.root), "--key", str(file), "--yes"])
    assert isinstance(told.exception, Refused)
    assert told.exception.refusal.code is Code.ONE_PERSON_TWO_ROLES
    assert site.home.confirmed("run-1") is None
    site.runs[0].custodian_signed(signed(asked, key(name), None))  # Whatever a terminal says.
    assert site.offer_again() == "confirm", "it waits on"
    assert site.audited("confirmation not taken") == [TWICE]
    site.order()
    assert site.audited("custodian answered") == []
    assert site.runtime.started == []
    assert site.audited("worker starts") == []


def test_a_yes_of_theirs_beside_another_custodians_hurts_nobody(site: GovernedSite) -> None:
    asked = wait_for_a_yes(site, member("rosa", "rosa-at-home"), by=())
    theirs = signed(asked, key("rosa-at-home"), None)
    site.runs[0].custodian_signed(signed(asked, key("cleo"), theirs))
    assert site.answered() == "allow"


def test_a_threshold_of_two_is_not_reached_by_a_custodian_and_the_reviewer(site: GovernedSite) -> None:
    hand_over(site, member("cleo"), member("rosa", "rosa-at-home"), threshold=2, by=("rosa-at-home",))
    site.sign_policy(version=4, by=("cleo", "rosa-at-home"))
    assert site.offer() == TWICE
    site.nothing_started(TWICE)


@pytest.mark.parametrize("signers", [("cleo",), ("cleo", "cleo-again"), ("cleo", "paul"), ("cleo", "otto", "issuer")])
def test_one_custodian_with_helpers_who_are_none_is_one_of_two(site: GovernedSite, signers: tuple[str, ...]) -> None:
    both = (member("cleo"), member("cleo", "cleo-again"), member("carl"))
    hand_over(site, *both, threshold=2, by=("carl",))
    site.sign_policy(version=4, by=signers)
    assert site.offer() == Code.TOO_FEW_SIGNERS.value
    site.nothing_started("too_few_signers")


def test_one_signature_under_two_ids_is_one(site: GovernedSite) -> None:
    """cleo's own signature once more, under carl's id."""
    hand_over(site, member("cleo"), member("carl"), threshold=2, by=("carl",))
    site.sign_policy(version=4)
    file = site.home.root / "policies/one.dsse"
    envelope = json.loads(file.read_bytes())
    envelope["signatures"].append({**envelope["signatures"][0], "keyid": key("carl").id})
    write(file, json.dumps(envelope).encode())
    assert site.offer() == Code.TOO_FEW_SIGNERS.value
    site.nothing_started("too_few_signers")


def test_two_reviews_of_one_person_are_one(site: GovernedSite) -> None:
    site.hear(site.papers(2, keys=(key("rui").id,)))  # Of the two reviewers, rosa is left; the policy wants two.
    assert site.offer() == Code.TOO_FEW_REVIEWERS.value
    site.nothing_started("too_few_reviewers")
