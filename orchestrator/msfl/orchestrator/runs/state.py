"""What is known of a run: frozen values, all of them follow from its events.

A `Member` that is `absent` is still part of the run: nobody waits for it, and it may come back. A `Step` is what the
run waits for at the moment: `waiting` holds it up, `away` are absent sites whose result is welcome while it is open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeAlias

from msfl.orchestrator.runs.events import Submitted
from msfl.policies.documents import JobSpec
from msfl.policies.identity import User, account_in

JsonObject: TypeAlias = dict[str, Any]
Note: TypeAlias = tuple[str, int]
"""The central step that sealed a note for a site, and that step's round: together they name the sealed stream."""


class Phase(StrEnum):
    OFFERED = "offered"
    RUNNING = "running"
    FINISHED = "finished"
    EXPLAINED = "explained"
    REFUSED = "refused"
    ABORTED = "aborted"
    FAILED = "failed"


ENDED = frozenset({Phase.FINISHED, Phase.EXPLAINED, Phase.REFUSED, Phase.ABORTED, Phase.FAILED})


class Standing(StrEnum):
    """Where a site stands in a run."""

    ASKED = "asked"
    PARKED = "needs confirmation"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    OUT = "out"


@dataclass(frozen=True)
class Member:
    """One site in a run. `code` says why it refused, is out or absent; `decision` is as much as the site reveals.

    `started` and `prepared` are what its worker has done in this generation. `plan` and `models` are the notes that it
    can open: of the plan, and of the models by round. `refusals` counts its refused updates in a row.
    """

    site: str
    dataset: str
    trains: bool
    standing: Standing = Standing.ASKED
    code: str = ""
    decision: JsonObject = field(default_factory=dict)
    wrapped_secret: str = ""
    absent: bool = False
    started: bool = False
    prepared: bool = False
    plan: Note | None = None
    models: Mapping[int, Note] = field(default_factory=dict)
    refusals: int = 0

    @property
    def accepted(self) -> bool:
        return self.standing is Standing.ACCEPTED


@dataclass(frozen=True)
class Step:
    """What the run is waiting for. `waiting` and `away` have not reported; both are empty for a central step.

    `last_call`: the step has outlived its deadline, or lost its quorum, and has one more deadline.
    """

    task_id: str
    verb: str
    round: int
    central: bool
    opened_at: float
    waiting: frozenset[str] = frozenset()
    away: frozenset[str] = frozenset()
    done: Mapping[str, str] = field(default_factory=dict)
    document: JsonObject = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    last_call: bool = False


@dataclass(frozen=True)
class RoundRecord:
    """One closed round. `sites` holds only those that took part; `late` those that were waited for in vain; `refused`
    whose update was not taken, with the code; `flags` what is odd about a site: `loss_rising`, `update_outlier`."""

    round: int
    sites: Mapping[str, JsonObject]
    late: tuple[str, ...]
    seconds: float
    bytes_up: int
    bytes_down: int
    weights_blake3: str
    refused: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def validation_dice(self) -> float | None:
        """Mean validation Dice of the round's global model, weighted by validation cases; None when nobody has any."""
        pairs = [
            (site["n_val"], site["val_dice"])
            for site in self.sites.values()
            if site.get("n_val") and site.get("val_dice") is not None
        ]
        cases = sum(n for n, _ in pairs)
        return sum(n * dice for n, dice in pairs) / cases if cases else None


@dataclass(frozen=True)
class RunState:
    run_id: str
    spec: JobSpec
    spec_text: str
    proof: str
    token: str
    user: str
    issuer: str
    subject: str
    dry_run: bool
    phase: Phase
    submitted_at: float
    members: Mapping[str, Member]
    generation: int = 1
    paused: bool = False
    pause_reason: str = ""
    step: Step | None = None
    reason: str = ""
    ended_at: float | None = None
    rounds: tuple[RoundRecord, ...] = ()
    documents: Mapping[str, JsonObject] = field(default_factory=dict)
    outputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    void: frozenset[str] = frozenset()  # results and notes of earlier generations: nobody can open them any more
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    round_bytes: tuple[int, int] = (0, 0)  # up and down, of the last closed step at the sites
    left_behind: tuple[str, ...] = ()  # by the last closed step at the sites
    peak_rss_mib: Mapping[str, float] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.phase in ENDED

    def best_round(self) -> int:
        """The round whose model is evaluated: best validation Dice under `keep="best"`, ties to the earlier."""
        return len(self.rounds) if self.spec.keep == "last" else self.best_scored()

    def best_scored(self) -> int:
        """The round with the best validation Dice, ties to the earlier; the last when none has any."""
        scored = [(dice, -r.round) for r in self.rounds if (dice := r.validation_dice()) is not None]
        return -max(scored)[1] if scored else len(self.rounds)


def submitted(event: Submitted, spec: JobSpec) -> RunState:
    """The first state. `spec` is the parsed form of `event.spec`; who submits has been verified."""
    members = {}
    for ref in spec.datasets:
        site, dataset = ref.split("/", 1)
        members[site] = Member(site=site, dataset=dataset, trains=spec.trains_on(ref))
    issuer, subject = (event.issuer, event.subject) if event.issuer else account_in(event.token)
    return RunState(
        run_id=event.run_id,
        spec=spec,
        spec_text=event.spec,
        proof=event.proof,
        token=event.token,
        user=event.user,
        issuer=issuer,
        subject=subject,
        dry_run=event.dry_run,
        phase=Phase.OFFERED,
        submitted_at=event.at,
        members=members,
    )


def owns(state: RunState, user: User) -> bool:
    """Whose run it is: of the account that submitted it, or of the verified address that it was submitted with. A
    subject that is spelled like an address is none."""
    by_account = state.issuer != "" and (state.issuer, state.subject) == (user.issuer, user.subject)
    return by_account or (user.email != "" and user.email == state.user)


def runnable(state: RunState) -> bool:
    """Whether anything is asked of anybody: not of a paused run, and not of one that has ended."""
    return not state.paused and not state.ended


def may_take_part(state: RunState, site: str) -> bool:
    """A member that has accepted, or may still do so."""
    member = state.members.get(site)
    return member is not None and member.standing in (Standing.ASKED, Standing.PARKED, Standing.ACCEPTED)


def accepted(state: RunState) -> list[str]:
    return sorted(m.site for m in state.members.values() if m.accepted)


def training(state: RunState) -> list[str]:
    return sorted(m.site for m in state.members.values() if m.trains and m.accepted)


def with_members(state: RunState, members: Iterable[Member]) -> RunState:
    return replace(state, members={**state.members, **{m.site: m for m in members}})


def end(state: RunState, phase: Phase, reason: str, at: float) -> RunState:
    return replace(state, phase=phase, reason=reason, step=None, ended_at=at, paused=False, pause_reason="")


def codes(state: RunState) -> str:
    """Who is not with the run, and why: `b: silent; c: policy_expired`."""
    return "; ".join(f"{m.site}: {m.code}" for m in state.members.values() if m.code)


def quorum_lost(state: RunState, at: float) -> RunState:
    return end(state, Phase.FAILED, f"quorum_not_reached ({codes(state)})", at)


def at_least_zero(seconds: float) -> float:
    """Clocks may step back; a duration in a report may not."""
    return max(seconds, 0.0)
