"""A base image from a real engine: the release built on it is the one built on the same image's file."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from fakes.bases import PYTHON, as_archive, distribution, layer
from msfl.registry.base import BadBase, read_base
from msfl.registry.build import build_release

pytestmark = [pytest.mark.system, pytest.mark.slow]
RECIPE = """
name: own
version: 1.0.0
entrypoint: [python, -m, msfl.own_model]
code: [msfl/own_model]
requires: [numpy]
tasks: [train]
profiles: {demo: {rounds: 1}}
config: {}
outputs: {}
"""


@pytest.fixture
def client(engine: str) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(engine, timeout=30)
    yield client
    client.close()


def test_a_base_from_the_engine_is_the_same_base(client: docker.DockerClient, tmp_path: Path) -> None:
    (tmp_path / "msfl/own_model").mkdir(parents=True)
    (tmp_path / "msfl/own_model/__main__.py").write_text("print('own')")
    (tmp_path / "release.yaml").write_text(RECIPE)
    name = f"msfl-test-{uuid.uuid4().hex[:8]}:1"
    lower = layer({**PYTHON, **distribution("numpy", "2.4.6")})
    image = as_archive(tmp_path / "base.tar", [lower, layer({"opt/one": b"1"})], name=name)
    client.images.load((tmp_path / "base.tar").read_bytes())
    try:
        for folder in ("file", "engine", "by-id"):
            (tmp_path / folder).mkdir()
        file = read_base(str(tmp_path / "base.tar"), tmp_path / "file")
        named = read_base(name, tmp_path / "engine")
        by_id = read_base(image, tmp_path / "by-id")
    finally:
        client.images.remove(name)
    assert (named.name, named.digest) == (name, image)
    assert by_id.digest == image
    assert [x.digest for x in named.layers] == [x.digest for x in file.layers]
    recipe = tmp_path / "release.yaml"
    builds = [build_release(recipe, Path("/none"), base=base) for base in (file, named)]
    assert builds[0].digest == builds[1].digest


def test_an_image_that_nobody_has_is_said_in_a_line(client: docker.DockerClient, tmp_path: Path) -> None:
    with pytest.raises(BadBase, match="does not give it"):
        read_base("127.0.0.1:1/no-such-image:1", tmp_path)
