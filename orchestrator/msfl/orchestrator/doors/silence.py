"""A call that was begun and says nothing holds a thread of its server. Few may, and nobody needs a token to begin one.

    a call begins ─▶ waits for its request ─▶ its method
                          └ the `most` + 1st that waits: the one that has waited longest is cut, and its thread is free

So the newest is always heard: who means to ask something says it at once. Answers that take their time (`Watch`,
`Fetch`) have threads of their own, so that watchers, too, hold none that an abort or an enrolment needs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc


class CutTheSilent(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types for its classes
    """`who`: of whose calls `most` may be waiting for their request. `answering`: the threads for streams of answers;
    None: those of the server. It must be the outermost interceptor: others see a call once its request is there."""

    def __init__(
        self, most: int, who: Callable[[grpc.ServicerContext], str], answering: ThreadPoolExecutor | None = None
    ) -> None:
        self._most = most
        self._who = who
        self._answering = answering
        self._lock = threading.Lock()
        self._waiting: dict[str, dict[grpc.ServicerContext, None]] = {}

    def intercept_service(
        self, continuation: Callable[[Any], grpc.RpcMethodHandler | None], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(details)
        if handler is None or handler.request_streaming:
            return handler
        # A handler for one request is called with it; one for a stream of them is called before anything has come. On
        # the wire they are the same.
        if not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._heard(handler.unary_unary), handler.request_deserializer, handler.response_serializer
            )
        answer = self._heard_stream(handler.unary_stream)
        if self._answering is not None:
            answer.experimental_thread_pool = self._answering  # type: ignore[attr-defined]  # gRPC looks for it
        return grpc.stream_stream_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)

    def _heard(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return behaviour(self._request(requests, context), context)

        return call

    def _heard_stream(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            yield from behaviour(self._request(requests, context), context)

        return call

    def _request(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        who = self._who(context)
        with self._lock:
            waiting = self._waiting.setdefault(who, {})
            waiting[context] = None
            longest = next(iter(waiting)) if len(waiting) > self._most else None
            if longest is not None:
                del waiting[longest]
        if longest is not None:
            longest.cancel()
        try:
            request = next(requests, None)
        finally:
            with self._lock:
                was_cut = context not in waiting
                waiting.pop(context, None)
                if not waiting and self._waiting.get(who) is waiting:
                    del self._waiting[who]
        if was_cut:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls say nothing; ask again")
        if request is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a call without a request")
        return request
