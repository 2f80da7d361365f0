"""Who signs at a site, and who publishes for the federation, changes by the old and the new people's word, one version
at a time: never by one side's alone, never by a file put in the root's place."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes.governance import LATER, NOW, World, key, member
from fakes.governed_sites import GovernedSite, later
from msfl.gateway.home import write
from msfl.gateway.main import app
from msfl.gateway.standing import next_of
from msfl.policies.documents import FederationRoot, SiteRoot
from msfl.policies.encoding import encode, sha256_of
from msfl.policies.envelope import ASSET_POLICY, FEDERATION_ROOT, SITE_ROOT, sign
from msfl.policies.refusals import CannotProceed, Code, Refusal, Refused
from msfl.policies.trust import TrustedSiteRoot, next_federation_root, next_site_root
from msfl.protos.messages import TrustPapers

OLD = SiteRoot(site="site-a", version=4, custodians=(member("cleo"), member("carl")), threshold=2, expires=LATER)
NEW = later(OLD, custodians=(member("dora"), member("carl"), member("dina")))


def site_root(root: SiteRoot, *signers: str) -> bytes:
    return sign(encode(root), SITE_ROOT, [key(name) for name in signers])


def rotated(root: SiteRoot, *signers: str) -> str:
    """`taken`, or the code."""
    found = next_site_root(site_root(OLD, "cleo", "carl"), site_root(root, *signers), "site-a")
    return "taken" if isinstance(found, TrustedSiteRoot) else found.code.value


@pytest.mark.parametrize(
    ("signers", "outcome"),
    [
        (("cleo", "carl", "dora"), "taken"),  # carl is one of both, and counts in each
        (("cleo", "carl"), "too_few_signers"),  # the old ones alone
        (("dora", "dina"), "wrong_signer"),  # the new ones alone
        (("carl", "dora"), "too_few_signers"),  # one of the old ones is missing
        (("cleo", "carl", "otto"), "too_few_signers"),  # the centre's keeper is nobody here
        (("mallory",), "wrong_signer"),
    ],
)
def test_both_thresholds_must_hold(signers: tuple[str, ...], outcome: str) -> None:
    assert rotated(NEW, *signers) == outcome


def test_one_person_with_two_keys_is_one_of_two() -> None:
    both = (member("dora"), member("dora", "dora-again"), member("carl"))
    assert rotated(NEW.model_copy(update={"custodians": both}), "cleo", "carl", "dora") == "taken"
    alone = (member("dora"), member("dora", "dora-again"), member("dina"))
    next_root = NEW.model_copy(update={"custodians": alone})
    assert rotated(next_root, "cleo", "carl", "dora", "dora-again") == "too_few_signers"


@pytest.mark.parametrize(
    ("version", "code"), [(6, "version_skipped"), (4, "version_rolled_back"), (3, "version_rolled_back")]
)
def test_a_root_follows_the_one_before_it_by_one_version(version: int, code: str) -> None:
    assert rotated(NEW.model_copy(update={"version": version}), "cleo", "carl", "dora") == code


def test_another_sites_root_is_not_the_next() -> None:
    assert rotated(NEW.model_copy(update={"site": "site-b"}), "cleo", "carl", "dora") == "root_differs"


def test_a_root_is_not_taken_for_another_kind() -> None:
    as_policy = site_root(NEW, "cleo", "carl", "dora").replace(b"site-root", b"federation-root")
    found = next_site_root(site_root(OLD, "cleo", "carl"), as_policy, "site-a")
    assert isinstance(found, Refusal)
    assert found.code is Code.WRONG_DOCUMENT_KIND


def test_an_expired_root_can_still_be_followed() -> None:
    expired = OLD.model_copy(update={"expires": NOW})
    found = next_site_root(site_root(expired, "cleo", "carl"), site_root(NEW, "cleo", "carl", "dora"), "site-a")
    assert isinstance(found, TrustedSiteRoot)


# ------------------------------------------------------------------------------------------- at a site


def policy_by(site: GovernedSite, version: int, by: str) -> None:
    site.sign_policy(version=version, by=(by,))


def test_a_custodian_hands_over_to_another(site: GovernedSite, tmp_path: Path) -> None:
    def msfl(*words: object) -> None:
        result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    (tmp_path / "dora.public.json").write_bytes(encode(member("dora")))
    for name in ("cleo", "dora"):
        (tmp_path / f"{name}.pem").write_bytes(key(name).to_pem())
    home = ("--home", site.home.root)
    msfl("root", "new", *home, "--custodian", tmp_path / "dora.public.json", "--out", tmp_path / "next.json")
    with pytest.raises(CannotProceed, match="not signed yet"):
        msfl("root", "take", tmp_path / "next.json", *home)
    msfl("root", "sign", tmp_path / "next.json", "--key", tmp_path / "cleo.pem")
    with pytest.raises(CannotProceed, match="there already"):  # Cleo's signature is not lost by signing the wrong file
        msfl("root", "sign", tmp_path / "next.json", "--key", tmp_path / "dora.pem")
    with pytest.raises(Refused, match="none of the people"):  # dora has not said yes
        msfl("root", "take", tmp_path / "next.dsse", *home)
    msfl("root", "sign", tmp_path / "next.dsse", "--key", tmp_path / "dora.pem")
    msfl("root", "take", tmp_path / "next.dsse", *home)
    site.standing.look_at_words(NOW)
    assert len(site.audited("document taken")) > 0
    assert site.offer("run-1") == Code.WRONG_SIGNER.value  # cleo's policy
    policy_by(site, 4, "dora")
    assert site.offer("run-2") == "allow"


@pytest.mark.parametrize("signers", [("cleo",), ("mallory",), ("otto", "mallory")])
def test_a_root_that_not_both_signed_changes_nothing(site: GovernedSite, signers: tuple[str, ...]) -> None:
    forged = later(site.site_root, custodians=(member("mallory"),))
    write(next_of(site.home.site_root_file), site_root(forged, *signers))
    site.standing.look_at_words(NOW)
    assert site.audited("document refused")[-1] in ("wrong_signer", "too_few_signers")
    policy_by(site, 4, "mallory")
    assert site.offer() == Code.WRONG_SIGNER.value
    site.nothing_started("wrong_signer")


@pytest.mark.parametrize("version", [1, 2, 7])
@pytest.mark.parametrize("restart", [False, True])
def test_a_root_put_in_the_others_place_is_nobodys_word(site: GovernedSite, version: int, restart: bool) -> None:
    site.standing.policies(NOW)
    forged = site.site_root.model_copy(update={"version": version, "custodians": (member("mallory"),)})
    write(site.home.site_root_file, site_root(forged, "mallory"))
    policy_by(site, 4, "mallory")
    if restart:
        site.restart()
    assert site.offer() == Code.ROOT_DIFFERS.value
    site.nothing_started("root_differs")


def test_the_centre_signs_for_the_custodian_with_every_key_it_has(site: GovernedSite) -> None:
    text = site.world.policy_yaml.replace("\nversion: 3\n", "\nversion: 4\n").encode()
    everybody = [key(name) for name in ("otto", "tim", "paul", "rosa", "rui", "issuer")]
    write(site.home.root / "policies/one.dsse", sign(text, ASSET_POLICY, everybody))
    assert site.offer() == Code.WRONG_SIGNER.value
    site.nothing_started("wrong_signer")


@pytest.mark.parametrize("twice", [("cleo",), ("cleo", "cleo-again")])
def test_one_custodian_does_not_make_two(site: GovernedSite, twice: tuple[str, ...]) -> None:
    both = later(site.site_root, custodians=(member("cleo"), member("cleo", "cleo-again"), member("carl")), threshold=2)
    write(next_of(site.home.site_root_file), site_root(both, "cleo", "carl"))
    site.standing.look_at_words(NOW)
    site.sign_policy(version=4, by=twice)
    assert site.offer() == Code.TOO_FEW_SIGNERS.value
    site.nothing_started("too_few_signers")


def test_killed_in_the_middle_of_a_rotation(site: GovernedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remembered, and the file not yet in its place: the next start goes on from there."""
    following = site_root(later(site.site_root, custodians=(member("cleo"), member("dora"))), "cleo", "dora")
    write(next_of(site.home.site_root_file), following)
    with monkeypatch.context() as killed:
        killed.setattr("os.replace", _killed)
        with pytest.raises(KeyboardInterrupt):
            site.standing.look_at_words(NOW)
    site.restart()
    assert site.home.site_root_file.read_bytes() == following
    assert site.offer() == "allow"


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


# ----------------------------------------------------------------------------------- of the federation


def federation_root(root: FederationRoot, *signers: str) -> bytes:
    return sign(encode(root), FEDERATION_ROOT, [key(name) for name in signers])


def heard(site: GovernedSite, *roots: bytes, newest: FederationRoot | None = None, version: int = 2) -> list[str]:
    listed = site.revocations(1)
    return site.hear(TrustPapers(roots, listed, site.timestamp(listed, version, root=newest)))


def test_the_federation_changes_its_publisher_over_two_versions(site: GovernedSite) -> None:
    first = later(site.root, publishers=(member("petra"),))
    second = later(first, publishers=(member("petra"), member("paul")))
    assert heard(site, federation_root(first, "otto"), newest=first) == []
    assert site.offer("run-1") == Code.WRONG_PUBLISHER.value
    site.nothing_started("wrong_publisher")
    site.restart()
    both = [federation_root(root, "otto") for root in (first, second)]
    assert heard(site, *both, newest=second, version=3) == []
    assert site.offer("run-2") == "allow"
    pinned = site.home.federation_root_file.with_suffix(".sha256").read_text()
    assert pinned == sha256_of(site.home.federation_root_file.read_bytes())


@pytest.mark.parametrize(
    ("signers", "skip"), [(("olga",), 1), (("otto",), 1), (("mallory",), 1), (("otto", "olga"), 2)]
)
def test_a_federation_root_by_one_side_or_too_far_on_is_not_taken(
    site: GovernedSite, signers: tuple[str, ...], skip: int
) -> None:
    """olga would be the next keeper, and petra her publisher."""
    forged = site.root.model_copy(
        update={"version": 1 + skip, "keepers": (member("olga"),), "publishers": (member("petra"),)}
    )
    before = site.home.federation_root_file.read_bytes()
    heard(site, federation_root(forged, *signers), newest=forged)
    assert site.home.federation_root_file.read_bytes() == before
    # The timestamp says that there is one which this site does not have.
    assert site.offer() == Code.TRUST_STALE.value
    site.nothing_started("trust_stale")


def test_the_pinned_federation_root_is_replaced_with_its_pin(site: GovernedSite) -> None:
    forged = federation_root(site.root.model_copy(update={"publishers": (member("mallory"),)}), "otto")
    write(site.home.federation_root_file, forged)
    write(site.home.federation_root_file.with_suffix(".sha256"), sha256_of(forged).encode())
    site.restart()
    assert site.offer() == Code.ROOT_DIFFERS.value
    site.nothing_started("root_differs")


def test_a_root_of_another_federation_is_not_the_next() -> None:
    root = FederationRoot(
        federation="one", version=1, keepers=(member("otto"),), publishers=(member("paul"),),
        reviewers=(member("rosa"),), issuers=World().federation_root.document.issuers, expires=LATER,
    )  # fmt: skip
    other = later(root, federation="two")
    found = next_federation_root(federation_root(root, "otto"), federation_root(other, "otto"))
    assert isinstance(found, Refusal)
    assert found.code is Code.ROOT_DIFFERS
