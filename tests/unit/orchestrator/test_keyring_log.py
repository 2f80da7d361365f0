"""What the keyring does stands in its own audit log before it is done, and in a form that auditors verify offline."""

from __future__ import annotations

import base64
import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes.audit_logs import Party, Time
from fakes.keyrings import NOW, Applicant, make_keyring, make_token
from fakes.members import joined
from msfl.orchestrator.home import CentreHome, FederationSettings
from msfl.orchestrator.keyring.client import KeyringClient, KeyringFull
from msfl.orchestrator.keyring.keyring import Enrolled, Keyring, keyring_log
from msfl.orchestrator.keyring.service import KeyringServer
from msfl.orchestrator.main import app
from msfl.orchestrator.trust import Taken
from msfl.policies.audit import Entry
from msfl.policies.trust import Revoked
from msfl.protos.audit_log import AuditBroken, read_entries
from msfl.protos.audit_main import app as audit_app
from msfl.protos.certificates import Identity, sign_renewal
from msfl.protos.channel import key_sha256, make_csr
from msfl.protos.sealing import wrap_run_secret


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return make_keyring(tmp_path)


def log_of(folder: Path) -> list[Entry]:
    return read_entries(folder / "keyring/audit/log.jsonl")


def said(folder: Path) -> list[tuple[str, str]]:
    return [(entry.action, entry.object) for entry in log_of(folder)]


def run_keys(keyring: Keyring, run: str) -> bytes:
    kept = keyring._get("sites", "site-a")
    assert kept is not None
    public, site_key = make_token(keyring).centre_public_key, base64.b64decode(kept["site_key"])
    wrapped = {"site-a": wrap_run_secret(public, bytes(32), run, "site-a", site_key)}
    return keyring.hand_over(run, wrapped, public, NOW)


def test_every_act_is_in_the_log_in_its_order_and_names_what_it_was_done_to(keyring: Keyring, tmp_path: Path) -> None:
    token = make_token(keyring)
    key, csr = make_csr("site-a")
    first = Applicant(token).enrol(keyring, csr=csr)
    assert isinstance(first, Enrolled)
    csr = make_csr("site-a")[1]
    shown = sign_renewal(Identity(key, first.certificate_pem), csr)
    second = keyring.renew(certificate_pem=first.certificate_pem, csr_pem=csr, proof=shown, now=NOW)
    assert isinstance(second, Enrolled)
    run_keys(keyring, "run-7")
    keyring.freeze("site-a", "its laptop was stolen", "otto", NOW)
    keyring.unfreeze("site-a", "olga", NOW)
    again = make_token(keyring)
    Applicant(again).enrol(keyring, again=True)
    Applicant(again, ip="192.0.2.9").enrol(keyring)
    keyring.server_certificate(("fl.example.org",), NOW)
    entries = log_of(tmp_path)
    other = entries[5].object
    assert said(tmp_path) == [
        ("keyring made", "msfl-01"),
        ("token made", token.token_id),
        ("token used", token.token_id),
        ("certificate issued", "site-a"),
        ("certificate renewed", "site-a"),
        ("token made", other),
        ("run keys handed over", "run-7"),
        ("site frozen", "site-a"),
        ("site unfrozen", "site-a"),
        ("token made", again.token_id),
        ("token used", again.token_id),
        ("certificate issued", "site-a"),
        ("site frozen", "site-a"),
        ("server certificate issued", "msfl-01"),
    ]
    keys = [key_sha256(answer.certificate_pem) for answer in (first, second)]
    assert entries[1].fields == {"site": "site-a", "expires": "2026-11-25T12:00:00Z", "addresses": "10.1.0.0/16"}
    assert entries[2].fields == {"site": "site-a", "from": "10.1.2.3"}
    assert (entries[3].fields["key"], entries[3].fields["site_key"]) == (keys[0], "new")
    assert (entries[4].fields["signed_with"], entries[4].fields["key"]) == tuple(keys)
    assert entries[6].fields["sites"] == "site-a"
    assert entries[7].fields == {"why": "its laptop was stolen", "by": "otto"}
    assert entries[8].fields == {"by": "olga"}
    assert (entries[11].fields["revokes"], entries[11].fields["site_key"]) == (" ".join(keys), "replaced, overlaps")
    assert entries[12].fields["why"].endswith("from 192.0.2.9")
    assert entries[13].fields["names"] == "fl.example.org"


def test_no_secret_is_in_the_log(keyring: Keyring, tmp_path: Path) -> None:
    token = make_token(keyring)
    Applicant(token).enrol(keyring)
    run_keys(keyring, "run-7")
    text = (tmp_path / "keyring/audit/log.jsonl").read_text()
    for secret in (token.secret, token.site_key, (tmp_path / "keyring/centre.key").read_bytes()):
        assert base64.b64encode(secret).decode() not in text
        assert secret.hex() not in text


def test_who_asks_from_the_network_in_vain_fills_no_disk(keyring: Keyring, tmp_path: Path) -> None:
    token = make_token(keyring)
    before = said(tmp_path)
    for _ in range(3):
        Applicant(token).enrol(keyring, token_id="0" * 16)
        Applicant(token).enrol(keyring, shown=bytes(32))
        Applicant(token, ip="192.0.2.9").enrol(keyring)
    assert said(tmp_path) == before


def test_a_list_that_is_taken_up_is_in_the_log_with_what_it_names(keyring: Keyring, tmp_path: Path) -> None:
    new = Revoked(keys=frozenset({"a" * 64}), sites=frozenset({"site-b", "site-a"}))
    Taken("msfl-01", 2, "sha256:x", new).into(keyring.audit, NOW)
    entry = log_of(tmp_path)[-1]
    assert (entry.action, entry.object) == ("document taken", "revocations msfl-01")
    assert entry.fields == {"version": "2", "sha256": "sha256:x", "keys": "a" * 64, "sites": "site-a site-b"}


# ------------------------------------------------------------------ a full disk


@contextmanager
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        yield


@contextmanager
def served(keyring: Keyring) -> Iterator[KeyringClient]:
    server = KeyringServer(keyring._folder / "keyring.sock", keyring)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield KeyringClient(keyring._folder / "keyring.sock")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(keyring: Keyring) -> Iterator[KeyringClient]:
    with served(keyring) as client:
        yield client


def test_what_cannot_be_written_down_is_not_done_and_says_so_with_a_code(
    keyring: Keyring, client: KeyringClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, unused = joined(keyring, now=datetime.now(UTC)), make_token(keyring, now=datetime.now(UTC))
    kept = keyring._get("sites", "site-a")
    assert kept is not None
    site_key, public = base64.b64decode(kept["site_key"]), unused.centre_public_key
    csr = make_csr("site-a")[1]
    box = {"site-a": wrap_run_secret(public, bytes(32), "run-7", "site-a", site_key)}
    before, files = said(tmp_path), snapshot(tmp_path)
    applicant = Applicant(unused)
    acts: list[Callable[[], object]] = [
        lambda: new_token(client),
        lambda: client.renew(certificate_pem=identity.certificate_pem, csr_pem=csr, proof=sign_renewal(identity, csr)),
        lambda: client.hand_over("run-7", box, public),
        lambda: client.freeze("site-a", "why", "otto"),
        lambda: client.server_certificate(("localhost",)),
    ]
    with full(monkeypatch):
        for act in acts:
            with pytest.raises(KeyringFull, match=r"^disk_full: .*No space left"):
                act()
        with pytest.raises(OSError, match="No space left"):
            applicant.enrol(keyring, now=datetime.now(UTC))
        assert client.standings()["site-a"].frozen is None  # What changes nothing is answered.
    assert said(tmp_path) == before
    assert snapshot(tmp_path) == files
    for act in acts:
        act()
    assert isinstance(applicant.enrol(keyring, now=datetime.now(UTC)), Enrolled)


def new_token(client: KeyringClient) -> str:
    return client.token(
        federation="msfl-01",
        site="site-b",
        endpoint="localhost:1",
        link_endpoint="localhost:2",
        registry="/r",
        federation_root_sha256="sha256:" + "ab" * 32,
        hours=1,
        cidrs=("127.0.0.0/8",),
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (f for f in (folder / "keyring").rglob("*") if f.is_file() and not f.name.endswith(".new"))
    return {str(f): f.read_bytes() for f in files}


# ------------------------------------------------------------------ who vouches for it


def test_a_log_that_was_changed_opens_no_keyring(keyring: Keyring, tmp_path: Path) -> None:
    make_token(keyring)
    file = tmp_path / "keyring/audit/log.jsonl"
    file.write_text(file.read_text().replace("10.1.0.0/16", "10.0.0.0/8"))
    with pytest.raises(AuditBroken):
        _ = Keyring(tmp_path / "keyring").audit


def test_the_centre_keeps_its_checkpoints_so_that_a_rewritten_log_is_found_out(
    keyring: Keyring, client: KeyringClient, tmp_path: Path
) -> None:
    centre = Party(tmp_path, "centre:msfl-01", Time())
    new_token(client)
    assert centre.notary.take(keyring_log("msfl-01"), client.show()) is None
    centre.close()
    exported = {name: tmp_path / f"{name}.jsonl" for name in ("centre", "keyring")}
    homes = {"centre": centre.folder.parent, "keyring": tmp_path / "keyring"}
    runner = CliRunner()
    for name, home in homes.items():
        assert runner.invoke(audit_app, ["export", "--home", str(home), "--out", str(exported[name])]).exit_code == 0
    files = [str(file) for file in exported.values()]
    verdict = runner.invoke(audit_app, ["verify", *files, "--json"])
    assert verdict.exit_code == 0, verdict.stdout
    shown = json.loads(verdict.stdout)
    assert shown["vouched"]["keyring:msfl-01"] == shown["entries"]["keyring:msfl-01"] == 3
    # The end is cut off, announcement and all.
    head, *lines = exported["keyring"].read_bytes().splitlines(keepends=True)
    said = json.loads(head)
    cut = (
        json.dumps(
            said | {"entries": 2, "checkpoints": 0, "at": "2036-01-01T00:00:00Z"}, sort_keys=True, separators=(",", ":")
        ).encode()
        + b"\n"
    )
    exported["keyring"].write_bytes(cut + b"".join(lines[:2]))
    verdict = runner.invoke(audit_app, ["verify", *files, "--json"])
    assert verdict.exit_code == 3
    assert [found["code"] for found in json.loads(verdict.stdout)["tampering"]] == ["end_missing"]


def test_a_new_server_certificate_is_in_the_log_with_the_keyring_running_or_not(
    keyring: Keyring, tmp_path: Path
) -> None:
    home = CentreHome(tmp_path)
    home.write_settings(FederationSettings("msfl-01", "127.0.0.1", 1, 2, "r"))
    home.write_tls(Identity(*keyring.server_certificate(("localhost",), datetime.now(UTC))), keyring.ca_pem)
    first = home.server()
    assert CliRunner().invoke(app, ["certificate", "--home", str(tmp_path)]).exit_code == 0
    second = home.server()
    with served(Keyring(tmp_path / "keyring")):
        assert CliRunner().invoke(app, ["certificate", "--home", str(tmp_path)]).exit_code == 0
    third = home.server()
    named = [e.fields["key"] for e in log_of(tmp_path) if e.action == "server certificate issued"]
    assert named == [key_sha256(made.certificate_pem) for made in (first, second, third)]
