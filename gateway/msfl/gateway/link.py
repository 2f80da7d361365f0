"""The gateway's way out: the gRPC Link service, seen from the site. It dials, it never listens.

Each call is retried by whoever calls it (`agent.py`): a broken line raises `LineDown`, which carries no blame; what
the orchestrator will not have raises `NotWanted`. Uploads and downloads go on at the offset where they were cut, and
may last as long as they like, while they move: one without progress for `STALL_S` is given up. That finds a centre that
hangs; a line that swallows everything is found by gRPC's keepalive (`msfl.protos.channel`) in about the same time.
After `switch`, to a channel with a newer certificate, calls that are under way end on the channel they began on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError

from msfl.protos import sealing
from msfl.protos.convert import (
    BadMessage,
    answer_to_wire,
    arrival_to_wire,
    order_from_wire,
    papers_from_wire,
    progress_to_wire,
    report_to_wire,
)
from msfl.protos.messages import Arrival, OfferAnswer, Order, SiteProgress, TaskReport, TrustPapers
from msfl.protos.notary import Shown
from msfl.protos.streams import StreamsStub
from msfl.protos.v1 import federation_pb2 as wire
from msfl.protos.v1.federation_pb2_grpc import LinkStub

CALL_TIMEOUT_S = 30.0
BEAT_TIMEOUT_S = 3.0  # Progress is for eyes: whoever works does not wait long for a centre that does not listen.
STALL_S = 30.0  # A part of 1 MiB takes this long on a line of 280 kbit/s.
_T = TypeVar("_T")


class LineDown(Exception):
    """The orchestrator cannot be reached now. Try again later."""


class NotWanted(Exception):
    """The orchestrator answered, and will not have this. `status` is the gRPC status name."""

    def __init__(self, status: str, details: str) -> None:
        super().__init__(f"{status}: {details}")
        self.status = status


_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # Its disk is full: what it does not keep now, it may keep later.
    }
)


class Link:
    """One mutually authenticated channel to the orchestrator, and its successors."""

    def __init__(self, channel: grpc.Channel, stall_s: float = STALL_S) -> None:
        self._channel = channel
        self._stall_s = stall_s
        self._stub, self._streams = LinkStub(channel), StreamsStub(channel)
        self._retired: grpc.Channel | None = None
        self._attending: grpc.Call | None = None
        self._closed = False

    def close(self) -> None:
        """Ends every call that is under way; later ones find the line down."""
        self._closed = True
        self._channel.close()
        if self._retired is not None:
            self._retired.close()

    def switch(self, channel: grpc.Channel) -> None:
        """New calls go over `channel`; `attend` ends, to be begun anew. Called by one thread only.

        The old channel stays for its calls, with nobody knowing how long an upload takes, and is closed at the next
        switch; without calls gRPC lets its connection go by itself.
        """
        if self._retired is not None:
            self._retired.close()
        self._retired, self._channel = self._channel, channel
        self._stub, self._streams = LinkStub(channel), StreamsStub(channel)
        self.arrive_anew()
        if self._closed:
            channel.close()

    def arrive_anew(self) -> None:
        """`attend` ends, to be begun anew with what is to be shown now. Nothing else is disturbed."""
        if self._attending is not None:
            self._attending.cancel()

    def attend(self, arrival: Arrival) -> Iterator[Order | BadMessage]:
        """Orders, as they come, and what is none; ends or raises LineDown when the line is cut."""
        try:
            self._attending = self._stub.Attend(arrival_to_wire(arrival))
            for message in self._attending:
                yield _order(message)
        except (grpc.RpcError, ValueError) as error:
            raise self._translated(error) from error

    def answer(self, answer: OfferAnswer) -> None:
        self._call(lambda: self._stub.Answer(answer_to_wire(answer), timeout=CALL_TIMEOUT_S))

    def report(self, report: TaskReport) -> None:
        self._call(lambda: self._stub.Report(report_to_wire(report), timeout=CALL_TIMEOUT_S))

    def beat(self, progress: SiteProgress) -> TrustPapers | None:
        """The federation's trust papers, where they are others than those that `progress.trust` names."""
        ack = self._call(lambda: self._stub.Beat(progress_to_wire(progress), timeout=BEAT_TIMEOUT_S))
        return papers_from_wire(ack.trust) if ack.HasField("trust") else None

    def renew(self, csr_pem: bytes, proof: bytes) -> bytes:
        """A certificate for the request, PEM. `proof`: `certificates.sign_renewal`."""
        asked = wire.Renewal(csr_pem=csr_pem, proof=proof)
        answer = self._call(lambda: self._stub.Renew(asked, timeout=CALL_TIMEOUT_S))
        return bytes(answer.certificate_pem)

    def witness(self, mine: Shown) -> Shown:
        """Show how this site's audit log stands, and get the centre's in return."""
        asked = wire.ShownCheckpoint(envelope=mine.envelope, public_key=mine.public_key)
        answer = self._call(lambda: self._stub.Witness(asked, timeout=CALL_TIMEOUT_S))
        return Shown(bytes(answer.envelope), str(answer.public_key))

    def upload(self, run_id: str, key: str, file: Path) -> None:
        """Send a sealed file; durable at the centre when this returns. Goes on where an earlier try was cut."""
        total = file.stat().st_size
        name = wire.ArtifactName(run_id=run_id, key=key)
        have = self._call(lambda: self._stub.Offset(name, timeout=CALL_TIMEOUT_S))
        if have.complete:
            return
        head = wire.UploadHead(run_id=run_id, key=key, offset=have.offset, total=total)
        with open(file, "rb", buffering=0) as source:
            self._call(lambda: self._send(head, sealing.parts(source, have.offset)))

    def _send(self, head: wire.UploadHead, parts: Iterator[bytes]) -> None:
        moved = _Movement()

        def noted() -> Iterator[bytes]:
            for part in parts:
                moved()
                yield part

        call = self._streams.upload(head, noted())
        with _given_up_when_stalled(call, moved, self._stall_s):
            try:
                call.result()
            except grpc.FutureCancelledError as error:
                raise LineDown(f"the upload has not moved for {self._stall_s:g} s") from error

    def download(self, run_id: str, key: str, offset: int, take: Callable[[bytes], None]) -> None:
        """Fetch a sealed file from `offset` on; `take` gets each part as it comes, and what it raises ends the call."""
        wanted = wire.DownloadFrom(run_id=run_id, key=key, offset=offset)
        call = self._call(lambda: self._streams.download(wanted))
        moved = _Movement()
        try:
            with _given_up_when_stalled(call, moved, self._stall_s):
                head = wire.DownloadHead.FromString(next(call, b""))
                for part in call:
                    moved()
                    take(part)
                    offset += len(part)
            if offset < head.total:
                raise LineDown("the download ended early")
        except grpc.RpcError as error:
            raise self._translated(error) from error
        except DecodeError as error:
            raise LineDown("the download did not begin with its head") from error
        finally:
            call.cancel()

    def _call(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (grpc.RpcError, ValueError) as error:
            raise self._translated(error) from error

    def _translated(self, error: grpc.RpcError | ValueError) -> Exception:
        if isinstance(error, grpc.RpcError):
            return _translated(error)
        # grpc's answer to a call on a channel that was closed under it; any other ValueError is a bug.
        return LineDown("the channel is closed") if self._closed else error


def _order(message: wire.Order) -> Order | BadMessage:
    try:
        return order_from_wire(message)
    except BadMessage as error:
        return error


class _Movement:
    """When something last moved."""

    def __init__(self) -> None:
        self.at = time.monotonic()

    def __call__(self) -> None:
        self.at = time.monotonic()


@contextmanager
def _given_up_when_stalled(call: grpc.Call, moved: _Movement, stall_s: float) -> Iterator[None]:
    """Cancels the call as soon as nothing has moved for `stall_s`; never for how long it takes."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(max(0.0, moved.at + stall_s - time.monotonic())):
            if time.monotonic() >= moved.at + stall_s:
                call.cancel()
                return

    watchdog = threading.Thread(target=watch, name="stall", daemon=True)
    watchdog.start()
    try:
        yield
    finally:
        over.set()
        watchdog.join()


def _translated(error: grpc.RpcError) -> LineDown | NotWanted:
    status = error.code()
    if status in _TRANSIENT:
        return LineDown(f"{status.name}: {error.details()}")
    return NotWanted(status.name, error.details() or "")
