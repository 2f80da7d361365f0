"""What a gateway keeps of a run comes back as it was, and what it did not write is told apart."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from fakes.governance import NOW, World
from msfl.gateway.machine import SealedResult, SiteRun, Stage
from msfl.gateway.record import BadRecord, Kept, Papers, RunRecord, boot_id, forget
from msfl.protos.messages import TaskOrder, TaskReport

REPORT = TaskReport("run-1", "train/1", 2, key="k", bytes_up=7, seconds=1.5, peak_rss_mib={"worker": 80.5})
STATE = SiteRun(
    "run-1",
    stage=Stage.SENDING,
    generation=2,
    worker=True,
    sealed=SealedResult(REPORT, "result.sealed"),
    attempts={"train/1": 2},
    losses={"train/1": 1},
    reports={"prepare": TaskReport("run-1", "prepare", 1)},
)


def test_a_state_comes_back_but_for_the_task_under_way(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run-1")
    assert record.load() is None
    order = TaskOrder("run-1", "train/1", "train", 1, 1, {}, ())
    kept = Kept(SiteRun("run-1", stage=Stage.WORKING, task=order, attempts={"train/1": 1}), NOW, None, boot_id())
    record.save(kept)
    assert record.load() == Kept(SiteRun("run-1", stage=Stage.WORKING, attempts={"train/1": 1}), NOW, None, boot_id())
    record.save(Kept(STATE, NOW, NOW + timedelta(hours=1), used=7.5))
    assert record.load() == Kept(STATE, NOW, NOW + timedelta(hours=1), boot_id(), 7.5)
    assert record.living()


def test_the_papers_of_a_decision_come_back_without_the_users_token(tmp_path: Path) -> None:
    world = World()
    papers = Papers(b"spec", world.proof, world.user, b"statement", (b"one", b"two"), "policy", "sha256:00")
    record = RunRecord(tmp_path / "run-1")
    record.save_papers(papers)
    assert record.load_papers() == papers
    assert world.token not in (tmp_path / "run-1/papers.json").read_text()


@pytest.mark.parametrize("spoilt", [b"", b"{}", b'{"state": {"stage": "unheard of"}}', b"[1]", b"\xff"])
def test_a_record_that_this_gateway_did_not_write_is_no_record(tmp_path: Path, spoilt: bytes) -> None:
    record = RunRecord(tmp_path)
    (tmp_path / "state.json").write_bytes(spoilt)
    (tmp_path / "papers.json").write_bytes(spoilt)
    with pytest.raises(BadRecord):
        record.load()
    with pytest.raises(BadRecord):
        record.load_papers()


def test_what_is_forgotten_is_everything_but_the_count_of_attempts(tmp_path: Path) -> None:
    RunRecord(tmp_path).save(Kept(STATE))
    (tmp_path / "box/scratch").mkdir(parents=True)
    (tmp_path / "run.secret").write_bytes(b"x")
    (tmp_path / "papers.json").write_bytes(b"{}")
    forget(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"state.json"}
