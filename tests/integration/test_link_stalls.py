"""A centre that hangs in the middle of a stream: the gateway gives the call up, and goes on where it was.

The time without progress is 0.4 s here; how long a call takes in all is nobody's concern.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from fakes.members import joined
from msfl.gateway.link import PART_BYTES, LineDown, Link
from msfl.orchestrator.keyring.keyring import Keyring
from msfl.orchestrator.store.folder import FolderArtifacts
from msfl.protos.channel import SERVER_OPTIONS, dial, mutual_server_credentials
from msfl.protos.v1 import federation_pb2 as wire

RUN, KEY = "run-1", "train/1/site-a/up/result"
STALL_S = 0.4
PARTS = 5
FILE = b"".join(bytes([i]) * PART_BYTES for i in range(PARTS))


class Centre:
    """Takes and gives one file. `hang_at`: the offset at which it does nothing any more, until `let_go`."""

    def __init__(self, folder: Path) -> None:
        self.artifacts = FolderArtifacts(folder)
        self.hang_at, self.pause_s = -1, 0.0
        self.let_go = threading.Event()
        self.offsets: list[int] = []

    def offset(self, request: wire.ArtifactName, context: grpc.ServicerContext) -> wire.UploadOffset:
        size = self.artifacts.size(request.run_id, request.key)
        return wire.UploadOffset(offset=size.bytes, complete=size.complete)

    def upload(self, request_iterator: Iterable[wire.UploadPart], context: grpc.ServicerContext) -> wire.Ack:
        total = -1
        for part in request_iterator:
            if total < 0:
                self.offsets.append(part.offset)
            self._wait(part.offset)
            self.artifacts.append(part.run_id, part.key, part.offset, part.data)
            total = part.total
        if total < 0:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an upload without parts")
        self._wait(total)
        self.artifacts.finish(RUN, KEY, total)
        return wire.Ack()

    def download(self, request: wire.DownloadFrom, context: grpc.ServicerContext) -> Iterator[wire.Chunk]:
        self.offsets.append(request.offset)
        for offset in range(request.offset, len(FILE), PART_BYTES):
            self._wait(offset)
            yield wire.Chunk(offset=offset, data=FILE[offset : offset + PART_BYTES], total=len(FILE))

    def calls(self) -> grpc.GenericRpcHandler:
        calls = {
            "Offset": grpc.unary_unary_rpc_method_handler(
                self.offset, wire.ArtifactName.FromString, wire.UploadOffset.SerializeToString
            ),
            "Upload": grpc.stream_unary_rpc_method_handler(
                self.upload, wire.UploadPart.FromString, wire.Ack.SerializeToString
            ),
            "Download": grpc.unary_stream_rpc_method_handler(
                self.download, wire.DownloadFrom.FromString, wire.Chunk.SerializeToString
            ),
        }
        return grpc.method_handlers_generic_handler("msfl.protos.v1.Link", calls)

    def _wait(self, offset: int) -> None:
        time.sleep(self.pause_s)
        if offset == self.hang_at:
            self.let_go.wait(20)


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    return Centre(tmp_path / "artifacts")


@pytest.fixture
def link(centre: Centre, tmp_path: Path) -> Iterator[Link]:
    now = datetime.now(UTC)
    keyring = Keyring.create(tmp_path / "keyring", "msfl-01", now)
    key, certificate = keyring.server_certificate(("127.0.0.1",), now)
    server = grpc.server(ThreadPoolExecutor(4), options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((centre.calls(),))
    port = server.add_secure_port("127.0.0.1:0", mutual_server_credentials(key, certificate, keyring.ca_pem))
    server.start()
    site = joined(keyring, now=now)
    link = Link(dial(f"127.0.0.1:{port}", keyring.ca_pem, site.key_pem, site.certificate_pem), STALL_S)
    yield link
    link.close()
    centre.let_go.set()
    server.stop(0).wait()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "result.sealed"
    file.write_bytes(FILE)
    return file


@pytest.mark.parametrize("hang_at", [0, 3 * PART_BYTES, PARTS * PART_BYTES])
def test_an_upload_that_hangs_is_given_up_and_goes_on(centre: Centre, link: Link, file: Path, hang_at: int) -> None:
    """Also when every byte is there, and only the last word is missing."""
    centre.hang_at = hang_at
    with pytest.raises(LineDown, match="has not moved"):
        link.upload(RUN, KEY, file)
    centre.hang_at = -1
    link.upload(RUN, KEY, file)
    assert centre.offsets == [0, hang_at]
    assert centre.artifacts.local(RUN, KEY).read_bytes() == FILE


def test_the_part_that_hung_comes_late_and_does_no_harm(centre: Centre, link: Link, file: Path) -> None:
    centre.hang_at = 3 * PART_BYTES
    with pytest.raises(LineDown):
        link.upload(RUN, KEY, file)
    centre.hang_at = -1
    centre.let_go.set()
    link.upload(RUN, KEY, file)
    assert centre.artifacts.local(RUN, KEY).read_bytes() == FILE


@pytest.mark.parametrize("hang_at", [0, 3 * PART_BYTES])
def test_a_download_that_hangs_is_given_up_and_goes_on(centre: Centre, link: Link, hang_at: int) -> None:
    got = bytearray()
    centre.hang_at = hang_at
    with pytest.raises(LineDown):
        link.download(RUN, KEY, 0, got.extend)
    assert len(got) == hang_at
    centre.hang_at = -1
    link.download(RUN, KEY, len(got), got.extend)
    assert centre.offsets == [0, hang_at]
    assert bytes(got) == FILE


def test_what_moves_may_take_any_time(centre: Centre, link: Link, tmp_path: Path) -> None:
    """Of an upload a few parts are always under way, so that its last word comes later than its last part went."""
    file, parts = tmp_path / "big", 40
    file.write_bytes(bytes(parts * PART_BYTES))
    centre.pause_s = 0.03
    began = time.monotonic()
    link.upload(RUN, KEY, file)
    assert time.monotonic() - began > 2 * STALL_S
    centre.pause_s = STALL_S / 2
    began, got = time.monotonic(), bytearray()
    link.download(RUN, KEY, 0, got.extend)
    assert time.monotonic() - began > 2 * STALL_S
    assert bytes(got) == FILE
