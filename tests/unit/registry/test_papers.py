"""What lies beside an image: the list of its parts, the model card, and signatures for other people's tools."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from fakes.bases import PYTHON, as_layout, distribution, layer
from fakes.environments import install
from fakes.registries import MemoryRegistry
from msfl.policies.changes import Way
from msfl.policies.keys import KeyPair
from msfl.registry.base import read_base
from msfl.registry.build import BuiltRelease, build_release
from msfl.registry.compare import Comparison, compare
from msfl.registry.cosign import add_attestation, add_signature, attestation_tag, signature_tag
from msfl.registry.interface import Registry
from msfl.registry.model_card import MARKDOWN_CARD, SECTIONS, YAML_CARD, BadCard, ModelCard, card_flaws, find_card
from msfl.registry.publish import push_release
from msfl.registry.release_image import read_image
from msfl.registry.sbom import sbom_flaws

NOW = datetime(2026, 11, 28, tzinfo=UTC)
RECIPE = """
name: own
version: {version}
entrypoint: [python, -m, msfl.own]
code: [msfl/own]
requires: [torch]
tasks: {tasks}
profiles: {{demo: {{rounds: {rounds}}}}}
config: {{rounds: {{type: integer, min: 1, max: {most}}}}}
outputs: {{train: {{document: {{type: object, properties: {properties}}}}}}}
resources: {{gpus: {gpus}, memory_gib: 1}}
"""
USUAL: dict[str, Any] = {"version": "1.0.0", "tasks": "[train]", "rounds": 1, "most": 5, "gpus": 0}
USUAL["properties"] = "{n_train: {type: integer}}"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    (tmp_path / "release/msfl/own").mkdir(parents=True)
    (tmp_path / "release/msfl/own/__main__.py").write_text("print('own')\n")
    install(tmp_path / "site-packages", "torch", "2.13.0", requires=("numpy",))
    install(tmp_path / "site-packages", "numpy", "2.4.6")
    return tmp_path


def build(world: Path, **changes: Any) -> BuiltRelease:
    (world / "release/release.yaml").write_text(RECIPE.format(**{**USUAL, **changes}))
    return build_release(world / "release/release.yaml", world / "site-packages")


# ------------------------------------------------------------------ SBOM


def test_the_list_is_valid_and_the_same_each_time(world: Path) -> None:
    sbom = build(world).sbom()
    assert sbom == build(world).sbom()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom.decode()) is None
    said = json.loads(sbom)
    assert {c["purl"] for c in said["components"]} == {"pkg:pypi/torch@2.13.0", "pkg:pypi/numpy@2.4.6"}
    assert "timestamp" not in said["metadata"]


def test_the_system_below_is_listed(world: Path) -> None:
    status = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n\n"
    status += "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
    files = {**PYTHON, "var/lib/dpkg/status": status.encode(), **distribution("torch", "2.13.0")}
    as_layout(world / "base", [layer(files)])
    (world / "work").mkdir()
    build(world)
    base = read_base(str(world / "base"), world / "work")
    built = build_release(world / "release/release.yaml", world / "none", base=base)
    said = json.loads(built.sbom())
    assert {c["purl"] for c in said["components"]} == {
        "pkg:pypi/torch@2.13.0",
        "pkg:deb/debian/libc6@2.36-9?arch=amd64",
    }
    assert sbom_flaws(built.sbom(), built.digest, built.environment) == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda said: said["components"].pop(), "does not name"),
        (lambda said: said["components"][0].update(version="9"), "and the list has 9"),
        (lambda said: said["components"][0]["hashes"][0].update(content="0" * 64), "other files"),
        (lambda said: said["components"].append({"name": "evil", "version": "1", "purl": "pkg:pypi/evil@1"}), "evil"),
        (lambda said: said["metadata"]["component"]["hashes"][0].update(content="0" * 64), "another image"),
        (lambda said: said.pop("components"), "cannot be read"),
        (lambda said: said.update(components=3), "cannot be read"),
    ],
)
def test_a_list_that_does_not_fit_the_image_is_found_out(world: Path, change: Any, why: str) -> None:
    built = build(world)
    said = json.loads(built.sbom())
    assert sbom_flaws(json.dumps(said).encode(), built.digest, built.environment) == ()
    change(said)
    flaws = sbom_flaws(json.dumps(said).encode(), built.digest, built.environment)
    assert why in "; ".join(flaws)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"metadata": 1}'])
def test_a_list_that_is_none(world: Path, data: bytes) -> None:
    built = build(world)
    assert "cannot be read" in sbom_flaws(data, built.digest, built.environment)[0]


# ------------------------------------------------------------------ model card


def markdown(**changes: str) -> bytes:
    return "\n".join(f"# {name}\n\n{changes.get(name.split()[0], 'Words.')}\n" for name in SECTIONS).encode()


def test_a_card_in_either_form(tmp_path: Path) -> None:
    (tmp_path / "model-card.md").write_bytes(markdown())
    assert find_card(tmp_path).media_type == MARKDOWN_CARD
    yaml = "".join(f"{name.lower().replace(' ', '_')}: words\n" for name in SECTIONS)
    (tmp_path / "model-card.yaml").write_text(yaml)
    with pytest.raises(BadCard, match="there are two"):
        find_card(tmp_path)
    (tmp_path / "model-card.md").unlink()
    assert find_card(tmp_path).media_type == YAML_CARD


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "'Intended use' is missing"),
        (markdown(Contact=" "), "'Contact' is empty"),
        (markdown(Input="TODO: say"), "'Input' still says TODO"),
        (b"\xff\xfe", "cannot be read"),
        (b"x" * (1 << 19), "at most"),
    ],
)
def test_a_card_that_leaves_questions_open(data: bytes, why: str) -> None:
    assert why in "; ".join(card_flaws(ModelCard(data, MARKDOWN_CARD)))


def test_a_card_elsewhere_is_no_card(tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_bytes(markdown())
    (tmp_path / "release").mkdir()
    (tmp_path / "release/model-card.md").symlink_to(tmp_path / "secret.md")
    with pytest.raises(BadCard, match="there is none"):
        find_card(tmp_path / "release")


@pytest.mark.parametrize("name", ["logistic", "nnunet"])
def test_the_releases_that_come_with_msfl_have_one(name: str) -> None:
    from importlib.resources import files

    assert find_card(Path(str(files("msfl.learning") / name))).media_type == MARKDOWN_CARD


# ------------------------------------------------------------------ cosign


def read_as_cosign_does(registry: Registry, digest: str, public_pem: bytes) -> list[dict[str, Any]]:
    """What cosign's specification says a verifier does (SIGNATURE_SPEC.md), with nothing of ours but the bytes."""
    public = load_pem_public_key(public_pem)
    assert isinstance(public, Ed25519PublicKey)
    tag = digest.replace(":", "-") + ".sig"
    manifest = json.loads(registry.get_manifest(registry.resolve(tag)))
    good = []
    for part in manifest["layers"]:
        if part["mediaType"] != "application/vnd.dev.cosign.simplesigning.v1+json":
            continue
        with registry.get_blob(part["digest"]) as stream:
            payload = stream.read()
        try:
            public.verify(base64.b64decode(part["annotations"]["dev.cosignproject.cosign/signature"]), payload)
        except InvalidSignature:
            continue
        critical = json.loads(payload)["critical"]
        if critical["type"] == "cosign container image signature":
            good.append(critical)
    return [critical for critical in good if critical["image"]["docker-manifest-digest"] == digest]


def pem_of(key: KeyPair) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


ADA, EVE = KeyPair.from_seed(b"a" * 32), KeyPair.from_seed(b"e" * 32)


def test_another_implementation_verifies_the_signature(world: Path) -> None:
    registry = MemoryRegistry()
    digest = push_release(registry, build(world))
    assert add_signature(registry, digest, "host/models:own_1.0.0", ADA, {"msfl.statement": "x"}) == signature_tag(
        digest
    )
    add_signature(registry, digest, "host/models:own_1.0.0", ADA, {"msfl.statement": "x"})
    (critical,) = read_as_cosign_does(registry, digest, pem_of(ADA))
    assert critical["identity"] == {"docker-reference": "host/models:own_1.0.0"}
    assert read_as_cosign_does(registry, digest, pem_of(EVE)) == []
    add_signature(registry, digest, "host/models:own_1.0.0", EVE, {})
    assert len(read_as_cosign_does(registry, digest, pem_of(EVE))) == 1
    assert len(read_as_cosign_does(registry, digest, pem_of(ADA))) == 1


def test_a_signature_that_names_another_image_is_not_of_this_one(world: Path) -> None:
    registry = MemoryRegistry()
    first = push_release(registry, build(world))
    second = push_release(registry, build(world, version="1.0.1"))
    add_signature(registry, first, "host/models", ADA, {})
    # Whoever runs the registry hangs the one's signature under the other's tag.
    registry.put_manifest(registry.get_manifest(registry.resolve(signature_tag(first))), signature_tag(second))
    assert read_as_cosign_does(registry, second, pem_of(ADA)) == []


def test_the_attestation_is_an_in_toto_statement(world: Path) -> None:
    registry, built = MemoryRegistry(), build(world)
    digest = push_release(registry, built)
    statement = built.statement(publisher="ada", commit="unknown", issued=NOW, expires=NOW + timedelta(days=9))
    assert add_attestation(registry, statement, statement.model_dump(mode="json"), ADA) == attestation_tag(digest)
    manifest = json.loads(registry.get_manifest(registry.resolve(digest.replace(":", "-") + ".att")))
    (part,) = manifest["layers"]
    with registry.get_blob(part["digest"]) as stream:
        envelope = json.loads(stream.read())
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"]
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    public = load_pem_public_key(pem_of(ADA))
    assert isinstance(public, Ed25519PublicKey)
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)
    said = json.loads(payload)
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["subject"] == [{"name": "own", "digest": {"sha256": digest.removeprefix("sha256:")}}]
    assert said["predicateType"] == part["annotations"]["predicateType"]
    assert said["predicate"]["publisher"] == "ada"


# ------------------------------------------------------------------ what changed


def compared(world: Path, **changes: Any) -> Comparison:
    registry = MemoryRegistry()
    pairs = []
    for version, changed in (("1.0.0", {}), ("1.1.0", changes)):
        if version == "1.1.0":
            for path, text in changed.pop("files", {}).items():
                (world / path).parent.mkdir(parents=True, exist_ok=True)
                (world / path).write_text(text)
        built = build(world, version=version, **changed)
        digest = push_release(registry, built)
        statement = built.statement(publisher="ada", commit="unknown", issued=NOW, expires=NOW + timedelta(days=9))
        pairs.append((statement, read_image(registry, digest)))
    (old, old_image), (new, new_image) = pairs
    return compare(old, new, old_image, new_image)


def test_the_same_again_changed_nothing(world: Path) -> None:
    assert compared(world).nothing


def test_code_is_compared_line_by_line(world: Path) -> None:
    files = {"release/msfl/own/__main__.py": "print('mine')\nprint(2)\n", "release/msfl/own/new.py": "x = 1\n"}
    found = compared(world, files=files).code
    assert [(c.name, c.what, c.lines_added, c.lines_removed) for c in found] == [
        ("msfl/own/__main__.py", "changed", 2, 1),
        ("msfl/own/new.py", "added", 1, 0),
    ]


def test_a_dependency_of_another_version(world: Path) -> None:
    registry = MemoryRegistry()
    first = read_image(registry, push_release(registry, build(world)))
    other = world / "other"
    install(other, "torch", "2.14.0", requires=("sympy",))
    install(other, "sympy", "1.0")
    statement = build(world).statement(publisher="ada", commit="unknown", issued=NOW, expires=NOW + timedelta(days=9))
    (world / "release/release.yaml").write_text(RECIPE.format(**{**USUAL, "version": "1.1.0"}))
    second = read_image(registry, push_release(registry, build_release(world / "release/release.yaml", other)))
    found = compare(statement, statement, first, second).dependencies
    assert [(d.name, d.before, d.after) for d in found] == [
        ("numpy", "2.4.6", ""),
        ("sympy", "", "1.0"),
        ("torch", "2.13.0", "2.14.0"),
    ]


def test_a_schema_that_opens_is_told_first(world: Path) -> None:
    registry = MemoryRegistry()
    built = build(world)
    image = read_image(registry, push_release(registry, built))
    old = built.statement(publisher="ada", commit="unknown", issued=NOW, expires=NOW + timedelta(days=9))
    closed = {"train": {"document": {"type": "object", "additionalProperties": False}}}
    opened = {"train": {"document": {"type": "object"}}}
    first, second = (old.model_copy(update={"outputs": outputs}) for outputs in (closed, opened))
    found = compare(first, second, image, image)
    assert [(c.way, c.what) for c in found.changes] == [(Way.WIDER, "fields of any name to leave a site")]


@pytest.mark.parametrize(
    ("changes", "way", "field"),
    [
        ({"most": 9}, Way.WIDER, "config.rounds"),
        ({"most": 4}, Way.NARROWER, "config.rounds"),
        ({"rounds": 2}, Way.OTHER, "profiles.demo"),
        ({"tasks": "[train, evaluate]"}, Way.WIDER, "tasks"),
        ({"properties": "{n_train: {type: integer}, name: {type: string}}"}, Way.WIDER, "outputs"),
        ({"properties": "{}"}, Way.NARROWER, "outputs"),
        ({"properties": "{n_train: {type: integer}, x: {}}"}, Way.WIDER, "outputs"),
        (
            {"properties": "{n_train: {type: string}}"},
            Way.OTHER,
            "outputs.train.document.properties.n_train.type",
        ),
        ({"gpus": 1}, Way.OTHER, "resources.gpus"),
    ],
)
def test_settings_outputs_tasks_and_resources(world: Path, changes: dict[str, Any], way: Way, field: str) -> None:
    assert [(c.way, c.field) for c in compared(world, **changes).changes] == [(way, field)]
