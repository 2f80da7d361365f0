"""People of a real OpenID provider: they log in as people do, and sites let their runs begin, or do not.

Two providers stand in the federation root. One has stewards, who sign its keys, and knows DPoP. The other's keys are
pinned in the root, and it does not: there the browser login binds the token through the ID token's nonce.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes.federations import SITES, LiveFederation
from fakes.governance import edit, key, member
from fakes.identity_providers import ROBOT_SECRET, OidcServer, reason_to_skip
from msfl.policies.documents import IssuerKeys
from msfl.policies.encoding import load_json
from msfl.sdk import login as login_commands
from msfl.sdk.client import Client
from msfl.sdk.credentials import Credentials, NotConnected
from msfl.sdk.demo.processes import msfl
from msfl.sdk.run import SiteRefusal

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip() or "-"),
]
AUDIENCE, CLAIM = "https://fl.example/msfl", "https://uni.example/organisation"


@dataclass
class People:
    live: LiveFederation
    stewarded: OidcServer
    pinned: OidcServer
    folder: Path

    def welcome(self, server: OidcServer) -> Path:
        file = self.folder / f"welcome-{server.port}.json"
        centre = self.live.federation.folder / "centre"
        said = self.live.command("orchestrator", "welcome", "--home", centre, "--issuer", server.issuer, "--out", file)
        assert said.returncode == 0, said.stderr
        return file

    def log_in(self, server: OidcServer, name: str) -> Path:
        """`msfl login`, and a browser somewhere else. The credentials file."""
        file = self.folder / f"{name}-{server.port}.json"
        command = msfl("login", self.welcome(server), "--out", file)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as terminal:
            assert terminal.stdout is not None
            address = re.search(r"http://\S+", terminal.stdout.readline())
            assert address is not None
            assert "Success" in server.log_in(address[0], name)
            rest = terminal.stdout.read()
        assert terminal.returncode == 0, rest
        return file

    def sign_keys(self, version: int) -> subprocess.CompletedProcess[str]:
        """A steward reads the provider's keys and signs them; the operator puts them at the centre."""
        out, pem = self.folder / f"keys-{version}.dsse", self.folder / "steward.pem"
        pem.write_bytes(key("steward").to_pem())
        centre = self.live.federation.folder / "centre"
        signed = self.live.command(
            "issuer", "sign", self.stewarded.issuer, "--federation", "demo", "--version", str(version),
            "--key", pem, "--out", out,
        )  # fmt: skip
        assert signed.returncode == 0, signed.stdout + signed.stderr
        return self.live.command("orchestrator", "issuer-keys", "--home", centre, out)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    folder = tmp_path_factory.mktemp("people")
    with (
        OidcServer.up(folder / "stewarded.log", AUDIENCE, dpop=True) as stewarded,
        OidcServer.up(folder / "pinned.log", AUDIENCE, dpop=False) as pinned,
    ):
        shown = CliRunner().invoke(
            login_commands.issuer_app,
            ["show", pinned.issuer, "--audience", AUDIENCE, "--client", "msfl", "--organisation-claim", CLAIM],
        )
        issuers = (
            IssuerKeys(
                issuer=stewarded.issuer,
                audience=AUDIENCE,
                stewards=(member("steward"),),
                clients=("msfl", "robot"),
                organisation_claim=CLAIM,
            ),
            load_json(shown.stdout.encode(), IssuerKeys, "the entry"),
        )
        with LiveFederation.up(folder / "federation", issuers=issuers) as live:
            for site in SITES:
                text = edit(live.policy(site), '"ada@uni.example"]', f'"ada@uni.example", "{stewarded.issuer}#robot"]')
                text = edit(text, "organisations: []", "organisations: [uni.example]")
                live.sign_policy(site, text)
            yield People(live, stewarded, pinned, folder)


def verdicts(live: LiveFederation, client: Client) -> set[str]:
    """What the sites would answer to the job: standings, or codes of refusal."""
    answers = client.explain(live.job()).values()
    return {(a.get("refusal") or {}).get("code") or a["standing"] for a in answers}


def never_began(live: LiveFederation, run_id: str, refused: SiteRefusal, code: str) -> None:
    """Whoever refused wrote down why, and nothing started. One refusal ends the run before all have answered."""
    assert {said for said, _ in refused.refusals.values()} == {code}
    for site in refused.refusals:
        entries = live.audit(site, run_id)
        assert [(e["action"], e["fields"]["code"]) for e in entries] == [("run decided", code)]
    assert all("worker starts" not in live.actions(site, run_id) for site in SITES)


def test_a_run_of_somebody_who_logged_in_with_a_code_and_whose_keys_came_through_the_centre(people: People) -> None:
    live = people.live
    file = people.log_in(people.stewarded, "ada")
    assert file.stat().st_mode & 0o777 == 0o600
    client = Client(Credentials.read(file), file)
    assert client.user == "ada@uni.example", "the address stands in the ID token only"
    with pytest.raises(NotConnected, match="issuer_keys_stale"):
        client.runs()
    said = people.sign_keys(1)
    assert said.returncode == 0, said.stdout + said.stderr
    run = client.submit(live.job())
    assert run.wait()["phase"] == "finished"
    for site in SITES:
        assert "worker starts" in live.actions(site, run.run_id)
        assert len(list((live.home(site) / "trust/issuers").glob("*.dsse"))) == 1
    # Who has the token alone, without the key it is bound to, is not even heard.
    thief = replace(Credentials.read(file), key=key("thief").to_pem().decode())
    with pytest.raises(NotConnected, match="proof_other_key"):
        Client(thief).runs()
    client.close()


def test_a_token_is_renewed_before_it_expires_and_kept(people: People) -> None:
    people.sign_keys(1)
    file = people.log_in(people.stewarded, "ada")
    before = Credentials.read(file)
    assert before.login is not None
    replace(before, login=replace(before.login, expires=0.0)).write(file)
    client = Client(Credentials.read(file), file)
    assert isinstance(client.runs(), list)
    after = Credentials.read(file)
    assert after.token != before.token
    assert after.key == before.key
    assert file.stat().st_mode & 0o777 == 0o600
    assert after.login is not None
    broken = replace(after, login=replace(after.login, expires=0.0, refresh_token="spent"))
    with pytest.raises(NotConnected, match="run `msfl login` again"):
        Client(broken).runs()
    client.close()


def test_a_browser_login_binds_the_token_where_the_provider_knows_no_dpop(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = people.folder / "browser.json"
    browsers: list[threading.Thread] = []

    def open_page(address: str) -> None:
        browsers.append(threading.Thread(target=people.pinned.log_in, args=(address, "ada")))
        browsers[0].start()

    monkeypatch.setattr(webbrowser, "open", open_page)
    login_commands.login(people.welcome(people.pinned), browser=True, out=file, ca=None, issuer_key=None)
    browsers[0].join()
    credentials = Credentials.read(file)
    assert credentials.bound
    client = Client(credentials)
    assert verdicts(people.live, client) == {"accepted"}
    client.close()


def test_a_bare_bearer_token_is_refused_where_a_proof_is_required(people: People) -> None:
    """A code login at a provider without DPoP binds nothing: the login says so, and the sites refuse."""
    file = people.log_in(people.pinned, "ada")
    credentials = Credentials.read(file)
    assert not credentials.bound
    client = Client(credentials)
    assert verdicts(people.live, client) == {"proof_required"}
    run = client.submit(people.live.job())
    with pytest.raises(SiteRefusal) as refused:
        run.wait()
    never_began(people.live, run.run_id, refused.value, "proof_required")
    client.close()


def test_another_person_of_the_same_provider_is_not_ada(people: People) -> None:
    people.sign_keys(1)
    file = people.log_in(people.stewarded, "eve")
    client = Client(Credentials.read(file))
    assert verdicts(people.live, client) == {"user_not_named"}
    client.close()


def test_a_machine_logs_in_with_its_secret_which_is_not_kept(people: People) -> None:
    people.sign_keys(1)
    file = people.folder / "robot.json"
    environment = os.environ | {"MSFL_CLIENT_ID": "robot", "MSFL_CLIENT_SECRET": ROBOT_SECRET}
    command = msfl("login", people.welcome(people.stewarded), "--machine", "--out", file)
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert ROBOT_SECRET not in file.read_text()
    client = Client(Credentials.read(file))
    assert client.user == "robot"
    assert verdicts(people.live, client) == {"accepted"}
    client.close()
    environment["MSFL_CLIENT_SECRET"] = "wrong"
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 1
    assert "identity provider said no" in said.stderr


def test_keys_that_the_provider_has_changed_count_once_a_steward_has_signed_them(people: People) -> None:
    people.sign_keys(1)
    old = people.log_in(people.stewarded, "ada")
    people.stewarded.stop()
    # An outage of the provider keeps nobody out whose token lives.
    client = Client(Credentials.read(old))
    assert verdicts(people.live, client) == {"accepted"}
    people.stewarded.start()
    new = people.log_in(people.stewarded, "ada")
    changed = Client(Credentials.read(new))
    with pytest.raises(NotConnected, match="token_unknown_issuer"):
        changed.runs()
    assert people.sign_keys(2).returncode == 0
    assert verdicts(people.live, changed) == {"accepted"}
    with pytest.raises(NotConnected, match="token_unknown_issuer"):
        client.runs()  # what the old key has signed is gone with it
    # The centre puts the old set back: no site takes it.
    centre = people.live.federation.folder / "centre/trust/issuers"
    (file,) = centre.glob("*.dsse")
    file.write_bytes((people.folder / "keys-1.dsse").read_bytes())
    run = client.submit(people.live.job())
    with pytest.raises(SiteRefusal) as refused:
        run.wait()
    never_began(people.live, run.run_id, refused.value, "token_unknown_issuer")
    client.close()
    changed.close()
    assert json.loads(new.read_text())["login"]["issuer"] == people.stewarded.issuer
