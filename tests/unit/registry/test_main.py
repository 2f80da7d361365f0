"""A release's way through the command line: init, build, push, submit, review, publish, revoke; list, show, diff."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fakes.bases import PYTHON, as_layout, distribution, layer
from fakes.governance import World
from msfl.policies.documents import FederationRoot, IssuerKeys, Member
from msfl.policies.encoding import encode
from msfl.policies.envelope import FEDERATION_ROOT, sign
from msfl.policies.keys import KeyPair, encode_public
from msfl.policies.main import app as policy_app
from msfl.registry.main import app
from msfl.registry.oci_layout import LayoutRegistry
from msfl.registry.publish import papers_of

KEYS = {name: KeyPair.from_seed(name[:1].encode() * 32) for name in ("keeper", "ada", "bob", "cleo", "issuer")}
RECIPE = """
name: tiny
version: {version}
entrypoint: [python, -m, msfl.protos.tasklink]
code: [msfl/protos/tasklink.py]
requires: [pyjwt]
tasks: [train]
profiles: {{demo: {{rounds: 1}}}}
config: {{rounds: {{type: integer, min: 1, max: {most}}}}}
outputs: {{train: {{document: {{type: object, properties: {{n_train: {{type: integer}}}}}}}}}}
"""
CARD = "\n\n".join(
    f"## {name}\n\nWords."
    for name in ("Intended use", "Input", "Training and evaluation", "Limits and risks", "Contact")
)


def member(name: str) -> Member:
    return Member(person=name, key_id=KEYS[name].id, public_key=encode_public(KEYS[name].public))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, everybody's key, a root that wants two reviews, an empty registry, and a clock that ticks."""
    write_release(tmp_path / "release")
    for name, key in KEYS.items():
        (tmp_path / f"{name}.pem").write_bytes(key.to_pem())
    root = FederationRoot(
        federation="demo",
        version=1,
        keepers=(member("keeper"),),
        publishers=(member("ada"),),
        reviewers=(member("bob"), member("cleo")),
        reviews_needed=2,
        issuers=(IssuerKeys(issuer="i", audience="a", keys=(encode_public(KEYS["issuer"].public),)),),
        expires=datetime.now(UTC).replace(microsecond=0) + timedelta(days=9),
    )
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust/federation-root.dsse").write_bytes(sign(encode(root), FEDERATION_ROOT, [KEYS["keeper"]]))
    ticks = iter(range(1, 1000))
    began = datetime.now(UTC).replace(microsecond=0)
    monkeypatch.setattr("msfl.registry.reviewing.now", lambda: began + timedelta(seconds=next(ticks)))
    assert msfl("init", tmp_path / "registry")[0] == 0
    return tmp_path


def write_release(folder: Path, version: str = "1.0.0", most: int = 5) -> None:
    folder.mkdir()
    (folder / "release.yaml").write_text(RECIPE.format(version=version, most=most))
    (folder / "model-card.md").write_text(CARD)


def msfl(*arguments: object) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout) if result.stdout.strip() else {"error": result.stderr}


def submit(desk: Path, release: str = "release", *more: object) -> tuple[int, dict[str, Any]]:
    where = ("--registry", desk / "registry", "--key", desk / "ada.pem", "--publisher", "ada")
    return msfl("submit", desk / release, *where, *more)


def review(desk: Path, name: str, *more: str) -> tuple[int, dict[str, Any]]:
    where = ("--registry", desk / "registry", "--key", desk / f"{name}.pem", "--reviewer", name)
    return msfl("review", "tiny:1.0.0", *where, *more)


def publish(desk: Path) -> tuple[int, dict[str, Any]]:
    where = ("--registry", desk / "registry", "--root", desk / "trust")
    return msfl("publish", "tiny:1.0.0", *where, "--key", desk / "ada.pem", "--publisher", "ada")


def state(desk: Path) -> str:
    _, listed = msfl("list", "--registry", desk / "registry", "--root", desk / "trust")
    return str(listed["releases"][0]["state"])


def test_a_release_from_its_recipe_to_its_end(desk: Path) -> None:
    code, built = msfl("build", desk / "release")
    assert code == 0
    assert set(built["distributions"]) == {"pyjwt"}
    where = ("--registry", desk / "registry")
    assert msfl("push", desk / "release", *where) == (0, {"release": "tiny:1.0.0", "digest": built["digest"]})
    assert state(desk) == "unsigned"
    code, submitted = submit(desk)
    assert (code, submitted["digest"]) == (0, built["digest"])
    assert review(desk, "bob", "--comment", "read it")[0] == 0
    assert state(desk) == "submitted"
    code, refused = publish(desk)
    assert (code, refused["refused"]["code"]) == (3, "release_not_reviewed")
    assert review(desk, "cleo")[0] == 0
    assert state(desk) == "reviewed"
    code, published = publish(desk)
    assert code == 0
    assert published["reviewers"] == ["bob", "cleo"]
    assert state(desk) == "published"
    keeper = ("--trust", desk / "trust", "--key", desk / "keeper.pem")
    assert msfl("revoke", "tiny:1.0.0", *where, *keeper)[0] == 0
    assert state(desk) == "revoked"
    code, said = msfl("status", "1.0.0", *where, "--root", desk / "trust")
    assert (code, said["why"]["code"]) == (3, "release_revoked")


def test_a_rejection_is_read_by_the_publisher_and_can_be_taken_back(desk: Path) -> None:
    submit(desk)
    review(desk, "bob")
    review(desk, "cleo", "--reject", "--comment", "reads the network")
    code, refused = publish(desk)
    assert (code, refused["refused"]["code"]) == (3, "release_rejected")
    _, shown = msfl("show", "tiny:1.0.0", "--registry", desk / "registry", "--root", desk / "trust")
    assert shown["standing"]["state"] == "rejected"
    assert ("cleo", "rejects", "reads the network") in {
        (r["reviewer"], r["worth"], r["comment"]) for r in shown["standing"]["reviews"]
    }
    assert review(desk, "cleo", "--comment", "it does not")[0] == 0
    assert publish(desk)[0] == 0


def test_a_new_statement_asks_for_new_reviews(desk: Path) -> None:
    submit(desk)
    review(desk, "bob")
    review(desk, "cleo")
    assert publish(desk)[0] == 0
    (desk / "release/model-card.md").write_text(CARD.replace("Words", "Other words"))
    code, said = submit(desk)
    assert (code, "was submitted with other materials" in said["error"], state(desk)) == (1, True, "published")
    assert submit(desk, "release", "--again")[0] == 0
    assert state(desk) == "submitted"
    _, said = msfl("status", "1.0.0", "--registry", desk / "registry", "--root", desk / "trust")
    assert {r["worth"] for r in said["reviews"]} == {"other_statement"}


def test_submitting_once_more_by_the_way_undoes_nothing(desk: Path) -> None:
    submit(desk)
    review(desk, "bob")
    review(desk, "cleo")
    assert publish(desk)[0] == 0
    code, said = submit(desk)
    assert (code, "the 2 reviews of it" in said["error"], state(desk)) == (1, True, "published")


def test_what_a_version_may_do_does_not_change(desk: Path) -> None:
    """The settings are not in the image, so that the digest alone would not tell."""
    submit(desk)
    write_release(desk / "wider", "1.0.0", most=9)
    code, said = submit(desk, "wider", "--again")
    assert code == 1
    assert "submitted with other config" in said["error"]


def test_a_setting_without_bounds_is_not_submitted(desk: Path) -> None:
    recipe = desk / "release/release.yaml"
    recipe.write_text(recipe.read_text().replace("{type: integer, min: 1, max: 5}", "{type: integer, min: 1}"))
    code, said = submit(desk)
    assert (code, "rounds under config: neither min and max nor enum" in said["error"]) == (1, True)
    assert msfl("list", "--registry", desk / "registry")[1]["releases"] == []


def test_what_a_stranger_attached_does_not_stand_in_the_publishers_way(desk: Path) -> None:
    where = ("--registry", desk / "registry", "--key", desk / "bob.pem", "--publisher", "ada")
    assert msfl("submit", desk / "release", *where)[0] == 0
    assert submit(desk)[0] == 0
    assert state(desk) == "submitted"


def test_what_changed_is_told(desk: Path) -> None:
    submit(desk)
    write_release(desk / "next", "1.1.0", most=9)
    submit(desk, "next")
    code, said = msfl("diff", "1.0.0", "1.1.0", "--registry", desk / "registry")
    assert code == 0
    assert (said["code"], said["dependencies"]) == ([], [])
    assert said["changes"] == [
        {"way": "newly allows", "field": "config.rounds", "what": "rounds with max 9 instead of max 5"}
    ]


def test_what_lies_beside_the_image_is_shown_by_its_hash(desk: Path) -> None:
    submit(desk)
    where = ("tiny:1.0.0", "--registry", desk / "registry")
    assert msfl("show", *where, "--card")[1]["content"] == CARD
    sbom = json.loads(msfl("show", *where, "--sbom")[1]["content"])
    assert [c["name"] for c in sbom["components"]] == ["pyjwt"]
    assert msfl("show", *where)[1]["flaw"] is None


def test_a_self_contained_release_names_its_base(desk: Path) -> None:
    digest = as_layout(desk / "base", [layer({**PYTHON, **distribution("pyjwt", "2.10.0")})])
    code, built = msfl("build", desk / "release", "--base", desk / "base", "--out", desk / "image")
    assert (code, built["self_contained"], built["base"]["digest"]) == (0, True, digest)
    assert submit(desk, "release", "--base", desk / "base")[1]["digest"] == built["digest"]
    _, shown = msfl("show", "tiny:1.0.0", "--registry", desk / "registry")
    assert shown["statement"]["materials"]["base"]["digest"] == digest
    assert shown["flaw"] is None
    # The built folder is a registry like any other.
    assert msfl("list", "--registry", desk / "image")[1]["releases"][0]["digest"] == built["digest"]


def test_without_a_card_nothing_is_submitted(desk: Path) -> None:
    (desk / "release/model-card.md").write_text(CARD.replace("## Contact", "## Kontakt"))
    code, said = submit(desk)
    assert code == 1
    assert "'Contact' is missing" in said["error"]
    assert msfl("list", "--registry", desk / "registry")[1]["releases"] == []


def test_a_package_that_the_base_lacks_is_looked_for_in_the_base(desk: Path) -> None:
    as_layout(desk / "base", [layer(dict(PYTHON))])
    code, said = msfl("build", desk / "release", "--base", desk / "base")
    assert code == 1
    assert f"in the base {desk / 'base'}: the release requires pyjwt, which is not installed" in said["error"]


HERE = ["--registry", "{desk}/registry"]
WHO = ["--key", "{desk}/ada.pem", "--publisher", "ada"]


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["build", "nowhere"], 1, "neither a folder"),
        (["build", "{desk}/release", "--base", "{desk}/trust"], 1, "not an OCI image layout"),
        (["list", "--registry", "{desk}/release"], 1, "not an OCI image layout"),
        (["review", "tiny:1.0.0", *HERE, "--key", "{desk}/bob.pem", "--reviewer", "bob"], 1, "msfl registry list"),
        (["submit", "{desk}/release", *HERE, "--key", "{desk}/release/release.yaml", "--publisher", "ada"], 1, "key"),
        (["show", "9.9.9", *HERE], 1, "No release has the version 9.9.9"),
        (["publish", "tiny:1.0.0", *HERE, "--root", "{desk}/release", *WHO], 1, "msfl registry list"),
        (["review", "x:1.0.0", *HERE, "--key", "{desk}/bob.pem", "--reviewer", "bob", "--reject"], 2, "says why"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(desk: Path, arguments: list[str], status: int, why: str) -> None:
    code, said = msfl(*(a.format(desk=desk) for a in arguments))
    assert code == status
    assert why in said["error"]


def test_with_the_root_at_hand_a_wrong_key_signs_nothing(desk: Path) -> None:
    code, said = submit(desk, "release", "--root", desk / "trust", "--key", desk / "bob.pem")
    assert (code, "no ada with this key among its publishers (ada)" in said["error"]) == (1, True)
    submit(desk, "release", "--root", desk / "trust")
    code, said = review(desk, "bob", "--root", str(desk / "trust"), "--key", str(desk / "cleo.pem"))
    assert (code, "nothing was signed" in said["error"]) == (1, True)
    assert review(desk, "bob", "--root", str(desk / "trust"))[0] == 0
    _, listed = msfl("list", "--registry", desk / "registry")
    assert listed["releases"][0]["reviews"] == 1


def test_without_the_root_nobody_checks_a_reviewers_key_and_that_is_said(desk: Path) -> None:
    submit(desk)
    (desk / "mallory.pem").write_bytes(KeyPair.from_seed(b"m" * 32).to_pem())
    where = ["tiny:1.0.0", "--registry", str(desk / "registry")]
    mallory = ["--key", str(desk / "mallory.pem"), "--reviewer", "mallory"]
    result = CliRunner().invoke(app, ["review", *where, *mallory])
    assert result.exit_code == 0
    assert "this review counts for nothing. --root ROOT checks it" in result.stderr
    for command in ("show", "status"):
        said = CliRunner().invoke(app, [command, *where, "--root", str(desk / "trust")]).stdout
        assert "approve (does not count: signed by nobody of the root)" in said, command
    _, listed = msfl("status", *where, "--root", desk / "trust")
    assert [(one["reviewer"], one["verdict"]) for one in listed["strangers"]] == [("mallory", "approve")]


def test_what_is_revoked_asks_for_no_more_reviews(desk: Path) -> None:
    submit(desk)
    keeper = ("--trust", desk / "trust", "--key", desk / "keeper.pem")
    assert msfl("revoke", "tiny:1.0.0", "--registry", desk / "registry", *keeper)[0] == 0
    code, said = review(desk, "bob", "--root", str(desk / "trust"))
    assert (code, said["refused"]["code"]) == (3, "release_revoked")
    _, listed = msfl("list", "--registry", desk / "registry")
    assert listed["releases"][0]["reviews"] == 0


def test_a_wrong_key_publishes_nothing_and_leaves_nothing(desk: Path) -> None:
    _, submitted = submit(desk)
    review(desk, "bob")
    review(desk, "cleo")
    where = ("--registry", desk / "registry", "--root", desk / "trust")
    code, said = msfl("publish", "tiny:1.0.0", *where, "--key", desk / "bob.pem", "--publisher", "ada")
    assert (code, "no ada with this key among its publishers (ada)" in said["error"]) == (1, True)
    papers = papers_of(LayoutRegistry(desk / "registry"), str(submitted["digest"]))
    assert papers.publications == ()


def test_an_image_that_is_not_there_is_not_called_unsigned(desk: Path) -> None:
    nowhere = "sha256:" + "a" * 64
    code, said = msfl("status", nowhere, "--registry", desk / "registry", "--root", desk / "trust")
    assert (code, nowhere in said["error"], "msfl registry list" in said["error"]) == (1, True, True)
    # But it can be revoked: what a site has pulled runs wherever the registry is now.
    keeper = ("--trust", desk / "trust", "--key", desk / "keeper.pem")
    assert msfl("revoke", nowhere, "--registry", desk / "registry", *keeper)[0] == 0


def test_a_custodian_gets_the_signed_statement_as_a_file(desk: Path) -> None:
    _, submitted = submit(desk)
    where, file = ("tiny:1.0.0", "--registry", desk / "registry"), desk / "release-statement.dsse"
    assert msfl("show", *where, "--statement", file)[0] == 0
    assert file.read_bytes() == papers_of(LayoutRegistry(desk / "registry"), str(submitted["digest"])).statement
    code, said = msfl("show", *where, "--statement", file)
    assert (code, "nothing was written" in said["error"]) == (1, True)
    assert msfl("show", *where, "--statement", file, "--card")[0] == 2
    # What writes and checks policies takes it as it is.
    (desk / "record.json").write_bytes(encode(World().dataset))
    options = ["--dataset", str(desk / "record.json"), "--user", "ada@lab.example", "--out", str(desk / "policy.yaml")]
    made = CliRunner().invoke(policy_app, ["new", "--release", str(file), *options])
    assert made.exit_code == 0, made.output
    checked = CliRunner().invoke(policy_app, ["check", str(desk / "policy.yaml"), "--release", str(file)])
    assert (checked.exit_code, "valid" in checked.stdout) == (0, True), checked.output


def test_nobody_takes_a_comparison_for_a_check(desk: Path) -> None:
    submit(desk)
    where = ["tiny:1.0.0", "tiny:1.0.0", "--registry", str(desk / "registry")]
    assert "No signature was checked" in CliRunner().invoke(app, ["diff", *where]).stderr


def test_an_access_file_that_is_named_must_be_there(desk: Path) -> None:
    result = CliRunner().invoke(app, ["list", "--registry", "https://h.example/r", "--access", str(desk / "none.json")])
    assert (result.exit_code, "exist" in result.stderr) == (2, True)  # The frame breaks lines anywhere.


def test_what_is_wrong_with_a_key_is_said_and_nothing_else(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk / "sealed.pem").write_bytes(KEYS["ada"].to_pem(b"secret"))
    code, said = submit(desk, "release", "--key", desk / "sealed.pem")
    assert (code, "has a passphrase: put it into MSFL_KEY_PASSPHRASE" in said["error"]) == (1, True)
    (desk / "ada.public.json").write_bytes(encode(member("ada")))
    code, said = submit(desk, "release", "--key", desk / "ada.public.json")
    assert (code, "passphrase" in said["error"].lower()) == (1, False)
    monkeypatch.setenv("MSFL_KEY_PASSPHRASE", "secret")
    assert submit(desk, "release", "--key", desk / "sealed.pem")[0] == 0


def test_a_keeper_alone_revokes(desk: Path) -> None:
    submit(desk)
    stranger = ("--trust", desk / "trust", "--key", desk / "ada.pem")
    assert msfl("revoke", "tiny:1.0.0", "--registry", desk / "registry", *stranger)[0] == 3
    assert state(desk) == "submitted"
