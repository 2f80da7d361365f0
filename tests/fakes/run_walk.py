"""A run of the run machine, walked through event by event, as healthy and as troubled parts of a federation would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msfl.orchestrator.runs.events import Answered, CentralDone, Event, Resumed, Submitted, TaskDone
from msfl.orchestrator.runs.machine import Phase, RunState, Standing, advance, central_inputs, order_for, submitted
from msfl.policies.documents import JobSpec
from msfl.policies.encoding import encode
from msfl.protos.messages import TaskOrder, output_key, result_key
from msfl.protos.notes import DIFFERENCE, LEFT_OVER
from msfl.protos.sealing import EVERYBODY

ALL = ("a", "b", "c")


def job(**changes: Any) -> JobSpec:
    """Three sites that train, two rounds, local baseline, two are enough."""
    given: dict[str, Any] = {
        "name": "story",
        "release": "voxel-logistic:1.0.0",
        "datasets": tuple(f"{s}/lesions" for s in ALL),
        "rounds": 2,
        "profile": "demo",
        "baseline": "local",
        "min_sites": 2,
        "round_deadline_s": 60,
        "seed": 1,
        "nonce": "0123456789abcdef",
    }
    return JobSpec(**(given | changes))


class Walk:
    """A run and its clock. Every event is kept, so that a story can be replayed.

    What its parts say may be changed: `loss` and `norm` by (round, site), `bad` the sites whose updates are refused.
    """

    def __init__(self, spec: JobSpec | None = None, *, dry_run: bool = False) -> None:
        spec = spec or job()
        first = Submitted(0.0, "run-1", encode(spec).decode(), "proof", "token", "ada@uni.example", dry_run)
        self.events: list[Event] = [first]
        self.state = submitted(first, spec)
        self.now = 0.0
        self.steps: list[str] = []
        self.loss: Callable[[int, str], float | None] = lambda round, site: 1.0
        self.norm: Callable[[int, str], float] = lambda round, site: 1.0
        self.bad: dict[str, str] = {}
        self.by_difference = False  # whether models travel as 16-bit differences

    def tell(self, event: Event) -> RunState:
        self.events.append(event)
        self.state = advance(self.state, event)
        return self.state

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    @property
    def task(self) -> str:
        assert self.state.step is not None, self.state
        return self.state.step.task_id

    @property
    def waiting(self) -> set[str]:
        assert self.state.step is not None
        return set(self.state.step.waiting)

    # ------------------------------------------------------------ what parts of the federation say

    def answer(self, site: str, verdict: str = "allow", code: str = "") -> RunState:
        decision = {"refusal": {"code": code, "message": "why"}} if code else {}
        secret = "c2VjcmV0" if verdict == "allow" else ""
        return self.tell(Answered(self.tick(), site, verdict, decision, secret, self.state.generation))

    def allow(self, *sites: str) -> RunState:
        for site in sites or ALL:
            self.answer(site)
        return self.state

    def done(self, site: str, task: str = "") -> RunState:
        task = task or self.task
        key = result_key(task, site, self.state.generation)
        return self.tell(TaskDone(self.tick(), site, task, key, 1.0, 10, 100, {"worker": 50.0}))

    def catch_up(self, site: str) -> list[str]:
        """A site does what it is asked, beside the current step; what that was."""
        asked: list[str] = []
        while isinstance(order := order_for(self.state, site), TaskOrder) and order.task_id != self.task:
            asked.append(order.task_id)
            self.done(site, order.task_id)
        return asked

    def everybody(self, *, but: str = "") -> RunState:
        for site in sorted(self.waiting - {but}):
            self.done(site)
        return self.state

    def centre(self, document: Mapping[str, Any] | None = None, files: tuple[str, ...] = ()) -> RunState:
        return self.tell(CentralDone(self.tick(), self.task, dict(document or {}), files))

    def do_step(self, dice: Callable[[int, str], float | None] = lambda r, s: 0.5) -> RunState:
        """Finish the present step as healthy parts would. `dice(round, site)`: of the model made in that round."""
        step = self.state.step
        assert step is not None
        self.steps.append(f"[{step.task_id}]" if step.central else step.task_id)
        if not step.central:
            return self.everybody()
        return self.centre(*self.said_by_centre(dice))

    def said_by_centre(
        self, dice: Callable[[int, str], float | None] = lambda r, s: 0.5
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What a healthy aggregator says and makes in the present central step."""
        step = self.state.step
        assert step is not None
        recipients = [*step.document.get("recipients", ()), EVERYBODY]
        senders = central_inputs(self.state)
        match step.verb:
            case "plan":
                return {"peak_rss_mib": 80.0}, self._files(("plan", "weights"), recipients)
            case "issue":
                return {}, self._files(("plan", "weights"), step.document["recipients"])
            case "aggregate":
                refused = {s: code for s, code in self.bad.items() if s in senders}
                good = [s for s in senders if s not in refused]
                if len(good) < self.state.spec.min_sites:
                    return {"sites": {}, "refused": refused}, ()
                sites = {
                    s: {
                        "n_train": 4,
                        "train_loss": self.loss(step.round, s),
                        "update_norm": self.norm(step.round, s),
                        "incoming": {"n_val": 2, "val_loss": 0.7, "val_dice": dice(step.round - 1, s)},
                    }
                    for s in good
                }
                said = {"sites": sites, "refused": refused, "weights_blake3": f"blake3:{step.round}"}
                return {**said, "peak_rss_mib": 80.0 + step.round}, (
                    *self._files(("weights",), recipients),
                    *(self._files((DIFFERENCE, LEFT_OVER), [EVERYBODY]) if self.by_difference else ()),
                )
            case "collect":
                last = len(self.state.rounds)
                measured = {s: {"n": 2, "loss": 0.6, "dice": {"mean": dice(last, s)}} for s in senders}
                return {"sites": {s: {"summaries": {"federated": m}} for s, m in measured.items()}}, ()
            case "candidates":
                notes = self._files(("federated",), step.document["recipients"])
                for other in senders:
                    notes += self._files((f"local:{other}",), [r for r in recipients if r != other])
                return {"refused": {}}, tuple(sorted(notes))
            case "export":
                return {}, ("export/model",)
            case _:
                return {}, ()

    def _files(self, artifacts: tuple[str, ...], recipients: list[str]) -> tuple[str, ...]:
        return tuple(output_key(self.task, site, artifact) for artifact in artifacts for site in recipients)

    def go_to(self, task: str, dice: Callable[[int, str], float | None] = lambda r, s: 0.5) -> Walk:
        while self.task != task:
            self.do_step(dice)
        return self

    def resume(self) -> RunState:
        """Its owner resumes a run that has ended, and every site that is asked allows it."""
        self.tell(Resumed(self.tick(), "ada", "token-2", "proof-2"))
        for site, member in self.state.members.items():
            if member.standing is Standing.ASKED:
                self.answer(site)
        return self.state

    def to_the_end(self, dice: Callable[[int, str], float | None] = lambda r, s: 0.5) -> RunState:
        while not self.state.ended:
            self.do_step(dice)
        return self.state


def started(spec: JobSpec | None = None) -> Walk:
    walk = Walk(spec)
    for ref in walk.state.spec.datasets:
        walk.answer(ref.split("/")[0])
    assert walk.state.phase is Phase.RUNNING
    return walk
