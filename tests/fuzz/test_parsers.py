"""One fuzz target per parser of foreign bytes: whatever comes, the parser reads it or says why not, and soon.

    seeds (valid inputs) ─▶ flip, cut, repeat, splice, insert what each format minds ─▶ parse ─▶ value | its own error

Anything but the parser's own error is a bug: another exception would end a thread of a gateway or of the orchestrator.
What a parser does read is read the same way twice, and what it encodes again comes back equal. A short run belongs to
the slow suite; `make test-full` gives each target as many inputs as MSFL_FUZZ says.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from fakes.fuzzing import SLOWEST_S, fuzz
from fakes.governance import NOW, POLICY_YAML, World, key
from fakes.oidc import Provider, ec_jwk, rsa_jwk
from fakes.registries import MemoryRegistry, tar_of
from msfl.evaluation.metrics import Summary, summarise
from msfl.learning import weights
from msfl.learning.contract import ModelRefusal
from msfl.learning.logistic import fingerprint as logistic
from msfl.learning.nnunet.fingerprint import Fingerprint
from msfl.orchestrator.doors.addresses import Callers
from msfl.orchestrator.keyring.authority import BadRequest, create_ca, sign_site
from msfl.policies.audit import Chain, append, from_line
from msfl.policies.audit_files import export, read_export, verify_files
from msfl.policies.checkpoints import checkpoint, read_checkpoint
from msfl.policies.documents import AssetPolicy, DatasetRecord, Document, JobSpec, ReleaseStatement
from msfl.policies.encoding import Malformed, encode, load_json, load_yaml, read_json, read_yaml
from msfl.policies.envelope import ASSET_POLICY, RELEASE_STATEMENT, Kind, Signed
from msfl.policies.identity import verify_call, verify_job, verify_token
from msfl.policies.issuers import trust_key_set
from msfl.policies.jwk import public_key, signature_keys
from msfl.policies.keys import BadKey, encode_public
from msfl.policies.refusals import Code, Refusal, refuse
from msfl.protos.channel import make_csr
from msfl.protos.convert import (
    BadMessage,
    answer_from_wire,
    answer_to_wire,
    arrival_from_wire,
    arrival_to_wire,
    json_object,
    order_from_wire,
    order_to_wire,
)
from msfl.protos.messages import Arrival, Input, OfferAnswer, TaskOrder
from msfl.protos.notes import BadNote, Note, note_in
from msfl.protos.parcel import BadParcel, Unpacking, pack, unpack
from msfl.protos.registration import BadToken, RegistrationToken
from msfl.protos.sealing import Opening, SealBroken, StreamHeader, open_sealed, seal
from msfl.protos.tasklink import BrokenFrame, Failed, Hello, Progress, Result, TaskLink
from msfl.protos.tasklink import decode as decode_frame
from msfl.protos.tasklink import encode as frame_of
from msfl.protos.tensors import BadTensors, read_table
from msfl.protos.v1 import federation_pb2 as wire
from msfl.registry.base_layer import BaseLayer, BaseLimits
from msfl.registry.environment import BadEnvironment, EnvironmentLock, LockedDistribution
from msfl.registry.interface import Descriptor
from msfl.registry.layer import BadLayer, LayerLimits, read_layer, write_layer
from msfl.registry.model_card import MARKDOWN_CARD, SECTIONS, YAML_CARD, ModelCard, card_flaws
from msfl.registry.publish import material_of, papers_of
from msfl.registry.sbom import SBOM_TYPE, sbom_flaws, write_sbom

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
DEEP = (b"[" * 20_000, b'{"a":' * 20_000)  # deeper than any interpreter's stack


def text_of(read: Callable[[str], Any]) -> Callable[[bytes], Any]:
    """For parsers of text: bytes that are no text never get there."""
    return lambda data: read(data.decode("latin-1"))


def token_verdict(text: str) -> Any:
    """Neither raises: what is wrong with a token is a refusal."""
    world = WORLD
    found = verify_token(text, world.federation_root.document.issuers, NOW)
    return found, verify_job(JOB, text, world.user, True), verify_call(text, "List", world.token, world.user, NOW)


def keys_of(data: bytes) -> Any:
    keys = signature_keys(data)
    assert all(public_key(k) for k in keys)
    return keys


def key_set_verdict(data: bytes) -> Any:
    found = trust_key_set(data, PROVIDER.root)
    return found if isinstance(found, Refusal) else (found.document, found.sha256)


def frame(data: bytes) -> Any:
    """Over a socket, as a worker would say it: length first."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        link = TaskLink(ours, silence_s=5.0)
        return [f for f in iter(link.receive, None)]


def from_wire(message: Any, convert: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        return convert(message.FromString(data))

    return parse


def line(data: bytes) -> Any:
    """What follows the chain's last entry, or why it does not."""
    return from_line(data), Chain().take(data)


def audit_file(data: bytes) -> Any:
    return verify_files([read_export(data, "a file")])


def layer(data: bytes) -> Any:
    return list(read_layer(io.BytesIO(data), LAYER[1], LayerLimits()))


def base_layer(data: bytes) -> Any:
    """Its first header with the checksum that it ought to have: else nothing gets past that."""
    if len(data) >= 512:
        head = bytearray(data[:512])
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        data = bytes(head) + data[512:]
    layer = BaseLayer("tar", BaseLimits())
    layer.feed(data)
    return layer.diff_id("")


def packed_base_layer(data: bytes) -> Any:
    layer = BaseLayer("tar+gzip", BaseLimits())
    layer.feed(data)
    return layer.diff_id("")


def descriptor(data: bytes) -> Any:
    return Descriptor.from_json(read_json(data))


def in_pieces(data: bytes) -> Any:
    """A sealed parcel as it arrives over the line, cut where its own bytes say."""
    tensors = io.BytesIO()
    unpacking = Unpacking(tensors.write)
    opening = Opening(KEY, HEADER, unpacking.feed)
    rest = data
    while rest:
        n = 1 + rest[0] % 97
        opening.feed(rest[:n])
        rest = rest[n:]
    opening.close()
    return unpacking.close(), tensors.getvalue()


def sealed_parcel() -> bytes:
    out = io.BytesIO()
    seal(KEY, HEADER, list(pack({"n": 3}, io.BytesIO(b"tensors"))), out, salt=SALT)
    return out.getvalue()


def csr(data: bytes) -> Any:
    return sign_site(AUTHORITY[0], AUTHORITY[1], data, "site-a", NOW) != b""


def summary(data: bytes) -> Any:
    return Summary.from_json(json_object(data))


def fingerprint(data: bytes) -> Any:
    found = Fingerprint.from_json(json_object(data))
    assert Fingerprint.from_json(found.to_json()) == found
    return found


def merged(data: bytes) -> Any:
    """The small model's: what two sites said, together."""
    return logistic.merge({"site-a": json_object(data), "site-b": json.loads(LOGISTIC)})


def forwarded(data: bytes) -> Any:
    """Who called, by a proxy's word."""
    return Callers.of(("10.0.0.0/8",), ("192.0.2.1",)).check("192.0.2.1", [data.decode("latin-1")])


AUTHORITY = create_ca("fuzz", NOW)
PROVIDER = Provider(stewards=("stella",))
NOTE = Note("train/3", 3, "weights", b"k" * 32, "blake3:" + "0" * 64).to_document()
BASE = tar_of({"usr/lib/" + "x" * 120: b"y" * 600, "usr/bin/python": b"ELF"}, format=tarfile.PAX_FORMAT)
LAYER = write_layer({"a/b.py": b"x = 1\n", "c.json": b"{}"})
ENTRIES = [append(None, NOW, "gateway site-a", "run decided", "run-1", {"code": "no_policy"})]
ENTRIES.append(append(ENTRIES[0], NOW, "gateway site-a", "task failed", "run-1"))
CHECKPOINT = checkpoint(Chain(), "site:site-a", NOW, key("log"))
LOG_KEY = encode_public(key("log").public)
EXPORT = export("site:site-a", LOG_KEY, {}, [e.to_line() for e in ENTRIES], [CHECKPOINT], NOW)
LOCK = EnvironmentLock("cpython-311", {"a": LockedDistribution("1.0", {"a/b.py": "0" * 64})}).to_bytes()
NNUNET = Fingerprint(("FLAIR",), (("background", 0), ("lesion", 1)), ".nii.gz", 1, ({(10, 9): 1},) * 3, {50: 1})
LOGISTIC = json.dumps(
    {
        "n_cases": 1,
        "n_inside": 5,
        "n_foreground": 1,
        "channel_names": ["FLAIR"],
        "labels": {"background": 0, "lesion": 1},
        "intensity": [[1] * logistic.N_BINS],
        "spacing": [[[100, 1]]] * 3,
        "shape": [[[32, 1]]] * 3,
    }
).encode()
ORDER = TaskOrder("run-1", "train/3", "train", 3, 1, {"epochs": 1}, (Input("w", "train/2", 2, "weights", "k"),))
TOKEN = RegistrationToken(
    "one", "site-a", "h:1", "h:2", "r", "PEM", "0f", b"s" * 32, b"k" * 32, b"c" * 32, "sha256:" + "0" * 64, 9, ("::/0",)
)


def sbom(data: bytes) -> Any:
    """Every flaw is an answer."""
    lock = EnvironmentLock("cpython", {"numpy": LockedDistribution("2.4.6", {"numpy/__init__.py": "0" * 64})})
    return sbom_flaws(data, "sha256:" + "0" * 64, lock)


def markdown_card(data: bytes) -> Any:
    return card_flaws(ModelCard(data, MARKDOWN_CARD))


def yaml_card(data: bytes) -> Any:
    return card_flaws(ModelCard(data, YAML_CARD))


def attached(data: bytes) -> Any:
    """A registry's word for what refers to an image: what cannot be read is nobody's."""
    registry = MemoryRegistry()
    subject = registry.put_manifest(MANIFEST)
    at = registry.put_manifest(MANIFEST_OF.replace(b"SUBJECT", subject.encode()))
    registry.tamper(at, data)
    return papers_of(registry, subject), material_of(registry, subject, SBOM_TYPE, "sha256:" + "0" * 64)


SBOM = write_sbom(
    "own",
    "1.0.0",
    "sha256:" + "0" * 64,
    EnvironmentLock("cpython", {"numpy": LockedDistribution("2.4.6", {"numpy/__init__.py": "0" * 64})}),
    None,
)
CARD = "".join(f"# {name}\n\nWords.\n" for name in SECTIONS)
MANIFEST = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[],"config":{}}'
MANIFEST_OF = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[],"config":{},'
    b'"artifactType":"application/vnd.cyclonedx+json","subject":'
    b'{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"SUBJECT","size":1}}'
)


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
    "a worker's frames": Target(
        frame,
        (BrokenFrame,),
        (
            frame_of(Progress("train/1", "train", 1, 2, {"loss": 0.5})),
            frame_of(Hello("r:1")) + frame_of(Result("evaluate/test", {"n": 3}, {"weights": "w"})),
        ),
        (*JSON_TOKENS, b'"frame": ["x"], ', b"\x00\x00\x00\x02[]"),
    ),
    "a frame's body": Target(
        decode_frame, (BrokenFrame,), (frame_of(Failed("train/1", "worker_error", "why"))[4:],), (*JSON_TOKENS, *DEEP)
    ),
    "a note": Target(
        lambda data: note_in(json_object(data)),
        (BadMessage, BadNote),
        (json.dumps(NOTE).encode(),),
        (*JSON_TOKENS, *DEEP, b"\xc3\xa9"),
    ),
    "an order": Target(
        from_wire(wire.Order, order_from_wire),
        (BadMessage, DecodeError),
        (order_to_wire(ORDER).SerializeToString(),),
        (*JSON_TOKENS, *DEEP),
    ),
    "an answer": Target(
        from_wire(wire.OfferAnswer, answer_from_wire),
        (BadMessage, DecodeError),
        (answer_to_wire(OfferAnswer("run-1", "refuse", {"refusal": None}, b"", 1)).SerializeToString(),),
        (*JSON_TOKENS, *DEEP),
    ),
    "an arrival": Target(
        from_wire(wire.Hello, arrival_from_wire),
        (BadMessage, DecodeError),
        (arrival_to_wire(Arrival(1, "msfl", ({"ref": "site-a/x"},))).SerializeToString(),),
        (*JSON_TOKENS, *DEEP),
    ),
    "registration token": Target(text_of(RegistrationToken.decode), (BadToken,), (TOKEN.encode().encode(),)),
    "token, job's and call's proof": Target(
        text_of(token_verdict), (), (WORLD.token.encode(), WORLD.proof.encode(), b"a.b.c"), (b".", b"~", b"=", b"e30")
    ),
    "JWKS": Target(
        keys_of, (Malformed, BadKey), (json.dumps({"keys": [rsa_jwk(), ec_jwk()]}).encode(),), (*JSON_TOKENS, *DEEP)
    ),
    "key set in its envelope": Target(key_set_verdict, (), (PROVIDER.key_set(),), (*JSON_TOKENS, *DEEP)),
    "audit line": Target(line, (), (ENTRIES[0].to_line(), ENTRIES[1].to_line()), (*JSON_TOKENS, *DEEP)),
    "audit file": Target(audit_file, (Malformed,), (EXPORT,), (*JSON_TOKENS, b"\n", b"\r\n")),
    "checkpoint": Target(
        lambda data: read_checkpoint(data, {"site:site-a": LOG_KEY}), (), (CHECKPOINT,), (*JSON_TOKENS, *DEEP)
    ),
    "image layer": Target(layer, (BadLayer,), (LAYER[0],)),
    "base layer": Target(base_layer, (BadLayer,), (BASE, BASE[1024:]), (b"12 path=", b"./", b"../", b".wh.", b"\n")),
    "packed base layer": Target(packed_base_layer, (BadLayer,), (gzip.compress(BASE, mtime=0),)),
    "image descriptor": Target(
        descriptor,
        (Malformed, ValueError),
        (b'{"mediaType": "x", "digest": "sha256:' + b"0" * 64 + b'", "size": 3}',),
        (*JSON_TOKENS, *DEEP),
    ),
    "SBOM": Target(sbom, (), (SBOM,), (*JSON_TOKENS, *DEEP, b"pkg:pypi/")),
    "model card": Target(markdown_card, (), (CARD.encode(),), (b"# ", b"##", b"\n", b"\xff", b"TODO")),
    "model card, YAML": Target(yaml_card, (), (b"intended_use: words\ninput: |\n  words\n",), YAML_TOKENS),
    "what others attached": Target(attached, (), (MANIFEST,), (*JSON_TOKENS, *DEEP)),
    "environment lock": Target(EnvironmentLock.from_bytes, (BadEnvironment,), (LOCK,), (*JSON_TOKENS, *DEEP)),
    "sealed parcel in pieces": Target(in_pieces, (SealBroken, BadParcel), (sealed_parcel(),), (b"\xff\xff", b"{")),
    "certificate request": Target(csr, (BadRequest,), (make_csr("site-a")[1],), (b"-----", b"\n", b"MIIB")),
    "refusal": Target(
        lambda data: Refusal.from_json(json_object(data)),
        (BadMessage, ValueError),
        (json.dumps(refuse(Code.NO_POLICY, "x", a="b").to_json()).encode(),),
        (*JSON_TOKENS, *DEEP),
    ),
    "a site's summary": Target(
        summary, (BadMessage, ValueError), (json.dumps(summarise([0.5, 0.7]).to_json()).encode(),), JSON_TOKENS
    ),
    "a site's fingerprint": Target(
        fingerprint, (BadMessage, ModelRefusal), (json.dumps(NNUNET.to_json()).encode(),), JSON_TOKENS
    ),
    "a site's fingerprint, small model": Target(merged, (BadMessage, ModelRefusal), (LOGISTIC,), JSON_TOKENS),
    "X-Forwarded-For": Target(forwarded, (), (b"10.1.2.3, 192.0.2.1", b"::ffff:10.1.2.3"), (b",", b":", b"%", b"/8")),
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


ODD: tuple[Any, ...] = (None, True, -1, 10**30, 0.5, "", "é\x00", [], ["x"], {}, {"": []}, [[[[]]]])


def with_one_odd_value(document: Any) -> Iterator[Any]:
    """The document with each of its values, in turn, something else; without each member; with one more."""
    yield from ODD
    match document:
        case dict():
            for name, value in document.items():
                yield from ({**document, name: other} for other in with_one_odd_value(value))
                yield {k: v for k, v in document.items() if k != name}
            yield {**document, "more": 1}
        case list():
            for n, value in enumerate(document[:4]):
                yield from ([*document[:n], other, *document[n + 1 :]] for other in with_one_odd_value(value))
            yield [*document, *document[:1]]
        case _:
            pass


def outcome(target: Target, data: bytes) -> tuple[str, Any]:
    try:
        return "read", repr(target.parse(data))
    except target.refusals as refused:
        return "refused", str(refused)


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_read(name: str) -> None:
    target = TARGETS[name]
    assert [outcome(target, seed)[0] for seed in target.seeds] == ["read"] * len(target.seeds)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_depth_and_one_odd_value_are_read_or_refused(name: str) -> None:
    """What chance finds rarely: for every value of a JSON seed each kind that it is not."""
    target = TARGETS[name]
    inputs = [b"", *DEEP, *(len(deep).to_bytes(4, "big") + deep for deep in DEEP)]
    for seed in target.seeds:
        for head in (b"", seed[:4]):  # a frame has its length before it
            with contextlib.suppress(ValueError):
                odd = [json.dumps(other).encode() for other in with_one_odd_value(json.loads(seed[len(head) :]))]
                inputs += [len(text).to_bytes(4, "big") + text if head else text for text in odd]
    for data in inputs:
        before = time.process_time()
        outcome(target, data)
        assert time.process_time() - before < SLOWEST_S


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused(name: str) -> None:
    fuzz(inputs(TARGETS[name]), partial(outcome, TARGETS[name]), 200)


@pytest.mark.full
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused_for_long(name: str) -> None:
    fuzz(inputs(TARGETS[name]), partial(outcome, TARGETS[name]), int(os.environ.get("MSFL_FUZZ", "20000")))


def test_the_tensors_seed_is_what_the_product_writes(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    weights.save(file, {"a": np.zeros((2, 3), "float32")})
    with file.open("rb") as stream:
        assert read_table(stream).shapes == {"a": (2, 3)}


def test_a_policy_that_is_read_is_a_policy() -> None:
    assert isinstance(load_yaml(POLICY_YAML.encode(), AssetPolicy), AssetPolicy)
