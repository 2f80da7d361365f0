"""One fuzz target per parser of foreign bytes: whatever comes, the parser reads it or says why not, and soon.

    seeds (valid inputs) ─▶ flip, cut, repeat, splice, insert what each format minds ─▶ parse ─▶ value | its own error

Anything but the parser's own error is a bug: another exception would end a thread of a gateway or of the orchestrator.
What a parser does read is read the same way twice, and what it encodes again comes back equal. A short run belongs to
the slow suite; `make test-full` gives each target as many inputs as MSFL_FUZZ says.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.governance import POLICY_YAML, World
from msfl.learning import weights
from msfl.policies.documents import AssetPolicy, DatasetRecord, Document, JobSpec, ReleaseStatement
from msfl.policies.encoding import Malformed, encode, load_json, load_yaml, read_json, read_yaml
from msfl.policies.envelope import ASSET_POLICY, RELEASE_STATEMENT, Kind, Signed
from msfl.protos.parcel import BadParcel, pack, unpack
from msfl.protos.sealing import SealBroken, StreamHeader, open_sealed, seal
from msfl.protos.tensors import BadTensors, read_table

SLOWEST_S = 2.0  # of processor time; the largest inputs here take a tenth of it
KEY, SALT = b"k" * 32, b"s" * 32
HEADER = StreamHeader("run-7", "train/3", 3, "site-a", 1, "up", "result")


@dataclass(frozen=True)
class Target:
    """`parse` returns something that can be compared; `refusals` are the errors that it may raise."""

    parse: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    tokens: tuple[bytes, ...] = ()


def envelope(data: bytes) -> Any:
    signed = Signed.parse(data, ASSET_POLICY)
    return signed.payload, signed.signatures, signed.payload_type


def document_in(kind: Kind[Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        return kind.load(data, "a document")

    return parse


def json_of(model: type[Document]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        found = load_json(data, model, "a document")
        assert load_json(encode(found), model) == found
        return found

    return parse


def opened(data: bytes) -> bytes:
    out = io.BytesIO()
    open_sealed(KEY, HEADER, io.BytesIO(data), out)
    return out.getvalue()


def unpacked(data: bytes) -> Any:
    out = io.BytesIO()
    return *unpack(io.BytesIO(data), out), out.getvalue()


def sealed_seed() -> bytes:
    out = io.BytesIO()
    seal(KEY, HEADER, [b"some plaintext"], out, salt=SALT)
    return out.getvalue()


def tensors_seed() -> bytes:
    values = {"a.weight": np.zeros((2, 3), "float32"), "b.bias": np.ones(4, "float32")}
    spec = {"a.weight": (0, 24, [2, 3]), "b.bias": (24, 40, [4])}
    head = {n: {"dtype": "F32", "shape": s, "data_offsets": [b, e]} for n, (b, e, s) in spec.items()}
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(v.tobytes() for v in values.values())


JSON_TOKENS = (
    b'{"a":',
    b"[",
    b"]",
    b"}",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b"1e999",
    b"NaN",
    b"-",
    b"null",
    b",",
    b"0" * 20,
)
YAML_TOKENS = (
    b"&a ",
    b"*a ",
    b"!!str ",
    b"<<: ",
    b"? ",
    b"- ",
    b": ",
    b"\n---\n",
    b"%YAML 1.1\n",
    b"\t",
    b"|\n",
    b">\n",
    b"'",
    b'"',
    b"{",
    b"[",
    b"]",
    b"}",
    b"#",
    b"\r",
    b".inf",
    b"0o7",
    b"1_0",
    b"\xe2\x80\xae",
    b"e\xcc\x81",
)

WORLD = World()
JOB = encode(WORLD.job)
TARGETS: dict[str, Target] = {
    "envelope": Target(envelope, (Malformed,), (WORLD.policy_envelope(),), (*JSON_TOKENS, b"=", b"A" * 5)),
    "YAML": Target(read_yaml, (Malformed,), (POLICY_YAML.encode(), b"a: [1, {b: c}]\n"), YAML_TOKENS),
    "JSON": Target(read_json, (Malformed,), (JOB, b'[1, 2.5, "x", {"a": null}]'), JSON_TOKENS),
    "policy": Target(document_in(ASSET_POLICY), (Malformed,), (POLICY_YAML.encode(),), YAML_TOKENS),
    "release": Target(json_of(ReleaseStatement), (Malformed,), (encode(WORLD.statement),), JSON_TOKENS),
    "release in its envelope": Target(
        document_in(RELEASE_STATEMENT), (Malformed,), (encode(WORLD.statement),), JSON_TOKENS
    ),
    "job": Target(json_of(JobSpec), (Malformed,), (JOB,), JSON_TOKENS),
    "dataset record": Target(json_of(DatasetRecord), (Malformed,), (encode(WORLD.dataset),), JSON_TOKENS),
    "safetensors header": Target(
        lambda data: read_table(io.BytesIO(data)),
        (BadTensors,),
        (tensors_seed(),),
        (*JSON_TOKENS, b'"F32"', b"\xff" * 8),
    ),
    "parcel": Target(
        unpacked, (BadParcel,), (b"".join(pack({"n": 3, "x": [1.5, None]}, io.BytesIO(b"tensors"))),), JSON_TOKENS
    ),
    "sealing header": Target(opened, (SealBroken,), (sealed_seed(),), (b"\x00\x00", b"\xff\xff", b"{", b"}")),
}


@st.composite
def inputs(draw: st.DrawFn, target: Target) -> bytes:
    """A seed that was changed in up to six places; now and then bytes that were never a seed."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=400))
    data = bytearray(draw(st.sampled_from(target.seeds)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 40)))
        match draw(st.integers(0, 6)):
            case 0 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del data[at:]
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end] * draw(st.sampled_from([1, 2, 50]))
            case 4 if target.tokens:
                token = draw(st.sampled_from(target.tokens))
                data[at:at] = token * draw(st.sampled_from([1, 1, 2, 200]))
            case 5:
                other = draw(st.sampled_from(target.seeds))
                data[at:end] = other[draw(st.integers(0, len(other))) :][:60]
            case _:
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(data)


def outcome(target: Target, data: bytes) -> tuple[str, Any]:
    try:
        return "read", repr(target.parse(data))
    except target.refusals as refused:
        return "refused", str(refused)


def fuzz(target: Target, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs(target))
    def one(data: bytes) -> None:
        before = time.process_time()
        first = outcome(target, data)
        assert time.process_time() - before < SLOWEST_S
        assert outcome(target, data) == first

    one()


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_read(name: str) -> None:
    target = TARGETS[name]
    assert [outcome(target, seed)[0] for seed in target.seeds] == ["read"] * len(target.seeds)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused(name: str) -> None:
    fuzz(TARGETS[name], 200)


@pytest.mark.full
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused_for_long(name: str) -> None:
    fuzz(TARGETS[name], int(os.environ.get("MSFL_FUZZ", "20000")))


def test_the_tensors_seed_is_what_the_product_writes(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    weights.save(file, {"a": np.zeros((2, 3), "float32")})
    with file.open("rb") as stream:
        assert read_table(stream).shapes == {"a": (2, 3)}


def test_a_policy_that_is_read_is_a_policy() -> None:
    assert isinstance(load_yaml(POLICY_YAML.encode(), AssetPolicy), AssetPolicy)
