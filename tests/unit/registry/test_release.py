"""A release from its recipe to a verified folder: built the same each time, signed, reviewed, found, pulled."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fakes.environments import install
from fakes.registries import MemoryRegistry
from msfl.policies.encoding import Malformed, encode
from msfl.policies.envelope import RELEASE_STATEMENT, sign
from msfl.policies.keys import KeyPair
from msfl.policies.refusals import Code, Refused
from msfl.registry.build import BadRelease, BuiltRelease, build_release, find_recipe
from msfl.registry.cache import ImageCache
from msfl.registry.environment import EnvironmentLock
from msfl.registry.interface import NotInRegistry
from msfl.registry.layer import LayerLimits, read_layer
from msfl.registry.publish import (
    AlreadyPublished,
    add_review,
    list_releases,
    push_release,
    resolve_release,
    statements_of,
    submit_statement,
)
from msfl.registry.pull import VerifiedImage, pull

NOW = datetime(2026, 11, 24, tzinfo=UTC)
ENGINEER = KeyPair.from_seed(b"e" * 32)
RECIPE = """
name: voxel-logistic
version: {version}
entrypoint: [python, -m, msfl.learning.logistic]
code: [msfl/learning, msfl/protos/tasklink.py]
requires: [numpy]
tasks: [fingerprint, prepare, train, evaluate]
profiles: {{demo: {{rounds: 2}}}}
config: {{rounds: {{type: integer, min: 1, max: 50}}}}
outputs: {{weights: true}}
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Two portions of a namespace, a site-packages folder, and a recipe."""
    for path, text in {
        "a/msfl/learning/__init__.py": "",
        "a/msfl/learning/py.typed": "",
        "a/msfl/learning/logistic/__main__.py": "print('hello')",
        "a/msfl/learning/__pycache__/x.cpython-311.pyc": "stale",
        "a/msfl/learning/.hidden": "x",
        "b/msfl/protos/tasklink.py": "frames = 1",
        "b/msfl/protos/other.py": "never = 1",
        "recipe/release.yaml": RECIPE.format(version="1.0.0"),
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    install(tmp_path / "site-packages", "numpy", "2.4.6")
    return tmp_path


def build(world: Path) -> BuiltRelease:
    namespace = (world / "a" / "msfl", world / "b" / "msfl")
    return build_release(world / "recipe" / "release.yaml", world / "site-packages", namespace=namespace)


def test_the_image_holds_the_code_and_the_lock_and_nothing_else(world: Path) -> None:
    built = build(world)
    diff_ids = json.loads(built.config)["rootfs"]["diff_ids"]
    first, second = (
        dict(read_layer(io.BytesIO(layer), diff_id, LayerLimits()))
        for layer, diff_id in zip(built.layers, diff_ids, strict=True)
    )
    assert EnvironmentLock.from_bytes(first["msfl-environment.json"]) == built.environment
    assert set(second) == {
        "msfl/learning/__init__.py",
        "msfl/learning/py.typed",
        "msfl/learning/logistic/__main__.py",
        "msfl/protos/tasklink.py",
    }


def test_same_input_same_digest(world: Path) -> None:
    first = build(world)
    for path in (world / "a").rglob("*"):
        path.touch()
        path.chmod(0o700)
    assert build(world).digest == first.digest
    (world / "b" / "msfl" / "protos" / "tasklink.py").write_text("frames = 2")
    assert build(world).digest != first.digest


def test_the_layers_are_plain_tars_without_times_or_owners(world: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(build(world).layers[1])) as tar:
        entries = tar.getmembers()
    assert [e.name for e in entries] == sorted(e.name for e in entries)
    assert {(e.mtime, e.uid, e.gid, e.uname, e.gname, e.mode) for e in entries} == {(0, 0, 0, "", "", 0o644)}


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("msfl/protos/tasklink.py", "msfl/absent", "installed nowhere"),
        ("msfl.learning.logistic", "msfl.learning.absent", "not among the recipe's code"),
        ("[python, -m, msfl.learning.logistic]", "[sh, -c, x]", "must be"),
    ],
)
def test_a_recipe_that_cannot_be_built_says_why(world: Path, old: str, new: str, why: str) -> None:
    recipe = world / "recipe" / "release.yaml"
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(BadRelease, match=why):
        build(world)


@pytest.mark.parametrize("code", ["../../etc", "/etc/passwd", "torch", "msfl", "msfl/../x", "msfl/learning/"])
def test_code_is_named_by_package(world: Path, code: str) -> None:
    recipe = world / "recipe" / "release.yaml"
    recipe.write_text(recipe.read_text().replace("msfl/protos/tasklink.py", code))
    with pytest.raises(Malformed, match="code"):
        build(world)


def test_a_link_in_the_code_is_not_followed(world: Path) -> None:
    (world / "a" / "msfl" / "learning" / "secrets.py").symlink_to("/etc/passwd")
    with pytest.raises(BadRelease, match="symbolic link"):
        build(world)


def test_a_recipe_is_found_by_folder_or_by_name(world: Path) -> None:
    assert find_recipe(str(world / "recipe")) == world / "recipe" / "release.yaml"
    with pytest.raises(BadRelease, match="neither a folder"):
        find_recipe("no_such_release")


def test_a_release_goes_from_push_to_pull(world: Path) -> None:
    registry, built = MemoryRegistry(), build(world)
    digest = push_release(registry, built)
    assert digest == push_release(registry, built) == built.digest
    with pytest.raises(NotInRegistry):
        statements_of(registry, digest)
    statement = built.statement(publisher="ada", commit="unknown", issued=NOW, expires=NOW + timedelta(days=9))
    assert statement.digest == digest
    envelope = sign(encode(statement), RELEASE_STATEMENT, [ENGINEER])
    submit_statement(registry, digest, envelope)
    add_review(registry, digest, b"first")
    add_review(registry, digest, b"second")
    assert statements_of(registry, digest) == (envelope, (b"first", b"second"))
    assert list_releases(registry) == (("voxel-logistic:1.0.0", digest),)
    assert resolve_release(registry, "voxel-logistic:1.0.0") == digest

    image = pull(registry, digest, ImageCache(world / "cache"), by="run")
    assert image.digest == digest
    assert image.entrypoint == ("python", "-m", "msfl.learning.logistic")
    assert (image.root / "msfl/learning/logistic/__main__.py").read_text() == "print('hello')"
    assert image.environment == built.environment
    assert image.check_environment(world / "site-packages") is None
    assert pull(registry, digest, ImageCache(world / "cache"), by="run") == image
    folders = {"blobs", "held", "used", "looked-at"}
    assert {p.name for p in (world / "cache").iterdir()} == {image.root.name, *folders}


def test_a_version_is_never_reused(world: Path) -> None:
    registry = MemoryRegistry()
    first = push_release(registry, build(world))
    (world / "b" / "msfl" / "protos" / "tasklink.py").write_text("frames = 2")
    with pytest.raises(AlreadyPublished, match="give the release a new version"):
        push_release(registry, build(world))
    (world / "recipe" / "release.yaml").write_text(RECIPE.format(version="1.0.1"))
    second = push_release(registry, build(world))
    assert list_releases(registry) == (("voxel-logistic:1.0.0", first), ("voxel-logistic:1.0.1", second))


def test_a_reissued_statement_replaces_the_earlier_one(world: Path) -> None:
    registry = MemoryRegistry()
    digest = push_release(registry, build(world))
    submit_statement(registry, digest, b"old")
    submit_statement(registry, digest, b"new")
    assert statements_of(registry, digest) == (b"new", ())


def test_papers_need_an_image(world: Path) -> None:
    with pytest.raises(NotInRegistry):
        add_review(MemoryRegistry(), build(world).digest, b"review")


def test_an_environment_that_differs_is_a_refusal_that_names_it(world: Path) -> None:
    registry, built = MemoryRegistry(), build(world)
    image = pull(registry, push_release(registry, built), ImageCache(world / "cache"), by="run")
    (world / "site-packages" / "numpy" / "__init__.py").write_text("evil")
    refusal = image.check_environment(world / "site-packages")
    assert refusal is not None
    assert refusal.code is Code.ENVIRONMENT_DIFFERS
    assert refusal.fields["distributions"] == "numpy"
    assert "numpy/__init__.py" in refusal.message


def test_only_the_puller_makes_a_verified_image(world: Path) -> None:
    with pytest.raises(TypeError, match="never by hand"):
        VerifiedImage("sha256:" + "0" * 64, world, (), {}, build(world).environment, "", world, "", (), False, object())


def test_an_image_that_is_not_there_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="lacks"):
        pull(MemoryRegistry(), "sha256:" + "0" * 64, ImageCache(tmp_path), by="run")
