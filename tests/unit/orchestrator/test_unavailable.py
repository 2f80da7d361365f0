"""What people and gateways hear when the centre cannot keep anything, and that gateways try again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from msfl.gateway.link import LineDown, Link
from msfl.orchestrator.doors.unavailable import SayUnavailable
from msfl.orchestrator.keyring.client import KeyringDown
from msfl.orchestrator.store.interface import StoreUnavailable
from msfl.protos.messages import SiteProgress


class Aborted(grpc.RpcError):  # type: ignore[misc]  # grpc has no types for its classes
    def __init__(self, status: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._status, self._details = status, details

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return self._details


class Context:
    def abort(self, status: grpc.StatusCode, details: str) -> None:
        raise Aborted(status, details)


def raises(error: Exception) -> Callable[..., Any]:
    def behaviour(request: Any, context: Any) -> Any:
        raise error

    return behaviour


def guarded(handler: Any) -> Any:
    return SayUnavailable().intercept_service(lambda details: handler, None)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreUnavailable("runs.sqlite cannot be written"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (KeyringDown("the keyring does not answer"), grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_what_cannot_be_kept_is_not_acknowledged(error: Exception, status: grpc.StatusCode, streams: bool) -> None:
    make = grpc.stream_unary_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
    handler = guarded(make(raises(error)))
    call = handler.stream_unary if streams else handler.unary_unary
    with pytest.raises(Aborted, match=str(error)) as heard:
        call(None, Context())
    assert heard.value.code() is status
    assert "\n" not in heard.value.details()


def test_a_bug_stays_a_bug_and_an_answer_an_answer() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(grpc.unary_unary_rpc_method_handler(raises(ZeroDivisionError()))).unary_unary(None, Context())
    echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    assert guarded(echo).unary_unary("said", Context()) == "said"


def test_a_stream_of_answers_is_left_alone() -> None:
    handler = grpc.unary_stream_rpc_method_handler(lambda request, context: iter(()))
    assert guarded(handler) is handler
    assert guarded(None) is None


def test_a_gateway_takes_a_full_disk_at_the_centre_for_a_line_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = grpc.insecure_channel("127.0.0.1:1")
    link = Link(channel)

    def full(*args: object, **kwargs: object) -> None:
        raise Aborted(grpc.StatusCode.RESOURCE_EXHAUSTED, "the disk is full")

    monkeypatch.setattr(link._stub, "Beat", full)
    with pytest.raises(LineDown, match="the disk is full"):
        link.beat(SiteProgress(run_id=""))
    link.close()
