"""A site's update while it is at the centre: who reads every byte of the line, the orchestrator's memory and its store
finds it nowhere in clear.

What to look for is known exactly: the test holds the site's keys, opens the update that lies sealed at the centre, and
looks for its values. So that finding nothing means something, it also looks for what must be there.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from fakes.federations import STEADY, LiveFederation, held, until
from fakes.tls_proxy import TlsProxy
from msfl.gateway.home import Home
from msfl.gateway.record import RunRecord
from msfl.orchestrator.keyring.keyring import Keyring
from msfl.protos.certificates import Identity
from msfl.protos.parcel import unpack
from msfl.protos.sealing import StreamHeader, open_sealed, run_key
from msfl.sdk.run import Run

pytestmark = [pytest.mark.system, pytest.mark.slow]
SITE, SLOW = "site-a", "site-c"
WINDOW = 16
_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (r\S+) \S+ \S+ \S+\s*(.*)")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFederation]:
    with LiveFederation.up(tmp_path_factory.mktemp("canary")) as live:
        yield live


def proxy_before(live: LiveFederation) -> TlsProxy:
    """It holds the CA's key and the site's identity."""
    folder = live.federation.folder
    keyring = Keyring(folder / "centre/keyring")
    as_centre = Identity(*keyring.server_certificate(("127.0.0.1",), datetime.now(UTC)))
    as_site = Home(live.home(SITE)).identity()
    return TlsProxy(folder, live.federation.link_port, keyring.ca_pem, as_centre, as_site)


def opened(live: LiveFederation, run_id: str, sealed: bytes) -> bytes:
    """With the site's keys."""
    home = live.home(SITE)
    (length,) = struct.unpack(">I", sealed[:4])
    header = StreamHeader(**json.loads(sealed[4 : 4 + length]))
    assert (header.run_id, header.site, header.direction) == (run_id, SITE, "up")
    secret, site_key = RunRecord(home / "runs" / run_id).secret()
    assert site_key == Home(home).secret("site.key")
    key = run_key(secret, site_key, run_id, SITE)
    out = io.BytesIO()
    open_sealed(key, header, io.BytesIO(sealed), out)
    return out.getvalue()


def canaries(parcel: bytes) -> list[bytes]:
    """Sixteen bytes of every tensor, wherever they look like nothing else."""
    tensors = io.BytesIO()
    document, length = unpack(io.BytesIO(parcel), tensors)
    assert document
    data = tensors.getvalue()
    values = data[8 + struct.unpack("<Q", data[:8])[0] :] if length else b""
    windows = [values[i : i + WINDOW] for i in range(0, len(values) - WINDOW + 1, 4)]
    return [w for w in windows if len(set(w)) > 8]


def memory_holds(process: psutil.Process, wanted: list[bytes]) -> list[bytes]:
    """Which of them lie anywhere in the process's memory."""
    found: set[bytes] = set()
    with open(f"/proc/{process.pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            match = _MAP.match(line)
            if match is None or match[4].startswith(("[vvar", "[vsyscall", "/")):
                continue
            start, end = int(match[1], 16), int(match[2], 16)
            for at in range(start, end, 64 << 20):
                with contextlib.suppress(OSError):
                    memory.seek(at)
                    data = memory.read(min(end - at, (64 << 20) + 4096))
                    found |= {w for w in wanted if w in data}
    return sorted(found)


def store_holds(folder: Path, wanted: list[bytes]) -> list[bytes]:
    files = [f for f in folder.rglob("*") if f.is_file() and not f.is_symlink()]
    assert files
    return sorted({w for f in files for w in wanted if w in f.read_bytes()})


def upload(live: LiveFederation, run_id: str) -> bytes:
    """What the site sent of the round that waits for another one; b"" while it is not there."""
    folder = live.federation.folder / "centre/artifacts" / run_id
    rounds = [f.name for f in folder.glob(f"train~*~{SITE}~up~1") if not (folder / f.name.replace(SITE, SLOW)).exists()]
    with contextlib.suppress(FileNotFoundError, IndexError):
        return (folder / sorted(rounds, key=lambda n: int(n.split("~")[1]))[-1]).read_bytes()
    return b""


def begun(run: Run) -> bool:
    return len(run.state()["rounds"]) >= 1


def test_an_update_is_nowhere_in_clear(own: LiveFederation) -> None:
    with proxy_before(own).up() as proxy, own.over(proxy, SITE, enough=400):
        run = own.client.submit(own.job(rounds=12, min_sites=3, **STEADY))
        until(lambda: begun(run), "the first round")
        with held(*own.workers(SLOW)):
            sealed = bytes(until(lambda: upload(own, run.run_id), "the update of a round that waits"))
            secrets = canaries(opened(own, run.run_id, sealed))
            assert len(secrets) >= 4
            cipher, process, centre = sealed[-64:], own.process("orchestrator"), own.federation.folder / "centre"

            # The store, out of which the ciphertext was just read.
            assert store_holds(centre / "artifacts", secrets) == []
            assert [w for w in secrets for f in centre.glob("runs.sqlite*") if w in f.read_bytes()] == []
            # Whoever ends TLS reads all of it, and has ciphertext.
            assert cipher in proxy.read["up"]
            assert run.run_id.encode() in proxy.read["down"]
            assert [w for w in secrets if w in proxy.read["up"] or w in proxy.read["down"]] == []
            # The orchestrator's memory: the run's id is there, the values are not.
            assert memory_holds(process, [run.run_id.encode()])
            assert memory_holds(process, secrets) == []
        state = run.wait()
    assert state["phase"] == "finished"
    assert [sorted(r["sites"]) for r in state["rounds"]] == [["site-a", "site-b", "site-c"]] * 12
