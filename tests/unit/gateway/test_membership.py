"""A gateway looks after its certificate: what it asks, keeps, takes up, passes over, and says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from fakes.keyrings import NOW, make_keyring
from fakes.members import joined, member_home
from msfl.gateway.home import Home
from msfl.gateway.link import LineDown, Link, NotWanted
from msfl.gateway.membership import Membership
from msfl.orchestrator.keyring.keyring import Enrolled, Keyring
from msfl.protos.audit_log import AuditLog
from msfl.protos.certificates import certificate_facts
from msfl.protos.channel import dial


class Centre(Link):
    """A line at whose other end is the keyring itself, or nobody."""

    def __init__(self, keyring: Keyring, home: Home) -> None:
        super().__init__(dial("127.0.0.1:1", keyring.ca_pem))
        self.keyring, self.home = keyring, home
        self.now = NOW
        self.clock_there: datetime | None = None  # the same clock, unless a story says otherwise
        self.down = False
        self.asked = 0
        self.dialled = 0
        self.instead: bytes | None = None

    def renew(self, csr_pem: bytes, proof: bytes) -> bytes:
        self.asked += 1
        if self.down:
            raise LineDown("nobody there")
        if self.instead is not None:
            return self.instead
        shown = self.home.identity().certificate_pem
        answer = self.keyring.renew(
            certificate_pem=shown, csr_pem=csr_pem, proof=proof, now=self.clock_there or self.now
        )
        if not isinstance(answer, Enrolled):
            raise NotWanted("PERMISSION_DENIED", answer.message)
        return answer.certificate_pem

    def switch(self, channel: grpc.Channel) -> None:
        super().switch(channel)
        self.dialled += 1


class Site:
    def __init__(self, folder: Path) -> None:
        self.keyring = make_keyring(folder)
        self.home = member_home(folder / "home", self.keyring)
        self.line = Centre(self.keyring, self.home)
        self.audit = AuditLog(folder / "audit.jsonl", "gateway site-a")
        self.audit_file = folder / "audit.jsonl"
        self.membership = Membership(self.home, self.line, self.audit, lambda: self.line.now)

    def on_day(self, day: float) -> None:
        self.line.now = NOW + timedelta(days=day)
        self.membership.look_after()

    def valid_until(self) -> datetime:
        return certificate_facts(self.home.identity().certificate_pem, self.keyring.ca_pem).not_after


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.line.close()
    site.audit.close()


def test_nothing_happens_while_there_is_time(site: Site) -> None:
    site.on_day(0)
    site.on_day(19)
    assert (site.line.asked, site.line.dialled) == (0, 0)


def test_in_the_last_third_it_is_renewed_and_then_dialled_with(site: Site) -> None:
    site.on_day(21)
    assert (site.line.asked, site.line.dialled) == (1, 0)
    assert site.valid_until() == NOW + timedelta(days=51)
    entry = json.loads(site.audit_file.read_bytes())
    assert (entry["action"], entry["object"]) == ("certificate renewed", "site-a")
    site.on_day(21)
    assert (site.line.asked, site.line.dialled) == (1, 1)
    site.on_day(45)
    site.on_day(45)
    assert (site.line.asked, site.line.dialled) == (2, 2)


def test_a_clock_that_is_weeks_ahead_does_not_renew_every_second(site: Site) -> None:
    site.line.clock_there = NOW
    site.line.now = NOW + timedelta(days=25)
    for _ in range(5):
        site.membership.look_after()
    assert (site.line.asked, site.line.dialled) == (1, 1)


def test_without_an_answer_the_old_one_stays_and_it_does_not_ask_every_second(site: Site) -> None:
    before = site.home.identity()
    site.line.down = True
    site.on_day(21)
    site.on_day(21)
    assert site.line.asked == 1
    assert site.home.identity() == before
    assert site.audit_file.read_bytes() == b""


def test_a_refusal_is_said_with_its_reason(site: Site) -> None:
    (site.keyring._folder / "sites/site-a.json").unlink()
    with capture_logs() as said:
        site.on_day(21)
    assert "no member of this federation" in said[0]["why"]


def test_a_certificate_that_is_not_for_this_site_is_not_kept(site: Site) -> None:
    before = site.home.identity()
    site.line.instead = joined(site.keyring, "site-b", NOW + timedelta(days=21)).certificate_pem
    with capture_logs() as said:
        site.on_day(21)
    assert "not for site-a" in said[0]["why"]
    assert site.home.identity() == before


def test_what_staff_put_there_is_taken_up_while_the_gateway_runs(site: Site) -> None:
    site.home.write_identity(joined(site.keyring))
    site.on_day(1)
    site.on_day(1)
    assert site.line.dialled == 1


def test_what_is_of_no_use_is_passed_over_and_said_once(site: Site) -> None:
    site.home.write_identity(joined(site.keyring, "site-b"))
    with capture_logs() as said:
        site.on_day(1)
        site.on_day(1)
    assert site.line.dialled == 0
    assert ["not for site-a" in line["why"] for line in said] == [True]


def test_an_unreadable_file_does_not_end_anything(site: Site) -> None:
    site.home.identity_file.write_bytes(b"torn")
    with capture_logs() as said:
        site.on_day(1)
    assert "enrol --again" in said[0]["why"]


def test_once_expired_it_says_so_once_and_what_to_do(site: Site) -> None:
    site.line.down = True
    with capture_logs() as said:
        site.on_day(29)
        site.membership.say_if_expired()
        assert not [line for line in said if line["log_level"] == "error"]
        site.on_day(31)
        site.membership.say_if_expired()
        site.membership.say_if_expired()
    (line,) = [line for line in said if line["log_level"] == "error"]
    assert line["expired_at"] == "2026-12-24 12:00:00 UTC"
    assert "msfl gateway enrol --again" in line["do"]
    assert "token create site-a" in line["do"]
