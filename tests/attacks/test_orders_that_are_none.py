"""An order that means nothing, or whose run's name leads out of the site's folder of runs: not taken, and written down.

A run's name becomes the name of folders and files at a site, so `../confirmed/run-9` would be a custodian's word on
another run, and `/etc/…` whatever the gateway may write.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from fakes.governance import key
from fakes.governed_sites import GovernedSite
from msfl.gateway.agent import Agent
from msfl.gateway.link import Link
from msfl.gateway.task_files import TaskFiles
from msfl.policies.identity import sign_job
from msfl.protos.convert import order_to_wire
from msfl.protos.messages import PROTOCOL, Arrival, Offer, Order, TaskOrder
from msfl.protos.tasklink import Result
from msfl.protos.v1 import federation_pb2 as wire
from msfl.runtime.hosted import HostedProcess

POISON = [
    wire.Order(),
    wire.Order(task=wire.TaskOrder(run_id="run-1", task_id="prepare", document=b"{")),
    wire.Order(task=wire.TaskOrder(run_id="run-1", task_id="prepare", document=b"[]")),
    wire.Order(task=wire.TaskOrder(run_id="run-1", task_id="prepare", document=b'{"a":' * 600 + b"1" + b"}" * 600)),
    wire.Order(task=wire.TaskOrder(run_id="run-1", task_id="prepare/\u202e", verb="prepare", document=b"{}")),
    wire.Order(task=wire.TaskOrder(run_id="run-1", task_id="p" * 300_000, verb="prepare", document=b"{}")),
]


def offer(site: GovernedSite, run_id: str) -> Order:
    spec = site.spec("run-1")
    return Offer(run_id, spec, sign_job(spec, key("ada")), site.world.token, dry_run=False)


@pytest.fixture
def agent(site: GovernedSite) -> Agent:
    return site.agent()


def hears(site: GovernedSite, agent: Agent, monkeypatch: pytest.MonkeyPatch, *orders: wire.Order) -> None:
    link = Link(grpc.insecure_channel("127.0.0.1:1"))
    monkeypatch.setattr(link, "_stub", SimpleNamespace(Attend=lambda hello: iter(orders)))
    for order in link.attend(Arrival(PROTOCOL, "test", ())):
        agent.dispatch(order)
    link.close()
    site.runs += agent.runs()


@pytest.mark.parametrize("poison", POISON)
def test_the_gateway_hears_the_next_order(
    site: GovernedSite, agent: Agent, monkeypatch: pytest.MonkeyPatch, poison: wire.Order
) -> None:
    hears(site, agent, monkeypatch, poison, order_to_wire(offer(site, "run-1")))
    assert site.answered() == "allow"
    assert site.audited("order refused") == ["malformed_document"]


@pytest.mark.parametrize("run_id", ["../confirmed/run-9", "..", "", "{outside}", "x" * 300, "_1", "-1"])
def test_a_runs_name_leads_nowhere_else(
    site: GovernedSite, agent: Agent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_id: str
) -> None:
    site.sign_policy(text=site.world.policy_yaml.replace("mode: auto", "mode: confirm"))
    before = {file for file in tmp_path.rglob("*") if "audit" not in file.parts}
    named = run_id.format(outside=tmp_path / "outside")
    hears(site, agent, monkeypatch, order_to_wire(offer(site, named)))
    site.close()
    after = {file for file in tmp_path.rglob("*") if "audit" not in file.parts}
    site.start_gateway()
    assert after == before
    assert site.line.answers.empty()
    assert site.runtime.started == []
    assert site.audited("order refused") == ["malformed_document"]


def test_a_task_whose_name_is_too_long_to_be_sealed_ends_the_run_and_not_the_gateway(
    site: GovernedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order would come again after each restart."""
    monkeypatch.setattr(TaskFiles, "take_inputs", lambda self, order, *_: (dict(order.document), {}, 0))
    monkeypatch.setattr(HostedProcess, "call", lambda self, task, *_, **__: Result(task.task_id, {"n_cases": 8}, {}))
    site.put_release(outputs={"fingerprint": {"document": {"type": "object", "properties": {"n_cases": {}}}}})
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    run = site.runs[-1]
    run.hear(TaskOrder(run.run_id, "f" * 5000, "fingerprint", 0, 1, {}, ()))
    assert site.failure() == "malformed_document"
    assert site.line.uploads == []
    assert not list(site.home.runs.rglob("result.sealed"))
