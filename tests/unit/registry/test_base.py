"""A base image is read the same wherever it comes from, and the Python in it is found without running it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from fakes.bases import PYTHON, SITE_PACKAGES, as_archive, as_layout, config_of, distribution, layer
from fakes.registries import MemoryRegistry
from msfl.registry.base import BASE_DIGEST, BASE_NAME, BadBase, BaseImage, Contents, read_base
from msfl.registry.base_python import lock_base, python_of
from msfl.registry.build import BuiltRelease, build_release
from msfl.registry.cache import ImageCache
from msfl.registry.environment import BadEnvironment
from msfl.registry.publish import push_release
from msfl.registry.pull import pull

RECIPE = """
name: own
version: 1.0.0
entrypoint: [python, -m, msfl.own_model]
code: [msfl/own_model, msfl/protos/tasklink.py]
requires: ["torch>=2"]
tasks: [train]
profiles: {demo: {rounds: 1}}
config: {rounds: {type: integer, min: 1, max: 5}}
outputs: {weights: true}
"""
LOWER = layer({**PYTHON, **distribution("torch", "2.13.0", ("numpy", "tomli; python_version < '3.11'"))})
UPPER = layer(distribution("numpy", "2.4.6"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    (folder / "msfl" / "own_model").mkdir(parents=True)
    (folder / "release.yaml").write_text(RECIPE)
    (folder / "msfl" / "own_model" / "__init__.py").write_text("")
    (folder / "msfl" / "own_model" / "__main__.py").write_text("print('own')")
    return folder / "release.yaml"


def read(tmp_path: Path, *tars: bytes, name: str = "base") -> BaseImage:
    as_layout(tmp_path / name, list(tars))
    work = tmp_path / f"work-{name}"
    work.mkdir()
    return read_base(str(tmp_path / name), work)


def digests(built: BuiltRelease) -> list[str]:
    assert built.base is not None
    return [layer.digest for layer in built.base.layers]


def build(recipe: Path, base: BaseImage) -> BuiltRelease:
    return build_release(recipe, Path("/no/packages/of/this/machine"), base=base)


def test_a_self_contained_image_is_the_base_and_two_marked_layers(recipe: Path, tmp_path: Path) -> None:
    digest = as_layout(tmp_path / "base", [LOWER, UPPER])
    (tmp_path / "work").mkdir()
    built = build(recipe, read_base(str(tmp_path / "base"), tmp_path / "work"))
    manifest, config = json.loads(built.manifest), json.loads(built.config)
    assert [part.get("annotations") for part in manifest["layers"]] == [
        None,
        None,
        {"msfl.layer": "environment"},
        {"msfl.layer": "code"},
    ]
    assert manifest["annotations"][BASE_DIGEST] == digest
    assert manifest["annotations"][BASE_NAME] == "base-1"
    assert config["config"]["Env"] == [
        "PATH=/usr/local/bin:/usr/bin",
        "PYTHONDONTWRITEBYTECODE=1",
        "PYTHONNOUSERSITE=1",
        "PYTHONPATH=/",
    ]
    assert config["config"]["Entrypoint"] == ["python", "-m", "msfl.own_model"]
    assert config["config"]["WorkingDir"] == "/"
    assert len(config["rootfs"]["diff_ids"]) == len(config["history"]) == 4
    registry = MemoryRegistry()
    assert push_release(registry, built) == built.digest
    for part in manifest["layers"]:
        with registry.get_blob(part["digest"]) as blob:
            assert len(blob.read()) == part["size"]


def test_the_lock_is_that_of_the_python_in_the_base(recipe: Path, tmp_path: Path) -> None:
    lock = build(recipe, read(tmp_path, LOWER, UPPER)).environment
    assert lock.python == "cpython-311-base"
    assert {name: d.version for name, d in lock.distributions.items()} == {"numpy": "2.4.6", "torch": "2.13.0"}
    assert set(lock.distributions["numpy"].files) == {"numpy/__init__.py", "numpy-2.4.6.dist-info/METADATA"}


def test_same_base_same_digest_on_another_day_and_packed_by_another(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(recipe, read(tmp_path, LOWER, UPPER))
    as_layout(tmp_path / "again", [LOWER, UPPER])
    for path in (tmp_path / "again").rglob("*"):
        os.utime(path, (0, 0))
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    (tmp_path / "second").mkdir()
    second = build(recipe, read_base(str(tmp_path / "again"), tmp_path / "second"))
    assert second.digest == first.digest
    as_layout(tmp_path / "loose", [LOWER, UPPER], level=1)
    (tmp_path / "third").mkdir()
    third = build(recipe, read_base(str(tmp_path / "loose"), tmp_path / "third"))
    assert third.config == first.config
    assert digests(third) == digests(first)
    changed = build(recipe, read(tmp_path, LOWER, layer(distribution("numpy", "2.4.7")), name="changed"))
    assert changed.digest != first.digest


def test_an_archive_of_docker_save_gives_the_same_layers(tmp_path: Path) -> None:
    digest = as_archive(tmp_path / "base.tar", [LOWER, UPPER])
    (tmp_path / "work").mkdir()
    base = read_base(str(tmp_path / "base.tar"), tmp_path / "work")
    assert (base.name, base.digest) == ("base:1", digest)
    assert [x.digest for x in base.layers] == [x.digest for x in read(tmp_path, LOWER, UPPER).layers]


def test_a_virtual_environment_is_the_python_that_counts(tmp_path: Path) -> None:
    venv = {
        **PYTHON,
        **distribution("numpy", "1.0.0"),
        "opt/venv/pyvenv.cfg": b"home = /usr/local/bin\nversion = 3.11.9\n",
        "opt/venv/bin/python": "-> /usr/local/bin/python3.11",
        **distribution("numpy", "2.0.0", where="opt/venv/lib/python3.11/site-packages"),
    }
    tar = layer(venv)
    config = config_of([tar], ("PATH=/opt/venv/bin:/usr/local/bin",))
    as_layout(tmp_path / "base", [tar], config=config)
    (tmp_path / "work").mkdir()
    base = read_base(str(tmp_path / "base"), tmp_path / "work")
    assert python_of(base).packages == ("opt/venv/lib/python3.11/site-packages",)
    assert python_of(base).full_version == "3.11.9"
    assert lock_base(["numpy"], base).distributions["numpy"].version == "2.0.0"


def test_what_an_upper_layer_takes_away_is_not_locked(tmp_path: Path) -> None:
    gone = layer({f"{SITE_PACKAGES}/.wh.numpy-2.4.6.dist-info": b"", f"{SITE_PACKAGES}/.wh.numpy": b""})
    with pytest.raises(BadEnvironment, match="numpy, which is not installed"):
        lock_base(["numpy"], read(tmp_path, LOWER, UPPER, gone))
    opaque = layer({f"{SITE_PACKAGES}/numpy/.wh..wh..opq": b"", f"{SITE_PACKAGES}/numpy/new.py": b""})
    with pytest.raises(BadEnvironment, match="not what its distribution recorded"):
        lock_base(["numpy"], read(tmp_path, LOWER, UPPER, opaque, name="opaque"))


def test_a_file_that_was_changed_after_its_installation_is_no_reference(tmp_path: Path) -> None:
    patched = layer({f"{SITE_PACKAGES}/numpy/__init__.py": b"evil = 1"})
    with pytest.raises(BadEnvironment, match=r"numpy/__init__\.py of numpy"):
        lock_base(["numpy"], read(tmp_path, LOWER, UPPER, patched))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"etc/os-release": b"ID=debian\n"}, "no `python` on its PATH"),
        ({**PYTHON, f"{SITE_PACKAGES}/msfl/learning/x.py": b""}, "pip uninstall msfl"),
        ({**PYTHON, "msfl/learning/x.py": b""}, "no site would take"),
        ({"usr/local/bin/python": "-> python3", "usr/local/bin/python3": "-> python"}, "in a circle"),
    ],
)
def test_a_base_that_cannot_carry_a_release_says_why(tmp_path: Path, files: dict[str, bytes | str], why: str) -> None:
    with pytest.raises(BadBase, match=why):
        lock_base([], read(tmp_path, layer(files)))


def test_a_base_whose_bytes_are_others_is_refused(tmp_path: Path) -> None:
    as_layout(tmp_path / "base", [LOWER], config=config_of([UPPER]))
    (tmp_path / "work").mkdir()
    with pytest.raises(BadBase, match="unpacks to"):
        read_base(str(tmp_path / "base"), tmp_path / "work")


def test_a_base_that_is_nowhere_says_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(BadBase, match="DOCKER_HOST"):
        read_base("debian:12", tmp_path)


def test_paths_in_a_base_are_followed_inside_it_only() -> None:
    contents = Contents(links={"bin": "usr/bin", "usr/bin/python": "../../../../opt/py"}, files={"opt/py"})
    assert contents.resolve("/bin/python") == "opt/py"


def test_what_is_built_on_a_base_is_taken_by_a_site(recipe: Path, tmp_path: Path) -> None:
    registry = MemoryRegistry()
    built = build(recipe, read(tmp_path, LOWER, UPPER))
    image = pull(registry, push_release(registry, built), ImageCache(tmp_path / "cache"), by="run", whole=True)
    assert image.self_contained
    assert [layer.kind for layer in image.layers] == ["base", "base", "environment", "code"]
    assert (image.root / "msfl/own_model/__main__.py").read_text() == "print('own')"
