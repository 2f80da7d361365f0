"""What every door answers when the centre cannot do its part just now: one clear line, and a status that says whether
trying again helps.

    StoreUnavailable (disk full or read-only) ▸ RESOURCE_EXHAUSTED      KeyringDown, RegistryFails ▸ UNAVAILABLE

Nothing was kept and nothing is acknowledged; gateways try again by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from msfl.orchestrator.keyring.client import KeyringDown
from msfl.orchestrator.store.interface import StoreUnavailable
from msfl.registry.interface import RegistryFails


class SayUnavailable(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types for its classes
    """Around every method that has one answer; streams of answers write nothing that could fail to be kept."""

    def intercept_service(
        self, continuation: Callable[[Any], grpc.RpcMethodHandler | None], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(details)
        if handler is None or handler.response_streaming:
            return handler
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )

        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return behaviour(request, context)
            except StoreUnavailable as error:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the centre cannot keep anything now: {error}")
            except (KeyringDown, RegistryFails) as error:
                context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

        return make(guarded, handler.request_deserializer, handler.response_serializer)
