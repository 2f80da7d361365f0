"""The orchestrator as a process, until SIGTERM or SIGINT. The keyring is another: `keyring/process.py`."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import grpc
import structlog

from msfl.orchestrator.doors.admission import Admission
from msfl.orchestrator.doors.enrolment import EnrolmentDoor
from msfl.orchestrator.doors.link import Datasets, LinkDoor, parting_word
from msfl.orchestrator.doors.people import PeopleDoor
from msfl.orchestrator.doors.silence import CutTheSilent
from msfl.orchestrator.doors.turned_away import TurnedAway
from msfl.orchestrator.doors.unavailable import SayUnavailable
from msfl.orchestrator.engine import Engine
from msfl.orchestrator.home import CentreHome
from msfl.orchestrator.keyring.client import KeyringClient, KeyringDown
from msfl.orchestrator.keyring.keyring import keyring_log
from msfl.orchestrator.releases import AggregatorStarter, Releases
from msfl.orchestrator.store.audited import AuditedRuns
from msfl.orchestrator.store.folder import FolderArtifacts
from msfl.orchestrator.store.sqlite import SqliteRunStore
from msfl.policies.encoding import sha256_of
from msfl.policies.refusals import Refusal, Refused
from msfl.policies.trust import trust_federation_root
from msfl.protos.allocator import keep_memory
from msfl.protos.audit_log import LOG_NAME, AuditLog
from msfl.protos.channel import SERVER_OPTIONS, mutual_server_credentials, peer_site, server_credentials
from msfl.protos.notary import Notary
from msfl.protos.streams import streams_handler
from msfl.protos.v1.federation_pb2_grpc import (
    add_EnrolmentServicer_to_server,
    add_LinkServicer_to_server,
    add_PeopleServicer_to_server,
)
from msfl.registry.location import open_registry
from msfl.runtime.choice import RuntimeChoice

# Every attending gateway and every watcher holds one thread for as long as it stays, asleep nearly always. Threads are
# made when they are needed and none is free; who comes when all are busy waits for one.
LINK_THREADS = 2048
PEOPLE_THREADS = 256
# An honest call waits for its request for a moment only: so many at once are none.
SILENT_PEOPLE = PEOPLE_THREADS * 3 // 4
SILENT_OF_A_SITE = 32
WITNESS_S = 5.0
log = structlog.get_logger()


def _end_of_a_thread(ended: threading.ExceptHookArgs) -> None:
    """A bug that ends a thread ends the process: every run is durable, so whoever starts it again loses nothing,
    while a run whose thread is gone would stand still and nobody would know."""
    name = ended.thread.name if ended.thread is not None else "?"
    error = (ended.exc_type, ended.exc_value or ended.exc_type(), ended.exc_traceback)
    log.critical("a thread died of a bug; the orchestrator ends", thread=name, exc_info=error)
    os._exit(70)  # EX_SOFTWARE


def serve_orchestrator(home: CentreHome, chosen: RuntimeChoice) -> None:
    """`chosen`: what aggregators run in. Raises Refused when the federation root cannot be trusted, RuntimeError when a
    port is taken, StoreDamaged or StoreUnavailable when the runs cannot be read, AuditBroken when the audit log was
    changed, CannotProceed when the runtime cannot be had."""
    keep_memory()
    threading.excepthook = _end_of_a_thread
    settings = home.settings()
    envelope = home.federation_root.read_bytes()
    # The operator put this file here; sites compare its hash with the one in their tokens.
    root = trust_federation_root(envelope, sha256_of(envelope), datetime.now(UTC))
    if isinstance(root, Refusal):
        raise Refused(root)
    registry = open_registry(settings.registry, home.registry_access)
    clock = partial(datetime.now, UTC)
    audit = AuditLog(home.audit / LOG_NAME, f"orchestrator {settings.federation}")
    trust = home.heeded(home.audit / "revoked.json", lambda taken: taken.into(audit, clock()))
    keyring = KeyringClient(home.keyring_socket)
    releases = Releases(registry, root, clock, trust.revoked)
    # A run waits for the keyring by itself, and says so; a site that enrols is better served by a little patience here.
    asked_by_runs = KeyringClient(home.keyring_socket, patience_s=0.5)
    runtime = chosen.open(f"orchestrator {settings.federation} {home.root}")
    starter = AggregatorStarter(releases, registry, runtime, asked_by_runs, home.root / "aggregators")
    notary = Notary(audit, home.audit, f"centre:{settings.federation}", clock)
    turned_away = TurnedAway(audit, clock).note
    runs = AuditedRuns(SqliteRunStore(home.runs), audit, clock)
    artifacts = FolderArtifacts(home.root / "artifacts")
    engine = Engine(runs, artifacts, starter, revoked_sites=lambda: trust.revoked().sites)
    datasets = Datasets()

    server = home.server()
    key, certificate = server.key_pem, server.certificate_pem
    admission = Admission(asked_by_runs.standings, trust.revoked, parting_word(home.trust_papers), turned_away)
    people = people_server()
    for_people = PeopleDoor(
        engine, root, datasets, releases, home.key_sets, settings.callers, trust.revoked, turned_away
    )
    add_PeopleServicer_to_server(for_people, people)
    add_EnrolmentServicer_to_server(EnrolmentDoor(keyring, envelope, admission.refresh, turned_away), people)
    people.add_secure_port(f"{settings.host}:{settings.port}", server_credentials(key, certificate))
    silent = CutTheSilent(SILENT_OF_A_SITE, lambda context: peer_site(context) or "")
    link = _server("link", LINK_THREADS, silent, admission)
    door = LinkDoor(engine, datasets, keyring, notary, home.key_sets, home.trust_papers)
    add_LinkServicer_to_server(door, link)
    link.add_generic_rpc_handlers((streams_handler(door),))
    link.add_secure_port(
        f"{settings.host}:{settings.link_port}", mutual_server_credentials(key, certificate, home.ca_pem)
    )

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    admission.refresh()
    fresh = threading.Thread(target=admission.keep_fresh, args=(stop,), name="admission")
    fresh.start()
    beside = threading.Thread(
        target=_witness_keyring, args=(stop, asked_by_runs, notary, keyring_log(settings.federation)), name="witness"
    )
    beside.start()
    engine.start()
    people.start()
    link.start()
    log.info("the orchestrator serves", people=settings.port, gateways=settings.link_port)
    stop.wait()
    engine.stop()
    people.stop(1.0).wait()
    link.stop(1.0).wait()
    fresh.join()
    beside.join()


def _witness_keyring(stop: threading.Event, keyring: KeyringClient, notary: Notary, log_name: str) -> None:
    """Keep what the keyring shows of its audit log, until `stop`: sites keep what the centre shows of its own."""
    while not stop.wait(WITNESS_S):
        try:
            refused = notary.take(log_name, keyring.show())
        except (KeyringDown, OSError) as error:
            log.warning("the keyring's audit log is not witnessed now", why=str(error))
            continue
        if refused is not None:
            log.critical("the keyring's audit log contradicts itself", code=refused.code, why=refused.why)


def people_server() -> grpc.Server:
    """For people and for sites that enrol: whoever reaches it may begin a call."""
    answering = ThreadPoolExecutor(PEOPLE_THREADS, "people-answers")
    return _server("people", PEOPLE_THREADS, CutTheSilent(SILENT_PEOPLE, lambda context: "", answering))


def _server(name: str, threads: int, *before: grpc.ServerInterceptor) -> grpc.Server:
    interceptors = (*before, SayUnavailable())
    return grpc.server(ThreadPoolExecutor(threads, name), interceptors=interceptors, options=SERVER_OPTIONS)
