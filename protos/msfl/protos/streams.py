"""Sealed files over gRPC, at full speed: a head, then nothing but the bytes of the file, cut as `sealing.parts` does.

    Upload      UploadHead, part, part, …  ─▶ Ack
    Download    DownloadFrom               ─▶ DownloadHead, part, part, …

A part is a message of its own and no Protobuf field: `bytes` fields are copied twice at each end, which was a fifth of
the CPU time of a round. gRPC keeps order and loses nothing inside a stream, so a part needs no number.
These two methods are the only ones that `federation.proto` cannot describe; it has their heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError

from msfl.protos.v1 import federation_pb2 as wire

_SERVICE = "msfl.protos.v1.Streams"


class StreamsServicer(Protocol):
    """What a centre does with sealed streams. Refuses through `context.abort`."""

    def upload(self, head: wire.UploadHead, parts: Iterator[bytes], context: grpc.ServicerContext) -> None: ...

    def download(
        self, request: wire.DownloadFrom, context: grpc.ServicerContext
    ) -> tuple[wire.DownloadHead, Iterator[bytes]]: ...


def streams_handler(servicer: StreamsServicer) -> grpc.GenericRpcHandler:
    """To be added to a server."""

    def upload(request_iterator: Iterator[bytes], context: grpc.ServicerContext) -> wire.Ack:
        try:
            head = wire.UploadHead.FromString(next(request_iterator, b""))
        except DecodeError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an upload begins with its head")
            raise AssertionError("abort returns never") from None
        servicer.upload(head, request_iterator, context)
        return wire.Ack()

    def download(request: wire.DownloadFrom, context: grpc.ServicerContext) -> Iterator[bytes]:
        head, parts = servicer.download(request, context)
        yield head.SerializeToString()
        yield from parts

    calls = {
        "Upload": grpc.stream_unary_rpc_method_handler(upload, None, wire.Ack.SerializeToString),
        "Download": grpc.unary_stream_rpc_method_handler(download, wire.DownloadFrom.FromString, None),
    }
    return grpc.method_handlers_generic_handler(_SERVICE, calls)


class StreamsStub:
    """The other end."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._upload = channel.stream_unary(f"/{_SERVICE}/Upload", None, wire.Ack.FromString)
        self._download = channel.unary_stream(f"/{_SERVICE}/Download", wire.DownloadFrom.SerializeToString, None)

    def upload(self, head: wire.UploadHead, parts: Iterable[bytes]) -> grpc.Future:
        """Under way on return; `cancel` ends it."""

        def messages() -> Iterator[bytes]:
            yield head.SerializeToString()
            yield from parts

        return self._upload.future(messages())

    def download(self, request: wire.DownloadFrom) -> grpc.Call:
        """An iterator of messages, of which the first is the serialized `DownloadHead`."""
        return self._download(request)
