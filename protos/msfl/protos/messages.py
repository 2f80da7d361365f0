"""What orchestrator and gateways say to each other, as plain values. `convert` turns them into wire messages and back.

    orchestrator → gateway   Offer, TaskOrder, StopOrder     on the stream the gateway opened
    gateway → orchestrator   OfferAnswer, TaskReport, SiteProgress

Every message is idempotent: (run, task, site) names a task and its result; who hears something twice does it once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

PROTOCOL = 3
# A user's call carries, beside its token, a signature over its method: `identity.sign_call`.
CALL_PROOF = "msfl-proof"
PEOPLE_METHOD = "/msfl.protos.v1.People/"
JsonObject: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Offer:
    """A run this site is asked to take part in. `spec` are the exact bytes the user signed.

    `generation` counts from 1: a run that had ended and is resumed is offered, and decided on, again. `issuer_keys` are
    envelopes of key sets, which come with the heartbeat, too: who logs in with a new key does not wait for the next.
    """

    run_id: str
    spec: bytes
    proof: str
    token: str
    dry_run: bool
    generation: int = 1
    issuer_keys: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Input:
    """One sealed stream that a site needs for a task: under which name, and the header it was sealed with."""

    name: str
    task_id: str
    round: int
    artifact: str
    key: str


@dataclass(frozen=True)
class TaskOrder:
    """One verb for one site. `document` holds plain parameters; everything else comes sealed, as inputs."""

    run_id: str
    task_id: str
    verb: str
    round: int
    attempt: int
    document: JsonObject
    inputs: tuple[Input, ...]


@dataclass(frozen=True)
class StopOrder:
    """The run is over, or this site let go, in this `generation` and all before it; 0: whichever the site is in."""

    run_id: str
    reason: str
    generation: int = 0


Order: TypeAlias = Offer | TaskOrder | StopOrder


@dataclass(frozen=True)
class OfferAnswer:
    """A site's decision. `decision` is as much of it as the site reveals; the secret is for the keyring alone."""

    run_id: str
    verdict: str
    decision: JsonObject
    wrapped_secret: bytes = b""
    generation: int = 1


@dataclass(frozen=True)
class TaskReport:
    """A task is done (`failure` empty) or will not be. `key` names the uploaded sealed result, if there is one."""

    run_id: str
    task_id: str
    attempt: int
    failure: str = ""
    key: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    peak_rss_mib: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteProgress:
    """How far a site's task is; an empty `run_id` is a bare heartbeat, and `trust` the papers that the site has."""

    run_id: str
    task_id: str = ""
    phase: str = ""
    done: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    trust: str = ""


@dataclass(frozen=True)
class TrustPapers:
    """What the federation's keepers published, as they signed it: every root from the first on, the revocation list,
    the timestamp; and stewards, the newest key set of each identity provider. Empty bytes: not published. The centre
    only passes it on."""

    roots: tuple[bytes, ...] = ()
    revocations: bytes = b""
    timestamp: bytes = b""
    issuer_keys: tuple[bytes, ...] = ()

    @property
    def sha256(self) -> str:
        """A name for these very papers."""
        papers = (self.timestamp, self.revocations, *self.roots)
        if self.issuer_keys:
            papers = (*papers, b"", *self.issuer_keys)  # No root is empty.
        return hashlib.sha256(b"".join(len(p).to_bytes(8, "big") + p for p in papers)).hexdigest()


@dataclass(frozen=True)
class Arrival:
    """How a gateway greets: the protocol it speaks and the datasets its custodian shows to the federation."""

    protocol: int
    software: str
    datasets: tuple[JsonObject, ...]


def result_key(task_id: str, site: str, attempt: int) -> str:
    """Where a site's sealed result of a task is kept, within the run. Each attempt is a stream of its own: two of them
    are sealed under different keys, and parts of both would make a stream that nobody can open."""
    return f"{task_id}/{site}/up/{attempt}"


def attempt_of(key: str, task_id: str, site: str) -> int | None:
    """The attempt whose result is kept under `key`; None when it is not a result of this task and site."""
    prefix, _, last = key.rpartition("/")
    if prefix != f"{task_id}/{site}/up" or not last.isascii() or not last.isdigit() or last != str(int(last)):
        return None
    return int(last)


def output_key(task_id: str, site: str, artifact: str) -> str:
    """Where a sealed stream for a site is kept, within the run."""
    return f"{task_id}/{site}/down/{artifact}"
