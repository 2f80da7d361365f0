"""Attack 19 at a site: what the centre sends down is bent on its way. The worker is asked nothing, nothing leaves, and
the code stands in the audit log. `test_sealed_stream_tampering` shows every cut and swap to the reader itself;
`test_hostile_updates` has the other way, up.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import pytest

from fakes.governed_sites import PATIENCE_S, GovernedSite
from msfl.gateway.record import RunRecord
from msfl.protos.messages import Input, TaskOrder
from msfl.protos.parcel import pack
from msfl.protos.sealing import SALT, TAG, StreamHeader, run_key, seal

HEADER = StreamHeader("run-1", "plan/0", 0, "site-a", 1, "down", "plan")
HEAD = 4 + len(HEADER.encode()) + SALT
DOCUMENT = {"plan": {"patch": [32, 32, 32]}}


def sealed(key: bytes, header: StreamHeader = HEADER) -> bytes:
    out = io.BytesIO()
    seal(key, header, list(pack(DOCUMENT, None)), out, salt=bytes(range(SALT)))
    return out.getvalue()


def flipped(stream: bytes, at: int) -> bytes:
    return stream[:at] + bytes([stream[at] ^ 1]) + stream[at + 1 :]


def under_its_header(stream: bytes, old: StreamHeader) -> bytes:
    """The relay writes the header that is expected now over an old one."""
    wanted = HEADER.encode()
    return struct.pack(">I", len(wanted)) + wanted + stream[4 + len(old.encode()) :]


Bend: TypeAlias = Callable[[bytes], bytes]  # of the run's key
OTHERS = {
    "another run's": replace(HEADER, run_id="run-0"),
    "another round's": replace(HEADER, round=1),
    "another task's": replace(HEADER, task_id="plan/1"),
    "another site's": replace(HEADER, site="site-b"),
    "this site's own, sent up": replace(HEADER, direction="up"),
    "another artifact": replace(HEADER, artifact="weights"),
    "an earlier attempt's": replace(HEADER, attempt=0),
}
BENT: dict[str, Bend] = {
    "a flipped bit": lambda key: flipped(sealed(key), HEAD + 3),
    "a flipped bit of the tag": lambda key: flipped(sealed(key), -1 % len(sealed(key))),
    "a flipped bit of the salt": lambda key: flipped(sealed(key), HEAD - 1),
    "a flipped bit of the header": lambda key: flipped(sealed(key), 20),
    "cut behind the salt": lambda key: sealed(key)[:HEAD],
    "cut inside the tag": lambda key: sealed(key)[: -TAG // 2],
    "nothing": lambda key: b"",
    "something behind it": lambda key: sealed(key) + b"\0" * 16,
    "itself twice": lambda key: sealed(key) * 2,
    "another key's": lambda key: sealed(bytes(32)),
    **{name: lambda key, h=h: sealed(key, h) for name, h in OTHERS.items()},  # type: ignore[misc]
    **{
        f"{name}, under this header": lambda key, h=h: under_its_header(sealed(key, h), h)  # type: ignore[misc]
        for name, h in OTHERS.items()
    },
}


def ordered(site: GovernedSite, monkeypatch: pytest.MonkeyPatch, bend: Bend) -> None:
    """A running worker is to prepare with what comes down."""
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    secret, site_key = RunRecord(site.home.run_folder("run-1")).secret()
    stream = bend(run_key(secret, site_key, "run-1", "site-a"))

    def download(run_id: str, key: str, offset: int, take: Callable[[bytes], None]) -> None:
        take(stream[offset:])

    monkeypatch.setattr(site.line, "download", download, raising=False)
    wanted = Input("plan", "plan/0", 0, "plan", "plan/0/site-a/down/plan")
    site.runs[0].hear(TaskOrder("run-1", "prepare", "prepare", 0, 1, {}, (wanted,)))


def test_what_was_sealed_for_this_task_reaches_the_worker(site: GovernedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered(site, monkeypatch, sealed)
    assert site.runtime.busy.wait(PATIENCE_S)


@pytest.mark.parametrize("name", BENT)
def test_what_was_bent_reaches_nobody(site: GovernedSite, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ordered(site, monkeypatch, BENT[name])
    assert site.failure() == "input_broken"
    assert site.audited("task failed") == ["input_broken"]
    assert not site.runtime.busy.is_set(), "the worker was asked"
    assert site.runtime.ended.wait(PATIENCE_S)
    assert site.line.uploads == []
    assert site.audited("result leaves") == []
    assert len(site.runtime.started) == 1
