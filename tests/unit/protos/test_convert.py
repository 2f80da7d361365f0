"""Orders on the wire come out as they went in, and what is none is said to be none."""

from __future__ import annotations

import json
import math

import pytest

from msfl.protos.convert import (
    BadMessage,
    answer_from_wire,
    order_from_wire,
    order_to_wire,
    progress_from_wire,
    report_from_wire,
)
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
        wire.Order(task=wire.TaskOrder(run_id="run-1", document=b'{"a":' * 600 + b"1" + b"}" * 600)),
        *(
            kind
            for run_id in (
                "",
                "..",
                "../confirmed/run-2",
                "/etc/x",
                "a/b",
                "a.b",
                "a b",
                "a\n",
                "ä",
                "_1",
                "-1",
                "x" * 129,
            )
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


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_no_message(number: float) -> None:
    """One site's would break what is written down of the run, and every user's view of it."""
    with pytest.raises(BadMessage):
        progress_from_wire(wire.Progress(run_id="run-1", metrics={"train_loss": number}))
    with pytest.raises(BadMessage):
        report_from_wire(wire.TaskReport(run_id="run-1", peak_rss_mib={"gateway": number}))
    with pytest.raises(BadMessage):
        report_from_wire(wire.TaskReport(run_id="run-1", seconds=number))
    with pytest.raises(BadMessage):
        answer_from_wire(wire.OfferAnswer(run_id="run-1", verdict="allow", decision=json.dumps({"x": number}).encode()))


def test_figures_are_few_and_have_names() -> None:
    for figures in ({f"m{i}": 1.0 for i in range(33)}, {"m" * 101: 1.0}):
        with pytest.raises(BadMessage):
            progress_from_wire(wire.Progress(run_id="run-1", metrics=figures))
    assert progress_from_wire(wire.Progress(run_id="run-1", metrics={"train_loss": 0.5})).metrics == {"train_loss": 0.5}
