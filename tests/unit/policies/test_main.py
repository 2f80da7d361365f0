"""A custodian at the terminal: make a key, write a policy, check it, sign it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes.governance import NOW, POLICY_YAML, World, edit, key, member, trusted
from msfl.policies.encoding import encode, sha256_of
from msfl.policies.envelope import RELEASE_STATEMENT, sign
from msfl.policies.main import app
from msfl.policies.trust import trust_policy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    world = World()
    (tmp_path / "policy.yaml").write_text(POLICY_YAML)
    (tmp_path / "cleo.pem").write_bytes(key("cleo").to_pem())
    (tmp_path / "dataset.json").write_bytes(encode(world.dataset))
    (tmp_path / "release.json").write_bytes(sign(encode(world.statement), RELEASE_STATEMENT, [key("paul")]))
    return tmp_path


def run(*words: str | Path, code: int = 0, typed: str = "") -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], input=typed)
    assert result.exit_code == code, result.output
    return result.output


def test_a_new_key_is_private(folder: Path) -> None:
    said = json.loads(run("keys", "cleo", "--folder", folder, "--json"))
    assert stat.S_IMODE(Path(said["private"]).stat().st_mode) == 0o600
    assert json.loads(Path(said["public"]).read_text())["key_id"] == said["key_id"]
    before = Path(said["private"]).read_bytes()
    run("keys", "cleo", "--folder", folder, code=1)
    assert Path(said["private"]).read_bytes() == before
    run("keys", "Cleo Mayer", "--folder", folder, code=2)


def test_a_key_with_a_passphrase_signs_with_it(folder: Path) -> None:
    run("keys", "carl", "--folder", folder, "--passphrase", typed="secret\nsecret\n")
    private = folder / "carl.key.pem"
    assert b"ENCRYPTED" in private.read_bytes()
    run("sign", folder / "policy.yaml", "--key", private, code=1)
    run("sign", folder / "policy.yaml", "--key", private, "--passphrase", typed="secret\n")


def test_sign_gives_an_envelope_that_the_gateway_trusts(folder: Path) -> None:
    said = json.loads(run("sign", folder / "policy.yaml", "--key", folder / "cleo.pem", "--json"))
    policy = trusted(trust_policy(Path(said["envelope"]).read_bytes(), World().site_root, NOW))
    assert policy.sha256 == said["sha256"] == sha256_of(POLICY_YAML.encode())


def test_a_second_custodian_adds_a_signature(folder: Path) -> None:
    (folder / "carl.pem").write_bytes(key("carl").to_pem())
    run("sign", folder / "policy.yaml", "--key", folder / "cleo.pem", "--out", folder / "one.json")
    run("sign", folder / "one.json", "--key", folder / "carl.pem", "--out", folder / "two.json")
    envelope = json.loads((folder / "two.json").read_text())
    assert [s["keyid"] for s in envelope["signatures"]] == [member("cleo").key_id, member("carl").key_id]


def test_check_names_file_line_and_key(folder: Path) -> None:
    broken = folder / "broken.yaml"
    broken.write_text(edit(POLICY_YAML, "min_sites: 2", "min_site: 2"))
    said = run("check", broken, code=1)
    assert "broken.yaml:34: privacy.min_site: an unknown key (allowed: min_cases, min_sites" in said
    found = json.loads(run("check", broken, "--json", code=1))
    assert {p["key"] for p in found["problems"]} == {"privacy.min_site", "privacy.min_sites"}
    run("sign", broken, "--key", folder / "cleo.pem", code=1)
    assert not (folder / "broken.dsse").exists()


def test_check_and_explain_a_good_policy(folder: Path) -> None:
    assert "valid, sha256:" in run("check", folder / "policy.yaml")
    assert "rounds: at most 60" in run("explain", folder / "policy.yaml")


def test_new_writes_a_policy_that_checks(folder: Path) -> None:
    words = ("--release", folder / "release.json", "--dataset", folder / "dataset.json", "--user", "ada@uni.example")
    run("new", *words, "--out", folder / "new.yaml")
    assert "valid" in run("check", folder / "new.yaml")
    before = (folder / "new.yaml").read_bytes()
    assert "exists already" in run("new", *words, "--out", folder / "new.yaml", code=1)
    assert (folder / "new.yaml").read_bytes() == before


def test_a_missing_file_is_wrong_usage(folder: Path) -> None:
    assert "No such file" in run("check", folder / "nothing.yaml", code=2)
    assert sorted(p.name for p in folder.iterdir()) == ["cleo.pem", "dataset.json", "policy.yaml", "release.json"]
