"""What the page shows, read from the gateway's folder and its audit log; nothing here changes anything.

running    runs/<run>/state.json, papers.json ▸ the latest "task begins" of the audit log
waiting    pending/<run>.json, in the words that `msfl gateway confirm` shows and the custodian signs
policies   policies/*.dsse as the site root trusts them ▸ what is revoked ▸ why the others count for nothing
history    the audit log: decisions, how they ended, what left (`sent`)
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from msfl.gateway import answers, sent
from msfl.gateway.confirmations import confirmation, in_words
from msfl.gateway.home import Home
from msfl.gateway.ledger import spent_here
from msfl.gateway.record import BadRecord, RunRecord
from msfl.gateway.standing import policies_here
from msfl.policies import words
from msfl.policies.audit import Chain, Entry, from_line
from msfl.policies.documents import JobSpec, format_utc
from msfl.policies.encoding import Malformed, load_json
from msfl.policies.refusals import Refusal
from msfl.policies.trust import TrustedPolicy
from msfl.protos.audit_log import LOG_NAME, AuditLog

SOON_DAYS = 14
_STAGES = {
    "idle": "between two tasks",
    "starting": "starting its worker",
    "working": "working",
    "sending": "sending a result",
}
_VERBS = {
    "start": "starting",
    "fingerprint": "measuring the dataset",
    "prepare": "preparing the data",
    "train": "training",
    "evaluate": "evaluating",
}


class Chronicle:
    """The audit log's entries, each read once. What was added since is verified by the log itself, under its lock."""

    def __init__(self, home: Home, audit: AuditLog) -> None:
        self._file = home.audit / LOG_NAME
        self._audit = audit
        self._entries: list[Entry] = []
        self._end = 0

    def entries(self) -> Sequence[Entry]:
        """Raises AuditBroken."""
        return self._audit.look(self._read)

    def _read(self, chain: Chain) -> Sequence[Entry]:
        with self._file.open("rb") as stream:
            stream.seek(self._end)
            for line in stream:
                if isinstance(entry := from_line(line), Entry):
                    self._entries.append(entry)
                self._end += len(line)
        return tuple(self._entries)


@dataclass(frozen=True)
class Block:
    """A line, and the lines that belong to it."""

    head: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class Running:
    """`doing` in words. `stopped_by`: who has asked to stop it, until the gateway has heard that."""

    run: str
    release: str
    user: str
    organisation: str
    dataset: str
    policy: str
    doing: str
    since: str
    stopped_by: str


@dataclass(frozen=True)
class Waiting:
    """`blocks` are what a confirmation signs, in words; `command` signs it. `declined_by`: as `stopped_by`."""

    run: str
    release: str
    user: str
    dataset: str
    rounds: str
    blocks: tuple[Block, ...]
    command: str
    declined_by: str


@dataclass(frozen=True)
class Policy:
    """`state`: in force, not yet, expired; `soon`: it expires within two weeks; `mode`: whether a run begins by itself
    or waits for the custodian; `spent`: runs and rounds, of how many."""

    id: str
    version: int
    purpose: str
    expires: str
    left: str
    state: str
    soon: bool
    mode: str
    spent: str
    signers: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Told:
    """A run in the audit log: what was decided, and what left for it."""

    run: str
    at: str
    release: str
    user: str
    outcome: str
    left: str


def running(home: Home, entries: Iterable[Entry]) -> tuple[Running, ...]:
    begun = {entry.object: entry for entry in entries if entry.action == "task begins"}
    return tuple(_running(home, run, begun.get(run)) for run in answers.running(home))


def _running(home: Home, run: str, begun: Entry | None) -> Running:
    record = RunRecord(home.run_folder(run))
    stopped = home.stop_asked(run)
    blank = Running(
        run, "?", "?", "", "?", "?", "its record cannot be read", "", "" if stopped is None else stopped["by"]
    )
    try:
        kept, papers = record.load(), record.load_papers()
    except BadRecord:
        return blank
    if kept is None:
        return blank
    doing = _STAGES.get(kept.state.stage.value, kept.state.stage.value)
    job = _job(papers.spec) if papers is not None else None
    if begun is not None and kept.state.stage.value in ("working", "sending"):
        doing = _task(begun, job)
    site = home.settings().site
    return Running(
        run=run,
        release=job.release if job else "?",
        user=papers.user.name if papers else "?",
        organisation=papers.user.organisation if papers else "",
        dataset=next((ref for ref in job.datasets if ref.startswith(f"{site}/")), "?") if job else "?",
        policy=papers.policy_id if papers else "?",
        doing=doing,
        since=format_utc(kept.started.replace(microsecond=0)) if kept.started else "",
        stopped_by="" if stopped is None else stopped["by"],
    )


def _task(begun: Entry, job: JobSpec | None) -> str:
    verb = str(begun.fields.get("verb", ""))
    words_ = _VERBS.get(verb, verb)
    if verb == "train" and job is not None:
        return f"{words_}, round {begun.fields.get('round', '?')} of {job.rounds}"
    return words_


def _job(spec: bytes) -> JobSpec | None:
    try:
        return load_json(spec, JobSpec, "the job")
    except Malformed:
        return None


def waiting(home: Home) -> tuple[Waiting, ...]:
    return tuple(_waiting(home, run, shown) for run, shown in home.pending().items())


def _waiting(home: Home, run: str, shown: dict[str, Any]) -> Waiting:
    declined = home.declined(run)
    try:
        asked = confirmation(shown["asked"])
    except Malformed as error:
        unread = Block("What is asked for cannot be read; nobody should confirm it.", (str(error),))
        return Waiting(run, "?", "?", "?", "?", (unread,), "", "" if declined is None else declined.get("by", "?"))
    return Waiting(
        run=run,
        release=asked.release,
        user=asked.user,
        dataset=asked.dataset,
        rounds=str(asked.config.get("rounds", "?")),
        blocks=blocks(in_words(asked, shown["last"])),
        command=shlex.join(["msfl", "gateway", "confirm", run, "--home", str(home.root), "--key", "YOUR-KEY.pem"]),
        declined_by="" if declined is None else declined.get("by", "?"),
    )


def policies(home: Home, now: datetime) -> tuple[tuple[Policy, ...], tuple[Refusal, ...]]:
    trusted, refused = policies_here(home, now)
    spent = spent_here(home.ledger_file, [policy.id for policy in trusted])
    return tuple(_policy(policy, now, spent[policy.id]) for policy in trusted), refused


def _policy(policy: TrustedPolicy, now: datetime, spent: tuple[int, int]) -> Policy:
    document = policy.document
    days = (document.expires - now).days
    state = "in force"
    if now >= document.expires:
        state = "expired"
    elif now < document.not_before:
        state = f"from {format_utc(document.not_before)}"
    return Policy(
        id=document.id,
        version=document.version,
        purpose=document.purpose,
        expires=format_utc(document.expires),
        left="" if state == "expired" else "less than a day" if days < 1 else f"{days} day{'s' if days > 1 else ''}",
        state=state,
        soon=state == "in force" and days < SOON_DAYS,
        mode=document.approval.mode,
        spent=f"{spent[0]} of {document.approval.max_runs} runs, {spent[1]} of {document.approval.max_rounds} rounds",
        signers=", ".join(policy.signers),
        blocks=blocks(words.in_words(document)),
    )


def history(entries: Iterable[Entry], most: int = 20) -> tuple[Told, ...]:
    """The latest runs that were decided on here, newest first."""
    by_run: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.action == "run decided" or entry.object in by_run:
            by_run.setdefault(entry.object, []).append(entry)
    latest = sorted(by_run.items(), key=lambda one: -one[1][0].seq)[:most]
    return tuple(_told(run, all_) for run, all_ in latest)


def _told(run: str, entries: list[Entry]) -> Told:
    decided = next(entry for entry in reversed(entries) if entry.action == "run decided")
    results = [one for one in sent.departures(entries, run) if one.bytes]
    size = sent.size_in_words(sum(one.bytes for one in results))
    left = f"{len(results)} sealed result{'s' if len(results) > 1 else ''}, {size}" if results else "no result"
    return Told(
        run=run,
        at=decided.at,
        release=str(decided.fields.get("release", "")),
        user=str(decided.fields.get("user", "")),
        outcome=_outcome(entries),
        left=left,
    )


def _outcome(entries: Iterable[Entry]) -> str:
    said = ""
    for entry in entries:
        fields = {k: str(v) for k, v in entry.fields.items()}
        match entry.action:
            case "run decided" if fields.get("verdict") == "refuse":
                said = f"refused: {fields.get('code', '?')}"
            case "run decided":
                said = "waits for a custodian" if fields.get("verdict") == "confirm" else "allowed"
            case "custodian answered":
                said = "confirmed" if fields.get("verdict") == "allow" else f"refused by {fields.get('by', '?')}"
            case "custodian stops the run":
                said = f"stopped by {fields.get('by', '?')}"
            case "run not allowed any more":
                said = f"ended: {fields.get('code', '?')}"
            case "run stopped" if not said.startswith(("stopped", "ended", "refused")):
                said = f"over: {fields.get('reason', '?')}"
            case _:
                pass
    return said


def blocks(lines: Iterable[str]) -> tuple[Block, ...]:
    """Lines for a terminal, indented ones under the one before."""
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("  ") and found:
            found[-1][1].append(line.strip())
        else:
            found.append((line, []))
    return tuple(Block(head, tuple(items)) for head, items in found)
