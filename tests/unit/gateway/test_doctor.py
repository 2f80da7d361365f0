"""A site's facts, one thing wrong at a time: each is found, named with its remedy, and hides nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fakes.governance import World
from fakes.keyrings import NOW, make_keyring
from fakes.members import member_home
from fakes.runtimes import FakeRuntime
from msfl.gateway.doctor import AuditFacts, PolicyFacts, SiteFacts, examine, measure
from msfl.gateway.home import SiteSettings, write
from msfl.policies.documents import Isolation
from msfl.policies.encoding import encode
from msfl.policies.refusals import Code, refuse
from msfl.protos.audit_log import AuditLog
from msfl.protos.certificates import CertificateFacts
from msfl.protos.health import GIB, DiskFacts, Fault, Finding, LineFacts, Peer, Status, Step, StepFacts, Unmeasured
from msfl.protos.messages import PROTOCOL
from msfl.protos.software import SOFTWARE
from msfl.registry.cache import CacheFacts
from msfl.runtime.interface import Protections

DAY = timedelta(days=1)
IDP = "https://login.example"
FAILED = Unmeasured("PermissionError: no")
OVER_HTTP = SiteSettings("site-a", "msfl-01", "centre:8444", "https://registry.example/models")
SITE = CertificateFacts(("msfl://site/site-a",), NOW - 5 * DAY, NOW + 25 * DAY, True, True)
LINE = tuple(StepFacts(step, 0.001) for step in Step)
PEER = Peer(PROTOCOL, SOFTWARE, timedelta(0), timedelta(milliseconds=1))
POLICY = PolicyFacts("segmentation", NOW - DAY, NOW + 90 * DAY, Isolation.SANDBOX)
WELL = SiteFacts(
    home=Path("/srv/gateway"),
    now=NOW,
    settings=SiteSettings("site-a", "msfl-01", "centre:8444", "/srv/registry"),
    exposed=(),
    certificate=SITE,
    ca=CertificateFacts((), NOW - DAY, NOW + 3000 * DAY, True),
    site_root=NOW + 700 * DAY,
    federation_root=NOW + 300 * DAY,
    timestamp=NOW + DAY,
    issuers=((IDP, NOW + 20 * DAY),),
    policies=((POLICY,), ()),
    datasets=(("ms-trial", "/data/ms", ""),),
    audit=AuditFacts(7, NOW - DAY, ""),
    disk=DiskFacts("/srv/gateway", 100 * GIB, None),
    line=LineFacts("centre:8444", LINE, PEER),
    protections=Protections(Isolation.SANDBOX, ("bubblewrap.",)),
    tags=3,
    images=CacheFacts(2, 1, 3 * GIB, 40 * GIB),
    pending=(),
)


def wrong(facts: SiteFacts) -> list[Finding]:
    return [f for f in examine(facts) if f.status is not Status.OK]


def test_a_site_that_is_well() -> None:
    assert wrong(WELL) == []
    assert len(examine(WELL)) >= 18


@pytest.mark.parametrize(
    ("changed", "status", "check", "what", "do"),
    [
        ({"settings": FAILED}, "bad", "home", "settings cannot be read", "msfl gateway enrol"),
        ({"exposed": ("tls/identity.pem",)}, "bad", "secrets", "tls/identity.pem", "chmod -R go="),
        ({"certificate": FAILED}, "bad", "certificate", "cannot be read", "enrol --again"),
        ({"certificate": replace(SITE, not_after=NOW - DAY)}, "bad", "certificate", "expired", "token create site-a"),
        (
            {"certificate": replace(SITE, not_after=NOW + DAY)},
            "warn",
            "certificate",
            "expires in 24 h",
            "gateway serve",
        ),
        ({"certificate": replace(SITE, fits_key=False)}, "bad", "certificate", "belong to its key", "enrol --again"),
        ({"certificate": replace(SITE, signed_by_ca=False)}, "bad", "certificate", "CA", "enrol --again"),
        ({"certificate": replace(SITE, names=("msfl://site/b",))}, "bad", "certificate", "this is site-a", "--again"),
        ({"ca": FAILED}, "bad", "certificate", "CA certificate cannot be read", "operator"),
        ({"site_root": NOW - DAY}, "bad", "trust", "site root has expired", "custodians sign"),
        ({"federation_root": refuse(Code.ROOT_DIFFERS, "other hash")}, "bad", "trust", "is not trusted", "operator"),
        ({"timestamp": refuse(Code.TRUST_STALE, "none")}, "bad", "trust", "is not trusted", "federation timestamp"),
        ({"timestamp": NOW + DAY / 24}, "warn", "trust", "expires in 60 min", "federation timestamp"),
        ({"issuers": ((IDP, NOW + 3 * DAY),)}, "warn", "trust", f"{IDP} expires in 3 days", "operator"),
        ({"issuers": ((IDP, NOW),)}, "bad", "trust", f"{IDP} has expired", "msfl issuer sign"),
        ({"issuers": ((IDP, refuse(Code.ISSUER_KEYS_STALE, "no")),)}, "bad", "trust", IDP, "operator"),
        ({"issuers": FAILED}, "bad", "trust", "key sets cannot be read", "operator"),
        ({"timestamp": NOW}, "bad", "trust", "has expired", "federation timestamp"),
        ({"federation_root": NOW + 10 * DAY}, "warn", "trust", "expires in 10 days", "operator"),
        ({"settings": OVER_HTTP, "tags": FAILED}, "bad", "registry", "cannot be read", "/secrets/registry.json"),
        ({"policies": ((), ())}, "warn", "policies", "none is in force", "msfl policy new"),
        ({"policies": ((replace(POLICY, expires=NOW - DAY),), ())}, "warn", "policies", "expired", "msfl policy sign"),
        ({"policies": ((replace(POLICY, not_before=NOW + DAY),), ())}, "warn", "policies", "only from", ""),
        (
            {"policies": ((replace(POLICY, isolation=Isolation.CONTAINER),), ())},
            "bad",
            "policies",
            "isolation",
            "bubble",
        ),
        ({"policies": FAILED}, "bad", "policies", "cannot be read", ""),
        ({"datasets": ()}, "warn", "datasets", "none is published", "msfl data publish"),
        ({"datasets": (("x", "/mnt/x", "the folder is not there"),)}, "bad", "datasets", "not there", "mount"),
        (
            {"closed": (("ms-trial", "/data/ms/imagesTr"),)},
            "bad",
            "datasets",
            "imagesTr is closed to the user 10001",
            "setfacl -R -m u:10001:rX /data/ms",
        ),
        ({"closed": FAILED}, "bad", "datasets", "who may read them", ""),
        ({"audit": AuditFacts(7, NOW, "line 3 was changed")}, "bad", "audit", "chain is broken", "copies"),
        ({"audit": AuditFacts(7, NOW + DAY, "")}, "bad", "clock", "disagrees with the record", "NTP"),
        ({"audit": FAILED}, "bad", "audit", "cannot be read", "does not serve"),
        (
            {"audit": AuditFacts(7, NOW, "", "our log contradicts itself")},
            "bad",
            "audit",
            "contradicts",
            "audit verify",
        ),
        ({"clock": refuse(Code.CLOCK_SET_BACK, "It is 8.")}, "bad", "clock", "no run begins", "msfl gateway clock"),
        ({"clock": FAILED}, "bad", "clock", "cannot be read", ""),
        (
            {"policies": ((replace(POLICY, spent="5 of 5 runs"),), ())},
            "warn",
            "policies",
            "5 of 5 runs",
            "larger budget",
        ),
        ({"disk": DiskFacts("/srv", 1, None)}, "bad", "disk", "0.0 GiB free", "free some space"),
        ({"disk": FAILED}, "bad", "disk", "cannot be measured", ""),
        (
            {"line": LineFacts("c:1", (*LINE[:1], StepFacts(Step.TCP, 1, Fault.REFUSED)))},
            "bad",
            "tcp",
            "refused",
            "serve",
        ),
        ({"line": LineFacts("c:1", LINE, replace(PEER, skew=timedelta(hours=1)))}, "bad", "clock", "behind", "NTP"),
        ({"line": FAILED}, "bad", "line", "cannot be dialled", "see the others"),
        ({"tags": FAILED}, "bad", "registry", "cannot be read", "mount"),
        ({"images": CacheFacts(2, 2, 41 * GIB, 40 * GIB)}, "warn", "images", "41.0 of at most 40.0 GiB", "images_gib"),
        ({"images": FAILED}, "bad", "images", "cannot be read", ""),
        ({"pending": ("run-7",)}, "warn", "runs", "run-7 waits", "msfl gateway confirm run-7"),
        ({"pending": FAILED}, "bad", "runs", "cannot be read", ""),
    ],
)
def test_one_thing_wrong(changed: dict[str, object], status: str, check: str, what: str, do: str) -> None:
    found = wrong(replace(WELL, **changed))  # type: ignore[arg-type]  # one field of any type
    assert [(f.check, f.status.value) for f in found] == [(check, status)]
    assert what in found[0].what
    assert do in found[0].do


def test_a_machine_without_bubblewrap_breaks_the_policies_that_ask_for_it() -> None:
    bare = replace(WELL, protections=Protections(Isolation.NONE, ("No sandbox: bwrap is not installed.",)))
    assert [(f.check, f.status) for f in wrong(bare)] == [("policies", Status.BAD), ("isolation", Status.WARN)]


def test_a_folder_that_is_not_there_is_found_out_by_every_probe_and_none_of_them_fails(tmp_path: Path) -> None:
    facts = measure(tmp_path / "nowhere", NOW)
    assert all(
        isinstance(f, Unmeasured) for f in (facts.settings, facts.certificate, facts.disk, facts.line, facts.tags)
    )
    assert any(f.check == "home" and f.status is Status.BAD for f in examine(facts))


def test_what_is_measured_in_a_home(tmp_path: Path) -> None:
    home = member_home(tmp_path / "home", make_keyring(tmp_path))
    (home.root / "secrets").mkdir(mode=0o700)
    (home.root / "runs").mkdir(mode=0o700)
    log = AuditLog(home.root / "audit/log.jsonl", "gateway site-a")
    log.write(NOW, "run decided", "run-7", {})
    log.close()
    home.identity_file.chmod(0o644)
    home.park("run-9", {})
    facts = measure(home.root, NOW)
    assert facts.exposed == ("tls/identity.pem",)
    assert facts.audit == AuditFacts(1, NOW, "")
    assert facts.pending == ("run-9",)
    assert isinstance(facts.certificate, CertificateFacts)
    assert facts.certificate.fits_key
    assert isinstance(facts.line, LineFacts)
    assert [step.fault for step in facts.line.steps] == [None, Fault.REFUSED]
    assert isinstance(facts.site_root, Unmeasured)
    assert isinstance(facts.disk, DiskFacts)
    assert facts.images == CacheFacts(0, 0, 0, 40 * GIB)
    assert not home.images.exists(), "looking changes nothing"


@pytest.mark.parametrize("spoil", [lambda f: f.write_bytes(b"{"), lambda f: f.write_bytes(b"[]"), lambda f: f.unlink()])
def test_settings_that_hold_something_else(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    home = member_home(tmp_path / "home", make_keyring(tmp_path))
    spoil(home.root / "site.json")
    facts = measure(home.root, NOW)
    assert isinstance(facts.settings, Unmeasured)
    assert isinstance(facts.certificate, CertificateFacts)


def test_data_that_the_user_of_the_containers_may_not_read_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, data = member_home(tmp_path / "home", make_keyring(tmp_path)), tmp_path / "data"
    data.mkdir(mode=0o700)
    write(home.root / "datasets/ms-trial.json", encode(World().dataset))
    write(home.root / "datasets/ms-trial.path", str(data).encode())
    for user, closed in ((None, ()), (10001, (("ms-trial", str(data)),))):
        runtime = FakeRuntime()
        runtime.reads_as = user
        monkeypatch.setattr("msfl.runtime.choice.RuntimeChoice.open", lambda *_, runtime=runtime: runtime)
        assert measure(home.root, NOW).closed == closed
