"""The keyring's day: it is made once, issues tokens, enrols sites, and hands run keys to an aggregator.

And through its door: a unix socket that only its own user can open, that one process serves at a time.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from fakes.keyrings import NONCE, NOW, Applicant, make_keyring, make_token
from msfl.orchestrator.keyring.authority import SITE_LIFE
from msfl.orchestrator.keyring.client import BadRunSecret, KeyringClient, KeyringDown
from msfl.orchestrator.keyring.keyring import (
    KEY_OVERLAP,
    Enrolled,
    EnrolmentRefusal,
    Keyring,
    SecretUnusable,
    SiteStanding,
)
from msfl.orchestrator.keyring.service import KeyringServer
from msfl.protos.certificates import Identity, sign_renewal, unfit
from msfl.protos.channel import make_csr
from msfl.protos.registration import RegistrationToken, proof
from msfl.protos.sealing import EVERYBODY, open_with, run_key, wrap_run_secret

SECRET = bytes([9]) * 32


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return make_keyring(tmp_path)


@pytest.fixture
def server(keyring: Keyring, tmp_path: Path) -> Iterator[KeyringServer]:
    server = KeyringServer(tmp_path / "keyring" / "keyring.sock", keyring)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(server: KeyringServer) -> KeyringClient:
    return KeyringClient(Path(str(server.server_address)), patience_s=0)


def enrolled(keyring: Keyring, site: str) -> RegistrationToken:
    token = make_token(keyring, site)
    assert isinstance(Applicant(token).enrol(keyring), Enrolled)
    return token


# ------------------------------------------------------------------------ made once


def test_a_keyring_is_made_once(keyring: Keyring, tmp_path: Path) -> None:
    before = keyring.ca_pem
    with pytest.raises(FileExistsError, match="holds a keyring already"):
        make_keyring(tmp_path)
    assert Keyring(tmp_path / "keyring").ca_pem == before


def test_nobody_else_may_read_what_it_holds(keyring: Keyring, tmp_path: Path) -> None:
    enrolled(keyring, "site-a")
    for path in (tmp_path / "keyring").rglob("*"):
        allowed = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == allowed, path
    assert stat.S_IMODE((tmp_path / "keyring").stat().st_mode) == 0o700


def test_the_orchestrators_certificate_is_for_its_names_and_serves_only(keyring: Keyring) -> None:
    key, pem = keyring.server_certificate(("localhost", "127.0.0.1", "fl.example.org"), NOW)
    certificate, ca = x509.load_pem_x509_certificate(pem), x509.load_pem_x509_certificate(keyring.ca_pem)
    store = Store([ca])
    for name in (x509.DNSName("localhost"), x509.DNSName("fl.example.org")):
        PolicyBuilder().store(store).time(NOW).build_server_verifier(name).verify(certificate, [])
    with pytest.raises(x509.verification.VerificationError):
        PolicyBuilder().store(store).time(NOW).build_client_verifier().verify(certificate, [])
    assert load_pem_private_key(key, None).public_key() == certificate.public_key()


# --------------------------------------------------------------------- a site joins


def test_a_site_joins_with_the_key_it_made_itself(keyring: Keyring) -> None:
    key, csr = make_csr("site-a")
    answer = Applicant(make_token(keyring)).enrol(keyring, csr=csr)
    assert isinstance(answer, Enrolled)
    certificate = x509.load_pem_x509_certificate(answer.certificate_pem)
    assert certificate.public_key() == load_pem_private_key(key, None).public_key()
    store = Store([x509.load_pem_x509_certificate(keyring.ca_pem)])
    verified = PolicyBuilder().store(store).time(NOW).build_client_verifier().verify(certificate, [])
    assert verified.subjects == [x509.UniformResourceIdentifier("msfl://site/site-a")]
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == NOW + SITE_LIFE


def test_every_token_has_secrets_of_its_own(keyring: Keyring) -> None:
    one, two = make_token(keyring), make_token(keyring)
    assert one.token_id != two.token_id
    assert len({one.secret, two.secret, one.site_key, two.site_key}) == 4
    assert one.centre_public_key == two.centre_public_key


def test_an_operator_who_types_a_wrong_address_range_hears_of_it(keyring: Keyring) -> None:
    with pytest.raises(ValueError, match="has host bits set"):
        make_token(keyring, cidrs=("10.1.2.3/16",))


# ----------------------------------------------------------------------- a run's keys


def test_run_keys_reach_the_aggregator_and_are_the_sites_own(keyring: Keyring) -> None:
    tokens = {site: enrolled(keyring, site) for site in ("site-a", "site-b")}
    secrets = {"site-a": SECRET, "site-b": bytes([10]) * 32}
    wrapped = {s: wrap_run_secret(t.centre_public_key, secrets[s], "run-7", s, t.site_key) for s, t in tokens.items()}
    aggregator = X25519PrivateKey.generate()
    box = keyring.hand_over("run-7", wrapped, aggregator.public_key().public_bytes_raw(), NOW)
    handed = json.loads(open_with(aggregator.private_bytes_raw(), box, b"msfl/aggregator-keys/v1|run-7"))
    for_all = handed.pop(EVERYBODY)
    assert handed == {
        site: base64.b64encode(run_key(secrets[site], token.site_key, "run-7", site)).decode()
        for site, token in tokens.items()
    }
    # The key of what goes to all is the run's: the same whenever it is asked for, another one for another run.
    assert for_all not in handed.values()
    for run, same in (("run-7", True), ("run-8", False)):
        box = keyring.hand_over(run, {}, aggregator.public_key().public_bytes_raw(), NOW)
        again = json.loads(open_with(aggregator.private_bytes_raw(), box, f"msfl/aggregator-keys/v1|{run}".encode()))
        assert (again == {EVERYBODY: for_all}) is same


def test_a_secret_wrapped_for_another_run_or_site_is_not_handed_over(keyring: Keyring) -> None:
    token = enrolled(keyring, "site-a")
    enrolled(keyring, "site-b")
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    box = wrap_run_secret(token.centre_public_key, SECRET, "run-7", "site-a", token.site_key)
    with pytest.raises(SecretUnusable, match="site-a"):
        keyring.hand_over("run-8", {"site-a": box}, public, NOW)
    with pytest.raises(SecretUnusable, match="site-b"):
        keyring.hand_over("run-7", {"site-b": box}, public, NOW)


def test_a_site_that_never_joined_has_no_keys(keyring: Keyring) -> None:
    token = make_token(keyring)  # issued, not used
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    box = wrap_run_secret(token.centre_public_key, SECRET, "run-7", "site-a", token.site_key)
    with pytest.raises(SecretUnusable, match="never enrolled"):
        keyring.hand_over("run-7", {"site-a": box}, public, NOW)


def test_a_site_that_joins_anew_has_a_new_key(keyring: Keyring) -> None:
    old, new = enrolled(keyring, "site-a"), enrolled(keyring, "site-a")
    aggregator = X25519PrivateKey.generate()
    box = keyring.hand_over(
        "run-7",
        {"site-a": wrap_run_secret(new.centre_public_key, SECRET, "run-7", "site-a", new.site_key)},
        aggregator.public_key().public_bytes_raw(),
        NOW,
    )
    handed = json.loads(open_with(aggregator.private_bytes_raw(), box, b"msfl/aggregator-keys/v1|run-7"))
    key = base64.b64decode(handed["site-a"])
    assert key == run_key(SECRET, new.site_key, "run-7", "site-a")
    assert key != run_key(SECRET, old.site_key, "run-7", "site-a")


def test_a_member_that_joins_again_has_a_new_key_and_its_running_runs_keep_the_old_one(keyring: Keyring) -> None:
    old, new = enrolled(keyring, "site-a"), make_token(keyring, "site-a", now=NOW)
    assert isinstance(Applicant(new).enrol(keyring, again=True), Enrolled)

    def handed(site_key: bytes, now: datetime) -> bytes:
        aggregator = X25519PrivateKey.generate()
        box = wrap_run_secret(old.centre_public_key, SECRET, "run-7", "site-a", site_key)
        sealed = keyring.hand_over("run-7", {"site-a": box}, aggregator.public_key().public_bytes_raw(), now)
        keys = json.loads(open_with(aggregator.private_bytes_raw(), sealed, b"msfl/aggregator-keys/v1|run-7"))
        return base64.b64decode(keys["site-a"])

    assert old.site_key != new.site_key
    for now in (NOW, NOW + KEY_OVERLAP - timedelta(seconds=1)):
        assert handed(old.site_key, now) == run_key(SECRET, old.site_key, "run-7", "site-a")
        assert handed(new.site_key, now) == run_key(SECRET, new.site_key, "run-7", "site-a")
    # The overlap ends; a key that never was the site's does not begin.
    with pytest.raises(SecretUnusable, match="any of the site's 1 keys"):
        handed(old.site_key, NOW + KEY_OVERLAP)
    with pytest.raises(SecretUnusable, match="any of the site's 2 keys"):
        handed(bytes(32), NOW)
    assert handed(new.site_key, NOW + 9 * KEY_OVERLAP)


def test_a_site_that_joins_anew_in_an_empty_folder_leaves_no_old_key(keyring: Keyring) -> None:
    old, _ = enrolled(keyring, "site-a"), enrolled(keyring, "site-a")
    box = wrap_run_secret(old.centre_public_key, SECRET, "run-7", "site-a", old.site_key)
    with pytest.raises(SecretUnusable):
        keyring.hand_over("run-7", {"site-a": box}, X25519PrivateKey.generate().public_key().public_bytes_raw(), NOW)


def test_who_never_joined_does_not_join_again_and_the_token_is_still_good(keyring: Keyring) -> None:
    applicant = Applicant(make_token(keyring))
    answer = applicant.enrol(keyring, again=True)
    assert isinstance(answer, EnrolmentRefusal)
    assert answer.code == "not_enrolled"
    assert isinstance(applicant.enrol(keyring), Enrolled)


def test_members_are_listed_with_the_time_they_joined(keyring: Keyring) -> None:
    enrolled(keyring, "site-b")
    enrolled(keyring, "site-a")
    assert keyring.sites() == {"site-a": int(NOW.timestamp()), "site-b": int(NOW.timestamp())}


# ----------------------------------------------------------------------------- renewal


def renewed(keyring: Keyring, site: str, csr: bytes) -> Enrolled | EnrolmentRefusal:
    key, first = make_csr(site)
    joined = Applicant(make_token(keyring, site)).enrol(keyring, csr=first)
    assert isinstance(joined, Enrolled)
    identity = Identity(key, joined.certificate_pem)
    shown = sign_renewal(identity, csr)
    return keyring.renew(certificate_pem=identity.certificate_pem, csr_pem=csr, proof=shown, now=NOW)


def test_a_member_renews_its_certificate(keyring: Keyring) -> None:
    key, csr = make_csr("site-a")
    answer = renewed(keyring, "site-a", csr)
    assert isinstance(answer, Enrolled)
    assert unfit(Identity(key, answer.certificate_pem), "site-a", keyring.ca_pem, NOW) is None


def test_a_request_in_another_name_is_refused(keyring: Keyring) -> None:
    answer = renewed(keyring, "site-a", make_csr("site-b")[1])
    assert isinstance(answer, EnrolmentRefusal)
    assert "not its own" in answer.message


# --------------------------------------------------------------------------- its door


def test_a_whole_enrolment_through_the_door(client: KeyringClient) -> None:
    token = RegistrationToken.decode(
        client.token(
            federation="msfl-01",
            site="site-a",
            endpoint="localhost:8443",
            link_endpoint="localhost:8444",
            registry="/srv/registry",
            federation_root_sha256="sha256:" + "ab" * 32,
            hours=1,
            cidrs=("127.0.0.0/8",),
        )
    )
    token.check(datetime.now(UTC))
    csr = make_csr("site-a")[1]

    def ask() -> Enrolled | EnrolmentRefusal:
        return client.enrol(
            token_id=token.token_id,
            csr_pem=csr,
            nonce=NONCE,
            proof=proof(token.secret, csr, token.ca_sha256, NONCE),
            peer_ip="127.0.0.1",
        )

    assert isinstance(ask(), Enrolled)
    again = ask()
    assert isinstance(again, EnrolmentRefusal)
    assert again.code == "token_used"
    frozen = client.standings()["site-a"].frozen
    assert frozen is not None
    assert frozen.why.endswith("from 127.0.0.1")
    assert client.unfreeze("site-a", "otto")
    assert not client.unfreeze("site-a", "otto")
    assert client.standings() == {"site-a": SiteStanding(("127.0.0.0/8",))}
    aggregator = X25519PrivateKey.generate()
    wrapped = {"site-a": wrap_run_secret(token.centre_public_key, SECRET, "run-7", "site-a", token.site_key)}
    box = client.hand_over("run-7", wrapped, aggregator.public_key().public_bytes_raw())
    assert open_with(aggregator.private_bytes_raw(), box, b"msfl/aggregator-keys/v1|run-7")


@pytest.mark.parametrize(
    "line",
    [b"\n", b"hello\n", b"[]\n", b"{}\n", b'{"do": "dump"}\n', b'{"do": "enrol"}\n', b'{"do": ["enrol"]}\n', b"\xff\n"],
)
def test_a_request_that_does_not_fit_gets_no_answer_and_does_no_harm(
    server: KeyringServer, client: KeyringClient, line: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server.server_address))
        connection.sendall(line)
        assert connection.recv(1) == b""
    with pytest.raises(BadRunSecret, match="site-a"):  # it still answers
        client.hand_over("run-7", {"site-a": b"x"}, bytes(32))


def test_only_its_own_user_may_knock(server: KeyringServer) -> None:
    assert stat.S_IMODE(os.stat(str(server.server_address)).st_mode) == 0o600


def test_two_keyrings_do_not_serve_one_folder(server: KeyringServer, client: KeyringClient, tmp_path: Path) -> None:
    # Each would hold a lock of its own, and a token could be used at both.
    with pytest.raises(RuntimeError, match="another keyring serves"):
        KeyringServer(tmp_path / "keyring" / "keyring.sock", Keyring(tmp_path / "keyring"))
    with pytest.raises(BadRunSecret):  # the first one still answers
        client.hand_over("run-7", {"site-a": b"x"}, bytes(32))


def test_a_keyring_others_may_enter_is_not_served(keyring: Keyring, tmp_path: Path) -> None:
    (tmp_path / "keyring").chmod(0o750)
    with pytest.raises(PermissionError, match="chmod 700"):
        KeyringServer(tmp_path / "keyring" / "keyring.sock", keyring)


def test_a_stopped_keyring_leaves_no_socket_and_may_start_again(keyring: Keyring, tmp_path: Path) -> None:
    file = tmp_path / "keyring" / "keyring.sock"
    for _ in range(2):
        KeyringServer(file, keyring).server_close()
        assert not file.exists()
    with pytest.raises(KeyringDown, match="does not answer"):
        KeyringClient(file, patience_s=0).hand_over("run-7", {}, bytes(32))


def test_a_renewal_and_the_list_of_members_through_the_door(client: KeyringClient, keyring: Keyring) -> None:
    # The door takes the time from the machine.
    now = datetime.now(UTC)
    key, csr = make_csr("site-a")
    joined = Applicant(make_token(keyring, now=now)).enrol(keyring, csr=csr, now=now)
    assert isinstance(joined, Enrolled)
    mine = Identity(key, joined.certificate_pem)
    _, another = make_csr("site-a")
    shown = sign_renewal(mine, another)
    answer = client.renew(certificate_pem=mine.certificate_pem, csr_pem=another, proof=shown)
    assert isinstance(answer, Enrolled)
    refused = client.renew(certificate_pem=mine.certificate_pem, csr_pem=another, proof=b"")
    assert isinstance(refused, EnrolmentRefusal)
    assert "not signed with the key" in refused.message
    assert abs(client.sites()["site-a"] - now.timestamp()) < 60
