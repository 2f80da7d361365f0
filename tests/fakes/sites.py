"""`SealedSites`: what gateways do around an aggregator, without gateways: run keys, sealing up, opening down."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from fakes.hosts import Host
from msfl.gateway.differences import Patch
from msfl.gateway.egress import head_of
from msfl.learning import weights as weight_files
from msfl.learning.contract import JsonObject, Weights
from msfl.protos.notes import note_in
from msfl.protos.parcel import pack, unpack
from msfl.protos.sealing import EVERYBODY, MIN_SITES, StreamHeader, open_sealed, seal, seal_to
from msfl.protos.tasklink import Failed, Result
from msfl.protos.wire_formats import encode_difference, head_as

RUN = "run-7"


class SealedSites:
    """`folder` keeps the sealed files; `keys` are the sites' run keys, fixed so that tests repeat."""

    def __init__(self, folder: Path, *sites: str, run: str = RUN) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._n = 0
        self._run = run
        self.keys = {site: hashlib.sha256(site.encode()).digest() for site in (*sites, EVERYBODY)}
        self.kept: dict[str, Path] = {}

    @property
    def names(self) -> list[str]:
        return sorted(site for site in self.keys if not site.startswith(EVERYBODY))

    def keep(self, host: Host, answer: Result | Failed) -> Result:
        """What an orchestrator keeps of an answer, to bring it along with later tasks: `kept`."""
        assert isinstance(answer, Result), answer
        for artifact in ("plan", "weights", "left-over"):
            if f"{artifact}/{EVERYBODY}" in answer.files:
                self.kept[f"{EVERYBODY}/{artifact}"] = host.output(answer, f"{artifact}/{EVERYBODY}")
        return answer

    def open(self, host: Host, run_id: str = "", min_sites: int = 0) -> Result | Failed:
        """`min_sites`: as the gateways have read it in the job; 0: they did not say."""
        run_id = run_id or self._run
        handed = self.keys | ({MIN_SITES: min_sites.to_bytes(4, "big")} if min_sites else {})
        plain = json.dumps({site: base64.b64encode(key).decode() for site, key in handed.items()}).encode()
        info = b"msfl/aggregator-keys/v1|" + run_id.encode()
        box = seal_to(base64.b64decode(host.hello.public_key), plain, info)
        return host.do("open", {"run_id": run_id, "sealed_keys": base64.b64encode(box).decode()})

    def header(self, site: str, task_id: str, round: int) -> StreamHeader:
        return StreamHeader(self._run, task_id, round, site, 1, "up", "result")

    def up(self, header: StreamHeader, document: JsonObject, tensors: Weights | bytes | None = None) -> Path:
        """Seal a parcel as its site's gateway would; raw bytes stand for a file the gate would never let pass."""
        self._n += 1
        path = self._folder / f"{self._n}.sealed"
        if isinstance(tensors, dict):
            weight_files.save(path, tensors)
            tensors = path.read_bytes()
        with path.open("wb") as out:
            source = io.BytesIO(tensors) if tensors is not None else None
            salt = hashlib.sha256(str(path).encode()).digest()
            seal(self.keys[header.site], header, pack(document, source), out, salt=salt)
        return path

    def update(self, site: str, round: int, weights: Weights, n_train: int = 4) -> Path:
        document = {"n_train": n_train, "train_loss": 0.5, "seconds": 1.0, "incoming": None}
        return self.up(self.header(site, f"train/{round}", round), document, weights)

    def difference(
        self, site: str, round: int, weights: Weights, base: Weights, left: Weights, wire: str, n_train: int
    ) -> tuple[Path, Weights]:
        """An update as a 16-bit difference, and what is left over, as a gateway makes them."""
        words, lost = [head_as(bytes(next(weight_files.encoded(base))), wire)], {}
        for name, values in weights.items():
            sent, _, lost[name] = encode_difference(values, base[name], left[name], wire)
            words.append(sent.tobytes())
        document = {"n_train": n_train, "train_loss": 0.5, "seconds": 1.0, "incoming": None}
        return self.up(self.header(site, f"train/{round}", round), document, b"".join(words)), lost

    def patched(self, host: Host, answer: Result | Failed, site: str, round: int, base: Weights, wire: str) -> Weights:
        """The round's model, made from the one before and the difference that a site's note tells of."""
        said = self.down(host.output(answer, f"weights/{site}"), site, f"aggregate/{round}", round, "weights")
        note = note_in(said)
        assert note is not None
        sealed = host.output(answer, f"difference/{EVERYBODY}")
        file = _opened(note.difference_secret, note.difference_header(self._run), sealed)[1]
        model = self._folder / "patched.safetensors"
        weight_files.write(model, base)
        head = head_of(model)
        with model.open("r+b", buffering=0) as opened:
            patch = Patch(opened, head, wire)
            patch.feed(memoryview(file.read_bytes()))
        assert patch.close() == note.blake3
        return weight_files.load(model)

    def down(self, path: Path, site: str, task_id: str, round: int, artifact: str) -> JsonObject:
        """Open what the aggregator sealed for a site alone."""
        header = replace(self.header(site, task_id, round), direction="down", artifact=artifact)
        return _opened(self.keys[site], header, path)[0]

    def model(self, host: Host, answer: Result | Failed, site: str, task_id: str, round: int, artifact: str) -> Path:
        """The tensors that a site gets: through its note, from the file for all that came with it or was kept."""
        note = note_in(self.down(host.output(answer, f"{artifact}/{site}"), site, task_id, round, artifact))
        assert note is not None
        assert isinstance(answer, Result)
        for_all = f"{artifact}/{EVERYBODY}"
        file = host.output(answer, for_all) if for_all in answer.files else self.kept[f"{EVERYBODY}/weights"]
        tensors = _opened(note.secret, note.header(self._run), file)[1]
        assert f"blake3:{blake3(tensors.read_bytes()).hexdigest()}" == note.blake3
        return tensors


def _opened(key: bytes, header: StreamHeader, path: Path) -> tuple[JsonObject, Path]:
    plain, tensors = path.with_suffix(".plain"), path.with_suffix(".tensors")
    with path.open("rb") as source, plain.open("wb") as out:
        open_sealed(key, header, source, out)
    with plain.open("rb") as source, tensors.open("wb") as out:
        return unpack(source, out)[0], tensors
