"""Somebody whom a policy refuses by name, at a policy that is open to her whole organisation, leaves out who she is.

A user chooses which claims her token asks the provider for. `refuse` compares addresses and organisations: a token
that does not say them would be on no list.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.governance import AUDIENCE, ISSUER, edit, key
from fakes.governed_sites import GovernedSite
from msfl.gateway import confirmations
from msfl.policies.documents import IssuerKeys
from msfl.policies.identity import mint_token
from msfl.policies.keys import encode_public

OPEN = ("  users: [ada@uni.example]\n", "")
REFUSE = "releases:\n  - name"


def token(site: GovernedSite, email: str, organisation: str = "uni.example") -> str:
    return mint_token(key("issuer"), ISSUER, AUDIENCE, "user-1", email, organisation, key("ada").thumbprint, site.now)


@pytest.mark.parametrize(
    ("refused", "open_to", "email", "organisation"),
    [
        ("users: [ada@uni.example]", OPEN, "ada@uni.example", "uni.example"),
        ("users: [ada@uni.example]", OPEN, "", "uni.example"),
        ("organisations: [uni.example]", ("  organisations: [uni.example]\n", ""), "ada@uni.example", ""),
        ("organisations: [uni.example]", ("  organisations: [uni.example]\n", ""), "ada@uni.example", "Uni.Example"),
    ],
)
def test_whoever_leaves_out_her_name_is_refused(
    site: GovernedSite, refused: str, open_to: tuple[str, str], email: str, organisation: str
) -> None:
    text = edit(site.world.policy_yaml, *open_to)
    site.sign_policy(text=edit(text, REFUSE, f"refuse: {{{refused}}}\n{REFUSE}"))
    site.send(token=token(site, email, organisation))
    assert site.answered() == "explicitly_refused"
    site.nothing_started("explicitly_refused")


def test_others_of_her_organisation_are_let_in(site: GovernedSite) -> None:
    text = edit(site.world.policy_yaml, *OPEN)
    site.sign_policy(text=edit(text, REFUSE, f"refuse: {{users: [eve@uni.example]}}\n{REFUSE}"))
    site.send(token=token(site, "ada@uni.example"))
    assert site.answered() == "allow"


def test_a_user_who_calls_herself_by_anothers_address_is_not_that_other(site: GovernedSite) -> None:
    """A provider checks addresses; a subject is whatever somebody signed up as."""
    bound = key("ada").thumbprint
    site.send(token=mint_token(key("issuer"), ISSUER, AUDIENCE, "ada@uni.example", "", "uni.example", bound, site.now))
    assert site.answered() == "user_not_named"
    site.nothing_started("user_not_named")


ELSEWHERE = "https://other.example"


@pytest.fixture
def two_providers(tmp_path: Path) -> GovernedSite:
    other = IssuerKeys(issuer=ELSEWHERE, audience=AUDIENCE, keys=(encode_public(key("issuer-b").public),))
    return GovernedSite(tmp_path, other)


@pytest.mark.parametrize(
    ("named", "here", "elsewhere"),
    [
        ("user-1", "user_not_named", "user_not_named"),
        (f"{ISSUER}#user-1", "allow", "user_not_named"),
        (f"{ELSEWHERE}#user-1", "user_not_named", "allow"),
    ],
)
def test_of_two_providers_each_has_its_own_user_of_that_name(
    two_providers: GovernedSite, named: str, here: str, elsewhere: str
) -> None:
    site, bound = two_providers, key("ada").thumbprint
    text = edit(site.world.policy_yaml, "users: [ada@uni.example]", f'users: ["{named}"]')
    site.sign_policy(4, text=edit(text, "  organisations: [uni.example]\n", ""))
    site.hear(site.papers())
    for run, signer, issuer, expected in (
        ("run-1", "issuer", ISSUER, here),
        ("run-2", "issuer-b", ELSEWHERE, elsewhere),
    ):
        made = mint_token(key(signer), issuer, AUDIENCE, "user-1", "", "", bound, site.now)
        site.send(run, token=made)
        assert site.answered() == expected


def test_the_custodian_reads_whose_subject_it_is(site: GovernedSite) -> None:
    """At a policy open to an organisation, where the custodian confirms each run."""
    text = edit(edit(site.world.policy_yaml, *OPEN), "mode: auto", "mode: confirm")
    site.sign_policy(text=text)
    bound = key("ada").thumbprint
    site.send(token=mint_token(key("issuer"), ISSUER, AUDIENCE, "ada@uni.example", "", "uni.example", bound, site.now))
    assert site.answered() == "confirm"
    (shown,) = site.home.pending().values()
    line = confirmations.in_words(confirmations.confirmation(shown["asked"]), None)[0]
    assert f"asked for by {ISSUER}#ada@uni.example," in line
