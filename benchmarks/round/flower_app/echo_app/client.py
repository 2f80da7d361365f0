"""Flower, at a client: take the model, add the site's own little to every tensor, send it back."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from shapes import epsilon

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    little = epsilon(int(context.node_config["site"]))
    received = message.content["arrays"]
    moved = ArrayRecord({name: Array(array.numpy() + little) for name, array in received.items()})
    counts = MetricRecord({"num-examples": 1})
    return Message(content=RecordDict({"arrays": moved, "metrics": counts}), reply_to=message)
