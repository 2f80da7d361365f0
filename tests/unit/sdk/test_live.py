"""The live view: events in, lines out; and who comes back to a run sees what was seen the first time."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from msfl.policies.refusals import Code
from msfl.sdk.live import CentreClock, Picture, told
from msfl.sdk.words import said

JsonObject = dict[str, Any]
Heard = tuple[str, JsonObject]
SITES = ("site-a", "site-b", "site-c")
T0 = 1_800_000_000.0


def picture(**changes: Any) -> Picture:
    spec = {"rounds": 3, "baseline": None, "min_sites": 2, "on_dropout": "continue", "early_stopping": None}
    members = {site: {"trains": True} for site in SITES}
    return Picture.of({"spec": spec | changes, "sites": members, "submitted_at": T0})


class Story:
    """Events of a run, second by second of the centre's clock."""

    def __init__(self) -> None:
        self.at = T0
        self.events: list[Heard] = []

    def say(self, kind: str, after: float = 0.0, **event: Any) -> Story:
        self.at += after
        self.events.append((kind, {"event": kind, "at": self.at, **event}))
        return self

    def done(self, task: str, *sites: str, after: float = 0.0) -> Story:
        for site in sites or SITES:
            self.say("TaskDone", after, site=site, task_id=task, seconds=1.0)
            after = 0.0
        return self

    def closed(self, number: int, *sites: str, after: float = 1.0, **event: Any) -> Story:
        said = {site: {"train_loss": 0.5, "incoming": {"val_dice": 0.25 * number}} for site in sites or SITES}
        return self.say("CentralDone", after, task_id=f"aggregate/{number}", document={"sites": said}, **event)

    def round(self, number: int, seconds: float = 10.0) -> Story:
        return self.done(f"train/{number}", after=seconds - 1.0).closed(number)

    def now(self, after: float = 0.0, **changes: Any) -> Story:
        calm = {
            "phase": "running", "task_id": "train/1", "paused": False, "pause_reason": "", "waiting_for": "",
            "waiting_for_sites": [], "absent": [],
        }  # fmt: skip
        return self.say("Now", after, **(calm | changes))


def begun() -> Story:
    story = Story().say("Submitted", run_id="r", user="ada", dry_run=False)
    for site in SITES:
        story.say("Answered", 1.0, site=site, verdict="allow", decision={})
    return story.done("prepare", after=20.0)


def lines(story: Story, **spec: Any) -> list[str]:
    return list(told(picture(**spec), story.events))


def screen(seen: Picture, now: float) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(seen.draw(now))
    return console.export_text()


# ------------------------------------------------------------------- rounds and time


def test_a_run_is_told_round_by_round() -> None:
    assert lines(begun().round(1)) == [
        "site-a allows",
        "site-b allows",
        "site-c allows",
        "preparing …",
        "training …",
        "round 1/3 closed: site-a loss 0.500 val Dice 0.250, site-b loss 0.500 val Dice 0.250, "
        "site-c loss 0.500 val Dice 0.250; about 40 s left",
    ]


def test_time_left_comes_from_the_events_and_not_from_when_they_are_heard() -> None:
    seen = picture()
    for kind, event in begun().round(1).round(2).events:
        seen.hear(kind, event)
    assert seen.seconds_left(seen.heard_at) == pytest.approx(10 + 2 * 10)
    assert seen.seconds_left(seen.heard_at + 1000) == pytest.approx(30), "averaging has no share of a round"


def test_time_left_shrinks_while_a_round_is_trained() -> None:
    seen = picture()
    for kind, event in begun().round(1).now(task_id="train/2").events:
        seen.hear(kind, event)
    assert seen.seconds_left(seen.heard_at) == pytest.approx(40)
    assert seen.seconds_left(seen.heard_at + 4) == pytest.approx(36)
    assert seen.seconds_left(seen.heard_at + 400) == pytest.approx(30)


def test_a_pause_is_no_part_of_a_round() -> None:
    story = begun().round(1).say("PauseRequested", 2.0, by="ada").done("train/2", after=7.0)
    story.say("Resumed", 3600.0, by="ada").closed(2)
    seen = picture()
    for kind, event in story.events:
        seen.hear(kind, event)
    assert seen.round_seconds == {1: 10.0, 2: 10.0}
    assert seen.held == 3600.0


def test_nothing_is_promised_while_the_run_waits() -> None:
    for trouble in (
        {"paused": True, "pause_reason": "paused by ada"},
        {"waiting_for_sites": ["site-b"]},
        {"waiting_for": "disk"},
    ):
        seen = picture()
        for kind, event in begun().round(1).now(task_id="train/2", **trouble).events:
            seen.hear(kind, event)
        assert seen.seconds_left(seen.heard_at) is None


def test_a_run_that_may_stop_early_says_at_most() -> None:
    assert lines(begun().round(1), early_stopping={"patience": 1})[-1].endswith("; at most about 40 s left")


def test_the_last_rounds_of_a_run_that_stopped_early_are_not_waited_for() -> None:
    seen = picture(rounds=50, early_stopping={"patience": 1})
    for kind, event in begun().round(1).round(2).done("validate").events:
        seen.hear(kind, event)
    assert seen.seconds_left(seen.heard_at) == pytest.approx(20)


def test_the_centres_clock_is_told_between_its_messages_and_not_by_old_ones() -> None:
    mine = [50.0]
    clock = CentreClock(lambda: mine[0])
    clock.hear(T0)  # of yesterday, replayed
    clock.hear(T0 + 86_400)
    clock.hear(T0 + 10)
    mine[0] += 3
    assert clock.now() == T0 + 86_403


# ------------------------------------------------------------------- sites that leave and return


def test_a_silent_site_is_away_until_it_returns() -> None:
    story = begun().say("SiteSilent", 15.0, site="site-b", task_id="train/1", code="silent")
    seen = picture()
    assert list(told(seen, story.events))[-1] == "site-b is away at train/1: nothing is heard of the site (silent)"
    assert "away since 12 s; the run goes on without it" in screen(seen, seen.heard_at + 12)
    assert seen.hear(*story.say("SiteReturned", 40.0, site="site-b").events[-1]) == [
        "site-b is back after 40 s and takes part again"
    ]
    assert "away" not in screen(seen, seen.heard_at)


def test_a_deadline_names_who_missed_it() -> None:
    story = begun().done("train/1", "site-a", "site-c", after=5.0).say("DeadlinePassed", 60.0, task_id="train/1")
    assert lines(story)[-1] == "site-b is away at train/1: the site missed the deadline (too_late)"


def test_who_comes_back_to_a_run_finds_the_absent_even_if_no_event_names_them() -> None:
    seen = picture()
    for kind, event in begun().now(absent=["site-c"]).events:
        seen.hear(kind, event)
    assert "away since 5 s" in screen(seen, seen.heard_at + 5)
    seen.hear(*begun().now(absent=[]).events[-1])
    assert "away" not in screen(seen, seen.heard_at)


def test_a_run_that_lacks_sites_says_whom_it_waits_for() -> None:
    story = begun().now(absent=["site-b", "site-c"], waiting_for_sites=["site-b", "site-c"])
    seen = picture()
    assert list(told(seen, story.events))[-1] == "waits for site-b, site-c: 2 of 3 needed"
    assert "the run waits for it" in screen(seen, seen.heard_at)
    assert seen.hear(*story.now(absent=["site-c"]).events[-1]) == ["no longer waiting for sites"]
    assert list(told(picture(on_dropout="wait"), story.events[:-1]))[-1] == (
        "waits for site-b, site-c, as the job asks (on_dropout: wait)"
    )


def test_a_site_that_leaves_for_good_says_why_and_what_to_do() -> None:
    story = begun().say("SiteFailed", site="site-b", task_id="train/1", code="custodian_stopped")
    assert lines(story)[-1] == (
        "site-b is out at train/1: custodian stopped (custodian_stopped). "
        "The custodian stopped this run; ask at the site."
    )


# ------------------------------------------------------------------- harm


def test_a_refused_update_is_named_in_plain_words() -> None:
    story = begun().done("train/1").closed(1, "site-a", "site-c", refused={"site-b": "update_not_finite"}, flags={})
    told_lines = lines(story)
    assert (
        told_lines[-2]
        == "round 1: the update of site-b is refused: the update holds NaN or infinity (update_not_finite)"
    )
    assert told_lines[-1].startswith("round 1/3 closed: site-a loss")


def test_a_round_of_refused_updates_is_not_called_closed() -> None:
    story = begun().done("train/1")
    story.say("CentralDone", task_id="aggregate/1", document={"sites": {}, "refused": {"site-b": "seal_tag"}})
    assert lines(story)[-1] == "round 1: the update of site-b is refused: the update's seal is broken (seal_tag)"


def test_flags_are_shown_and_no_verdict() -> None:
    story = begun().done("train/1").closed(1, flags={"site-b": ["loss_rising", "update_outlier"]}, refused={})
    told_lines = lines(story)
    assert told_lines[-3] == (
        "round 1: site-b is conspicuous: its training loss has risen for several rounds (loss_rising)"
    )
    assert "(update_outlier)" in told_lines[-2]


# ------------------------------------------------------------------- pauses and the centre


def test_a_pause_and_its_end_are_said_once() -> None:
    story = begun().say("PauseRequested", by="ada").now(paused=True, pause_reason="paused by ada")
    story.now(after=60.0, paused=True, pause_reason="paused by ada").say("Resumed", by="ada").now()
    assert [line for line in lines(story) if "paused" in line or "resumed" in line] == [
        "paused by ada: what the sites have begun they finish, then nothing begins",
        "resumed by ada",
    ]


def test_a_run_that_paused_itself_says_why_and_what_to_do() -> None:
    story = begun().round(1).now(paused=True, pause_reason="the loss of site-b rises")
    assert lines(story)[-1] == "paused: the loss of site-b rises; `run.resume()` lets it go on"


def test_what_the_centre_lacks_is_said() -> None:
    story = begun().now(waiting_for="keyring").now(after=30.0)
    assert lines(story)[-2:] == [
        "waits for the centre's keyring, which does not answer; its operator must start it",
        "the centre goes on",
    ]


def test_a_resumed_run_begins_where_it_stopped() -> None:
    story = begun().round(1).say("AbortRequested", by="ada").say("Resumed", 7200.0, by="ada")
    story.now(phase="offered", task_id="")
    for site in SITES:
        story.say("Answered", 1.0, site=site, verdict="allow", decision={})
    seen = picture()
    shown = list(told(seen, story.done("train/2", after=9.0).closed(2).events))
    assert shown[-1].startswith("round 2/3 closed")
    assert seen.round_seconds == {1: 10.0, 2: 10.0}


@pytest.mark.parametrize("code", [*(c.value for c in Code), "seal_header_differs", "update_layout", "process_silent"])
def test_every_code_has_words(code: str) -> None:
    assert said(code)
    assert "_" not in said(code)
