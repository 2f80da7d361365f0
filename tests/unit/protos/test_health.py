"""Measured facts in, findings out: thresholds, and who is told to do what."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from fakes.keyrings import NOW
from msfl.protos.certificates import CertificateFacts
from msfl.protos.health import (
    GIB,
    MIB,
    DiskFacts,
    Fault,
    Finding,
    LineFacts,
    Peer,
    Status,
    Step,
    StepFacts,
    healthy,
    judge_certificate,
    judge_disk,
    judge_expiry,
    judge_line,
    judge_newest,
    judge_peer,
    judge_skew,
    report,
    span,
    worst_first,
)
from msfl.protos.messages import PROTOCOL
from msfl.protos.software import SOFTWARE

DAY = timedelta(days=1)
OK, WARN, BAD = Status.OK, Status.WARN, Status.BAD


def certificate(left: timedelta, *, fits: bool = True, signed: bool = True, starts: timedelta = -DAY) -> list[Finding]:
    facts = CertificateFacts(("msfl://site/site-a",), NOW + starts, NOW + left, signed, fits)
    return judge_certificate("it", "cert.pem", facts, NOW, soon=7 * DAY, renew="renew it")


@pytest.mark.parametrize(
    ("left", "status", "what"),
    [
        (30 * DAY, OK, "good for 30 days, for msfl://site/site-a"),
        (6 * DAY, WARN, "expires in 6 days, at 2026-11-30 12:00 UTC"),
        (timedelta(0), BAD, "has expired at 2026-11-24 12:00 UTC"),
        (-DAY, BAD, "has expired at 2026-11-23 12:00 UTC"),
    ],
)
def test_a_certificate_by_what_is_left_of_it(left: timedelta, status: Status, what: str) -> None:
    (found,) = certificate(left)
    assert found.status is status
    assert what in found.what
    assert found.do == ("" if status is OK else "renew it")


def test_a_certificate_may_have_several_things_wrong_with_it() -> None:
    found = certificate(-DAY, fits=False, signed=False)
    assert [f.status for f in found] == [BAD, BAD, BAD]
    assert ["key" in f.what for f in found] == [True, False, False]
    assert "CA" in found[1].what


def test_a_certificate_of_the_future_is_a_matter_of_the_clock() -> None:
    (found,) = certificate(30 * DAY, starts=DAY)
    assert (found.status, found.do) == (BAD, "set the clock (NTP)")


@pytest.mark.parametrize(("left", "status"), [(40, OK), (29, WARN), (0, BAD), (-1, BAD)])
def test_a_document_in_force(left: int, status: Status) -> None:
    assert judge_expiry("trust", "the root", "x", NOW + left * DAY, NOW, 30 * DAY, "do").status is status


@pytest.mark.parametrize(
    ("free", "largest", "status"),
    [
        (6 * GIB, 0, OK),
        (5 * GIB - 1, 0, WARN),
        (500 * MIB, 0, WARN),
        (500 * MIB - 1, 0, BAD),
        (6 * GIB, 2 * GIB + 1, WARN),
    ],
)
def test_space_is_measured_against_the_largest_file_of_a_run(free: int, largest: int, status: Status) -> None:
    (found,) = judge_disk(DiskFacts("/home", free, None, "", largest))
    assert found.status is status


def test_a_disk_that_nobody_can_write_to_and_one_without_inodes() -> None:
    (found,) = judge_disk(DiskFacts("/home", 100 * GIB, None, "Read-only file system"))
    assert (found.status, "Read-only file system" in found.what) == (BAD, True)
    (found,) = judge_disk(DiskFacts("/home", 100 * GIB, 12))
    assert (found.status, found.what) == (BAD, "12 inodes left")


@pytest.mark.parametrize(("ahead", "status"), [(-3600, OK), (5, OK), (60, WARN), (3600, BAD)])
def test_a_clock_that_was_set_back(ahead: float, status: Status) -> None:
    found = judge_newest(NOW + timedelta(seconds=ahead), NOW, "log.jsonl")
    assert found.status is status
    assert ("NTP" in found.do) is (status is not OK)


@pytest.mark.parametrize(
    ("skew", "uncertainty", "status", "way"),
    [
        (0, 0.01, OK, ""),
        (29, 0, OK, ""),
        (45, 20, OK, ""),  # a slow line says nothing certain
        (45, 1, WARN, "45 s behind"),
        (-45, 1, WARN, "45 s ahead of"),
        (-3600, 1, BAD, "60 min ahead of"),
    ],
)
def test_two_clocks(skew: float, uncertainty: float, status: Status, way: str) -> None:
    found = judge_skew(timedelta(seconds=skew), timedelta(seconds=uncertainty), "there:1")
    assert found.status is status
    assert way in found.what


def test_a_line_is_told_step_by_step_up_to_the_first_that_fails() -> None:
    steps = (StepFacts(Step.DNS, 0.002), StepFacts(Step.TCP, 5.0, Fault.NO_ANSWER, "timed out"))
    name, tcp = judge_line(LineFacts("there:1", steps))
    assert name.line() == "ok    dns: works, 2 ms [there:1]"
    assert tcp.status is BAD
    assert "firewall" in tcp.why
    assert "outgoing TCP" in tcp.do


@pytest.mark.parametrize("fault", list(Fault))
def test_every_fault_has_its_reason_and_remedy(fault: Fault) -> None:
    (found,) = judge_line(LineFacts("there:1", (StepFacts(Step.TLS, 0.1, fault),)))
    assert found.status is BAD
    assert found.why
    assert found.do


@pytest.mark.parametrize(
    ("protocol", "software", "status"),
    [(PROTOCOL, SOFTWARE, OK), (PROTOCOL, "msfl 9.9", WARN), (PROTOCOL + 1, SOFTWARE, BAD)],
)
def test_the_other_ends_version(protocol: int, software: str, status: Status) -> None:
    found = judge_peer(Peer(protocol, software, timedelta(0), timedelta(0)), "there:1")
    assert [f.status for f in found if f.check == "version"] == [status]


def test_worst_first_and_only_bad_is_not_healthy() -> None:
    findings = [
        Finding("a", OK, "fine"),
        Finding("b", BAD, "broken", "here", "because", "mend"),
        Finding("c", WARN, "hm"),
    ]
    ordered = worst_first(findings)
    assert [f.check for f in ordered] == ["b", "c", "a"]
    assert not healthy(findings)
    assert healthy([findings[0], findings[2]])
    lines = report(ordered, as_json=False).splitlines()
    assert lines[0] == "bad   b: broken [here] (because) → mend"
    assert lines[-1] == "1 bad, 1 to look at, 1 well"
    assert json.loads(report(ordered, as_json=True))[0] == {
        "check": "b",
        "status": "bad",
        "what": "broken",
        "where": "here",
        "why": "because",
        "do": "mend",
    }


def test_lengths_of_time_as_people_say_them() -> None:
    said = [span(timedelta(seconds=s)) for s in (4.2, 119, 720, 7200, 172800, 2_000_000)]
    assert said == ["4 s", "119 s", "12 min", "2 h", "2 days", "23 days"]
