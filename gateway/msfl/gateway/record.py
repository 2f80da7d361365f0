"""What a site keeps of a run, so that a gateway that was killed goes on where it was.

    runs/<run>/state.json    the machine's state and when the worker was first started; written before each effect
    runs/<run>/papers.json   what the decision rested on: the job and its proof, the user's verified claims, the
                             release's signed papers, the hash of the policy; written once per decision
    runs/<run>/asked.json    what the worker was last asked, so that the next gateway knows its answer; not synced: what
                             would lose it ends the worker, too
    runs/<run>/run.secret    the run's secret, and the site's symmetric key of the moment when it was made: a run keeps
                             to its key when the site's is replaced

The others are written whole and synced. Nothing in them is trusted for being there: `judge.Judge.again` verifies the
papers anew. The user's token is not kept: it may have expired since, and nobody else needs to find it here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

from msfl.gateway.home import write
from msfl.gateway.machine import LIVING, SealedResult, SiteRun, Stage
from msfl.policies.identity import User
from msfl.protos.messages import TaskReport
from msfl.protos.sealing import KEY
from msfl.runtime.removal import remove_tree

JsonObject: TypeAlias = dict[str, Any]


class BadRecord(ValueError):
    """A record that this gateway did not write: somebody changed it, or the disk did."""


@dataclass(frozen=True)
class Papers:
    """What a decision rested on. `user` are claims that were verified then; the rest can be verified again. `proof` is
    the user's for this `generation`."""

    spec: bytes
    proof: str
    user: User
    statement: bytes
    reviews: tuple[bytes, ...]
    policy_id: str
    policy_sha256: str
    generation: int = 1


@dataclass(frozen=True)
class Asked:
    """What a worker was given for an order: `document` and `files` of its task; `received`: bytes that came for it.
    `sha256` is that of the order, whichever attempt, and of the run's resolved config; `inputs` of what came in."""

    sha256: str
    document: JsonObject
    files: dict[str, str]
    received: int
    inputs: str


@dataclass(frozen=True)
class Kept:
    """`started`: when the run's worker was first started, for the policy's wall time. `ended`: when the run ended.
    `used`: seconds of its time that were used before it was resumed.

    `boot`: while the machine is up, what a killed process wrote is there. After a power cut it may not be, so a sealed
    result of before is made again; syncing each of them would cost every round, and that saves one.
    """

    state: SiteRun
    started: datetime | None = None
    ended: datetime | None = None
    boot: str = ""
    used: float = 0.0


class RunRecord:
    """The record in one run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / "state.json"
        self._papers = folder / "papers.json"
        self._secret = folder / "run.secret"
        self._asked = folder / "asked.json"

    def save(self, kept: Kept) -> None:
        """Durable on return. The task under way is not kept: the orchestrator asks for it again."""
        state = asdict(replace(kept.state, task=None))
        times = {"started": _text(kept.started), "ended": _text(kept.ended), "used": kept.used}
        document = {"state": state, **times, "boot": boot_id()}
        write(self._state, json.dumps(document).encode())

    def load(self) -> Kept | None:
        """None when there is none. Raises BadRecord."""
        try:
            raw = json.loads(self._state.read_bytes())
            started, ended, used = _time(raw["started"]), _time(raw["ended"]), float(raw.get("used", 0.0))
            return Kept(_state_of(raw["state"]), started, ended, str(raw["boot"]), used)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadRecord(f"{self._state} cannot be read: {error!r}") from error

    def save_papers(self, papers: Papers) -> None:
        document = {
            "spec": _base64(papers.spec),
            "proof": papers.proof,
            "user": {**asdict(papers.user), "expires": papers.user.expires.isoformat()},
            "statement": _base64(papers.statement),
            "reviews": [_base64(r) for r in papers.reviews],
            "policy_id": papers.policy_id,
            "policy_sha256": papers.policy_sha256,
            "generation": papers.generation,
        }
        write(self._papers, json.dumps(document).encode())

    def load_papers(self) -> Papers | None:
        """None when there are none. Raises BadRecord."""
        try:
            raw = json.loads(self._papers.read_bytes())
            return Papers(
                spec=base64.b64decode(raw["spec"]),
                proof=str(raw["proof"]),
                user=_user_of(raw["user"]),
                statement=base64.b64decode(raw["statement"]),
                reviews=tuple(base64.b64decode(r) for r in raw["reviews"]),
                policy_id=str(raw["policy_id"]),
                policy_sha256=str(raw["policy_sha256"]),
                generation=int(raw["generation"]),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadRecord(f"{self._papers} cannot be read: {error!r}") from error

    def save_asked(self, asked: Asked) -> None:
        new = self._asked.with_name("asked.json.new")
        new.touch(mode=0o600)
        new.write_text(json.dumps(asdict(asked)))
        new.replace(self._asked)

    def load_asked(self) -> Asked | None:
        """None when there is none, or none that can be read: the task is then begun anew."""
        try:
            raw = json.loads(self._asked.read_bytes())
            document, files = dict(raw["document"]), dict(raw["files"])
            return Asked(str(raw["sha256"]), document, files, int(raw["received"]), str(raw["inputs"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def has_secret(self) -> bool:
        return self._secret.exists()

    def save_secret(self, secret: bytes, site_key: bytes) -> None:
        write(self._secret, secret + site_key)

    def secret(self) -> tuple[bytes, bytes]:
        """The run's secret and the site's symmetric key, 32 bytes each."""
        both = self._secret.read_bytes()
        return both[:KEY], both[KEY:]

    def living(self) -> bool:
        """Whether a gateway that starts has to go on with this run, or to wait for the custodian's word on it."""
        try:
            kept = self.load()
        except BadRecord:
            return True  # It ends with that code.
        return kept is not None and (kept.state.stage in LIVING or kept.state.stage is Stage.PARKED)

    def over(self, generation: int) -> bool:
        """Whether the run is known to have ended here, in this generation or a later one."""
        try:
            kept = self.load()
        except BadRecord:
            return False
        return kept is not None and kept.state.stage is Stage.ENDED and kept.state.generation >= generation


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def forget(folder: Path) -> None:
    """Patient data, keys and papers of a run. The state stays: attempts are never counted anew."""
    remove_tree(folder / "box")
    for name in ("run.secret", "papers.json", "asked.json"):
        (folder / name).unlink(missing_ok=True)
    for left_over in folder.glob("left-over-*.f32"):
        left_over.unlink()


def _user_of(raw: Mapping[str, Any]) -> User:
    # Records of before do not say which key signed.
    signed_by = tuple(map(str, raw.get("signed_by", ())))
    return User(**{**raw, "expires": datetime.fromisoformat(raw["expires"]), "signed_by": signed_by})


def _state_of(raw: Mapping[str, Any]) -> SiteRun:
    sealed = raw["sealed"]
    return SiteRun(
        run_id=str(raw["run_id"]),
        stage=Stage(raw["stage"]),
        generation=int(raw["generation"]),
        dry_run=bool(raw["dry_run"]),
        worker=bool(raw["worker"]),
        worked=bool(raw.get("worked", False)),
        sealed=None if sealed is None else SealedResult(TaskReport(**sealed["report"]), str(sealed["file"])),
        attempts={str(k): int(v) for k, v in raw["attempts"].items()},
        losses={str(k): int(v) for k, v in raw["losses"].items()},
        reports={str(k): TaskReport(**v) for k, v in raw["reports"].items()},
        code=str(raw["code"]),
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
