"""The disk of a site is full, and its own worker may have filled it: who says stop, or revokes, is not kept waiting.

A worker ends first; what there is to write about it is written when there is room.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest

from fakes.governance import key
from fakes.governed_sites import PATIENCE_S, GovernedSite, later
from msfl.gateway import answers, home, record
from msfl.gateway.durable import DurableTables
from msfl.policies.encoding import encode
from msfl.policies.envelope import FEDERATION_ROOT, sign
from msfl.policies.refusals import Code
from msfl.protos.audit_log import AuditLog
from msfl.protos.messages import StopOrder, TrustPapers


def _full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def full_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as disk:
        disk.setattr("msfl.gateway.disk.RETRY_S", 0.05)
        disk.setattr(AuditLog, "write", _full)
        disk.setattr(record, "write", _full)
        disk.setattr(home, "write", _full)
        disk.setattr(DurableTables, "do", _full)
        yield


@pytest.fixture
def working(site: GovernedSite) -> GovernedSite:
    assert site.offer() == "allow"
    site.order()
    assert site.failure() == ""
    site.order("prepare")
    assert site.runtime.busy.wait(PATIENCE_S)
    (site.home.root / "stopped").mkdir()  # As a gateway makes it when it starts.
    return site


def custodian_stops(site: GovernedSite) -> None:
    answers.stop(site.home, "run-1", "cleo")
    asked = site.home.stop_asked("run-1")
    assert asked is not None
    site.runs[-1].custodian_stops(asked["by"])


def user_aborts(site: GovernedSite) -> None:
    site.runs[-1].hear(StopOrder("run-1", "aborted", 1))


def federation_revokes(site: GovernedSite) -> None:
    with pytest.raises(OSError, match="No space"):
        site.hear(site.papers(2, releases=(site.digest,)))
    site.runs[-1].look_again()


def federation_revokes_beside_a_new_root(site: GovernedSite) -> None:
    root = sign(encode(later(site.root)), FEDERATION_ROOT, [key("otto")])
    papers = site.papers(2, releases=(site.digest,))
    with pytest.raises(OSError, match="No space"):
        site.hear(TrustPapers((root,), papers.revocations, papers.timestamp))
    site.runs[-1].look_again()


def policy_is_taken_away(site: GovernedSite) -> None:
    (site.home.root / "policies/one.dsse").unlink()
    site.runs[-1].look_again()


WAYS = [
    (custodian_stops, Code.CUSTODIAN_STOPPED.value),
    (user_aborts, ""),
    (federation_revokes, Code.RELEASE_REVOKED.value),
    (federation_revokes_beside_a_new_root, Code.RELEASE_REVOKED.value),
    (policy_is_taken_away, Code.NO_POLICY.value),
]


@pytest.mark.parametrize(("end", "code"), WAYS)
def test_the_worker_ends_on_a_full_disk(working: GovernedSite, end: Callable[[GovernedSite], None], code: str) -> None:
    with full_disk():
        end(working)
        assert working.runtime.ended.wait(PATIENCE_S)
    if code:
        assert working.failure() == code, "and it is said once there is room to write it down"
    working.close()
    assert working.audited("run stopped") == [""]
    assert working.line.uploads == []
    assert len(working.runtime.started) == 1
    working.start_gateway()


def test_also_where_the_runs_own_thread_waits_for_room(working: GovernedSite) -> None:
    with full_disk():
        working.order("export")  # Refused, which is to be written down.
        custodian_stops(working)
        assert working.runtime.ended.wait(PATIENCE_S)
    assert working.failure() == Code.CUSTODIAN_STOPPED.value


def test_what_was_revoked_on_a_full_disk_lets_nothing_in(site: GovernedSite) -> None:
    with full_disk(), pytest.raises(OSError, match="No space"):
        site.hear(site.papers(2, releases=(site.digest,)))
    assert site.standing.revoked().releases == {site.digest}
    assert site.offer() == Code.RELEASE_REVOKED.value
    site.nothing_started("release_revoked")
