"""What policies have been used for: runs begun and rounds trained, per policy id, durable before they happen; which
signed jobs have been used, so that none can be used twice; and how often and how much each run has sent.

Budgets (`approval.max_runs`, `max_rounds`) are compared with these counts, so a count that is lost would be a budget
that is not kept: SQLite with `synchronous=FULL`, and one statement each compares and counts.

    one round    a run's round on one model that came in. Done again after a loss it is the same round, until its result
                 was sent `SENT_FOR_ONE` times; from then on, and on another model, it is one more
    one run      a run under one policy: resumed under another one, it is one of that one's runs, too

The audit log holds the same in other words (`recall`), so that a ledger that is lost, or put back from an older copy,
is made good at the next start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from msfl.gateway.durable import DurableTables
from msfl.gateway.egress import Allowance
from msfl.policies.audit import Entry
from msfl.protos.messages import result_key

SENT_FOR_ONE = 3  # A result is lost at the centre, or with a run that is resumed.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS begun (
    run_id TEXT NOT NULL, policy_id TEXT NOT NULL, PRIMARY KEY (run_id, policy_id)
) STRICT;
CREATE TABLE IF NOT EXISTS trained (
    run_id TEXT NOT NULL, round INTEGER NOT NULL, inputs TEXT NOT NULL, again INTEGER NOT NULL,
    policy_id TEXT NOT NULL, PRIMARY KEY (run_id, round, inputs, again, policy_id)
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
            "INSERT OR IGNORE INTO begun SELECT ?1, ?2 WHERE (SELECT count(*) FROM begun WHERE policy_id = ?2) < ?3",
            run_id,
            policy_id,
            most,
        )
        return bool(self._count("SELECT count(*) FROM begun WHERE run_id = ? AND policy_id = ?", run_id, policy_id))

    def begin_round(self, run_id: str, round: int, inputs: str, policy_id: str, most: int) -> bool:
        """Count a round that is about to be trained. False: `most` rounds of this policy have been trained already.

        `inputs` is the hash of what came in for it.
        """
        sent = "SELECT count(*) FROM sent WHERE run_id = ? AND key LIKE ?"
        again = self._count(sent, run_id, f"train/{round}/%") // SENT_FOR_ONE
        row = (run_id, round, inputs, again, policy_id)
        self._tables.do(
            "INSERT OR IGNORE INTO trained SELECT ?1, ?2, ?3, ?4, ?5"
            " WHERE (SELECT count(*) FROM trained WHERE policy_id = ?5) < ?6",
            *row,
            most,
        )
        return row in self._tables.ask("SELECT * FROM trained WHERE run_id = ? AND round = ?", run_id, round)

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
        return self._count("SELECT count(*) FROM begun WHERE policy_id = ?", policy_id)

    def rounds(self, policy_id: str, beside: tuple[str, int] = ("", 0)) -> int:
        """`beside`: a run and its round, which does not count: what is left for it?"""
        sql = "SELECT count(*) FROM trained WHERE policy_id = ? AND NOT (run_id = ? AND round = ?)"
        return self._count(sql, policy_id, *beside)

    def _count(self, sql: str, *values: str | int) -> int:
        ((n,),) = self._tables.ask(sql, *values)
        return int(n)

    def recall(self, entries: Iterable[Entry], site: str) -> None:
        """Catch up with what this site's audit log knows."""
        self._tables.do_all(_recalled(entries, site))

    def close(self) -> None:
        self._tables.close()


def spent_here(file: Path, policy_ids: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Runs and rounds of each policy, for who only looks."""
    if not file.exists():
        return dict.fromkeys(policy_ids, (0, 0))
    ledger = Ledger(file)
    try:
        return {id: (ledger.runs(id), ledger.rounds(id)) for id in policy_ids}
    finally:
        ledger.close()


def _recalled(entries: Iterable[Entry], site: str) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """What puts into the tables what is not there. Entries are read in their order: a decision names the policy of what
    follows it."""
    policies: dict[str, str] = {}
    sent: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        run, said = entry.object, {name: str(value) for name, value in entry.fields.items()}
        match entry.action:
            case "run decided" if said.get("policy") and said.get("verdict") != "refuse":
                policies[run] = said["policy"]
                if nonce := said.get("nonce"):
                    yield "INSERT OR IGNORE INTO jobs VALUES (?, ?)", (nonce, run)
            case "worker starts" if run in policies:
                yield "INSERT OR IGNORE INTO begun VALUES (?, ?)", (run, policies[run])
            case "result leaves" if run in policies:
                task, round = said["task"], int(said["round"])
                if said["verb"] == "train" and round > 0:
                    row = (run, round, said.get("inputs", ""), sent[run, task] // SENT_FOR_ONE, policies[run])
                    yield "INSERT OR IGNORE INTO trained VALUES (?, ?, ?, ?, ?)", row
                sent[run, task] += 1
                key = result_key(task, site, int(said["attempt"]))
                yield "INSERT OR IGNORE INTO sent VALUES (?, ?, ?)", (run, key, int(said["bytes"]))
