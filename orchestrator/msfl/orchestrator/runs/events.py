"""Everything that can happen to a run. The store keeps these, in order, and nothing else of a run's progress.

An event is a frozen dataclass of JSON-able fields; `to_json` and `from_json` go through the closed table `_EVENTS`.
Replaying a run's events gives its state back, so a killed orchestrator loses nothing that it had acknowledged.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Submitted:
    """A user asked for a run. `spec` is the text of the exact bytes that were signed; `user` a verified address, or an
    account. `issuer` and `subject` are empty in what earlier versions wrote."""

    at: float
    run_id: str
    spec: str
    proof: str
    token: str
    user: str
    dry_run: bool = False
    issuer: str = ""
    subject: str = ""


@dataclass(frozen=True)
class Answered:
    """A site's own decision. `wrapped_secret` (base64) is for the keyring alone; empty unless the site allows.

    `generation` is that of the offer which it answers.
    """

    at: float
    site: str
    verdict: str
    decision: JsonObject = field(default_factory=dict)
    wrapped_secret: str = ""
    generation: int = 1


@dataclass(frozen=True)
class TaskDone:
    """A site finished a task; its sealed result, if it has one, is durable under `key`."""

    at: float
    site: str
    task_id: str
    key: str
    seconds: float
    bytes_up: int
    bytes_down: int
    peak_rss_mib: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteFailed:
    """A site cannot go on with this run: its worker died, its policy expired, its gate refused what came out."""

    at: float
    site: str
    task_id: str
    code: str


@dataclass(frozen=True)
class CentralDone:
    """The aggregator finished a step. `files` are the keys of the sealed outputs that are now durable."""

    at: float
    task_id: str
    document: JsonObject
    files: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class DeadlinePassed:
    """The step `task_id` has been open for the job's deadline."""

    at: float
    task_id: str


@dataclass(frozen=True)
class SiteSilent:
    """Nothing was heard from a site's gateway for too long while the step `task_id` waits for it."""

    at: float
    site: str
    task_id: str


@dataclass(frozen=True)
class SiteReturned:
    """A site that had been silent, or too late, is heard of again."""

    at: float
    site: str


@dataclass(frozen=True)
class SiteRevoked:
    """The federation's keepers have revoked a site: nothing is asked of it any more, whatever it had answered."""

    at: float
    site: str


@dataclass(frozen=True)
class PauseRequested:
    at: float
    by: str


@dataclass(frozen=True)
class Resumed:
    """A paused run goes on; an aborted or failed one is offered again, with the token and proof given now, if any."""

    at: float
    by: str
    token: str = ""
    proof: str = ""


@dataclass(frozen=True)
class AbortRequested:
    at: float
    by: str


@dataclass(frozen=True)
class CentreFailed:
    """The aggregator could not do a step. `code` says why; the run ends."""

    at: float
    code: str


Event: TypeAlias = (
    Submitted
    | Answered
    | TaskDone
    | SiteFailed
    | CentralDone
    | DeadlinePassed
    | SiteSilent
    | SiteReturned
    | SiteRevoked
    | PauseRequested
    | Resumed
    | AbortRequested
    | CentreFailed
)
_EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        Submitted,
        Answered,
        TaskDone,
        SiteFailed,
        CentralDone,
        DeadlinePassed,
        SiteSilent,
        SiteReturned,
        SiteRevoked,
        PauseRequested,
        Resumed,
        AbortRequested,
        CentreFailed,
    )
}


def to_json(event: Event) -> str:
    return json.dumps({"kind": type(event).__name__, **asdict(event)}, allow_nan=False, sort_keys=True)


def from_json(text: str) -> Event:
    """Raises KeyError or TypeError for a text this version did not write: the store is damaged, nobody may go on."""
    raw = json.loads(text)
    kind = _EVENTS[raw.pop("kind")]
    if "files" in raw:
        raw["files"] = tuple(raw["files"])
    return kind(**raw)
