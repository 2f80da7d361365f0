"""A centre that hangs in the middle of a stream: the gateway gives the call up, and goes on where it was.

The time without progress is 0.4 s here; how long a call takes in all is nobody's concern.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from fakes.members import joined
from msfl.gateway.link import LineDown, Link
from msfl.orchestrator.keyring.keyring import Keyring
from msfl.orchestrator.store.folder import FolderArtifacts
from msfl.protos.channel import SERVER_OPTIONS, dial, mutual_server_credentials
from msfl.protos.sealing import CHUNK, SALT, TAG, parts
from msfl.protos.streams import streams_handler
from msfl.protos.v1 import federation_pb2 as wire

RUN, KEY = "run-1", "train/1/site-a/up/result"
STALL_S = 0.4
PARTS, PART_BYTES = 5, CHUNK + TAG
PROLOGUE = 4 + SALT  # as of a sealed file with an empty header
FILE = bytes(PROLOGUE) + b"".join(bytes([i]) * PART_BYTES for i in range(PARTS))
MIDDLE = PROLOGUE + 3 * PART_BYTES


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

    def upload(self, head: wire.UploadHead, parts: Iterator[bytes], context: grpc.ServicerContext) -> None:
        self.offsets.append(head.offset)
        offset = head.offset
        for data in parts:
            self._wait(offset)
            self.artifacts.append(head.run_id, head.key, offset, data)
            offset += len(data)
        self._wait(head.total)
        self.artifacts.finish(RUN, KEY, head.total)

    def download(
        self, request: wire.DownloadFrom, context: grpc.ServicerContext
    ) -> tuple[wire.DownloadHead, Iterator[bytes]]:
        self.offsets.append(request.offset)
        return wire.DownloadHead(total=len(FILE)), self._read(request.offset)

    def _read(self, offset: int) -> Iterator[bytes]:
        for data in parts(io.BytesIO(FILE), offset):
            self._wait(offset)
            yield data
            offset += len(data)

    def calls(self) -> tuple[grpc.GenericRpcHandler, ...]:
        offset = grpc.unary_unary_rpc_method_handler(
            self.offset, wire.ArtifactName.FromString, wire.UploadOffset.SerializeToString
        )
        return grpc.method_handlers_generic_handler("msfl.protos.v1.Link", {"Offset": offset}), streams_handler(self)

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
    server.add_generic_rpc_handlers(centre.calls())
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


@pytest.mark.parametrize("hang_at", [0, MIDDLE, len(FILE)])
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
    centre.hang_at = MIDDLE
    with pytest.raises(LineDown):
        link.upload(RUN, KEY, file)
    centre.hang_at = -1
    centre.let_go.set()
    link.upload(RUN, KEY, file)
    assert centre.artifacts.local(RUN, KEY).read_bytes() == FILE


@pytest.mark.parametrize("hang_at", [0, MIDDLE])
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
    file = tmp_path / "big"
    file.write_bytes(bytes(40 * PART_BYTES))
    centre.pause_s = 0.03
    began = time.monotonic()
    link.upload(RUN, KEY, file)
    assert time.monotonic() - began > 2 * STALL_S
    centre.pause_s = STALL_S / 2
    began, got = time.monotonic(), bytearray()
    link.download(RUN, KEY, 0, got.extend)
    assert time.monotonic() - began > 2 * STALL_S
    assert bytes(got) == FILE
