"""A release that looks reviewed and is not: papers of others, papers that were swapped, recipes that reach out.

What decides is `msfl.policies.trust` at every site; here the same is shown where reviewers and publishers work, so that
they do not sign what no site would take.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fakes.environments import install
from fakes.registries import MemoryRegistry
from msfl.policies.documents import FederationRoot, IssuerKeys, Member, Publication, ReleaseStatement, Review
from msfl.policies.encoding import encode, sha256_of
from msfl.policies.envelope import FEDERATION_ROOT, PUBLICATION, RELEASE_STATEMENT, REVIEW, sign
from msfl.policies.keys import KeyPair, encode_public
from msfl.policies.refusals import Code, Refused
from msfl.policies.release_state import Standing, State
from msfl.policies.trust import NOTHING_REVOKED, TrustedFederationRoot, trust_federation_root
from msfl.registry.build import BadRelease, BuiltRelease, build_release
from msfl.registry.model_card import MARKDOWN_CARD, SECTIONS, ModelCard
from msfl.registry.publish import (
    add_publication,
    add_review,
    attach_materials,
    push_release,
    submit_statement,
)
from msfl.registry.release_image import materials_flaw, read_image
from msfl.registry.reviewing import standing_of

NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
LATER = NOW + timedelta(days=9)
KEYS = {
    name: KeyPair.from_seed(name.encode().ljust(32, b"."))
    for name in ("otto", "ada", "ada-reviews", "bob", "bob-again", "cleo", "issuer", "mallory")
}
CARD = ModelCard("".join(f"# {name}\n\nWords.\n" for name in SECTIONS).encode(), MARKDOWN_CARD)
RECIPE = """
name: own
version: {version}
entrypoint: [python, -m, msfl.own]
code: [msfl/own]
requires: [numpy]
tasks: [train]
profiles: {{demo: {{rounds: 1}}}}
config: {{rounds: {{type: integer, min: 1, max: 5}}}}
outputs: {{}}
"""


def member(person: str, key: str = "") -> Member:
    pair = KEYS[key or person]
    return Member(person=person, key_id=pair.id, public_key=encode_public(pair.public))


def root() -> TrustedFederationRoot:
    """Two reviews are needed. Ada publishes, and has a key as a reviewer, too; Bob has two keys."""
    document = FederationRoot(
        federation="demo",
        version=1,
        keepers=(member("otto"),),
        publishers=(member("ada"),),
        reviewers=(member("ada", "ada-reviews"), member("bob"), member("bob", "bob-again"), member("cleo")),
        reviews_needed=2,
        issuers=(IssuerKeys(issuer="i", audience="a", keys=(encode_public(KEYS["issuer"].public),)),),
        expires=LATER,
    )
    envelope = sign(encode(document), FEDERATION_ROOT, [KEYS["otto"]])
    found = trust_federation_root(envelope, sha256_of(envelope), NOW)
    assert isinstance(found, TrustedFederationRoot)
    return found


@dataclass
class Shelf:
    """A registry with one release in it, submitted by Ada."""

    folder: Path
    registry: MemoryRegistry
    built: BuiltRelease
    digest: str
    statement: ReleaseStatement

    @classmethod
    def of(cls, folder: Path, registry: MemoryRegistry | None = None, version: str = "1.0.0") -> Shelf:
        (folder / "msfl/own").mkdir(parents=True)
        (folder / "msfl/own/__main__.py").write_text("print('own')\n")
        (folder / "release.yaml").write_text(RECIPE.format(version=version))
        install(folder / "site-packages", "numpy", "2.4.6")
        built = build_release(folder / "release.yaml", folder / "site-packages")
        shelf = registry or MemoryRegistry()
        digest = push_release(shelf, built)
        sbom = built.sbom()
        attach_materials(shelf, digest, sbom, CARD)
        statement = built.statement(
            publisher="ada", commit="unknown", issued=NOW, expires=LATER, materials=built.materials(sbom, CARD)
        )
        made = cls(folder, shelf, built, digest, statement)
        made.submit(statement)
        return made

    def submit(self, statement: ReleaseStatement, key: str = "ada") -> None:
        submit_statement(self.registry, self.digest, sign(encode(statement), RELEASE_STATEMENT, [KEYS[key]]))
        self.statement = statement

    def review(self, reviewer: str, key: str = "", statement: ReleaseStatement | None = None) -> bytes:
        about = statement or self.statement
        word = Review(
            digest=about.digest,
            statement_sha256=sha256_of(encode(about)),
            verdict="approve",
            reviewer=reviewer,
            issued=NOW,
            expires=LATER,
        )
        envelope = sign(encode(word), REVIEW, [KEYS[key or reviewer]])
        add_review(self.registry, self.digest, envelope)
        return envelope

    def publish(self, key: str = "ada") -> None:
        word = Publication(
            digest=self.digest, statement_sha256=sha256_of(encode(self.statement)), publisher="ada", issued=NOW
        )
        add_publication(self.registry, self.digest, sign(encode(word), PUBLICATION, [KEYS[key]]))

    def standing(self) -> Standing:
        return standing_of(self.registry, self.digest, root(), NOTHING_REVOKED)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf.of(tmp_path / "release")


def test_honest_papers_are_enough(shelf: Shelf) -> None:
    shelf.review("bob")
    shelf.review("cleo")
    assert shelf.standing().state is State.REVIEWED
    shelf.publish()
    assert shelf.standing().state is State.PUBLISHED
    assert materials_flaw(shelf.registry, shelf.statement) is None


def test_the_publisher_reviews_with_another_key(shelf: Shelf) -> None:
    shelf.review("bob")
    shelf.review("ada", "ada-reviews")
    assert shelf.standing().state is State.SUBMITTED
    assert shelf.standing().approvals == ("bob",)


def test_one_reviewer_signs_with_two_keys(shelf: Shelf) -> None:
    shelf.review("bob")
    shelf.review("bob", "bob-again")
    assert shelf.standing().state is State.SUBMITTED
    assert shelf.standing().approvals == ("bob",)


def test_one_reviewer_signs_in_the_name_of_another(shelf: Shelf) -> None:
    shelf.review("bob")
    shelf.review("cleo", "bob-again")
    assert shelf.standing().approvals == ("bob",)


def test_reviews_of_another_release_are_hung_under_this_one(shelf: Shelf, tmp_path: Path) -> None:
    other = Shelf.of(tmp_path / "other", shelf.registry, version="1.0.1")
    for reviewer in ("bob", "cleo"):
        add_review(shelf.registry, shelf.digest, other.review(reviewer))
    assert shelf.standing().state is State.SUBMITTED
    assert {one.worth for one in shelf.standing().reviews} == {"other_image"}


def test_the_statement_is_swapped_after_the_review(shelf: Shelf) -> None:
    shelf.review("bob")
    shelf.review("cleo")
    shelf.publish()
    assert shelf.standing().state is State.PUBLISHED
    shelf.submit(shelf.statement.model_copy(update={"outputs": {"train": {"document": {}}}}))
    assert shelf.standing().state is State.SUBMITTED
    assert {one.worth for one in shelf.standing().reviews} == {"other_statement"}


def test_a_statement_about_another_image_is_attached(shelf: Shelf, tmp_path: Path) -> None:
    other = Shelf.of(tmp_path / "other", shelf.registry, version="1.0.1")
    other.review("bob")
    other.review("cleo")
    submit_statement(shelf.registry, shelf.digest, sign(encode(other.statement), RELEASE_STATEMENT, [KEYS["ada"]]))
    for reviewer in ("bob", "cleo"):
        shelf.review(reviewer, statement=other.statement)
    found = shelf.standing()
    assert found.state is State.INVALID
    assert found.why is not None
    assert found.why.code is Code.IMAGE_BROKEN


def test_a_stranger_publishes(shelf: Shelf) -> None:
    shelf.review("bob")
    shelf.review("cleo")
    for key in ("mallory", "bob", "otto", "ada-reviews"):
        shelf.publish(key)
    assert shelf.standing().state is State.REVIEWED


# ------------------------------------------------------------------ what lies beside the image


def flaw(shelf: Shelf) -> str:
    found = materials_flaw(shelf.registry, shelf.statement)
    assert found is not None
    assert found.code is Code.MATERIALS_DIFFER
    return found.message


def resubmit(shelf: Shelf, sbom: bytes, card: ModelCard = CARD) -> None:
    attach_materials(shelf.registry, shelf.digest, sbom, card)
    shelf.submit(shelf.statement.model_copy(update={"materials": shelf.built.materials(sbom, card)}))


def test_a_list_that_leaves_a_package_out(shelf: Shelf) -> None:
    said = json.loads(shelf.built.sbom())
    said["components"] = []
    resubmit(shelf, json.dumps(said).encode())
    assert "requires numpy, which the list does not name" in flaw(shelf)


def test_the_list_of_another_release(shelf: Shelf, tmp_path: Path) -> None:
    other = Shelf.of(tmp_path / "other", shelf.registry, version="1.0.1")
    resubmit(shelf, other.built.sbom())
    assert "about another image" in flaw(shelf)


def test_the_list_is_swapped_after_signing(shelf: Shelf) -> None:
    assert shelf.statement.materials is not None
    shelf.registry.tamper(shelf.statement.materials.sbom, b"{}")
    assert "no attached SBOM has the hash" in flaw(shelf)


def test_the_card_is_kept_back_or_empty(shelf: Shelf) -> None:
    assert shelf.statement.materials is not None
    shelf.registry.tamper(shelf.statement.materials.model_card, b"# Trust me")
    assert "no attached model card has the hash" in flaw(shelf)
    resubmit(shelf, shelf.built.sbom(), ModelCard(b"# Trust me\n", MARKDOWN_CARD))
    assert "'Limits and risks' is missing" in flaw(shelf)


def test_a_base_that_is_not_there_is_named(shelf: Shelf) -> None:
    said = shelf.statement.materials
    assert said is not None
    base = {"name": "debian", "digest": "sha256:" + "b" * 64}
    named = said.model_validate({**said.model_dump(), "base": base})
    shelf.submit(shelf.statement.model_copy(update={"materials": named}))
    assert "names the base" in flaw(shelf)


def test_what_reviewers_read_is_hashed_too(shelf: Shelf) -> None:
    manifest = json.loads(shelf.registry.get_manifest(shelf.digest))
    for part in (manifest["config"], *manifest["layers"]):
        with shelf.registry.get_blob(part["digest"]) as stream:
            honest = stream.read()
        shelf.registry.tamper(part["digest"], honest + b"\0")
        with pytest.raises(Refused, match="image_broken"):
            read_image(shelf.registry, shelf.digest)
        shelf.registry.tamper(part["digest"], honest)
    assert read_image(shelf.registry, shelf.digest).code == {"msfl/own/__main__.py": b"print('own')\n"}


# ------------------------------------------------------------------ recipes that reach out


@pytest.mark.parametrize("where", ["msfl/own/secret.py", "msfl/own/deep", "msfl/own", "msfl"])
def test_a_link_in_the_release_folder_is_not_followed(tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    (outside / "own").mkdir(parents=True)
    (outside / "own/__main__.py").write_text("password = 'x'")
    folder = tmp_path / "release"
    if where in ("msfl/own/secret.py", "msfl/own/deep"):
        (folder / "msfl/own").mkdir(parents=True)
        (folder / "msfl/own/__main__.py").write_text("")
    else:
        (folder / where).parent.mkdir(parents=True)
    target = {"msfl/own/secret.py": outside / "own/__main__.py", "msfl": outside}.get(where, outside / "own")
    (folder / where).symlink_to(target)
    (folder / "release.yaml").write_text(RECIPE.format(version="1.0.0"))
    install(tmp_path / "site-packages", "numpy", "2.4.6")
    with pytest.raises(BadRelease, match="symbolic link"):
        build_release(folder / "release.yaml", tmp_path / "site-packages")


def test_own_code_stands_in_the_place_of_nothing_of_msfl(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    (folder / "msfl/protos").mkdir(parents=True)
    (folder / "msfl/protos/tasklink.py").write_text("evil = 1")
    recipe = RECIPE.format(version="1.0.0").replace("msfl.own", "msfl.protos.tasklink")
    (folder / "release.yaml").write_text(recipe.replace("msfl/own", "msfl/protos/tasklink.py"))
    install(tmp_path / "site-packages", "numpy", "2.4.6")
    with pytest.raises(BadRelease, match="exactly once"):
        build_release(folder / "release.yaml", tmp_path / "site-packages")


def test_a_pipe_in_the_code_does_not_hang_the_build(tmp_path: Path) -> None:
    import os

    folder = tmp_path / "release"
    (folder / "msfl/own").mkdir(parents=True)
    (folder / "msfl/own/__main__.py").write_text("")
    os.mkfifo(folder / "msfl/own/pipe.py")
    (folder / "release.yaml").write_text(RECIPE.format(version="1.0.0"))
    install(tmp_path / "site-packages", "numpy", "2.4.6")
    with pytest.raises(BadRelease, match="neither a file nor a folder"):
        build_release(folder / "release.yaml", tmp_path / "site-packages")
