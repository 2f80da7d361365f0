"""The gateway's folder: what it takes for trusted, and what it makes of files that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes.governance import LATER, NOW, POLICY_YAML, World, key, member
from msfl.gateway.home import Home, SiteSettings, enrolled, write
from msfl.gateway.main import app
from msfl.policies.documents import JobSpec, SiteRoot
from msfl.policies.encoding import encode, load_json
from msfl.policies.envelope import ASSET_POLICY, SITE_ROOT, sign
from msfl.policies.refusals import CannotProceed, Code, Refusal

SETTINGS = SiteSettings("site-a", "demo", "127.0.0.1:1", "registry")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A site whose root names cleo, with no policy and no dataset."""
    home = Home(tmp_path / "gateway")
    home.write_settings(SETTINGS)
    root = SiteRoot(site="site-a", version=1, custodians=(member("cleo"),), threshold=1, expires=LATER)
    write(home.root / "trust/site-root.dsse", sign(encode(root), SITE_ROOT, [key("cleo")]))
    return home


def put_policy(home: Home, name: str = "one", text: str = POLICY_YAML, by: str = "cleo") -> None:
    write(home.root / "policies" / f"{name}.dsse", sign(text.encode(), ASSET_POLICY, [key(by)]))


def test_settings_come_back(home: Home) -> None:
    assert home.settings() == SETTINGS


def test_a_folder_that_is_no_home_is_not_one_in_which_nothing_waits(home: Home, tmp_path: Path) -> None:
    assert enrolled(home.root).pending() == {}
    with pytest.raises(CannotProceed, match="no gateway's folder: look at how it is spelled"):
        enrolled(tmp_path / "gatewya")
    assert not (tmp_path / "gatewya").exists()


@pytest.mark.parametrize("size", [0, -1, "40", True, None, 1 << 30])
def test_the_cache_of_images_has_a_size(home: Home, size: object) -> None:
    file = home.root / "site.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "images_gib": size}))
    with pytest.raises(CannotProceed, match=r"images_gib .* must be a number of GiB"):
        home.settings()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "no JSON object"),
        ("[]", "setting is missing"),
        ('{"site": "site-a"}', "setting is missing"),
        ('{"site": "site-a", "reveel": "code"}', "no setting reveel"),
        (
            '{"site":"a","federation":"f","link_endpoint":"e","registry":"r","reveal":"resaon"}',
            "must be one of",
        ),
    ],
)
def test_a_slip_in_the_settings_is_named_and_ends_no_gateway_that_serves(home: Home, text: str, why: str) -> None:
    assert home.settings() == SETTINGS
    (home.root / "site.json").write_text(text)
    assert home.settings() == SETTINGS, "those of before"
    with pytest.raises(CannotProceed, match=why):
        Home(home.root).settings()


def test_without_any_policy_there_is_none_and_nothing_to_explain(home: Home) -> None:
    assert home.policies(NOW) == ((), ())


def test_what_a_custodian_signed_counts_and_what_others_signed_is_explained(home: Home) -> None:
    put_policy(home)
    put_policy(home, "two", by="mallory")
    trusted, refused = home.policies(NOW)
    assert [p.document.id for p in trusted] == ["ms-trial-lesion-segmentation"]
    assert [r.code for r in refused] == [Code.WRONG_SIGNER]
    assert "two.dsse" in refused[0].message


def test_policies_are_read_afresh_each_time(home: Home) -> None:
    put_policy(home)
    assert len(home.policies(NOW)[0]) == 1
    (home.root / "policies/one.dsse").unlink()
    assert home.policies(NOW) == ((), ())


def test_the_yaml_beside_a_policy_is_for_reading_only(home: Home) -> None:
    write(home.root / "policies/one.yaml", POLICY_YAML.encode())
    assert home.policies(NOW) == ((), ())


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", POLICY_YAML.encode()])
def test_a_file_that_is_no_envelope_is_a_refusal_and_hides_no_other_policy(home: Home, data: bytes) -> None:
    put_policy(home)
    write(home.root / "policies/broken.dsse", data)
    trusted, refused = home.policies(NOW)
    assert len(trusted) == 1
    assert [r.code for r in refused] == [Code.MALFORMED_DOCUMENT]


def test_under_a_site_root_of_another_site_no_policy_counts(home: Home) -> None:
    put_policy(home)
    home.write_settings(SiteSettings("site-b", "demo", "127.0.0.1:1", "registry"))
    trusted, refused = home.policies(NOW)
    assert trusted == ()
    assert len(refused) == 1


def test_a_federation_root_counts_only_with_the_hash_that_was_accepted(home: Home) -> None:
    write(home.root / "trust/federation-root.dsse", b"{}")
    write(home.root / "trust/federation-root.sha256", b"sha256:" + b"0" * 64)
    refusal = home.federation_root(NOW)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.ROOT_DIFFERS


# ------------------------------------------------------------------------------------------------------- datasets


def test_a_published_dataset_comes_back_with_where_it_lies(home: Home, tmp_path: Path) -> None:
    record = World().dataset
    write(home.root / "datasets/ms-trial.json", encode(record))
    write(home.root / "datasets/ms-trial.path", str(tmp_path).encode())
    assert home.dataset("ms-trial") == record
    assert home.dataset_folder("ms-trial") == tmp_path
    assert home.datasets() == [record]


@pytest.mark.parametrize("name", ["nothing", "../site", "a/b", ""])
def test_a_dataset_that_is_not_published_is_refused(home: Home, name: str) -> None:
    refusal = home.dataset(name)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.DATASET_UNKNOWN


def test_a_record_that_cannot_be_read_is_refused_and_not_shown(home: Home) -> None:
    write(home.root / "datasets/broken.json", b'{"id": "broken"}')
    refusal = home.dataset("broken")
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.MALFORMED_DOCUMENT
    assert home.datasets() == []


# --------------------------------------------------------------------------------------------------- confirmation


def test_a_run_is_parked_and_the_custodians_word_is_kept(home: Home) -> None:
    assert home.pending() == {}
    home.park("run-1", {"job": {"name": "first"}})
    assert home.pending() == {"run-1": {"job": {"name": "first"}}}
    assert (home.declined("run-1"), home.confirmed("run-1")) == (None, None)
    home.decline("run-1", "cleo")
    home.confirm("run-1", b"signed")
    assert home.declined("run-1") == {"by": "cleo"}
    assert home.confirmed("run-1") == b"signed"
    home.forget_said("run-1")
    assert (home.declined("run-1"), home.confirmed("run-1")) == (None, None)
    home.unpark("run-1")
    home.unpark("run-1")
    assert home.pending() == {}


def test_the_job_of_a_run_that_waits_is_what_policies_are_asked_about(home: Home) -> None:
    job = World().job
    home.park("run-1", {"job": job.model_dump(mode="json")})
    said = CliRunner().invoke(app, ["pending", "--home", str(home.root), "--job", "run-1"])
    assert load_json(said.stdout.encode(), JobSpec, "job.json") == job
    other = CliRunner().invoke(app, ["pending", "--home", str(home.root), "--job", "run-2"])
    assert "no run run-2 waits here" in str(other.exception)


def test_what_is_written_is_private_and_leaves_no_half_file(home: Home) -> None:
    file = home.root / "secrets/site.key"
    write(file, b"k" * 32)
    write(file, b"l" * 32)
    assert file.read_bytes() == b"l" * 32
    assert file.stat().st_mode & 0o077 == 0
    assert [f.name for f in file.parent.iterdir()] == ["site.key"]
    assert home.secret("site.key") == b"l" * 32
