"""The page for a site's staff: where it listens, what it shows, and what its command line asks for."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from fakes.governance import LATER, NOW, POLICY_YAML, key, member
from fakes.staff import StaffedSite
from msfl.gateway.home import Home, SiteSettings, write
from msfl.gateway.machine import SiteRun, Stage
from msfl.gateway.main import app
from msfl.gateway.page.serve import listen
from msfl.gateway.page.views import Chronicle, blocks, history, policies
from msfl.gateway.record import Kept, RunRecord
from msfl.policies.documents import SiteRoot
from msfl.policies.encoding import encode
from msfl.policies.envelope import ASSET_POLICY, SITE_ROOT, sign
from msfl.policies.refusals import CannotProceed, Code
from msfl.protos.audit_log import AuditLog, read_entries

PASSWORD = "four green parcels arrive"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "gateway")
    home.write_settings(SiteSettings("site-a", "demo", "127.0.0.1:1", "registry"))
    root = SiteRoot(site="site-a", version=1, custodians=(member("cleo"),), threshold=1, expires=LATER)
    write(home.site_root_file, sign(encode(root), SITE_ROOT, [key("cleo")]))
    return home


@pytest.fixture
def site(home: Home) -> Iterator[StaffedSite]:
    site = StaffedSite(home)
    yield site
    site.close()


# ---------------------------------------------------------------------------------------------------------- where


def certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    secret = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "page")])
    now = datetime.now(UTC)
    kinds = [x509.IPAddress(ipaddress.ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names]
    made = (
        x509.CertificateBuilder(
            subject, subject, secret.public_key(), x509.random_serial_number(), now, now + timedelta(1)
        )
        .add_extension(x509.SubjectAlternativeName(kinds), critical=False)
        .sign(secret, hashes.SHA256())
    )
    cert, pem = folder / "page.crt", folder / "page.key"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    nothing = serialization.NoEncryption()
    pem.write_bytes(secret.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, nothing))
    return cert, pem


def test_without_a_certificate_the_page_is_on_loopback_alone() -> None:
    door = listen("127.0.0.1", 0, None, None)
    port = door.listener.getsockname()[1]
    door.listener.close()
    assert door.origins == (f"http://127.0.0.1:{port}", f"http://localhost:{port}", f"http://[::1]:{port}")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.0.2.7"])
def test_other_addresses_are_refused_without_a_certificate(host: str) -> None:
    with pytest.raises(CannotProceed, match="passwords would cross the network in the clear"):
        listen(host, 0, None, None)


def test_names_are_no_addresses() -> None:
    with pytest.raises(CannotProceed, match="give an address"):
        listen("gateway.example", 0, None, None)


def test_with_a_certificate_the_page_has_the_names_in_it(tmp_path: Path) -> None:
    cert, pem = certificate(tmp_path, "Page.Site-A.example", "127.0.0.1")
    door = listen("127.0.0.1", 0, cert, pem)
    port = door.listener.getsockname()[1]
    door.listener.close()
    assert door.origins == (f"https://page.site-a.example:{port}", f"https://127.0.0.1:{port}")


def test_half_a_pair_and_what_is_no_certificate_are_refused(tmp_path: Path) -> None:
    cert, pem = certificate(tmp_path, "page.example")
    with pytest.raises(CannotProceed, match="belong together"):
        listen("127.0.0.1", 0, cert, None)
    with pytest.raises(CannotProceed, match="no certificate"):
        listen("127.0.0.1", 0, pem, pem)


def test_a_port_that_is_taken_is_said() -> None:
    door = listen("127.0.0.1", 0, None, None)
    with pytest.raises(CannotProceed, match="in use"):
        listen("127.0.0.1", door.listener.getsockname()[1], None, None)
    door.listener.close()


# ---------------------------------------------------------------------------------------------------------- what


def test_policies_say_how_long_they_last_and_why_others_count_for_nothing(home: Home) -> None:
    write(home.root / "policies/one.dsse", sign(POLICY_YAML.encode(), ASSET_POLICY, [key("cleo")]))
    write(home.root / "policies/two.dsse", sign(POLICY_YAML.encode(), ASSET_POLICY, [key("mallory")]))
    (shown,), (refused,) = policies(home, NOW)
    assert (shown.state, shown.left, shown.soon, shown.signers) == ("in force", "150 days", False, "cleo")
    assert refused.code is Code.WRONG_SIGNER
    for now, state, left, soon in (
        (datetime(2027, 4, 29, 12, tzinfo=UTC), "in force", "1 day", True),
        (datetime(2027, 4, 30, 12, tzinfo=UTC), "in force", "less than a day", True),
        (datetime(2027, 5, 1, tzinfo=UTC), "expired", "", False),
    ):
        ((shown,), _) = policies(home, now)
        assert (shown.state, shown.left, shown.soon) == (state, left, soon)


def decided(log: AuditLog, run: str, verdict: str = "allow", **fields: str) -> None:
    log.write(NOW, "run decided", run, {"verdict": verdict, "release": "r:1.0.0", "user": "ada", **fields})


def test_a_run_is_told_by_how_it_ended_and_what_left(home: Home, site: StaffedSite) -> None:
    log = site.audit
    decided(log, "run-1", "refuse", code="no_policy")
    decided(log, "run-2")
    log.write(NOW, "result leaves", "run-2", {"task": "train/1", "verb": "train", "bytes": "2097152"})
    log.write(NOW, "custodian stops the run", "run-2", {"by": "cleo"})
    log.write(NOW, "run stopped", "run-2", {"reason": "custodian_stopped"})
    decided(log, "run-3", "confirm")
    told = [(t.run, t.outcome, t.left) for t in history(Chronicle(home, log).entries())]
    assert told == [
        ("run-3", "waits for a custodian", "no result"),
        ("run-2", "stopped by cleo", "1 sealed result, 2.0 MiB"),
        ("run-1", "refused: no_policy", "no result"),
    ]


def test_the_chronicle_reads_what_others_have_added_and_nothing_twice(home: Home, site: StaffedSite) -> None:
    chronicle = Chronicle(home, site.audit)
    before = len(chronicle.entries())
    gateway = AuditLog(home.audit / "log.jsonl", "gateway site-a")
    decided(gateway, "run-1")
    gateway.close()
    assert [e.object for e in chronicle.entries()[before:]] == ["run-1"]
    assert list(chronicle.entries()) == read_entries(home.audit / "log.jsonl")


def test_indented_lines_belong_to_the_one_before() -> None:
    found = blocks(["a", "  b", "  c", "d"])
    assert [(block.head, block.items) for block in found] == [("a", ("b", "c")), ("d", ())]


def running(home: Home, run: str) -> None:
    RunRecord(home.run_folder(run)).save(Kept(SiteRun(run, Stage.WORKING), started=NOW))


def test_a_run_whose_papers_cannot_be_read_is_shown_and_can_be_stopped(home: Home, site: StaffedSite) -> None:
    running(home, "run-1")
    write(home.run_folder("run-1") / "papers.json", b"{")
    cleo = site.browser()
    cleo.log_in("cleo")
    assert "its record cannot be read" in cleo.get("/").body
    assert cleo.post("/runs/run-1/stop", sure="yes").status == 303
    assert "stop asked for by cleo" in cleo.get("/").body


def test_the_terminal_says_the_same(home: Home, site: StaffedSite) -> None:
    def told(*more: str) -> str:
        result = CliRunner().invoke(app, ["status", "--home", str(home.root), *more])
        assert result.exit_code == 0, result.output
        return result.output

    assert told().splitlines() == [
        "nothing runs here, and no run waits for you",
        "no policy: every run is refused; `msfl policy new` makes one",
    ]
    running(home, "run-1")
    write(home.root / "policies/one.dsse", sign(POLICY_YAML.encode(), ASSET_POLICY, [key("cleo")]))
    write(home.root / "policies/two.dsse", sign(POLICY_YAML.encode(), ASSET_POLICY, [key("mallory")]))
    assert [line.split(":")[0] for line in told().splitlines()] == [
        "running  run-1",
        "policy   ms-trial-lesion-segmentation version 3",
        "policy   not trusted",
    ]
    answer = json.loads(told("--json"))
    assert ([run["run"] for run in answer["running"]], answer["waiting"]) == (["run-1"], [])
    assert answer["not_trusted"][0]["code"] == Code.WRONG_SIGNER.value


def test_a_question_that_cannot_be_read_hides_no_other_and_shows_no_command(home: Home, site: StaffedSite) -> None:
    home.park("run-1", {"asked": {"site": "site-a"}, "last": None, "job": {}})
    cleo = site.browser()
    cleo.log_in("cleo")
    assert cleo.get("/").status == 200
    text = cleo.get("/runs/run-1").body
    assert "cannot be read" in text
    assert "gateway confirm" not in text
    assert cleo.post("/runs/run-1/refuse").status == 303


def test_where_nothing_can_be_written_down_nothing_is_done(
    home: Home, site: StaffedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(home, "run-1")
    cleo = site.browser()
    cleo.log_in("cleo")
    token = cleo.get("/password").token

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/path")

    monkeypatch.setattr(os, "write", full)
    answer = cleo.post("/runs/run-1/stop", sure="yes", token=token)
    assert answer.status == 503
    assert "/secret/path" not in answer.body
    assert site.browser().log_in("cleo").status == 503
    assert home.stop_asked("run-1") is None


def test_a_new_password_is_set_on_the_page(site: StaffedSite) -> None:
    cleo = site.browser()
    cleo.log_in("cleo")
    old = "blue kettle sings at noon"
    for new, again in ((PASSWORD, PASSWORD + "x"), ("short", "short")):
        assert cleo.post("/password", old=old, new=new, again=again).status == 400
    assert cleo.post("/password", old="wrong", new=PASSWORD, again=PASSWORD).status == 400
    assert cleo.post("/password", old=old, new=PASSWORD, again=PASSWORD).status == 303
    assert cleo.get("/").status == 200
    assert site.browser().log_in("cleo", old).status == 401
    assert site.browser().log_in("cleo", PASSWORD).status == 303


# -------------------------------------------------------------------------------------------------------- commands


def said(home: Home, *words: str, typed: str = "", code: int = 0) -> str:
    result = CliRunner().invoke(app, ["account", *words, "--home", str(home.root)], input=typed)
    if isinstance(result.exception, CannotProceed):
        assert code == 1
        return str(result.exception)
    assert result.exit_code == code, result.output
    return result.output


def test_an_account_is_made_with_a_password_that_is_typed_twice(home: Home) -> None:
    output = said(home, "add", "cleo", "--role", "custodian", "--by", "ida", typed=f"{PASSWORD}\n{PASSWORD}\n")
    assert PASSWORD not in output
    assert json.loads(said(home, "list", "--json")) == [{"name": "cleo", "role": "custodian", "state": "open"}]
    said(home, "lock", "cleo", "--by", "ida")
    assert "locked" in said(home, "list")
    said(home, "unlock", "cleo", "--by", "ida")
    said(home, "role", "cleo", "viewer", "--by", "ida")
    said(home, "remove", "cleo", "--by", "ida")
    assert "nobody has an account" in said(home, "list")
    assert {e.fields["by"] for e in read_entries(home.audit / "log.jsonl")} == {"ida"}


def test_an_invitation_is_a_file_for_one_person(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "cleo.txt"
    said(home, "invite", "cleo", "--role", "custodian", "--by", "ida", "--out", str(file))
    assert file.stat().st_mode & 0o077 == 0
    assert "Name: cleo\nCode: " in file.read_text()
    assert "no password yet" in said(home, "list")
    assert "is there already" in said(home, "invite", "cleo", "--by", "ida", "--out", str(file), code=1)


def test_no_option_takes_a_password(home: Home) -> None:
    assert said(home, "add", "cleo", "--password", PASSWORD, "--by", "ida", code=2)
    assert "nobody has an account" in said(home, "list")


def test_a_custodians_account_has_a_custodians_name(home: Home) -> None:
    output = said(home, "add", "nora", "--role", "custodian", "--by", "ida", typed=f"{PASSWORD}\n{PASSWORD}\n", code=1)
    assert "does not name nora as a custodian, but cleo" in output


def test_a_folder_that_is_no_gateways_has_no_accounts(tmp_path: Path) -> None:
    assert "is no gateway's folder" in said(Home(tmp_path), "list", code=1)
    assert list(tmp_path.iterdir()) == []


def test_only_the_gateways_user_reads_the_book(home: Home, site: StaffedSite) -> None:
    for file in (home.staff, home.staff / "book.sqlite"):
        assert file.stat().st_mode & 0o077 == 0
