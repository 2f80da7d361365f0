"""Somebody whom a policy refuses by name, at a policy that is open to her, gets off that list.

She leaves out who she is: a user chooses which claims her token asks the provider for. `refuse` compares addresses and
organisations: a token that does not say them would be on no list. Or the policy that refuses her stops being trusted:
its file is damaged, the key that signed it is revoked, who signed it is no custodian any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.governance import AUDIENCE, ISSUER, LATER, edit, key, member
from fakes.governed_sites import GovernedSite, later
from msfl.gateway import confirmations
from msfl.gateway.home import write
from msfl.gateway.standing import next_of
from msfl.policies.documents import IssuerKeys, SiteRoot
from msfl.policies.encoding import encode
from msfl.policies.envelope import ASSET_POLICY, SITE_ROOT, sign
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


# --------------------------------------------------------------------- the policy that refuses her stops being trusted


class SiteOfTwo(GovernedSite):
    """cleo lets Ada in; carl, its other custodian, refuses her for the same data."""

    def _make_home(self, folder: Path) -> None:
        super()._make_home(folder)
        both = (member("cleo"), member("carl"))
        self.site_root = SiteRoot(site="site-a", version=1, custodians=both, threshold=1, expires=LATER)
        write(self.home.site_root_file, sign(encode(self.site_root), SITE_ROOT, [key("cleo")]))

    def put_carls(self, dataset: str = "ms-trial", version: int = 3) -> None:
        text = edit(self.world.policy_yaml, "id: ms-trial-lesion-segmentation", "id: carls")
        text = edit(edit(text, REFUSE, f"refuse: {{users: [ada@uni.example]}}\n{REFUSE}"), "[ms-trial]", f"[{dataset}]")
        text = edit(text, "\nversion: 3\n", f"\nversion: {version}\n")
        self.put_policy(sign(text.encode(), ASSET_POLICY, [key("carl")]), "two")

    @property
    def carls(self) -> Path:
        return self.home.root / "policies/two.dsse"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[SiteOfTwo]:
    with SiteOfTwo.up(tmp_path) as site:
        site.put_carls()
        yield site


def cut(site: SiteOfTwo) -> None:
    site.carls.write_bytes(site.carls.read_bytes()[:-40])


def revoke_at_the_site(site: SiteOfTwo) -> None:
    site.memory.say("key", key("carl").id, "cleo")
    site.standing.look_at_words(site.now)


def revoke_by_the_keepers(site: SiteOfTwo) -> None:
    assert site.hear(site.papers(2, keys=(key("carl").id,))) == []


def revoke_the_policy(site: SiteOfTwo) -> None:
    assert site.hear(site.papers(2, policies=("site-a/carls",))) == []


def rotate_out(site: SiteOfTwo) -> None:
    following = later(site.site_root, custodians=(member("cleo"),))
    write(next_of(site.home.site_root_file), sign(encode(following), SITE_ROOT, [key("cleo")]))
    site.standing.look_at_words(site.now)


STOPS_BEING_TRUSTED = pytest.mark.parametrize(
    ("happens", "code"),
    [
        (cut, "malformed_document"),
        (revoke_at_the_site, "key_revoked"),
        (revoke_by_the_keepers, "key_revoked"),
        (revoke_the_policy, "policy_revoked"),
        (rotate_out, "wrong_signer"),
    ],
)


@STOPS_BEING_TRUSTED
def test_the_policy_that_refuses_her_stops_being_trusted(
    two: SiteOfTwo, happens: Callable[[SiteOfTwo], None], code: str
) -> None:
    happens(two)
    assert two.offer() == code
    two.nothing_started(code)
    two.carls.unlink()  # What custodians do who mean to let her in.
    assert two.offer("run-2") == "allow"


@STOPS_BEING_TRUSTED
def test_it_does_so_between_the_decision_and_the_start(
    two: SiteOfTwo, happens: Callable[[SiteOfTwo], None], code: str
) -> None:
    two.put_carls(dataset="ms-other")
    assert two.offer() == "allow"
    two.put_carls(version=4)  # Never seen while it counts.
    happens(two)
    two.order()
    assert two.failure() == code
    assert two.runtime.started == []


def test_what_works_already_goes_on_beside_it(two: SiteOfTwo) -> None:
    """It was decided on while all could be read."""
    two.put_carls(dataset="ms-other")
    assert two.offer() == "allow"
    two.order()
    assert two.failure() == ""
    cut(two)
    two.runs[-1].look_again()
    two.order("start", nth=2)
    assert two.failure() == ""


def test_one_that_names_other_data_says_nothing_here(two: SiteOfTwo) -> None:
    two.put_carls(dataset="ms-other")
    rotate_out(two)
    assert two.offer() == "allow"


def test_an_older_version_beside_its_newer_one_refuses_nobody(two: SiteOfTwo) -> None:
    two.carls.unlink()
    older = edit(two.world.policy_yaml, REFUSE, f"refuse: {{users: [ada@uni.example]}}\n{REFUSE}")
    two.sign_policy(version=4)
    two.standing.policies(two.now)
    two.put_policy(sign(older.encode(), ASSET_POLICY, [key("cleo")]), "two")
    assert two.offer() == "allow"
    two.put_policy(sign(older.replace("\nversion: 3\n", "\nversion: 4\n").encode(), ASSET_POLICY, [key("cleo")]), "two")
    assert two.offer("run-2") == "version_rolled_back"  # Two texts of one version: whom it refuses nobody can say.


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
