"""What the operator hands to people, and what the centre takes for sites: the commands, without a server."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fakes.governance import key
from fakes.oidc import AUDIENCE, CLIENT, ISSUER, Provider
from msfl.orchestrator.doctor import measure
from msfl.orchestrator.home import CentreHome, FederationSettings
from msfl.orchestrator.main import app
from msfl.policies.encoding import encode
from msfl.policies.envelope import FEDERATION_ROOT, sign
from msfl.policies.refusals import Refusal, Refused
from msfl.policies.words import federation_in_words
from msfl.protos.convert import papers_from_wire, papers_to_wire
from msfl.protos.health import Unmeasured


def centre(folder: Path, provider: Provider) -> CentreHome:
    """A home with a root that its keeper has signed, good at the present time."""
    home = CentreHome(folder)
    home.federation_root.parent.mkdir(parents=True)
    home.federation_root.write_bytes(sign(encode(provider.root.document), FEDERATION_ROOT, [key("otto")]))
    (folder / "tls").mkdir()
    (folder / "tls" / "ca.pem").write_text("CA")
    home.write_settings(FederationSettings("msfl-test", "10.0.0.1", 8443, 8444, "/srv/registry", ("10.0.0.0/8",)))
    return home


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_welcome_file_holds_what_a_login_needs_and_no_secret(tmp_path: Path) -> None:
    home = centre(tmp_path, Provider())
    out = tmp_path / "welcome.json"
    assert asked("welcome", "--home", str(home.root), "--out", str(out)).exit_code == 0
    assert json.loads(out.read_text()) == {
        "endpoint": "10.0.0.1:8443",
        "ca": "CA",
        "issuer": ISSUER,
        "client_id": CLIENT,
        "scope": "openid email offline_access",
        "parameters": {"resource": AUDIENCE},
    }


def test_a_provider_that_the_root_does_not_name_is_not_offered(tmp_path: Path) -> None:
    home = centre(tmp_path, Provider())
    said = asked("welcome", "--home", str(home.root), "--out", str(tmp_path / "w"), "--issuer", "https://evil.example")
    assert said.exit_code == 2
    assert not (tmp_path / "w").exists()


def test_the_centre_takes_what_stewards_signed_and_nothing_else(tmp_path: Path) -> None:
    provider = Provider(stewards=("stella",))
    home = centre(tmp_path, provider)
    file = tmp_path / "keys.dsse"
    file.write_bytes(provider.key_set(signers=("mallory",)))
    said = asked("issuer-keys", "--home", str(home.root), str(file))
    assert isinstance(said.exception, Refused)
    assert home.key_sets.envelopes() == ()
    file.write_bytes(provider.key_set())
    said = asked("issuer-keys", "--home", str(home.root), str(file))
    assert said.exit_code == 0
    assert "version 1" in said.stdout
    assert home.key_sets.envelopes() == (provider.key_set(),)
    # And from now on it goes to the sites, as it came.
    papers = home.trust_papers()
    assert papers.issuer_keys == (provider.key_set(),)
    assert papers_from_wire(papers_to_wire(papers)) == papers


@pytest.mark.parametrize("option", ["--people-from", "--proxy"])
def test_a_range_that_is_none_makes_no_federation(tmp_path: Path, option: str) -> None:
    home = centre(tmp_path / "other", Provider())
    made = tmp_path / "new"
    said = asked(
        "init", "--home", str(made), "--federation", "msfl-test", "--root", str(home.federation_root),
        "--registry", "r", option, "everybody",
    )  # fmt: skip
    assert said.exit_code == 2
    assert not made.exists()


def test_operator_and_site_see_the_same_hash_of_a_root(tmp_path: Path) -> None:
    provider = Provider()
    root = centre(tmp_path / "other", provider).federation_root
    options = ("--root", str(root), "--registry", "r")
    said = asked("init", "--home", str(tmp_path / "new"), "--federation", "another", *options)
    assert (said.exit_code, (tmp_path / "new").exists()) == (2, False), "the root is of msfl-test"
    said = asked("init", "--home", str(tmp_path / "new"), "--federation", "msfl-test", *options)
    at_the_site = federation_in_words(provider.root.document, provider.root.sha256)[0]
    assert provider.root.sha256 in at_the_site
    assert at_the_site in said.stdout


def test_a_home_made_before_ranges_were_kept_serves_this_machine_only(tmp_path: Path) -> None:
    home = centre(tmp_path, Provider())
    old = {"federation": "f", "host": "0.0.0.0", "port": 1, "link_port": 2, "registry": "r"}
    (tmp_path / "federation.json").write_text(json.dumps(old))
    callers = home.settings().callers
    assert callers.check("127.0.0.1", ()) is None
    assert callers.check("10.0.0.1", ()) is not None


def test_the_doctor_measures_until_when_a_providers_keys_are_good(tmp_path: Path) -> None:
    provider = Provider(stewards=("stella",))
    home, now = centre(tmp_path, provider), datetime.now(UTC).replace(microsecond=0)
    ((issuer, none),) = measured(home, now)
    assert issuer == ISSUER
    assert isinstance(none, Refusal)
    file = tmp_path / "keys.dsse"
    file.write_bytes(provider.key_set(issued=now, days=20))
    assert asked("issuer-keys", "--home", str(home.root), str(file)).exit_code == 0
    assert measured(home, now) == ((ISSUER, now + timedelta(days=20)),)


def measured(home: CentreHome, now: datetime) -> tuple[tuple[str, datetime | Refusal], ...]:
    found = measure(home.root, now).issuers
    assert not isinstance(found, Unmeasured)
    return found
