"""The door for gateways, behind mutual TLS. Which site speaks is what its certificate says, never a field.

    Attend    the gateway's open stream: every order that is due for the site, each once per stream
    Answer, Report, Beat    what the site says; each becomes at most one event. A bare heartbeat is answered with the
                            federation's trust papers, as bytes, where the site has others
    Renew     a new certificate for the one in use, asked of the keyring
    Health    time and version of the centre, for `msfl gateway doctor`
    Witness   the site's audit log as it stands, kept here; the centre's in return
    Offset, upload, download    sealed files in parts of 1 MiB (`msfl.protos.streams`), resumed by offset

A site may upload only the result of the task it is being asked for, one at a time: a new attempt takes the place of
the one before, and once a result is reported nothing more is taken in. It may download only what an order names for it,
and shows datasets of its own alone.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import grpc
import structlog

from msfl.orchestrator.engine import Engine, LiveProgress
from msfl.orchestrator.keyring.client import KeyringClient, KeyringDown
from msfl.orchestrator.keyring.keyring import EnrolmentRefusal
from msfl.orchestrator.runs.events import Answered, SiteFailed, TaskDone
from msfl.orchestrator.runs.machine import RunState, is_reported, may_upload
from msfl.orchestrator.store.interface import GapInUpload
from msfl.protos import sealing
from msfl.protos.channel import peer_certificate, peer_site
from msfl.protos.convert import (
    BadMessage,
    answer_from_wire,
    arrival_from_wire,
    order_to_wire,
    papers_to_wire,
    progress_from_wire,
    report_from_wire,
)
from msfl.protos.key_sets import KeySets
from msfl.protos.messages import (
    PROTOCOL,
    JsonObject,
    Offer,
    Order,
    StopOrder,
    TaskOrder,
    TrustPapers,
    attempt_of,
    output_key,
)
from msfl.protos.notary import Notary, Shown
from msfl.protos.parcel import MAX_DOCUMENT_BYTES
from msfl.protos.sealing import EVERYBODY
from msfl.protos.software import SOFTWARE
from msfl.protos.v1 import federation_pb2 as wire
from msfl.protos.v1.federation_pb2_grpc import LinkServicer

PART_BYTES = 1 << 20
# Keepalive finds a dead line within half of this: a stop order sent before, on a line that still stands, has arrived.
STOP_HEARD_AFTER_S = 60.0
_M = TypeVar("_M")
_V = TypeVar("_V")
log = structlog.get_logger()


class Datasets:
    """What present gateways show of their catalogues: plain public facts, kept in memory only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_site: dict[str, tuple[JsonObject, ...]] = {}

    def put(self, site: str, datasets: tuple[JsonObject, ...]) -> None:
        with self._lock:
            self._by_site[site] = datasets

    def all(self) -> dict[str, tuple[JsonObject, ...]]:
        with self._lock:
            return dict(self._by_site)


def _name(order: Order, generation: int) -> str:
    """Two orders of one run with the same name are the same order."""
    match order:
        case TaskOrder():
            return f"task {generation} {order.task_id}"
        case Offer():
            return f"offer {generation}"
        case StopOrder():
            return f"stop {generation}"


def parting_word(papers: Callable[[], TrustPapers]) -> Callable[[str, object], wire.Ack | None]:
    """For `Admission`: a bare heartbeat of a revoked site is answered with the papers that it has not heard yet."""

    def word(method: str, request: object) -> wire.Ack | None:
        if not method.endswith("/Beat") or not isinstance(request, wire.Progress) or request.run_id:
            return None
        now = papers()
        return None if now.sha256 == request.trust else wire.Ack(trust=papers_to_wire(now))

    return word


class LinkDoor(LinkServicer):
    def __init__(
        self,
        engine: Engine,
        datasets: Datasets,
        keyring: KeyringClient,
        notary: Notary,
        key_sets: KeySets | None = None,
        trust_papers: Callable[[], TrustPapers] = TrustPapers,
    ) -> None:
        self._engine = engine
        self._datasets = datasets
        self._keyring = keyring
        self._notary = notary
        self._key_sets = key_sets
        self._trust_papers = trust_papers
        self._uploading: dict[tuple[str, str], str] = {}  # (run, site): the latest result that was begun

    # -------------------------------------------------------------- orders

    def Attend(self, request: wire.Hello, context: grpc.ServicerContext) -> Iterator[wire.Order]:
        site = self._site(context)
        arrival = self._checked(context, arrival_from_wire, request)
        if arrival.protocol != PROTOCOL:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this orchestrator speaks protocol {PROTOCOL}, the gateway {arrival.protocol}: update the older one",
            )
        own = tuple(d for d in arrival.datasets if d["ref"].startswith(f"{site}/"))
        if foreign := [d["ref"] for d in arrival.datasets if d not in own]:
            log.error("a site shows datasets of others; they are not listed", site=site, datasets=foreign[:10])
        self._datasets.put(site, own)
        bell = self._engine.site_bell(site)
        context.add_callback(bell.ring)  # A cut line is noticed at once.
        rung = bell.wait(-1, 0.0)
        last: dict[str, tuple[str, float]] = {}  # of each run, what was sent last, and when
        while context.is_active() and not self._engine.stopping:
            for state, order in self._engine.orders(site):
                what, now = _name(order, state.generation), self._engine.now()
                said, at = last.get(state.run_id, ("", now))
                if said != what:
                    last[state.run_id] = (what, now)
                    if isinstance(order, Offer) and self._key_sets is not None:
                        order = replace(order, issuer_keys=self._key_sets.envelopes())
                    yield order_to_wire(order)
                elif isinstance(order, StopOrder) and now - at > STOP_HEARD_AFTER_S:
                    self._engine.stop_was_heard(state.run_id, site)
            rung = bell.wait(rung, STOP_HEARD_AFTER_S)

    # ------------------------------------------------------- what sites say

    def Answer(self, request: wire.OfferAnswer, context: grpc.ServicerContext) -> wire.Ack:
        site = self._site(context)
        answer = self._checked(context, answer_from_wire, request)
        self._run(context, site, answer.run_id)
        event = Answered(
            at=self._engine.now(),
            site=site,
            verdict=answer.verdict,
            decision=answer.decision,
            wrapped_secret=base64.b64encode(answer.wrapped_secret).decode(),
            generation=answer.generation,
        )
        return wire.Ack(stale=not self._engine.post(answer.run_id, event))

    def Report(self, request: wire.TaskReport, context: grpc.ServicerContext) -> wire.Ack:
        site = self._site(context)
        report = self._checked(context, report_from_wire, request)
        self._run(context, site, report.run_id)
        now = self._engine.now()
        if report.failure:
            failed = SiteFailed(at=now, site=site, task_id=report.task_id, code=report.failure)
            return wire.Ack(stale=not self._engine.post(report.run_id, failed))
        if report.key and attempt_of(report.key, report.task_id, site) is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{report.key} is no result of {site} for {report.task_id}")
        if report.key and not self._engine.artifacts.size(report.run_id, report.key).complete:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{report.key} has not been uploaded")
        done = TaskDone(
            at=now,
            site=site,
            task_id=report.task_id,
            key=report.key,
            seconds=report.seconds,
            bytes_up=report.bytes_up,
            bytes_down=report.bytes_down,
            peak_rss_mib=dict(report.peak_rss_mib),
        )
        return wire.Ack(stale=not self._engine.post(report.run_id, done))

    def Beat(self, request: wire.Progress, context: grpc.ServicerContext) -> wire.Ack:
        site = self._site(context)
        progress = self._checked(context, progress_from_wire, request)
        if progress.run_id:
            self._run(context, site, progress.run_id)
            live = LiveProgress(progress.task_id, progress.phase, progress.done, progress.total, progress.metrics)
            self._engine.note(progress.run_id, site, live)
            return wire.Ack()
        papers = self._trust_papers()
        return wire.Ack() if papers.sha256 == progress.trust else wire.Ack(trust=papers_to_wire(papers))

    # ---------------------------------------------------------- membership

    def Renew(self, request: wire.Renewal, context: grpc.ServicerContext) -> wire.RenewedCertificate:
        self._site(context)
        certificate = peer_certificate(context)
        assert certificate is not None, "it has just named the site"
        try:
            answer = self._keyring.renew(certificate_pem=certificate, csr_pem=request.csr_pem, proof=request.proof)
        except KeyringDown as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            raise AssertionError("abort returns never") from error
        if isinstance(answer, EnrolmentRefusal):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{answer.code}: {answer.message}")
            raise AssertionError("abort returns never")
        return wire.RenewedCertificate(certificate_pem=answer.certificate_pem)

    def Health(self, request: wire.HealthQuestion, context: grpc.ServicerContext) -> wire.HealthAnswer:
        # Whoever asks is staff at the site: that the gateway itself is on the line is not to be read from it.
        if peer_site(context) is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no site is named in the client certificate")
        return wire.HealthAnswer(time=time.time(), protocol=PROTOCOL, software=SOFTWARE)

    # --------------------------------------------------------------- audit

    def Witness(self, request: wire.ShownCheckpoint, context: grpc.ServicerContext) -> wire.ShownCheckpoint:
        site = self._site(context)
        try:
            refused = self._notary.take(f"site:{site}", Shown(request.envelope, request.public_key))
            mine = self._notary.show()
        except OSError as error:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the centre cannot keep checkpoints: {error.strerror}")
            raise AssertionError("abort returns never") from error
        if refused is not None:
            log.error("the audit log of a site contradicts itself", site=site, code=refused.code, why=refused.why)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{refused.code}: {refused.why}")
        return wire.ShownCheckpoint(envelope=mine.envelope, public_key=mine.public_key)

    # ------------------------------------------------------- sealed streams

    def Offset(self, request: wire.ArtifactName, context: grpc.ServicerContext) -> wire.UploadOffset:
        site = self._site(context)
        state = self._run(context, site, request.run_id)
        self._may_upload(context, state, site, request.key)
        size = self._engine.artifacts.size(request.run_id, request.key)
        return wire.UploadOffset(offset=size.bytes, complete=size.complete)

    def upload(self, head: wire.UploadHead, parts: Iterator[bytes], context: grpc.ServicerContext) -> None:
        site = self._site(context)
        artifacts = self._engine.artifacts
        state = self._run(context, site, head.run_id)
        self._may_upload(context, state, site, head.key)
        self._must_fit(context, state, head)
        self._instead_of_the_last(site, head)
        offset = head.offset
        try:
            for data in parts:
                if self._uploading[head.run_id, site] != head.key:
                    self._forget_upload(head.run_id, head.key)
                    context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"nobody waits for {head.key} any more")
                if offset + len(data) > head.total:
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{head.key} is longer than it announced")
                artifacts.append(head.run_id, head.key, offset, data)
                self._engine.heard(site)
                offset += len(data)
            artifacts.finish(head.run_id, head.key, head.total)
        except GapInUpload as gap:
            context.abort(grpc.StatusCode.OUT_OF_RANGE, str(gap))

    def _instead_of_the_last(self, site: str, head: wire.UploadHead) -> None:
        before = self._uploading.get((head.run_id, site), head.key)
        self._uploading[head.run_id, site] = head.key  # Whoever still uploads another one sees it at the next part.
        if before != head.key:
            self._forget_upload(head.run_id, before)

    def _forget_upload(self, run_id: str, key: str) -> None:
        state = self._engine.state(run_id)
        assert state is not None
        if not is_reported(state, key):
            self._engine.artifacts.remove(run_id, key)

    def download(
        self, request: wire.DownloadFrom, context: grpc.ServicerContext
    ) -> tuple[wire.DownloadHead, Iterator[bytes]]:
        site = self._site(context)
        self._run(context, site, request.run_id)
        # Keys of what is meant for a site carry its name, <task>/<site>/down/<artifact>, or that of all.
        if f"/{site}/down/" not in request.key and f"/{EVERYBODY}/down/" not in request.key:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{request.key} is not for {site}")
        try:
            path = self._engine.artifacts.local(request.run_id, request.key)
        except (FileNotFoundError, ValueError):
            context.abort(grpc.StatusCode.NOT_FOUND, f"{request.key} is not here (any more)")
            raise AssertionError("abort returns never") from None
        return wire.DownloadHead(total=path.stat().st_size), self._read(path, request.offset, site)

    def _read(self, path: Path, offset: int, site: str) -> Iterator[bytes]:
        with open(path, "rb", buffering=0) as file:
            for data in sealing.parts(file, offset):
                yield data
                self._engine.heard(site)

    # -------------------------------------------------------------- checks

    def _site(self, context: grpc.ServicerContext) -> str:
        site = peer_site(context)
        if site is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no site is named in the client certificate")
        assert site is not None
        self._engine.heard(site)
        return site

    def _run(self, context: grpc.ServicerContext, site: str, run_id: str) -> RunState:
        state = self._engine.state(run_id)
        if state is None or site not in state.members:
            context.abort(grpc.StatusCode.NOT_FOUND, f"{site} is not part of a run {run_id}")
        assert state is not None
        return state

    def _may_upload(self, context: grpc.ServicerContext, state: RunState, site: str, key: str) -> None:
        if not may_upload(state, site, key):
            # The step is over: the site learns it from its next order. Nothing of an old round is taken in.
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"nobody waits for {key}")

    def _must_fit(self, context: grpc.ServicerContext, state: RunState, head: wire.UploadHead) -> None:
        """The spool is bounded: a result is a document, or no larger than the model that it is an update of."""
        most = MAX_DOCUMENT_BYTES + PART_BYTES
        if head.key.partition("/")[0] in ("train", "baseline"):
            source = f"aggregate/{len(state.rounds)}" if state.rounds else "plan"
            model = self._engine.artifacts.size(state.run_id, output_key(source, EVERYBODY, "weights"))
            most = max(most, model.bytes + PART_BYTES)
        if head.total > most:
            what = f"{head.key} announces {head.total} bytes; no result of this task has more than {most}"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, what)

    @staticmethod
    def _checked(context: grpc.ServicerContext, convert: Callable[[_M], _V], message: _M) -> _V:
        try:
            return convert(message)
        except BadMessage as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise AssertionError("abort returns never") from error
