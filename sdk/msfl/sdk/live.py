"""A run as it happens, in a terminal or a notebook: phase, round, each site's loss and validation Dice, time left.

    Run.events() ──▶ Picture.hear ──▶ lines that are worth printing
                         └──────────▶ Picture.draw(now): the table

On a terminal a table is redrawn in place; elsewhere (a log, CI) one line is printed for each thing that happens. Who
comes back to a run hears all of its events again, fast: so every time in here is the centre's, taken from the events,
and `CentreClock` tells the centre's time in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from msfl.sdk.words import advice, paused_words, said

if TYPE_CHECKING:
    from msfl.sdk.run import Run

JsonObject: TypeAlias = dict[str, Any]
_WORDS = {
    "start": "starting workers",
    "open": "opening the aggregator",
    "fingerprint": "fingerprints",
    "plan": "planning",
    "prepare": "preparing",
    "train": "training",
    "issue": "bringing sites up to date",
    "aggregate": "averaging",
    "validate": "validating",
    "collect": "collecting",
    "baseline": "local baselines",
    "candidates": "exchanging models",
    "evaluate": "testing",
    "export": "exporting",
}
_BEFORE_THE_TEST = ("start", "open", "fingerprint", "plan", "prepare", "train", "issue", "aggregate", "validate")
_UNSPOKEN = ("aggregate", "collect", "issue")  # over in a moment; a line for each would drown the others


@dataclass
class SiteRow:
    """`away_since`: when the centre last noticed that it is gone; None while it is there. `done`: the last task."""

    trains: bool = True
    doing: str = "asked"
    now: int = 0
    total: int = 0
    loss: float | None = None
    dice: float | None = None
    note: str = ""
    done: str = ""
    out: bool = False
    away_since: float | None = None


@dataclass
class Picture:
    """What is shown of one run; fed with its events in order. Pure: times are the centre's and come with the events."""

    rounds: int
    baseline: bool
    min_sites: int
    sites: dict[str, SiteRow]
    on_dropout: str = "continue"
    may_stop_early: bool = False
    began: float = 0.0
    heard_at: float = 0.0
    phase: str = "offered"
    round: int = 0
    round_seconds: dict[int, float] = field(default_factory=dict)
    spent: float = 0.0  # on the round that is going on
    held: float = 0.0  # nothing happened, until somebody resumed the run
    paused: str = ""
    waits_for_sites: tuple[str, ...] = ()
    waits_for: str = ""

    @classmethod
    def of(cls, state: JsonObject) -> Picture:
        """Before anything is heard; `state` is `Run.state()`."""
        spec = state["spec"]
        return cls(
            rounds=spec["rounds"],
            baseline=spec["baseline"] is not None,
            min_sites=spec["min_sites"],
            sites={site: SiteRow(trains=member["trains"]) for site, member in state["sites"].items()},
            on_dropout=spec["on_dropout"],
            may_stop_early=spec["early_stopping"] is not None,
            began=state["submitted_at"],
            heard_at=state["submitted_at"],
        )

    def hear(self, kind: str, event: JsonObject) -> list[str]:
        """Take in one event; the lines worth printing."""
        at, kept = event["at"], kind not in ("Now", "Progress")
        # Time belongs to the step whose event ends it: a pause ends with `Resumed`, and is no part of a round.
        if kept:
            passed = max(at - self.heard_at, 0.0)
            if kind == "Resumed":
                self.held += passed
            elif _trains(self.phase) or _trains(event.get("task_id", "")):
                self.spent += passed
            self.heard_at = at
        return self._heard(kind, event, at)

    def _heard(self, kind: str, event: JsonObject, at: float) -> list[str]:
        match kind:
            case "Progress":
                row = self.sites[event["site"]]
                if row.done != event["task_id"]:  # else a word from before it was done, heard on coming back
                    row.doing, row.now, row.total = event["phase"].replace("_", " "), event["done"], event["total"]
                    row.loss = event["metrics"].get("train_loss", row.loss)
                return []
            case "Now":
                return self._now(event, at)
            case "Answered":
                return [self._answered(event)]
            case "TaskDone":
                self._step(event["task_id"])
                row = self._there(event["site"])
                row.doing, row.done, row.total = "done", event["task_id"], 0
                return []
            case "SiteFailed":
                row = self.sites[event["site"]]
                row.doing, row.note, row.out, row.total, row.away_since = "out", event["code"], True, 0, None
                more = advice(event["code"])
                return [f"{event['site']} is out at {event['task_id']}: {_code(event['code'])}{more and '. ' + more}"]
            case "SiteSilent":
                return self._away((event["site"],), event["task_id"], event["code"], at)
            case "DeadlinePassed":
                return self._deadline(event["task_id"], at)
            case "SiteReturned":
                row = self.sites[event["site"]]
                since = "" if row.away_since is None else f" after {_duration(at - row.away_since)}"
                self._there(event["site"]).doing = "back"
                return [f"{event['site']} is back{since} and takes part again"]
            case "PauseRequested":
                self.paused = f"paused by {event['by']}"
                return [f"paused by {event['by']}: what the sites have begun they finish, then nothing begins"]
            case "Resumed":
                self.paused = ""
                return [f"resumed by {event['by']}"]
            case "CentralDone":
                return self._central(event, at)
            case "CentreFailed":
                more = advice(event["code"])
                return [f"the centre failed: {_code(event['code'])}{more and '. ' + more}"]
            case "AbortRequested":
                return [f"aborted by {event['by']}"]
            case _:
                return []

    def _answered(self, event: JsonObject) -> str:
        row = self.sites[event["site"]]
        row.doing = {"allow": "allows", "confirm": "asks its custodian"}.get(event["verdict"], "refuses")
        refusal = event["decision"].get("refusal") or {}
        row.note, row.out = refusal.get("code", ""), False
        why = f" ({row.note}): {refusal.get('message') or said(row.note)}" if row.note else ""
        return f"{event['site']} {row.doing}{why}"

    def _there(self, site: str) -> SiteRow:
        row = self.sites[site]
        row.away_since, row.note = None, ""
        return row

    def _away(self, sites: Iterable[str], task_id: str, code: str, at: float) -> list[str]:
        lines = []
        for site in sites:
            row = self.sites[site]
            row.doing, row.note, row.total = "away", code, 0
            row.away_since = at if row.away_since is None else row.away_since
            lines.append(f"{site} is away at {task_id}: {_code(code)}")
        return lines

    def _deadline(self, task_id: str, at: float) -> list[str]:
        if task_id == "offer":
            return ["the deadline for answers has passed"]
        only_training = task_id.partition("/")[0] in ("fingerprint", "train", "baseline", "validate")
        late = [
            site
            for site, row in sorted(self.sites.items())
            if row.done != task_id and not row.out and row.away_since is None and (row.trains or not only_training)
        ]
        return self._away(late, task_id, "too_late", at)

    def _now(self, event: JsonObject, at: float) -> list[str]:
        """What the events do not say: the machine's own conclusions, and the centre's troubles."""
        lines = []
        if event["task_id"]:
            self._step(event["task_id"])
        elif event["phase"] == "offered":
            self.phase = "offered"
        for site, row in self.sites.items():
            if site in event["absent"] and row.away_since is None:
                row.doing, row.away_since, row.total = "away", at, 0
            elif site not in event["absent"] and row.away_since is not None:
                self._there(site).doing = "back"
        if event["paused"] and not self.paused:
            lines.append(f"{paused_words(event['pause_reason'])}; `run.resume()` lets it go on")
        self.paused = event["pause_reason"] if event["paused"] else ""
        sites = tuple(event["waiting_for_sites"])
        if sites and sites != self.waits_for_sites:
            lines.append(self._waiting_words(sites))
        elif self.waits_for_sites and not sites:
            lines.append("no longer waiting for sites")
        if event["waiting_for"] and event["waiting_for"] != self.waits_for:
            lines.append(f"waits for {said(event['waiting_for'])}")
        elif self.waits_for and not event["waiting_for"]:
            lines.append("the centre goes on")
        self.waits_for_sites, self.waits_for = sites, event["waiting_for"]
        return lines

    def _waiting_words(self, sites: tuple[str, ...]) -> str:
        if self.on_dropout == "wait":
            return f"waits for {', '.join(sites)}, as the job asks (on_dropout: wait)"
        return f"waits for {', '.join(sites)}: {self.min_sites} of {sum(r.trains for r in self.sites.values())} needed"

    def _central(self, event: JsonObject, at: float) -> list[str]:
        self._step(event["task_id"])
        phase, _, number = event["task_id"].partition("/")
        if phase == "plan":
            return [f"planned from the merged fingerprint; plan {event['document']['plan_hash'][:19]}…"]
        if phase != "aggregate":
            return []
        closed, document = int(number), event["document"]
        parts = []
        for site, values in sorted(document["sites"].items()):
            row, incoming = self._there(site), values.get("incoming") or {}
            row.loss = values["train_loss"] if values["train_loss"] is not None else row.loss
            row.dice = incoming.get("val_dice") if incoming.get("val_dice") is not None else row.dice
            shown = f"{site} loss {_number(row.loss)}"
            parts.append(shown if row.dice is None else f"{shown} val Dice {_number(row.dice)}")
        lines = []
        for site, code in sorted((event.get("refused") or document.get("refused") or {}).items()):
            self.sites[site].note = code
            lines.append(f"round {closed}: the update of {site} is refused: {_code(code)}")
        if not document["sites"]:
            return lines
        self.round_seconds[closed], self.spent = self.spent, 0.0
        for site, flags in sorted((event.get("flags") or {}).items()):
            self.sites[site].note = ", ".join(flags)
            lines += [f"round {closed}: {site} is conspicuous: {_code(flag)}" for flag in flags]
        return [*lines, f"round {closed}/{self.rounds} closed: {', '.join(parts)}{self._left_words(at)}"]

    def _step(self, task_id: str) -> None:
        self.phase, _, number = task_id.partition("/")
        if self.phase in ("train", "aggregate") and number:
            self.round = int(number)

    def _left_words(self, now: float) -> str:
        left = self.seconds_left(now)
        most = "at most " if self.may_stop_early and self.phase in _BEFORE_THE_TEST else ""
        return "" if left is None else f"; {most}about {_duration(left)} left"

    def seconds_left(self, now: float) -> float | None:
        """From the rounds so far; local baselines take about as long as all rounds, testing about two rounds.

        None before the first round is closed, and while the run waits for somebody: that takes as long as it takes.
        """
        if not self.round_seconds or self.paused or self.waits_for_sites or self.waits_for or self.phase == "offered":
            return None
        one = sum(self.round_seconds.values()) / len(self.round_seconds)
        if self.phase in _BEFORE_THE_TEST:
            closed = self.rounds if self.phase == "validate" else max(self.round_seconds)
            begun = min(self.spent + max(now - self.heard_at, 0.0), one) if self.phase == "train" else 0.0
            ahead = max(one * (self.rounds - closed) - begun, 0.0)
            return ahead + 2 * one + (one * self.rounds if self.baseline else 0.0)
        if self.phase == "baseline":
            shares = [row.now / row.total for row in self.sites.values() if row.total]
            return one * self.rounds * (1 - min(shares, default=0.0)) + 2 * one
        return 2 * one

    def draw(self, now: float) -> Group:
        word = _WORDS.get(self.phase, self.phase)
        where = f" · round {self.round} of {self.rounds}" if self.phase in ("train", "aggregate") else ""
        head = Text(f"{word}{where} · {_duration(now - self.began)} so far{self._left_words(now)}", style="bold")
        troubles = []
        if self.paused:
            troubles.append(Text(paused_words(self.paused), style="yellow"))
        if self.waits_for_sites:
            troubles.append(Text(self._waiting_words(self.waits_for_sites), style="yellow"))
        if self.waits_for:
            troubles.append(Text(f"waits for {said(self.waits_for)}", style="yellow"))
        table = Table("site", "now", "", "loss", "val Dice", "", box=None, pad_edge=False)
        for site, row in sorted(self.sites.items()):
            bar = ProgressBar(total=row.total, completed=row.now, width=24) if row.total else ""
            table.add_row(site, row.doing, bar, _number(row.loss), _number(row.dice), self._note(site, row, now))
        return Group(head, *troubles, table)

    def _note(self, site: str, row: SiteRow, now: float) -> str:
        if row.away_since is None:
            return ", ".join(said(code) for code in row.note.split(", ")) if row.note else ""
        goes_on = "the run waits for it" if site in self.waits_for_sites else "the run goes on without it"
        return f"away since {_duration(now - row.away_since)}; {goes_on}"


class CentreClock:
    """The centre's time, as far as its messages tell: no message can be older than what it says."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._ahead: float | None = None

    def hear(self, at: float) -> None:
        ahead = at - self._monotonic()
        self._ahead = ahead if self._ahead is None else max(ahead, self._ahead)

    def now(self) -> float:
        return self._monotonic() + (self._ahead or 0.0)


def show_live(run: Run, console: Console | None = None) -> None:
    """Follow a run until it ends, from its beginning, however long ago that was."""
    console = console or Console()
    picture = Picture.of(run.state())
    clock = CentreClock(time.monotonic)
    clock.hear(picture.began)
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, get_renderable=lambda: picture.draw(clock.now())) as live:
            for kind, event in run.events():
                clock.hear(event["at"])
                for line in picture.hear(kind, event):
                    live.console.print(line, highlight=False, markup=False)
        return
    for line in told(picture, run.events()):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def told(picture: Picture, events: Iterable[tuple[str, JsonObject]]) -> Iterable[str]:
    """The whole run as lines; each phase is named as it begins."""
    spoken = ""
    for kind, event in events:
        lines = picture.hear(kind, event)
        if picture.phase != spoken and picture.phase in _WORDS and picture.phase not in _UNSPOKEN:
            spoken = picture.phase
            yield f"{_WORDS[spoken]} …"
        yield from lines


def _trains(task_id: str) -> bool:
    return task_id.partition("/")[0] in ("train", "aggregate")


def _code(code: str) -> str:
    """A code in words, with the code itself where it says something else."""
    words = said(code)
    return words if words == code else f"{words} ({code})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
