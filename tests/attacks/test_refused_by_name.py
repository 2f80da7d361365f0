"""Somebody whom a policy refuses by name, at a policy that is open to her whole organisation, leaves out who she is.

A user chooses which claims her token asks the provider for. `refuse` compares addresses and organisations: a token
that does not say them would be on no list.
"""

from __future__ import annotations

import pytest

from fakes.governance import AUDIENCE, ISSUER, edit, key
from fakes.governed_sites import GovernedSite
from msfl.policies.identity import mint_token

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
