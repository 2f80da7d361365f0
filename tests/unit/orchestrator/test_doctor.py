"""The centre's facts, one thing wrong at a time: each is found, named with its remedy, and hides nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fakes.governance import World
from fakes.keyrings import NOW, make_keyring
from msfl.orchestrator.doctor import CentreFacts, PortFacts, StoreFacts, WaitingRun, examine, measure
from msfl.orchestrator.home import CentreHome, FederationSettings
from msfl.orchestrator.runs.events import Answered, SiteSilent, Submitted, to_json
from msfl.orchestrator.store.sqlite import SqliteRunStore
from msfl.policies.documents import Isolation
from msfl.policies.refusals import Code, refuse
from msfl.protos.certificates import CertificateFacts, Identity
from msfl.protos.health import GIB, DiskFacts, Fault, Finding, LineFacts, Status, Step, StepFacts, Unmeasured
from msfl.runtime.interface import Protections

DAY = timedelta(days=1)
IDP = "https://login.example"
FAILED = Unmeasured("PermissionError: no")
SERVER = CertificateFacts(("localhost", "127.0.0.1"), NOW - DAY, NOW + 300 * DAY, True, True)
SERVED = tuple(StepFacts(step, 0.001) for step in (Step.DNS, Step.TCP, Step.TLS))
PEOPLE = PortFacts("people and enrolment", LineFacts("127.0.0.1:8443", SERVED), True)
GATEWAYS = PortFacts("gateways", LineFacts("127.0.0.1:8444", SERVED), True)
STORE = StoreFacts(4, "", NOW - DAY, (), (("site-a", NOW - DAY),))
OVER_HTTP = FederationSettings("msfl-01", "127.0.0.1", 8443, 8444, "https://registry.example/models")
WELL = CentreFacts(
    home=Path("/srv/centre"),
    now=NOW,
    settings=FederationSettings("msfl-01", "127.0.0.1", 8443, 8444, "/srv/registry"),
    exposed=(),
    sites=(("site-a", NOW - 3 * DAY), ("site-b", NOW - 21 * DAY)),
    server=SERVER,
    ca=CertificateFacts((), NOW - DAY, NOW + 3000 * DAY, True),
    ports=(PEOPLE, GATEWAYS),
    store=STORE,
    disk=DiskFacts("/srv/centre", 100 * GIB, None),
    aggregators_bytes=GIB,
    root=NOW + 300 * DAY,
    timestamp=NOW + DAY,
    issuers=((IDP, NOW + 20 * DAY),),
    tags=3,
    protections=Protections(Isolation.SANDBOX, ("bubblewrap.",)),
)


def wrong(facts: CentreFacts) -> list[Finding]:
    return [f for f in examine(facts) if f.status is not Status.OK]


def port(*steps: StepFacts, fresh: bool | None = None) -> dict[str, object]:
    return {"ports": (PEOPLE, PortFacts("gateways", LineFacts("127.0.0.1:8444", steps), fresh))}


def test_a_centre_that_is_well() -> None:
    assert wrong(WELL) == []
    sites = [f.what for f in examine(WELL) if f.check == "sites"]
    assert sites == [
        "certificate 3 days old, good for 27 days; last spoke in a run 24 h ago",
        "certificate 21 days old, good for 9 days; never spoke in a run",
    ]


@pytest.mark.parametrize(
    ("changed", "status", "check", "what", "do"),
    [
        ({"settings": FAILED}, "bad", "home", "settings cannot be read", "msfl orchestrator init"),
        ({"exposed": ("keyring",)}, "bad", "secrets", "keyring", "chmod -R go="),
        ({"sites": FAILED}, "bad", "keyring", "does not answer", "msfl orchestrator keyring"),
        ({"frozen": (("site-a", "token used twice"),)}, "bad", "sites", "site-a is frozen", "site unfreeze site-a"),
        ({"sites": (("site-a", NOW - 31 * DAY),)}, "warn", "sites", "expired 24 h ago", "token create site-a"),
        ({"sites": (("site-a", NOW - 25 * DAY),)}, "warn", "sites", "expires in 5 days", "gateway serve"),
        ({"issuers": ((IDP, NOW + 3 * DAY),)}, "warn", "trust", f"{IDP} expires in 3 days", "msfl issuer sign"),
        ({"issuers": ((IDP, NOW),)}, "bad", "trust", f"{IDP} has expired", "issuer-keys FILE"),
        ({"issuers": ((IDP, refuse(Code.ISSUER_KEYS_STALE, "no")),)}, "bad", "trust", IDP, "msfl issuer sign"),
        ({"issuers": FAILED}, "bad", "trust", "key sets cannot be read", "msfl issuer sign"),
        ({"root": NOW + 9 * DAY}, "warn", "trust", "expires in 9 days", "sign a new root"),
        ({"server": FAILED}, "bad", "certificate", "cannot be read", "msfl orchestrator certificate"),
        ({"server": replace(SERVER, not_after=NOW)}, "bad", "certificate", "expired", "msfl orchestrator certificate"),
        ({"server": replace(SERVER, not_after=NOW + 9 * DAY)}, "warn", "certificate", "expires in 9 days", "restart"),
        ({"server": replace(SERVER, fits_key=False)}, "bad", "certificate", "belong to its key", "certificate"),
        ({"server": replace(SERVER, names=("x.org",))}, "bad", "certificate", "not for 127.0.0.1", "--name 127.0.0.1"),
        ({"ca": FAILED}, "bad", "certificate", "CA's certificate cannot be read", "ca.pem"),
        (
            port(SERVED[0], StepFacts(Step.TCP, 1, Fault.REFUSED)),
            "bad",
            "port for gateways",
            "nothing is served",
            "serve",
        ),
        (
            port(*SERVED[:2], StepFacts(Step.TLS, 1, Fault.NOT_TLS)),
            "bad",
            "port for gateways",
            "somebody else",
            "ss -ltnp",
        ),
        (port(*SERVED, fresh=False), "warn", "port for gateways", "older certificate", "restart"),
        ({"ports": FAILED}, "bad", "ports", "cannot be asked", ""),
        ({"store": replace(STORE, damage="row 3 missing")}, "bad", "store", "damaged", "from a copy"),
        ({"store": replace(STORE, newest=NOW + DAY)}, "bad", "clock", "disagrees with the record", "NTP"),
        (
            {"store": replace(STORE, waiting=(WaitingRun("run-7", "the custodians of site-b", NOW - DAY),))},
            "warn",
            "runs",
            "run-7 waits for the custodians of site-b; nothing happened for 24 h",
            "confirm",
        ),
        ({"disk": DiskFacts("/srv", 50 * GIB, None, "Read-only file system")}, "bad", "disk", "Read-only", "remount"),
        ({"disk": FAILED}, "bad", "disk", "cannot be measured", ""),
        ({"timestamp": NOW + DAY / 24}, "warn", "trust", "expires in", "federation timestamp"),
        ({"timestamp": NOW}, "bad", "trust", "has expired", "federation timestamp"),
        ({"root": NOW - DAY}, "bad", "trust", "has expired", "sign a new root"),
        ({"root": refuse(Code.ROOT_DIFFERS, "no")}, "bad", "trust", "not trusted", "sign a new root"),
        ({"tags": FAILED}, "bad", "registry", "cannot be read", "registry init"),
        ({"settings": OVER_HTTP, "tags": FAILED}, "bad", "registry", "cannot be read", "registry.json, mode 0600"),
    ],
)
def test_one_thing_wrong(changed: dict[str, object], status: str, check: str, what: str, do: str) -> None:
    found = wrong(replace(WELL, **changed))  # type: ignore[arg-type]  # one field of any type
    assert [(f.check, f.status.value) for f in found] == [(check, status)]
    assert what in found[0].what
    assert do in found[0].do


def test_an_address_that_nobody_can_dial() -> None:
    assert isinstance(WELL.settings, FederationSettings)
    (found,) = wrong(replace(WELL, settings=replace(WELL.settings, host="0.0.0.0")))
    assert "no address to dial" in found.what


def test_a_folder_that_is_not_there_is_found_out_by_every_probe_and_none_of_them_fails(tmp_path: Path) -> None:
    facts = measure(tmp_path / "nowhere", NOW)
    assert all(isinstance(f, Unmeasured) for f in (facts.settings, facts.server, facts.disk, facts.store, facts.sites))
    assert any(f.check == "home" and f.status is Status.BAD for f in examine(facts))


@pytest.fixture
def centre(tmp_path: Path) -> CentreHome:
    home = CentreHome(tmp_path)
    keyring = make_keyring(tmp_path)
    home.write_tls(Identity(*keyring.server_certificate(("localhost", "127.0.0.1"), NOW)), keyring.ca_pem)
    home.write_settings(FederationSettings("msfl-01", "127.0.0.1", 1, 2, str(tmp_path / "registry")))
    return home


def store_of(home: CentreHome, *events: Submitted | Answered | SiteSilent) -> None:
    store = SqliteRunStore(home.runs)
    for event in events:
        store.append("run-7", to_json(event))
    store.close()


def test_what_is_measured_at_a_centre(centre: CentreHome) -> None:
    job = World().job
    at = NOW.timestamp()
    first, *_ = sites = [ref.split("/")[0] for ref in job.datasets]
    store_of(
        centre,
        Submitted(at, "run-7", job.model_dump_json(), "", "", "ada"),
        Answered(at + 5, first, "confirm"),
    )
    facts = measure(centre.root, NOW)
    assert isinstance(facts.server, CertificateFacts)
    assert facts.server.fits_key
    assert isinstance(facts.ports, tuple)
    assert [p.line.steps[-1].fault for p in facts.ports] == [Fault.REFUSED, Fault.REFUSED]
    assert isinstance(facts.store, StoreFacts)
    assert facts.store.runs == 1
    assert facts.store.newest == datetime.fromtimestamp(at + 5, UTC)
    assert facts.store.spoke == ((first, datetime.fromtimestamp(at + 5, UTC)),)
    (run,) = facts.store.waiting
    assert run.waits_for.startswith(f"the custodians of {first}")
    assert len(sites) == 1 or "and the answer of" in run.waits_for


def test_looking_changes_nothing(centre: CentreHome) -> None:
    before = {f: f.read_bytes() for f in centre.root.rglob("*") if f.is_file()}
    measure(centre.root, NOW)
    assert {f: f.read_bytes() for f in centre.root.rglob("*") if f.is_file()} == before


def test_a_store_that_is_no_database(centre: CentreHome) -> None:
    centre.runs.write_bytes(b"not SQLite" * 1000)
    facts = measure(centre.root, NOW)
    assert isinstance(facts.store, Unmeasured)
    assert [f.what for f in examine(facts) if f.check == "store"] == ["the runs cannot be read"]


def test_a_store_with_a_damaged_page(centre: CentreHome) -> None:
    job = World().job.model_dump_json()
    store_of(centre, *(Submitted(NOW.timestamp(), "run-7", job, "x" * 3000, "", "ada") for _ in range(20)))
    data = bytearray(centre.runs.read_bytes())
    data[4096 * 3 : 4096 * 4] = b"\xff" * 4096
    centre.runs.write_bytes(data)
    damage = [f for f in examine(measure(centre.root, NOW)) if f.check == "store"]
    assert [f.status for f in damage] == [Status.BAD]
