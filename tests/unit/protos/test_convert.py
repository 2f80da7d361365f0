"""Orders on the wire come out as they went in, and what is none is said to be none."""

from __future__ import annotations

import pytest

from msfl.protos.convert import BadMessage, order_from_wire, order_to_wire
from msfl.protos.messages import Input, Offer, Order, StopOrder, TaskOrder
from msfl.protos.v1 import federation_pb2 as wire

TASK = TaskOrder("run-1", "train/3", "train", 3, 2, {"stream": "federated"}, (Input("weights", "plan", 0, "w", "k"),))


@pytest.mark.parametrize(
    "order",
    [
        Offer("20261128-011722-abcdef12", b"spec", "proof", "token", dry_run=True, generation=2, issuer_keys=(b"k",)),
        TASK,
        StopOrder("run-1", "aborted", 7),
    ],
)
def test_an_order_comes_out_as_it_went_in(order: Order) -> None:
    assert order_from_wire(order_to_wire(order)) == order


@pytest.mark.parametrize(
    "message",
    [
        wire.Order(),
        wire.Order(task=wire.TaskOrder(run_id="run-1", document=b"[]")),
        wire.Order(task=wire.TaskOrder(run_id="run-1", document=b"{")),
        *(
            kind
            for run_id in ("", "..", "../confirmed/run-2", "/etc/x", "a/b", "a.b", "a b", "a\n", "ä", "x" * 129)
            for kind in (
                wire.Order(offer=wire.Offer(run_id=run_id)),
                wire.Order(task=wire.TaskOrder(run_id=run_id, document=b"{}")),
                wire.Order(stop=wire.StopOrder(run_id=run_id)),
            )
        ),
    ],
)
def test_what_means_nothing_is_no_order(message: wire.Order) -> None:
    """A run's name becomes the name of folders and files at a site."""
    with pytest.raises(BadMessage):
        order_from_wire(message)
