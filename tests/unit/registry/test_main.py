"""A release's way through the command line: init, build, push, review, publish, list."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from msfl.policies.documents import FederationRoot, IssuerKeys, Member
from msfl.policies.encoding import encode
from msfl.policies.envelope import FEDERATION_ROOT, sign
from msfl.policies.keys import KeyPair, encode_public
from msfl.registry.main import app

KEYS = {name: KeyPair.from_seed(name[:1].encode() * 32) for name in ("keeper", "ada", "bob", "cleo", "issuer")}
RECIPE = """
name: tiny
version: 1.0.0
entrypoint: [python, -m, msfl.protos.tasklink]
code: [msfl/protos/tasklink.py]
requires: [pyjwt]
tasks: [train]
profiles: {demo: {rounds: 1}}
config: {rounds: {type: integer, min: 1, max: 5}}
outputs: {weights: true}
"""


def member(name: str) -> Member:
    return Member(person=name, key_id=KEYS[name].id, public_key=encode_public(KEYS[name].public))


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A recipe, everybody's key, a federation root that wants two reviews, and an empty registry."""
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "release.yaml").write_text(RECIPE)
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
    (tmp_path / "root.json").write_bytes(sign(encode(root), FEDERATION_ROOT, [KEYS["keeper"]]))
    assert msfl("init", tmp_path / "registry")[0] == 0
    return tmp_path


def msfl(*arguments: object) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout) if result.stdout.strip() else {"error": result.stderr}


def push(desk: Path) -> tuple[int, dict[str, Any]]:
    where = ("--registry", desk / "registry", "--key", desk / "ada.pem", "--publisher", "ada")
    return msfl("push", desk / "release", *where)


def review(desk: Path, name: str, *more: str) -> tuple[int, dict[str, Any]]:
    where = ("--registry", desk / "registry", "--key", desk / f"{name}.pem", "--reviewer", name)
    return msfl("review", "tiny:1.0.0", *where, *more)


def publish(desk: Path) -> tuple[int, dict[str, Any]]:
    return msfl("publish", "tiny:1.0.0", "--registry", desk / "registry", "--root", desk / "root.json")


def test_a_release_is_published_by_a_publisher_and_two_reviewers(desk: Path) -> None:
    code, built = msfl("build", desk / "release")
    assert code == 0
    assert set(built["distributions"]) == {"pyjwt"}
    code, pushed = push(desk)
    assert (code, pushed["digest"]) == (0, built["digest"])
    assert review(desk, "bob")[0] == 0
    code, refused = publish(desk)
    assert (code, refused["refused"]["code"]) == (3, "release_not_reviewed")
    assert review(desk, "cleo")[0] == 0
    code, published = publish(desk)
    assert code == 0
    assert published["reviewers"] == ["bob", "cleo"]
    _, listed = msfl("list", "--registry", desk / "registry")
    assert listed["releases"] == [{"release": "tiny:1.0.0", "digest": built["digest"], "statements": 1, "reviews": 2}]


def test_a_rejection_stands(desk: Path) -> None:
    push(desk)
    review(desk, "bob")
    review(desk, "cleo", "--reject", "--comment", "reads the network")
    code, refused = publish(desk)
    assert (code, refused["refused"]["code"]) == (3, "release_rejected")


HERE = ["--registry", "{desk}/registry"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["build", "nowhere"], "neither a folder"),
        (["list", "--registry", "{desk}/release"], "not an OCI image layout"),
        (["review", "tiny:1.0.0", *HERE, "--key", "{desk}/bob.pem", "--reviewer", "bob"], "msfl registry list"),
        (["push", "{desk}/release", *HERE, "--key", "{desk}/root.json", "--publisher", "ada"], "key"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(desk: Path, arguments: list[str], why: str) -> None:
    code, said = msfl(*(a.format(desk=desk) for a in arguments))
    assert code == 1
    assert why in said["error"]
