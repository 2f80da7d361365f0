"""A custodian at the terminal: make a key, write a policy, check it, sign it."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes.governance import NOW, POLICY_YAML, World, edit, key, member, trusted
from msfl.policies.decide import RULES
from msfl.policies.documents import AssetPolicy, format_utc
from msfl.policies.encoding import encode, load_yaml, sha256_of
from msfl.policies.envelope import RELEASE_STATEMENT, sign
from msfl.policies.main import app
from msfl.policies.trust import trust_policy
from msfl.policies.words import RULE_WORDS


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


def test_a_key_with_a_passphrase_signs_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("keys", "carl", "--folder", folder, "--passphrase", typed="secret\nsecret\n")
    private = folder / "carl.key.pem"
    assert b"ENCRYPTED" in private.read_bytes()
    run("sign", folder / "policy.yaml", "--key", private, code=1)
    run("sign", folder / "policy.yaml", "--key", private, "--passphrase", typed="secret\n")
    monkeypatch.setenv("MSFL_KEY_PASSPHRASE", "secret")
    run("sign", folder / "policy.yaml", "--key", private, "--out", folder / "other.dsse")
    said = run("sign", folder / "policy.yaml", "--key", folder / "cleo.pem", "--out", folder / "third.dsse", code=1)
    assert "has no passphrase: leave out --passphrase, and unset MSFL_KEY_PASSPHRASE" in said


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


def test_an_envelope_is_known_by_what_is_in_it(folder: Path) -> None:
    """The name that `sign` gives is the one that docs/policy.md shows, and that the gateway looks for."""
    signed, policy = folder / "policy.dsse", folder / "policy.yaml"
    (folder / "carl.pem").write_bytes(key("carl").to_pem())
    run("sign", policy, "--key", folder / "cleo.pem")
    run("check", signed)
    assert "In force from" in run("explain", signed)
    newer = folder / "newer.yaml"
    newer.write_text(edit(POLICY_YAML, "min_sites: 2", "min_sites: 1"))
    assert "newly allows" in run("diff", signed, newer)
    said = json.loads(run("sign", signed, "--key", folder / "carl.pem", "--json"))
    assert Path(said["envelope"]).suffix == ".dsse"


def test_a_public_key_signs_nothing_and_is_said_to_be_one(folder: Path) -> None:
    run("keys", "carl", "--folder", folder)
    said = run("sign", folder / "policy.yaml", "--key", folder / "carl.public.json", code=1)
    assert "no private key: give the file that ends with .key.pem" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("min_sites: 2", "  min_sites: 2", "policy.yaml:34: not YAML: the line is not indented like those before it"),
        ("  min_sites: 2", "\tmin_sites: 2", "policy.yaml:34: not YAML: a tab; indent with spaces"),
        ("purpose: ", "purpose: Use: ", "not YAML: a colon where there can be none"),
    ],
)
def test_what_is_no_yaml_is_said_in_words(folder: Path, old: str, new: str, said: str) -> None:
    (folder / "policy.yaml").write_text(edit(POLICY_YAML, old, new))
    assert said in run("check", folder / "policy.yaml", code=1)


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


def test_check_says_on_which_line_to_look_twice(folder: Path) -> None:
    text = edit(edit(POLICY_YAML, "proof: required", "proof: optional"), "min_sites: 2", "min_sites: 1")
    (folder / "loose.yaml").write_text(edit(text, "expires: 2027-05-01", "expires: 2026-11-02"))
    said = run("check", folder / "loose.yaml")
    assert "loose.yaml:7: note: it has expired" in said
    assert "loose.yaml:34: note: a run may have this site alone" in said
    assert "loose.yaml:39: note: whoever gets hold" in said
    found = json.loads(run("check", folder / "loose.yaml", "--json"))
    assert [w["line"] for w in found["warnings"]] == [7, 34, 39]


def test_check_holds_the_bounds_against_the_release(folder: Path) -> None:
    text = edit(POLICY_YAML, "  deep_supervision: {enum: [true, false]}\n", "  learning_rate: {max: 1}\n")
    text = edit(text, "initial_lr: {min: 0.0001, max: 0.05}", "initial_lr: {min: 2}")
    (folder / "other.yaml").write_text(text)
    said = run("check", folder / "other.yaml", "--release", folder / "release.json")
    assert "other.yaml:22: note: ms-lesion-nnunet:1.0.0 has no setting learning_rate" in said
    assert "other.yaml:21: note: no number that ms-lesion-nnunet:1.0.0 takes is within these bounds" in said
    assert "other.yaml:18: note: deep_supervision is not listed" in said
    assert "note" not in run("check", folder / "policy.yaml", "--release", folder / "release.json")


def test_diff_says_what_becomes_wider(folder: Path) -> None:
    text = edit(edit(POLICY_YAML, "version: 3", "version: 4"), "max_runs: 5", "max_runs: 50")
    (folder / "next.yaml").write_text(text)
    assert "newly allows: up to 50 runs in all (approval.max_runs)" in run(
        "diff", folder / "policy.yaml", folder / "next.yaml"
    )
    found = json.loads(run("diff", folder / "next.yaml", folder / "policy.yaml", "--json"))
    assert [c["way"] for c in found["changes"]] == ["no longer allows", "otherwise"]
    assert "Both allow the same." in run("diff", folder / "policy.yaml", folder / "policy.yaml")


def job_words(folder: Path, *more: str | Path) -> tuple[str | Path, ...]:
    (folder / "job.json").write_bytes(encode(World().job))
    papers = ("--release", folder / "release.json", "--dataset", folder / "dataset.json")
    who = ("--user", "ada@uni.example", "--organisation", "uni.example", "--reviewer", "rosa", "--reviewer", "rui")
    return ("explain", folder / "job.json", *papers, *who, *more)


def test_explain_a_job_gives_every_rule_with_pass_or_fail(folder: Path) -> None:
    # Its time in force is measured against the clock of this machine, so that it is written around it.
    now = datetime.now(UTC)
    text = edit(POLICY_YAML, "2026-11-01T00:00:00Z", format_utc(now - timedelta(days=1)))
    text = edit(text, "2027-05-01T00:00:00Z", format_utc(now + timedelta(days=1)))
    good, narrow = folder / "good.yaml", folder / "narrow.yaml"
    good.write_text(text)
    narrow.write_text(edit(edit(text, "id: ms-trial", "id: narrow"), "rounds: {max: 60}", "rounds: {max: 2}"))
    said = run(*job_words(folder, "--policy", good))
    assert "good.yaml, ms-trial-lesion-segmentation version 3: allows the job" in said
    assert said.count("  pass  ") == len(RULES) + 2
    said = run(*job_words(folder, "--policy", narrow), code=3)
    assert "FAIL  every setting is within its bounds: rounds = 50 is above 2 [config_out_of_range] Choose" in said
    assert said.count("  pass  ") == len(RULES) + 1
    found = json.loads(run(*job_words(folder, "--policy", narrow, "--policy", good, "--json")))
    assert found["allowed"] is True
    assert [[r["code"] for r in p["rules"] if not r["passed"]] for p in found["policies"]] == [
        ["config_out_of_range"],
        [],
    ]
    never = folder / "never.yaml"
    never.write_text(
        edit(edit(text, "id: ms-trial", "id: never"), "\nreleases:", "\nrefuse: {users: [ada@uni.example]}\nreleases:")
    )
    assert "refused by name" in run(*job_words(folder, "--policy", good, "--policy", never), code=3)
    run("explain", folder / "job.json", code=2)


def test_explain_a_job_that_does_not_fit_the_release(folder: Path) -> None:
    words = job_words(folder, "--policy", folder / "policy.yaml")
    (folder / "job.json").write_bytes(encode(World().job.model_copy(update={"config": {"network": "host"}})))
    assert "config_key_unknown" in run(*words, code=3)


def test_what_is_neither_policy_nor_job_is_answered_in_a_line(folder: Path) -> None:
    file = folder / "submit.yaml"
    file.write_text("release: ms-lesion-nnunet:1.0.0\ndatasets: [site-a/ms-trial]\nrounds: 3\n")
    said = run("explain", file, code=1)
    assert len(said.splitlines()) == 1
    assert "neither a policy (YAML with `kind: AssetPolicy`" in said
    assert "msfl gateway pending --job RUN" in said
    assert "neither a policy" in run("explain", folder / "release.json", code=1)
    # What calls itself a policy is told line by line what is wrong with it.
    file.write_text("kind: AssetPolicy\nrounds: 3\n")
    assert "submit.yaml:2" in run("explain", file, code=1)


def test_every_rule_has_words() -> None:
    assert {name for name, _ in RULES} < set(RULE_WORDS)


def test_new_asks_for_what_is_not_given(folder: Path) -> None:
    answers = [
        str(folder / "release.json"),
        str(folder / "dataset.json"),
        "ada@uni.example, bob@uni.example",
        "uni.example",
        "Study 1",
        "30",
        "40",
        "",  # Enter: as proposed
        "",
        "2",
        "3",
        "n",
        "y",
    ]
    said = run("new", "--guided", "--out", folder / "new.yaml", typed="\n".join(answers) + "\n")
    assert "Dataset site-a/ms-trial: 12 training and 4 test cases" in said
    policy = load_yaml((folder / "new.yaml").read_bytes(), AssetPolicy)
    assert policy.beneficiaries.users == ("ada@uni.example", "bob@uni.example")
    assert (policy.purpose, policy.config["rounds"].max, policy.privacy.min_sites) == ("Study 1", 40, 3)
    assert (policy.releases[0].reviewers.minimum, policy.approval.mode) == (2, "confirm")
    assert "note" not in run("check", folder / "new.yaml", "--release", folder / "release.json")
    run("new", "--out", folder / "other.yaml", code=2)


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
