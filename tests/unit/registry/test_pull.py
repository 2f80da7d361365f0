"""What a pull leaves: the release's own layers unpacked, base layers packed where they are wanted, each verified."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fakes.registries import Image, digest_of, tar_of
from msfl.registry.cache import ImageCache
from msfl.registry.pull import pull

SYSTEM = tar_of({"usr/bin/python": b"ELF", "etc/os-release": b"ID=tests"})
LIBRARIES = tar_of({"usr/lib/python3/torch.py": b"x = 1"})


def test_a_whole_image_has_every_layer_in_order(tmp_path: Path) -> None:
    image = Image(base=(SYSTEM, LIBRARIES))
    pulled = pull(image.registry, image.push(), ImageCache(tmp_path), by="run", whole=True)
    assert pulled.self_contained
    assert [layer.kind for layer in pulled.layers] == ["base", "base", "environment", "code"]
    assert [layer.diff_id for layer in pulled.layers] == image.config["rootfs"]["diff_ids"]
    for layer, packed in zip(pulled.layers, image.layers, strict=True):
        assert layer.path.read_bytes() == packed
        assert (layer.digest, layer.size) == (digest_of(packed), len(packed))
    assert "sha256:" + hashlib.sha256(pulled.config.read_bytes()).hexdigest() == pulled.config_digest
    assert not (pulled.root / "usr").exists()


def test_base_layers_are_not_asked_for_where_nobody_needs_them(tmp_path: Path) -> None:
    image = Image(base=(SYSTEM, LIBRARIES))
    digest = image.push()
    for layer in image.layers[:2]:
        image.registry.tamper(digest_of(layer), b"never read")
    pulled = pull(image.registry, digest, ImageCache(tmp_path), by="run")
    assert pulled.self_contained
    assert [layer.kind for layer in pulled.layers] == ["environment", "code"]
    assert (pulled.root / "msfl/learning/__init__.py").exists()


def test_an_image_without_base_layers_says_so(tmp_path: Path) -> None:
    image = Image()
    assert not pull(image.registry, image.push(), ImageCache(tmp_path), by="run", whole=True).self_contained
