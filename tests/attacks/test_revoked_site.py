"""A site that the federation has revoked and that goes on all the same: with the line, the certificate, the run key and
the registration token that it has. And a list that is put back to an older one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from fakes.governance import LATER, key, member
from fakes.governance import NOW as ISSUED
from fakes.keyrings import NOW, Applicant, make_token
from fakes.link_doors import Centre, ask, line
from fakes.members import joined
from msfl.orchestrator.doors.link import parting_word
from msfl.orchestrator.keyring.keyring import Enrolled, EnrolmentRefusal, Keyring, SecretUnusable
from msfl.orchestrator.trust import CentreTrust, MemoryDamaged, Taken
from msfl.policies.documents import FederationRoot, IssuerKeys, RevocationList
from msfl.policies.encoding import encode
from msfl.policies.envelope import FEDERATION_ROOT, REVOCATIONS, sign
from msfl.policies.keys import encode_public
from msfl.policies.refusals import Refused
from msfl.policies.trust import NOTHING_REVOKED, Revoked
from msfl.protos.certificates import sign_renewal
from msfl.protos.channel import key_sha256, make_csr
from msfl.protos.messages import TrustPapers
from msfl.protos.sealing import wrap_run_secret
from msfl.protos.v1 import federation_pb2 as wire

SITE_A = Revoked(sites=frozenset({"site-a"}))


def code(answer: Enrolled | EnrolmentRefusal) -> str:
    assert isinstance(answer, EnrolmentRefusal)
    return answer.code


# ------------------------------------------------------------------ over the line that it has


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    centre = Centre(tmp_path)
    yield centre
    centre.close()


def test_a_revoked_site_is_cut_and_refused_and_others_are_not(centre: Centre) -> None:
    with line(centre, centre.join()) as channel, line(centre, centre.join("site-b")) as other:
        centre.admission.refresh()
        cut, left = channel.unary_stream("/Door/Watch")(b""), other.unary_stream("/Door/Watch")(b"")
        assert next(cut) == next(left) == b"first"
        centre.revoked = SITE_A
        centre.admission.refresh()
        with pytest.raises(grpc.RpcError) as ended:
            next(cut)
        assert ended.value.code() is grpc.StatusCode.CANCELLED
        assert ask(channel) == "PERMISSION_DENIED site_revoked"
        assert ask(other) == "hello"
        assert centre.calls == ["Ask"]
        assert left.is_active()
        left.cancel()


def test_the_list_counts_also_while_the_keyring_is_down(centre: Centre) -> None:
    with line(centre, centre.join()) as channel:
        centre.admission.refresh()
        centre.down, centre.revoked = True, SITE_A
        centre.admission.refresh()
        assert ask(channel) == "PERMISSION_DENIED site_revoked"


def test_a_certificate_whose_key_the_list_names_is_refused_and_the_new_one_serves(centre: Centre) -> None:
    stolen = centre.join()
    csr = make_csr("site-a")[1]
    with line(centre, stolen) as old:
        centre.admission.refresh()
        cut = old.unary_stream("/Door/Watch")(b"")
        assert next(cut) == b"first"
        centre.revoked = Revoked(keys=frozenset({key_sha256(stolen.certificate_pem)}))
        centre.admission.refresh()
        with pytest.raises(grpc.RpcError):
            next(cut)
        assert ask(old) == "PERMISSION_DENIED certificate_revoked"
    keyring = Keyring(centre.folder / "keyring", lambda: centre.revoked)
    proof = sign_renewal(stolen, csr)
    refused = keyring.renew(certificate_pem=stolen.certificate_pem, csr_pem=csr, proof=proof, now=centre.made_at)
    assert code(refused) == "certificate_revoked"
    with line(centre, centre.join()) as new:
        centre.admission.refresh()
        assert ask(new) == "hello"


def test_a_revoked_site_hears_the_list_once_and_then_nothing() -> None:
    papers = TrustPapers((b"root",), b"list", b"stamp")
    word = parting_word(lambda: papers)
    answer = word("/msfl.protos.v1.Link/Beat", wire.Progress(trust="what it had"))
    assert answer is not None
    assert answer.trust.revocations == b"list"
    assert word("/msfl.protos.v1.Link/Beat", wire.Progress(trust=papers.sha256)) is None
    assert word("/msfl.protos.v1.Link/Beat", wire.Progress(run_id="run-1")) is None
    assert word("/msfl.protos.v1.Link/Report", wire.TaskReport()) is None


# ------------------------------------------------------------------ at the keyring


def test_a_revoked_site_gets_no_certificate_no_token_and_no_run_key(tmp_path: Path) -> None:
    revoked = NOTHING_REVOKED
    Keyring.create(tmp_path / "keyring", "msfl-01", NOW)
    keyring = Keyring(tmp_path / "keyring", lambda: revoked)
    identity, unused = joined(keyring), make_token(keyring)
    csr = make_csr("site-a")[1]
    kept = keyring._get("sites", "site-a")
    assert kept is not None
    public, site_key = unused.centre_public_key, base64.b64decode(kept["site_key"])
    wrapped = {"site-a": wrap_run_secret(public, bytes(32), "run-7", "site-a", site_key)}
    assert keyring.hand_over("run-7", wrapped, public, NOW)
    revoked = SITE_A
    proof = sign_renewal(identity, csr)
    renewed = keyring.renew(certificate_pem=identity.certificate_pem, csr_pem=csr, proof=proof, now=NOW)
    assert code(renewed) == "site_revoked"
    assert code(Applicant(unused).enrol(keyring)) == "site_revoked"
    with pytest.raises(Refused, match="site_revoked"):
        make_token(keyring)
    with pytest.raises(SecretUnusable, match="revoked"):
        keyring.hand_over("run-7", wrapped, public, NOW)
    assert isinstance(Applicant(make_token(keyring, "site-b")).enrol(keyring), Enrolled)


# ------------------------------------------------------------------ the list, as the centre reads it


class Keepers:
    """A trust folder, as `msfl federation` leaves it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.memory = folder / "trust", folder / "revoked.json"
        self.folder.mkdir()
        root = FederationRoot(
            federation="msfl-test",
            version=1,
            keepers=(member("otto"),),
            publishers=(member("paul"),),
            reviewers=(member("rosa"), member("rui")),
            issuers=(IssuerKeys(issuer="https://i", audience="a", keys=(encode_public(key("issuer").public),)),),
            expires=LATER,
        )
        (self.folder / "federation-root.dsse").write_bytes(sign(encode(root), FEDERATION_ROOT, [key("otto")]))
        self.written: list[Taken] = []
        self.full = False
        self.trust = self.again()

    def again(self) -> CentreTrust:
        self.trust = CentreTrust(self.folder, self.memory, self._write)
        return self.trust

    def _write(self, taken: Taken) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.written.append(taken)

    def say(self, version: int, *sites: str, by: str = "otto") -> None:
        issued = ISSUED + timedelta(minutes=version)
        listed = RevocationList(federation="msfl-test", version=version, sites=sites, issued=issued)
        (self.folder / "revocations.dsse").write_bytes(sign(encode(listed), REVOCATIONS, [key(by)]))


@pytest.fixture
def keepers(tmp_path: Path) -> Keepers:
    return Keepers(tmp_path)


def test_a_new_list_counts_when_it_lies_there_and_is_written_down_once(keepers: Keepers) -> None:
    assert keepers.trust.revoked() == NOTHING_REVOKED
    keepers.say(1, "site-a")
    assert keepers.trust.revoked().sites == {"site-a"}
    keepers.say(2, "site-a", "site-b")
    assert keepers.trust.revoked().sites == keepers.trust.revoked().sites == {"site-a", "site-b"}
    assert [(t.version, sorted(t.new.sites)) for t in keepers.written] == [(1, ["site-a"]), (2, ["site-b"])]


def test_a_list_that_no_keeper_signed_revokes_nobody(keepers: Keepers) -> None:
    keepers.say(1, "site-a", by="mallory")
    with capture_logs() as logs:
        assert keepers.trust.revoked() == keepers.trust.revoked() == NOTHING_REVOKED
    assert [entry["code"] for entry in logs] == ["wrong_signer"]
    assert keepers.written == []


def test_an_older_list_or_a_shorter_one_brings_nobody_back_also_not_after_a_restart(keepers: Keepers) -> None:
    keepers.say(2, "site-a")
    assert keepers.trust.revoked().sites == {"site-a"}
    keepers.say(1)
    with capture_logs() as logs:
        assert keepers.trust.revoked().sites == {"site-a"}
    assert [entry["code"] for entry in logs] == ["version_rolled_back"]
    assert keepers.again().revoked().sites == {"site-a"}
    (keepers.folder / "revocations.dsse").unlink()
    assert keepers.again().revoked().sites == {"site-a"}
    keepers.say(3)
    assert keepers.again().revoked().sites == {"site-a"}


def test_on_a_full_disk_a_list_counts_at_once_and_is_written_when_there_is_room(keepers: Keepers) -> None:
    keepers.full = True
    keepers.say(1, "site-a")
    assert keepers.trust.revoked().sites == {"site-a"}
    assert not keepers.memory.exists()
    keepers.full = False
    assert keepers.trust.revoked().sites == {"site-a"}
    assert [t.version for t in keepers.written] == [1]
    assert json.loads(keepers.memory.read_text())["revoked"]["sites"] == ["site-a"]


def test_a_memory_that_cannot_be_read_is_not_taken_for_an_empty_one(keepers: Keepers) -> None:
    keepers.memory.write_text("{}")
    with pytest.raises(MemoryDamaged, match="put it back"):
        keepers.again()
