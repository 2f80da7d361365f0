"""What policies have been used for: runs begun and rounds trained, per policy id, durable before they happen; which
signed jobs have been used, so that none can be used twice; and how often and how much each run has sent.

Budgets (`approval.max_runs`, `max_rounds`) are compared with these counts, so a count that is lost would be a budget
that is not kept: SQLite with `synchronous=FULL`, one row per run and per round, repeated entries count once.
"""

from __future__ import annotations

from pathlib import Path

from msfl.gateway.durable import DurableTables
from msfl.gateway.egress import Allowance

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, policy_id TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rounds (
    run_id TEXT NOT NULL, round INTEGER NOT NULL, policy_id TEXT NOT NULL, PRIMARY KEY (run_id, round)
) STRICT;
CREATE TABLE IF NOT EXISTS jobs (nonce TEXT PRIMARY KEY, run_id TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS sent (
    run_id TEXT NOT NULL, key TEXT NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (run_id, key)
) STRICT;
"""


class Ledger:
    def __init__(self, file: Path) -> None:
        self._tables = DurableTables(file, _SCHEMA)

    def begin_run(self, run_id: str, policy_id: str, most: int) -> bool:
        """Count a run that is about to start its worker. False: `most` runs of this policy have begun already.

        Runs that were allowed and then not started, because others refused, use nothing up.
        """
        self._tables.do(
            "INSERT OR IGNORE INTO runs SELECT ?1, ?2 WHERE (SELECT count(*) FROM runs WHERE policy_id = ?2) < ?3",
            run_id,
            policy_id,
            most,
        )
        return bool(self._count("SELECT count(*) FROM runs WHERE run_id = ?", run_id))

    def begin_round(self, run_id: str, round: int, policy_id: str) -> None:
        self._tables.do("INSERT OR IGNORE INTO rounds VALUES (?, ?, ?)", run_id, round, policy_id)

    def claim(self, nonce: str, run_id: str) -> bool:
        """False when this signed job was used for another run before: somebody plays it again."""
        self._tables.do("INSERT OR IGNORE INTO jobs VALUES (?, ?)", nonce, run_id)
        ((kept,),) = self._tables.ask("SELECT run_id FROM jobs WHERE nonce = ?", nonce)
        return bool(kept == run_id)

    def send(self, run_id: str, key: str, size: int, most: Allowance) -> bool:
        """Count a sealed result that is about to leave. False: with it the run would send too much, or too often."""
        self._tables.do(
            "INSERT OR IGNORE INTO sent SELECT ?1, ?2, ?3 WHERE"
            " (SELECT count(*) < ?4 AND coalesce(sum(bytes), 0) + ?3 <= ?5 FROM sent WHERE run_id = ?1)",
            run_id,
            key,
            size,
            most.uploads,
            most.bytes,
        )
        return self._tables.ask("SELECT bytes FROM sent WHERE run_id = ? AND key = ?", run_id, key) == [(size,)]

    def runs(self, policy_id: str) -> int:
        return self._count("SELECT count(*) FROM runs WHERE policy_id = ?", policy_id)

    def rounds(self, policy_id: str) -> int:
        return self._count("SELECT count(*) FROM rounds WHERE policy_id = ?", policy_id)

    def _count(self, sql: str, value: str) -> int:
        ((n,),) = self._tables.ask(sql, value)
        return int(n)

    def close(self) -> None:
        self._tables.close()
