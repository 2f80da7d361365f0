"""A site whose gateway was taken over seals what it likes with its own, valid key. Each trick is refused by name, the
sum never begins, no model appears, and an honest round still works afterwards."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.hosts import Host
from fakes.models import FakeModel, zeros
from fakes.sites import SealedSites
from fakes.weights_files import EXECUTED, TENSOR_TRICKS
from msfl.learning import weights as weight_files
from msfl.learning.contract import Weights
from msfl.protos.tasklink import Failed, Result

HONEST = {name: values + np.float32(2) for name, values in zeros().items()}
GOOD = {"n_train": 4, "train_loss": 0.5, "seconds": 1.0, "incoming": {"n_val": 1, "val_loss": 0.2, "val_dice": 0.3}}


@pytest.fixture
def sites(tmp_path: Path) -> SealedSites:
    return SealedSites(tmp_path / "sealed", "honest", "mallory")


@pytest.fixture
def host(tmp_path: Path, sites: SealedSites) -> Iterator[Host]:
    with Host.of(FakeModel(), tmp_path / "f", role="aggregator") as host:
        sites.open(host)
        fingerprints = {s: sites.up(sites.header(s, "fingerprint", 0), {"n_cases": 4}) for s in sites.names}
        sites.keep(host, host.do("plan", {"recipients": sites.names}, fingerprints))
        yield host
    assert (host.status, host.died_of) == (0, None)  # No trick ends the process.


def aggregate(host: Host, sites: SealedSites, evil: Path) -> Result | Failed:
    files = {"mallory": evil, "honest": sites.update("honest", 1, HONEST), **sites.kept}
    return host.do("aggregate", {"recipients": sites.names}, files, round=1)


def refused_code(host: Host, sites: SealedSites, evil: Path) -> str:
    """The round went on without mallory, and nothing of hers is in it."""
    answer = aggregate(host, sites, evil)
    assert isinstance(answer, Result), answer
    assert set(answer.document["sites"]) == {"honest"}
    model = weight_files.load(sites.model(host, answer, "honest", "aggregate/1", 1, "weights"))
    assert all(np.array_equal(model[name], values) for name, values in HONEST.items())
    assert not list((host.folder / "outbox").glob(".*"))  # what was begun with hers is gone
    return str(answer.document["refused"]["mallory"])


def assert_refused(host: Host, sites: SealedSites, evil: Path, code: str) -> None:
    assert refused_code(host, sites, evil) == code
    again = aggregate(host, sites, sites.update("mallory", 1, zeros()))
    assert isinstance(again, Result)
    assert again.document["refused"] == {}
    # Where the round must not close without her, it does not, and still names her.
    files = {"mallory": evil, "honest": sites.update("honest", 1, HONEST), **sites.kept}
    strict = host.do("aggregate", {"recipients": sites.names, "min_sites": 2}, files, round=1)
    assert isinstance(strict, Result)
    assert strict.files == {}
    assert strict.document["sites"] == {}
    assert strict.document["refused"] == {"mallory": code}


@pytest.mark.parametrize("trick", TENSOR_TRICKS)
def test_tensors(host: Host, sites: SealedSites, trick: str) -> None:
    code, file = TENSOR_TRICKS[trick]
    assert_refused(host, sites, sites.up(sites.header("mallory", "train/1", 1), GOOD, file), f"update_{code}")
    assert not EXECUTED.exists(), "a file of weights was executed"


def test_no_tensors_at_all(host: Host, sites: SealedSites) -> None:
    assert_refused(host, sites, sites.up(sites.header("mallory", "train/1", 1), GOOD, b""), "update_without_tensors")


DOCUMENT_TRICKS: dict[str, tuple[str, dict[str, Any]]] = {
    "a million cases would drown the others": ("update_cases", {**GOOD, "n_train": 10**12}),
    "no cases": ("update_cases", {**GOOD, "n_train": 0}),
    "minus four cases would subtract": ("update_cases", {**GOOD, "n_train": -4}),
    "half a case": ("update_cases", {**GOOD, "n_train": 0.5}),
    "true is not one": ("update_cases", {**GOOD, "n_train": True}),
    "cases withheld": ("update_cases", {**GOOD, "n_train": None}),
    "an extra field": ("update_fields", {**GOOD, "case_ids": ["A_001"]}),
    "a missing field": ("update_fields", {"n_train": 4}),
    "a loss of text": ("update_fields", {**GOOD, "train_loss": "A_001"}),
    "an extra field inside": ("update_fields", {**GOOD, "incoming": {"per_case": [0.5]}}),
    "a number that nobody can print": ("update_fields", {**GOOD, "seconds": 10**4000}),
    "a list instead of numbers": ("update_fields", {**GOOD, "incoming": [1, 2]}),
}


@pytest.mark.parametrize("trick", DOCUMENT_TRICKS)
def test_documents(host: Host, sites: SealedSites, trick: str) -> None:
    code, document = DOCUMENT_TRICKS[trick]
    assert_refused(host, sites, sites.up(sites.header("mallory", "train/1", 1), document, zeros()), code)


HEADER_TRICKS: dict[str, Callable[[SealedSites], Path]] = {
    "last round's update again": lambda sites: sites.update("mallory", 0, zeros()),
    "an update for a round to come": lambda sites: sites.update("mallory", 2, zeros()),
    "another task": lambda sites: sites.up(sites.header("mallory", "baseline", 1), GOOD, zeros()),
    "somebody else's update": lambda sites: sites.update("honest", 1, zeros()),
    "another attempt": lambda sites: sites.up(replace(sites.header("mallory", "train/1", 1), attempt=2), GOOD, zeros()),
    "another run": lambda sites: sites.up(
        replace(sites.header("mallory", "train/1", 1), run_id="run-8"), GOOD, zeros()
    ),
    "what the centre once sent down": lambda sites: sites.up(
        replace(sites.header("mallory", "train/1", 1), direction="down"), GOOD, zeros()
    ),
    "another artifact": lambda sites: sites.up(
        replace(sites.header("mallory", "train/1", 1), artifact="weights"), GOOD, zeros()
    ),
}


@pytest.mark.parametrize("trick", HEADER_TRICKS)
def test_headers(host: Host, sites: SealedSites, trick: str) -> None:
    assert_refused(host, sites, HEADER_TRICKS[trick](sites), "seal_header_differs")


def test_a_flipped_bit_and_a_cut_stream(host: Host, sites: SealedSites) -> None:
    whole = sites.update("mallory", 1, zeros()).read_bytes()
    for spoiled, codes in (
        (whole[:-1] + bytes([whole[-1] ^ 1]), {"seal_tag", "seal_truncated"}),
        (whole[:-30], {"seal_tag", "seal_truncated"}),
        (b"", {"seal_header_unreadable", "seal_truncated"}),
    ):
        path = host.folder / "spoiled"
        path.write_bytes(spoiled)
        assert refused_code(host, sites, path) in codes


@pytest.mark.parametrize("loss", ["NaN", "Infinity", "[" * 100_000, "9" * 5000, '"\\ud800'])
def test_documents_that_are_no_plain_json(
    host: Host, sites: SealedSites, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    def pack_anything(document: dict[str, Any], tensors: Any) -> Iterator[bytes]:
        body = f'{{"n_train": 4, "seconds": 1, "train_loss": {loss}}}'.encode()
        yield struct.pack(">Q", len(body)) + body
        yield tensors.read()

    with monkeypatch.context() as patch:
        patch.setattr("fakes.sites.pack", pack_anything)
        evil = sites.up(sites.header("mallory", "train/1", 1), GOOD, zeros())
    assert_refused(host, sites, evil, "update_malformed")


SUMMARY = {"mean": 0.5, "sd": 0.1, "median": 0.5, "histogram": [0, 1]}
SUMMARY_TRICKS: dict[str, Any] = {
    "a script for the report": {"<script>": {"n": 1}},
    "text as a number": {"federated": {"n": "A_001"}},
    "text as a reason": {"federated": {"n": None, "withheld": "<b>Jane Doe</b>"}},
    "values of single cases": {"federated": {"n": 3, "dice": {**SUMMARY, "cases": [0.1, 0.2]}}},
    "a list of cases": {"federated": {"n": 3, "dice": [0.1, 0.2]}},
    "an endless histogram": {"federated": {"n": 3, "dice": {**SUMMARY, "histogram": [0] * 100_000}}},
    "no number of cases": {"federated": {"dice": SUMMARY}},
    "more models than there are": {f"local:site-{i}": {"n": 1} for i in range(1000)},
    "no table": [1, 2],
}


@pytest.mark.parametrize("trick", SUMMARY_TRICKS)
def test_summaries(host: Host, sites: SealedSites, trick: str) -> None:
    header = sites.header("mallory", "evaluate/test", 1)
    evil = sites.up(header, {"summaries": SUMMARY_TRICKS[trick]})
    answer = host.do("collect", {"task_id": "evaluate/test"}, {"mallory": evil}, round=1)
    assert isinstance(answer, Result)
    assert answer.document["sites"] == {}
    assert answer.document["refused"] == {"mallory": "update_fields"}
    honest = sites.up(header, {"summaries": {"federated": {"n": 3, "dice": SUMMARY}}})
    answer = host.do("collect", {"task_id": "evaluate/test"}, {"mallory": honest}, round=1)
    assert isinstance(answer, Result)
    assert set(answer.document["sites"]) == {"mallory"}


def test_tensors_where_a_document_was_asked_for(host: Host, sites: SealedSites) -> None:
    evil = sites.up(sites.header("mallory", "evaluate/test", 1), {"summaries": {}}, zeros())
    answer = host.do("collect", {"task_id": "evaluate/test"}, {"mallory": evil}, round=1)
    assert isinstance(answer, Result)
    assert answer.document["refused"] == {"mallory": "update_unexpected_tensors"}


def test_a_local_model_of_another_shape_reaches_nobody(host: Host, sites: SealedSites) -> None:
    spoiled = {"drift": np.zeros(4, dtype=np.float32), "shift": zeros()["shift"]}
    evil = sites.up(sites.header("mallory", "baseline", 0), {"n_train": 4, "train_loss": 0.5}, spoiled)
    files = {"mallory": evil, **sites.kept}
    answer = host.do("candidates", {"recipients": sites.names, "federated_round": 0}, files)
    assert isinstance(answer, Result)
    assert answer.document["refused"] == {"mallory": "update_template"}
    assert sorted(answer.files) == ["federated/honest", "federated/mallory"]


EXPLODED = {name: values + np.float32(1e4) for name, values in zeros().items()}
BEYOND = {name: values + np.float32(1e30) for name, values in zeros().items()}


@pytest.mark.parametrize("weights", [EXPLODED, BEYOND])
def test_an_update_that_exploded(host: Host, sites: SealedSites, weights: Weights) -> None:
    assert_refused(host, sites, sites.update("mallory", 1, weights), "update_exploded")
