"""`msfl orchestrator doctor`: what is wrong at the centre, and how to mend it.

    measure(home, now) ─▶ CentreFacts ─▶ examine(facts) ─▶ Findings          nothing is changed

Each fact is measured by itself: where one cannot be, it is `Unmeasured`, a finding of its own, and the others stand.
The run store is read as it lies on disk, beside a serving orchestrator or without one. When a site last spoke is read
from there too: it is the last thing it said in a run, not its heartbeat, which nobody keeps.
"""

from __future__ import annotations

import platform
import sqlite3
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from msfl.orchestrator.home import CentreHome, FederationSettings
from msfl.orchestrator.keyring.authority import SITE_LIFE
from msfl.orchestrator.keyring.client import KeyringClient, KeyringDown
from msfl.orchestrator.runs.events import Answered, Event, SiteFailed, Submitted, TaskDone, from_json
from msfl.orchestrator.runs.machine import Phase, RunState, Standing, advance, submitted
from msfl.orchestrator.store.sqlite import SqliteRunStore
from msfl.policies.documents import JobSpec
from msfl.policies.encoding import load_json, sha256_of
from msfl.policies.issuers import in_force_until
from msfl.policies.refusals import Code, Refusal, refuse
from msfl.policies.trust import trust_federation_root, trust_timestamp
from msfl.protos.certificates import CertificateFacts, certificate_facts
from msfl.protos.health import (
    GIB,
    DiskFacts,
    Fault,
    Finding,
    LineFacts,
    Status,
    Step,
    Unmeasured,
    judge_certificate,
    judge_disk,
    judge_issuers,
    judge_line,
    judge_newest,
    judge_trusted,
    span,
    unmeasured,
)
from msfl.protos.probe import attempt, disk, largest_file, port, total_bytes
from msfl.protos.software import SOFTWARE
from msfl.registry.interface import RegistryFails
from msfl.registry.location import open_registry
from msfl.runtime.interface import Protections

SERVER_SOON, ROOT_SOON, CA_SOON = timedelta(days=30), timedelta(days=30), timedelta(days=180)
TIMESTAMP_SOON = timedelta(hours=4)
NEW_KEYS = "a steward signs the provider's present keys (msfl issuer sign); then msfl orchestrator issuer-keys FILE"
NEW_SERVER = "msfl orchestrator certificate, then restart msfl orchestrator serve"
_EVERYWHERE = ("0.0.0.0", "::", "[::]", "")  # noqa: S104  # compared with, never bound to


@dataclass(frozen=True)
class PortFacts:
    """`fresh`: it shows the certificate that lies in the home; None when it showed none."""

    whose: str
    line: LineFacts
    fresh: bool | None


@dataclass(frozen=True)
class WaitingRun:
    run_id: str
    waits_for: str
    since: datetime


@dataclass(frozen=True)
class StoreFacts:
    """`spoke`: when each site last said something in a run. `ended`: runs that have."""

    runs: int
    damage: str
    newest: datetime | None
    waiting: tuple[WaitingRun, ...]
    spoke: tuple[tuple[str, datetime], ...]


@dataclass(frozen=True)
class CentreFacts:
    """Everything `examine` looks at. `exposed`: files that others on this machine may open. `sites`: when each member
    got its certificate. `frozen`: sites that are, and why. `root`: in force until when, or why not trusted. `tags`: how
    many releases the registry has. `issuers`: identity providers with stewards, and until when their keys are good."""

    home: Path
    now: datetime
    settings: FederationSettings | Unmeasured
    exposed: tuple[str, ...] | Unmeasured
    sites: tuple[tuple[str, datetime], ...] | Unmeasured
    server: CertificateFacts | Unmeasured
    ca: CertificateFacts | Unmeasured
    ports: tuple[PortFacts, ...] | Unmeasured
    store: StoreFacts | Unmeasured
    disk: DiskFacts | Unmeasured
    aggregators_bytes: int
    root: datetime | Refusal | Unmeasured
    timestamp: datetime | Refusal | Unmeasured
    tags: int | Unmeasured
    protections: Protections | Unmeasured
    frozen: tuple[tuple[str, str], ...] | Unmeasured = ()
    issuers: tuple[tuple[str, datetime | Refusal], ...] | Unmeasured = ()


# ------------------------------------------------------------------------------------------------------------ measure


def measure(folder: Path, now: datetime) -> CentreFacts:
    home = CentreHome(folder)
    return CentreFacts(
        home=folder,
        now=now,
        settings=attempt(home.settings),
        exposed=attempt(lambda: _exposed(home)),
        sites=attempt(lambda: _sites(home), (KeyringDown,)),
        server=attempt(lambda: _server(home)),
        ca=attempt(lambda: certificate_facts(home.ca_pem, home.ca_pem)),
        ports=attempt(lambda: _ports(home)),
        store=attempt(lambda: _store(home.runs), (sqlite3.Error,)),
        disk=attempt(lambda: disk(folder, largest_file(folder / "artifacts", folder / "aggregators"))),
        aggregators_bytes=total_bytes(folder / "aggregators"),
        root=attempt(lambda: _root(home, now)),
        timestamp=attempt(lambda: _timestamp(home, now)),
        tags=attempt(lambda: _tags(home), (RegistryFails,)),
        protections=attempt(lambda: home.settings().runtime.open("doctor").protections()),
        frozen=attempt(lambda: _frozen(home), (KeyringDown,)),
        issuers=attempt(lambda: _issuers(home, now)),
    )


def _tags(home: CentreHome) -> int:
    return len(open_registry(home.settings().registry, home.registry_access).tags())


def _exposed(home: CentreHome) -> tuple[str, ...]:
    secrets = (home.keyring, home.server_file)
    return tuple(str(f.relative_to(home.root)) for f in secrets if stat.S_IMODE(f.stat().st_mode) & 0o077)


def _sites(home: CentreHome) -> tuple[tuple[str, datetime], ...]:
    members = KeyringClient(home.keyring_socket, patience_s=0.0).sites()
    return tuple((site, _time(at)) for site, at in sorted(members.items()))


def _frozen(home: CentreHome) -> tuple[tuple[str, str], ...]:
    standings = KeyringClient(home.keyring_socket, patience_s=0.0).standings()
    return tuple((site, s.frozen.why) for site, s in sorted(standings.items()) if s.frozen is not None)


def _server(home: CentreHome) -> CertificateFacts:
    server = home.server()
    return certificate_facts(server.certificate_pem, home.ca_pem, server.key_pem)


def _ports(home: CentreHome) -> tuple[PortFacts, ...]:
    settings = home.settings()
    host = "127.0.0.1" if settings.host in _EVERYWHERE else settings.host
    mine = load_pem_x509_certificate(home.server().certificate_pem).public_bytes(Encoding.DER)
    found = []
    for whose, number in (("people and enrolment", settings.port), ("gateways", settings.link_port)):
        line, shown = port(f"{host}:{number}", home.ca_pem)
        found.append(PortFacts(whose, line, shown == mine if shown else None))
    return tuple(found)


def _store(file: Path) -> StoreFacts:
    store = SqliteRunStore(file, look_only=True)
    try:
        damage = store.damage()
        if damage:
            return StoreFacts(0, damage, None, (), ())
        runs = {run_id: [from_json(stored.text) for stored in store.events(run_id)] for run_id in store.runs()}
    finally:
        store.close()
    states = [_state(events) for events in runs.values()]
    waiting = tuple(_waiting(state, runs[state.run_id][-1].at) for state in states if not state.ended)
    times = [event.at for events in runs.values() for event in events]
    spoke: dict[str, float] = {}
    for events in runs.values():
        for event in events:
            # SiteSilent and the like name a site, too, and are not its own words.
            if isinstance(event, Answered | TaskDone | SiteFailed):
                spoke[event.site] = max(spoke.get(event.site, 0.0), event.at)
    heard = tuple((site, _time(at)) for site, at in sorted(spoke.items()))
    return StoreFacts(len(runs), "", _time(max(times)) if times else None, waiting, heard)


def _state(events: list[Event]) -> RunState:
    first = events[0]
    if not isinstance(first, Submitted):
        raise ValueError("a run's first event is its submission; the store is damaged")
    state = submitted(first, load_json(first.spec.encode(), JobSpec, "the job"))
    for event in events[1:]:
        state = advance(state, event)
    return state


def _waiting(state: RunState, last: float) -> WaitingRun:
    if state.paused:
        return WaitingRun(state.run_id, f"its owner ({state.pause_reason})", _time(last))
    if state.phase is Phase.OFFERED:
        parked = sorted(m.site for m in state.members.values() if m.standing is Standing.PARKED)
        asked = sorted(m.site for m in state.members.values() if m.standing is Standing.ASKED)
        what = [f"the custodians of {', '.join(parked)}"] if parked else []
        what += [f"the answer of {', '.join(asked)}"] if asked else []
        return WaitingRun(state.run_id, " and ".join(what) or "its start", _time(last))
    step = state.step
    if step is None:
        return WaitingRun(state.run_id, "its next step", _time(last))
    who = "the aggregator" if step.central else ", ".join(sorted(step.waiting or step.away))
    return WaitingRun(state.run_id, f"{who}, at {step.task_id}", _time(last))


def _root(home: CentreHome, now: datetime) -> datetime | Refusal:
    envelope = home.federation_root.read_bytes()
    root = trust_federation_root(envelope, sha256_of(envelope), now)
    return root if isinstance(root, Refusal) else root.document.expires


def _timestamp(home: CentreHome, now: datetime) -> datetime | Refusal:
    envelope, papers = home.federation_root.read_bytes(), home.trust_papers()
    root = trust_federation_root(envelope, sha256_of(envelope), now)
    if isinstance(root, Refusal):
        return root
    if not papers.timestamp:
        return refuse(Code.TRUST_STALE, "There is none yet.")
    stamp = trust_timestamp(papers.timestamp, root)
    return stamp if isinstance(stamp, Refusal) else stamp.document.expires


def _issuers(home: CentreHome, now: datetime) -> tuple[tuple[str, datetime | Refusal], ...]:
    envelope = home.federation_root.read_bytes()
    root = trust_federation_root(envelope, sha256_of(envelope), now)
    # What is wrong with the root has a line of its own.
    return () if isinstance(root, Refusal) else in_force_until(root, home.key_sets.trusted(root))


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


# ------------------------------------------------------------------------------------------------------------ examine


def examine(facts: CentreFacts) -> list[Finding]:
    where = str(facts.home)
    if isinstance(facts.settings, Unmeasured):
        do = "give the orchestrator's folder with --home, or make one: msfl orchestrator init"
        first = unmeasured("home", "the settings cannot be read", f"{where}/federation.json", facts.settings, do)
    else:
        first = Finding("home", Status.OK, f"federation {facts.settings.federation}", where)
    return [
        first,
        *_judge_modes(facts),
        *_judge_certificates(facts),
        *_judge_root(facts),
        *_judge_timestamp(facts),
        *judge_issuers(facts.issuers, str(facts.home / "trust/issuers"), facts.now, NEW_KEYS),
        *_judge_ports(facts),
        *_judge_store(facts),
        *_judge_sites(facts),
        *_judge_surroundings(facts),
    ]


def _judge_modes(facts: CentreFacts) -> Iterable[Finding]:
    where = str(facts.home)
    if isinstance(facts.exposed, Unmeasured):
        yield unmeasured("secrets", "the modes of secret files cannot be read", where, facts.exposed)
    elif facts.exposed:
        what = f"others on this machine may open {', '.join(facts.exposed)}"
        why = "the federation's keys lie there; the keyring does not start like this"
        yield Finding("secrets", Status.BAD, what, where, why, f"chmod -R go= {where}")
    else:
        yield Finding("secrets", Status.OK, "only the orchestrator's user may open them", where)


def _judge_certificates(facts: CentreFacts) -> Iterable[Finding]:
    server, ca = str(facts.home / "tls/server.pem"), str(facts.home / "tls/ca.pem")
    if isinstance(facts.server, Unmeasured):
        yield unmeasured("certificate", "the server's certificate cannot be read", server, facts.server, NEW_SERVER)
    else:
        yield from judge_certificate(
            "the server's certificate", server, facts.server, facts.now, soon=SERVER_SOON, renew=NEW_SERVER
        )
        host = "" if isinstance(facts.settings, Unmeasured) else facts.settings.host
        if host in _EVERYWHERE and host:
            what = f"tokens send sites to {host}, which is no address to dial"
            do = "set host in federation.json to the name by which sites reach this machine"
            yield Finding("certificate", Status.WARN, what, str(facts.home / "federation.json"), "", do)
        elif host and host not in facts.server.names:
            what = f"it is not for {host}, where tokens send the sites"
            do = f"msfl orchestrator certificate --name {host}, then restart msfl orchestrator serve"
            yield Finding("certificate", Status.BAD, what, server, "they will not trust it", do)
    do = "a federation whose CA ends must be made anew, and every site joins it: plan that early"
    if isinstance(facts.ca, Unmeasured):
        yield unmeasured("certificate", "the CA's certificate cannot be read", ca, facts.ca, "copy keyring/ca.pem here")
    else:
        yield from judge_certificate("the federation's CA", ca, facts.ca, facts.now, soon=CA_SOON, renew=do)


def _judge_root(facts: CentreFacts) -> Iterable[Finding]:
    where, do = str(facts.home / "trust/federation-root.dsse"), "the federation's keepers sign a new root"
    yield judge_trusted("the federation root", where, facts.root, facts.now, ROOT_SOON, do)


def _judge_timestamp(facts: CentreFacts) -> Iterable[Finding]:
    name, where = "the federation's timestamp", str(facts.home / "trust/timestamp.dsse")
    do = "the timekeeper signs a new one, else no site begins a run: msfl federation timestamp"
    yield judge_trusted(name, where, facts.timestamp, facts.now, TIMESTAMP_SOON, do)


def _judge_ports(facts: CentreFacts) -> Iterable[Finding]:
    if isinstance(facts.ports, Unmeasured):
        yield unmeasured("ports", "they cannot be asked", str(facts.home), facts.ports, "see the others")
        return
    for found in facts.ports:
        check, endpoint = f"port for {found.whose}", found.line.endpoint
        faults = {step.step: step.fault for step in found.line.steps if step.fault is not None}
        if faults == {Step.TCP: Fault.REFUSED}:
            yield Finding(check, Status.BAD, "nothing is served", endpoint, "not running", "msfl orchestrator serve")
        elif Step.TLS in faults:
            why = f"what answers shows no certificate of this federation ({faults[Step.TLS]})"
            do = "find what holds the port (ss -ltnp), or check the certificate's own line"
            yield Finding(check, Status.BAD, "somebody else has it, or the certificate is bad", endpoint, why, do)
        elif faults:
            yield from judge_line(found.line)
        elif found.fresh is False:
            why = "the orchestrator was started before it was replaced"
            do = "restart msfl orchestrator serve"
            yield Finding(check, Status.WARN, "serves an older certificate than the one on disk", endpoint, why, do)
        else:
            yield Finding(check, Status.OK, "is served", endpoint)


def _judge_store(facts: CentreFacts) -> Iterable[Finding]:
    where, store = str(facts.home / "runs.sqlite"), facts.store
    do = "stop the orchestrator and put runs.sqlite (with its -wal) back from a copy"
    if isinstance(store, Unmeasured):
        if not (facts.home / "runs.sqlite").exists():
            yield Finding("store", Status.OK, "no run yet", where)
        else:
            yield unmeasured("store", "the runs cannot be read", where, store, do)
        return
    if store.damage:
        yield Finding("store", Status.BAD, "the file is damaged", where, store.damage, do)
        return
    yield Finding("store", Status.OK, f"{store.runs} runs, sound", where)
    if store.newest is not None:
        yield judge_newest(store.newest, facts.now, where)
    for run in store.waiting:
        since = span(facts.now - run.since)
        what = f"{run.run_id} waits for {run.waits_for}; nothing happened for {since}"
        custodian = "custodian" in run.waits_for
        do = "they confirm or refuse it: msfl gateway pending" if custodian else ""
        yield Finding("runs", Status.WARN if custodian else Status.OK, what, "", "", do)


def _judge_sites(facts: CentreFacts) -> Iterable[Finding]:
    where = str(facts.home / "keyring")
    if isinstance(facts.sites, Unmeasured):
        why = "without it no site joins or renews its certificate, and no run starts"
        do = "msfl orchestrator keyring; its log says why it ends"
        yield Finding("keyring", Status.BAD, "it does not answer", where, f"{why}; {facts.sites.why}", do)
        return
    yield Finding("keyring", Status.OK, f"answers; {len(facts.sites)} sites are members", where)
    for site, why in () if isinstance(facts.frozen, Unmeasured) else facts.frozen:
        do = f"ask the site; then msfl orchestrator site unfreeze {site}, and a new token if its key may be known"
        yield Finding("sites", Status.BAD, f"{site} is frozen: all its calls are refused", site, why, do)
    spoke = {} if isinstance(facts.store, Unmeasured) else dict(facts.store.spoke)
    for site, certified in facts.sites:
        age = facts.now - certified
        said = f"last spoke in a run {span(facts.now - spoke[site])} ago" if site in spoke else "never spoke in a run"
        if age >= SITE_LIFE:
            what = f"{site}'s certificate has expired {span(age - SITE_LIFE)} ago; it {said}"
            why = "its gateway was not on the line to renew it"
            do = f"msfl orchestrator token create {site}; there: msfl gateway enrol --again FILE"
            yield Finding("sites", Status.WARN, what, site, why, do)
        elif SITE_LIFE - age < SITE_LIFE / 4:
            # A gateway that serves renews it when a third is left.
            what = f"{site}'s certificate expires in {span(SITE_LIFE - age)}; it {said}"
            do = f"ask {site} for the log of msfl gateway serve, which renews it while it runs and says why not"
            yield Finding("sites", Status.WARN, what, site, "its gateway has not renewed it", do)
        else:
            left = span(SITE_LIFE - age)
            yield Finding("sites", Status.OK, f"certificate {span(age)} old, good for {left}; {said}", site)


def _judge_surroundings(facts: CentreFacts) -> Iterable[Finding]:
    where = str(facts.home)
    if isinstance(facts.disk, Unmeasured):
        yield unmeasured("disk", "it cannot be measured", where, facts.disk)
    else:
        yield from judge_disk(facts.disk)
    what = f"aggregators hold {facts.aggregators_bytes / GIB:.1f} GiB"
    yield Finding("disk", Status.OK, what, str(facts.home / "aggregators"))
    registry = "" if isinstance(facts.settings, Unmeasured) else facts.settings.registry
    if isinstance(facts.tags, Unmeasured):
        do = "mount or restore the registry; a new one: msfl registry init"
        if "://" in registry:
            file = facts.home / "registry.json"
            do = f'if it wants a password: {{"user": …, "password": …}} in {file}, mode 0600; else see that it runs'
        yield unmeasured("registry", "it cannot be read, so no run can start", registry, facts.tags, do)
    else:
        yield Finding("registry", Status.OK, f"{facts.tags} releases", registry)
    yield Finding("version", Status.OK, f"{SOFTWARE}, Python {platform.python_version()}")
    yield _isolation(facts)


def _isolation(facts: CentreFacts) -> Finding:
    found, settings = facts.protections, facts.settings
    chosen = "" if isinstance(settings, Unmeasured) else settings.runtime.shown
    if isinstance(found, Unmeasured):
        do = "start the engine, let this user use its socket, or choose another runtime in federation.json"
        return unmeasured("isolation", "what aggregators run in is not to be had", chosen, found, do)
    return Finding("isolation", Status.OK, f"aggregators: {found.isolation.value}", chosen, found.detail[0])
