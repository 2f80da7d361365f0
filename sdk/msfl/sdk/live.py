"""A run as it happens, in a terminal or a notebook: phase, round, each site's loss and validation Dice, time left.

On a terminal a table is redrawn in place; elsewhere (a log, CI) one line is printed for each thing that happens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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
    "aggregate": "averaging",
    "validate": "validating",
    "collect": "collecting",
    "baseline": "local baselines",
    "candidates": "exchanging models",
    "evaluate": "testing",
    "export": "exporting",
}


@dataclass
class SiteRow:
    doing: str = "asked"
    done: int = 0
    total: int = 0
    loss: float | None = None
    dice: float | None = None
    note: str = ""


@dataclass
class Picture:
    """What the screen shows; fed with events, pure but for the clock that is passed in."""

    rounds: int
    baseline: bool
    sites: dict[str, SiteRow]
    phase: str = "offered"
    round: int = 0
    round_seconds: list[float] = field(default_factory=list)
    began: float = 0.0
    step_began: float = 0.0
    closed: int = 0

    def hear(self, kind: str, said: JsonObject, now: float) -> str | None:
        """Take in one event; a line worth printing, or None."""
        match kind:
            case "Progress":
                row = self.sites[said["site"]]
                row.doing, row.done, row.total = said["phase"].replace("_", " "), said["done"], said["total"]
                row.loss = said["metrics"].get("train_loss", row.loss)
                self._step(said["task_id"], now)
                return None
            case "Answered":
                row = self.sites[said["site"]]
                row.doing = {"allow": "allows", "confirm": "asks its custodian"}.get(said["verdict"], "refuses")
                refusal = said["decision"].get("refusal") or {}
                row.note = refusal.get("code", "")
                why = f" ({row.note}): {refusal.get('message', '')}" if row.note else ""
                return f"{said['site']} {row.doing}{why}"
            case "SiteFailed" | "SiteSilent":
                self.sites[said["site"]].doing, self.sites[said["site"]].note = "out", said["code"]
                return f"{said['site']} left at {said['task_id']}: {said['code']}"
            case "TaskDone":
                self._step(said["task_id"], now)
                self.sites[said["site"]].doing, self.sites[said["site"]].total = "done", 0
                return None
            case "CentralDone":
                return self._central(said, now)
            case "CentreFailed":
                return f"the centre failed: {said['code']}"
            case "AbortRequested":
                return f"aborted by {said['by']}"
            case _:
                return None

    def _central(self, said: JsonObject, now: float) -> str | None:
        phase, _, number = said["task_id"].partition("/")
        if phase == "plan":
            return f"planned from the merged fingerprint; plan {said['document']['plan_hash'][:19]}…"
        if phase != "aggregate":
            return None
        self.closed = int(number)
        self.round_seconds.append(now - self.step_began)
        parts = []
        for site, values in sorted(said["document"]["sites"].items()):
            row, incoming = self.sites[site], values.get("incoming") or {}
            row.loss = values["train_loss"] if values["train_loss"] is not None else row.loss
            row.dice = incoming.get("val_dice") if incoming.get("val_dice") is not None else row.dice
            shown = f"{site} loss {_number(row.loss)}"
            parts.append(shown if row.dice is None else f"{shown} val Dice {_number(row.dice)}")
        return f"round {self.closed}/{self.rounds} closed: {', '.join(parts)}{self.left_words(now)}"

    def _step(self, task_id: str, now: float) -> None:
        phase, _, number = task_id.partition("/")
        if phase == "train" and number and int(number) != self.round:
            self.round, self.step_began = int(number), now
        self.phase = phase

    def left_words(self, now: float) -> str:
        left = self.seconds_left(now)
        return "" if left is None else f"; about {_duration(left)} left"

    def seconds_left(self, now: float) -> float | None:
        """From the rounds so far; local baselines take about as long as all rounds, testing about two rounds."""
        if not self.round_seconds:
            return None
        one = sum(self.round_seconds) / len(self.round_seconds)
        ahead = one * (self.rounds - self.closed)
        if self.phase in ("start", "prepare", "train", "aggregate", "validate"):
            return ahead + 2 * one + (one * self.rounds if self.baseline else 0.0)
        if self.phase == "baseline":
            shares = [row.done / row.total for row in self.sites.values() if row.total]
            return one * self.rounds * (1 - min(shares, default=0.0)) + 2 * one
        return 2 * one

    def draw(self, now: float) -> Group:
        word = _WORDS.get(self.phase, self.phase)
        where = f" · round {self.round} of {self.rounds}" if self.phase in ("train", "aggregate") else ""
        head = Text(f"{word}{where} · {_duration(now - self.began)} so far{self.left_words(now)}", style="bold")
        table = Table("site", "now", "", "loss", "val Dice", "", box=None, pad_edge=False)
        for site, row in sorted(self.sites.items()):
            bar = ProgressBar(total=row.total, completed=row.done, width=24) if row.total else ""
            table.add_row(site, row.doing, bar, _number(row.loss), _number(row.dice), row.note)
        return Group(head, table)


def show_live(run: Run, console: Console | None = None) -> None:
    """Follow a run until it ends."""
    console = console or Console()
    state = run.state()
    picture = Picture(
        rounds=state["spec"]["rounds"],
        baseline=state["spec"]["baseline"] is not None,
        sites={site: SiteRow() for site in state["sites"]},
        began=time.monotonic(),
        step_began=time.monotonic(),
    )
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, get_renderable=lambda: picture.draw(time.monotonic())) as live:
            for kind, said in run.events():
                if line := picture.hear(kind, said, time.monotonic()):
                    live.console.print(line, highlight=False)
        return
    spoken = ""
    for kind, said in run.events():
        line = picture.hear(kind, said, time.monotonic())
        if picture.phase != spoken and picture.phase in _WORDS and picture.phase not in ("aggregate", "collect"):
            spoken = picture.phase
            console.print(f"{_WORDS[spoken]} …", highlight=False)
        if line:
            console.print(line, highlight=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
