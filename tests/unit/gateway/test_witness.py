"""A site shows its audit log to the centre and keeps the centre's: when, and what it does when the two disagree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from structlog.testing import capture_logs

from fakes.audit_logs import Party, Time
from msfl.gateway.link import LineDown, Link, NotWanted
from msfl.gateway.witness import Witness
from msfl.protos.notary import Shown


class Line:
    """A line at whose other end is the centre's notary itself, or nobody."""

    def __init__(self, centre: Party) -> None:
        self.centre = centre
        self.down = False
        self.asked = 0

    def witness(self, mine: Shown) -> Shown:
        self.asked += 1
        if self.down:
            raise LineDown("nobody there")
        if (refused := self.centre.notary.take("site:site-a", mine)) is not None:
            raise NotWanted("FAILED_PRECONDITION", refused.code)
        return self.centre.notary.show()


class Story:
    def __init__(self, folder: Path) -> None:
        time = Time()
        self.folder = folder
        self.site, self.centre = Party(folder, "site:site-a", time), Party(folder, "centre:demo", time)
        self.line = Line(self.centre)
        self.witness = Witness(self.site.notary, cast(Link, self.line), self.site.log, "demo", time)

    def alarms(self) -> list[bytes]:
        return [line for line in self.site.lines() if b"audit alarm" in line]


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path)
    yield story
    story.site.close()
    story.centre.close()


def test_each_keeps_the_others_newest_and_an_unchanged_log_is_not_shown_again(story: Story) -> None:
    story.site.work(3)
    story.witness.exchange()
    assert b"audit key seen" in story.site.lines()[-1]  # Of the centre; so the log has grown once more.
    story.witness.exchange()
    asked = story.line.asked
    story.witness.exchange()
    assert story.line.asked == asked == 2
    story.site.work(1)
    story.witness.exchange()
    assert story.line.asked == 3
    kept = (story.centre.folder / "checkpoints.jsonl").read_bytes().splitlines()
    assert len(kept) == 4  # three of the site's; the centre's own, shown thrice, has not grown


def test_a_line_that_is_down_is_tried_again(story: Story) -> None:
    story.line.down = True
    with capture_logs() as said:
        story.witness.exchange()
    assert said[-1]["log_level"] == "info"
    story.line.down = False
    story.witness.exchange()
    assert story.line.asked == 2
    assert story.alarms() == []


def test_a_centre_that_tells_another_history_is_written_down_once(story: Story) -> None:
    story.centre.work(5)
    story.witness.exchange()
    twin = story.centre.twin(story.folder / "twin")
    story.centre.work(2)
    story.site.work(1)
    story.witness.exchange()
    story.line.centre = twin
    with capture_logs() as said:
        for _ in range(3):
            story.site.work(1)
            story.witness.exchange()
    assert len(story.alarms()) == len(said) == 1
    assert b"history_" in story.alarms()[0]
    twin.close()


def test_a_centre_that_was_shown_another_history_of_ours_says_so(story: Story) -> None:
    twin = story.site.twin(story.folder / "twin")
    story.site.work(4)
    story.witness.exchange()
    twin.work(1)
    witness = Witness(twin.notary, cast(Link, story.line), twin.log, "demo", story.site.time)
    with capture_logs() as said:
        witness.exchange()
    assert "contradicts itself" in said[0]["event"]
    assert any(b"audit alarm" in line for line in twin.lines())
    twin.close()


def test_a_checkpoint_that_was_half_written_by_a_killed_process_does_no_harm(story: Story) -> None:
    story.site.notary.show()
    story.site.close()
    file = story.site.folder / "checkpoints.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:100])
    story.site.open()
    assert file.read_bytes() == whole
