"""The run machine in trouble: dropouts, bad updates, pauses, resumptions, latecomers, and what may be thrown away."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.run_walk import ALL, Walk, job, started
from msfl.orchestrator.runs.events import (
    AbortRequested,
    Answered,
    CentralDone,
    CentreFailed,
    DeadlinePassed,
    PauseRequested,
    Resumed,
    SiteFailed,
    SiteReturned,
    SiteSilent,
    TaskDone,
    from_json,
)
from msfl.orchestrator.runs.machine import (
    Phase,
    Standing,
    advance,
    central_broadcasts,
    central_inputs,
    disposable_keys,
    is_news,
    order_for,
    runnable,
    task_of,
    waiting_for,
)
from msfl.orchestrator.runs.view import public_event, public_state
from msfl.protos.messages import Input, Offer, StopOrder, TaskOrder, output_key, result_key
from msfl.protos.notes import LEFT_OVER
from msfl.protos.sealing import EVERYBODY


def model(round: int) -> str:
    return output_key(f"aggregate/{round}" if round else "plan", EVERYBODY, "weights")


# ------------------------------------------------------------------------------------------------------- on_dropout


def test_wait_holds_a_step_for_the_absent_until_its_deadline() -> None:
    walk = started(job(on_dropout="wait")).go_to("train/1")
    walk.everybody(but="b")
    walk.tell(SiteSilent(walk.tick(), "b", "train/1"))
    assert walk.task == "train/1"
    assert waiting_for(walk.state) == ("b",)
    walk.tell(DeadlinePassed(walk.tick(), "train/1"))
    assert walk.task == "aggregate/1"
    assert walk.state.left_behind == ("b",)


def test_wait_does_not_wait_for_sites_that_cannot_come() -> None:
    """b is out, and c answers late: without the model's notes, which come after a round, it cannot train this one."""
    walk = Walk(job(on_dropout="wait", start="quorum"))
    walk.allow("a", "b")
    walk.go_to("train/1")
    walk.answer("c")
    walk.done("c", "start")
    walk.tell(SiteFailed(walk.tick(), "b", "train/1", "worker_lost"))
    walk.done("a")
    assert walk.task == "train/1"
    walk.tell(DeadlinePassed(walk.tick(), "train/1"))
    assert (walk.state.phase, walk.state.reason) == (Phase.FAILED, "quorum_not_reached (b: worker_lost)")


def test_wait_goes_on_when_the_absent_one_is_back() -> None:
    walk = started(job(on_dropout="wait")).go_to("prepare")
    walk.everybody(but="b")
    walk.tell(SiteSilent(walk.tick(), "b", "prepare"))
    walk.tell(SiteReturned(walk.tick(), "b"))
    walk.done("b")
    assert walk.task == "train/1"
    assert walk.waiting == set(ALL)


def test_wait_waits_for_a_quorum_without_end() -> None:
    walk = started(job(on_dropout="wait")).go_to("train/1")
    walk.done("a")
    walk.tell(DeadlinePassed(walk.tick(), "train/1"))
    assert waiting_for(walk.state) == ("b", "c")
    for _ in range(3):
        assert not is_news(walk.state, DeadlinePassed(walk.tick(), "train/1"))
    walk.tell(SiteReturned(walk.tick(), "b"))
    walk.tell(SiteReturned(walk.tick(), "c"))
    walk.done("c")
    assert walk.task == "aggregate/1"  # Its deadline is over: it needs no more than a quorum.


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (SiteSilent(9.0, "b", "train/1"), "silent"),
        (SiteFailed(9.0, "b", "train/1", "policy_expired"), "policy_expired"),
        (DeadlinePassed(9.0, "train/1"), "too_late"),
    ],
)
def test_abort_ends_the_run_with_the_first_dropout(event: Any, code: str) -> None:
    walk = started(job(on_dropout="abort")).go_to("train/1")
    walk.done("a")
    walk.done("c")
    walk.tell(event)
    assert (walk.state.phase, walk.state.reason) == (Phase.ABORTED, f"b dropped out ({code})")


# -------------------------------------------------------------------------------------------------- refused updates


def test_a_refused_update_is_named_and_its_site_is_asked_again() -> None:
    walk = started().go_to("aggregate/1")
    walk.bad = {"c": "update_not_finite"}
    walk.do_step()
    record = walk.state.rounds[0]
    assert (set(record.sites), record.refused, record.late) == ({"a", "b"}, {"c": "update_not_finite"}, ())
    assert walk.waiting == set(ALL)
    shown = public_event(walk.events[-1])
    assert shown["refused"] == {"c": "update_not_finite"}
    assert public_state(walk.state)["rounds"][0]["refused"] == {"c": "update_not_finite"}


def test_the_third_refusal_in_a_row_and_a_site_is_out() -> None:
    walk = started(job(rounds=6))
    for round in (1, 2, 3, 4, 5):
        walk.go_to(f"aggregate/{round}")
        walk.bad = {} if round == 2 else {"c": f"bad_{round}"}
        walk.do_step()
        assert walk.state.members["c"].accepted == (round < 5)
    assert walk.state.members["c"].code == "bad_5"
    assert order_for(walk.state, "c") == StopOrder("run-1", "bad_5", 1)
    assert walk.to_the_end().phase is Phase.FINISHED


def test_too_few_good_updates_close_no_round_and_the_run_can_be_resumed() -> None:
    walk = started().go_to("aggregate/2")
    walk.bad = {"b": "update_not_finite", "c": "update_exploded"}
    walk.do_step()
    assert walk.state.phase is Phase.FAILED
    assert walk.state.reason == "quorum_not_reached (b: update_not_finite; c: update_exploded)"
    assert len(walk.state.rounds) == 1
    walk.bad = {}
    walk.resume()
    walk.go_to("train/2")
    assert walk.to_the_end().phase is Phase.FINISHED
    assert [r.round for r in walk.state.rounds] == [1, 2]


# ------------------------------------------------------------------------------------------------------------ pause


def test_nothing_is_asked_of_a_paused_run_and_no_patience_ends() -> None:
    walk = started().go_to("train/1")
    walk.done("a")
    walk.tell(PauseRequested(walk.tick(), "ada"))
    assert not runnable(walk.state)
    assert [order_for(walk.state, s) for s in ALL] == [None] * 3
    shown = public_state(walk.state)
    assert (shown["paused"], shown["pause_reason"]) == (True, "paused by ada")
    for event in (
        PauseRequested(9.0, "eve"),
        DeadlinePassed(9.0, "train/1"),
        SiteSilent(9.0, "b", "train/1"),
    ):
        assert not is_news(walk.state, event)
    # What was under way is taken in, and the next step is opened, but nobody does it.
    assert task_of(walk.state, "b") is not None
    walk.done("b")
    walk.done("c")
    assert walk.task == "aggregate/1"
    assert not runnable(walk.state)
    walk.tell(Resumed(100.0, "ada"))
    assert runnable(walk.state)
    assert walk.state.step is not None
    assert walk.state.step.opened_at == 100.0
    assert walk.state.generation == 1
    assert not is_news(walk.state, Resumed(101.0, "ada"))
    assert walk.to_the_end().phase is Phase.FINISHED


def test_a_step_of_the_centre_that_ends_in_a_pause_counts() -> None:
    walk = started().go_to("aggregate/1")
    walk.tell(PauseRequested(walk.tick(), "ada"))
    walk.do_step()
    assert walk.task == "train/2"
    assert order_for(walk.state, "a") is None
    walk.tell(Resumed(walk.tick(), "ada"))
    assert isinstance(order_for(walk.state, "a"), TaskOrder)


def test_an_offer_may_be_paused_and_a_paused_run_aborted() -> None:
    walk = Walk()
    walk.tell(PauseRequested(walk.tick(), "ada"))
    assert order_for(walk.state, "a") is None
    walk.allow()
    assert walk.task == "start"
    walk.tell(AbortRequested(walk.tick(), "ada"))
    assert (walk.state.phase, walk.state.paused) == (Phase.ABORTED, False)
    assert order_for(walk.state, "a") == StopOrder("run-1", "aborted", 1)


# ----------------------------------------------------------------------------------------------------------- resume

STEPS = [
    "start", "open", "fingerprint", "plan", "prepare", "train/1", "aggregate/1", "train/2", "aggregate/2", "validate",
    "collect/validate", "baseline", "candidates", "evaluate/test", "collect/test", "export",
]  # fmt: skip


@pytest.mark.parametrize("task", STEPS)
@pytest.mark.parametrize("how", ["failed", "aborted"])
def test_a_run_that_ended_anywhere_can_be_resumed_and_finishes(task: str, how: str) -> None:
    walk = started().go_to(task)
    rounds = len(walk.state.rounds)
    walk.tell(CentreFailed(walk.tick(), "broken") if how == "failed" else AbortRequested(walk.tick(), "ada"))
    assert walk.state.phase.value == how
    walk.steps.clear()
    walk.resume()
    assert walk.state.generation == 2
    assert walk.task == "start/2"
    assert walk.to_the_end().phase is Phase.FINISHED
    assert walk.steps[:2] == ["start/2", "[open/2]"]
    first_trained = [s for s in walk.steps if s.startswith("train/")]
    assert first_trained == [f"train/{r}" for r in range(rounds + 1, 3)]
    assert [r.round for r in walk.state.rounds] == [1, 2]


def test_what_a_resumed_run_asks_and_reads() -> None:
    walk = started().go_to("train/2")
    walk.done("a")
    walk.tell(CentreFailed(walk.tick(), "broken"))
    walk.steps.clear()
    walk.tell(Resumed(walk.tick(), "ada", "token-2", "proof-2"))
    offer = order_for(walk.state, "a")
    assert isinstance(offer, Offer)
    assert (offer.token, offer.proof, offer.generation) == ("token-2", "proof-2", 2)
    assert offer.spec == walk.state.spec_text.encode()
    assert not is_news(walk.state, Answered(9.0, "a", "allow", {}, "old", generation=1))
    walk.allow()
    walk.go_to("issue/1")
    assert walk.state.step is not None
    assert walk.state.step.document == {"recipients": ["a", "b", "c"], "round": 1}
    assert walk.state.step.round == 1
    assert central_broadcasts(walk.state) == {"ALL/plan": "plan/ALL/down/plan", "ALL/weights": model(1)}
    assert central_inputs(walk.state) == {}
    walk.go_to("prepare/2")
    order = order_for(walk.state, "a")
    assert isinstance(order, TaskOrder)
    assert order.inputs == (Input("plan", "issue/1", 1, "plan", "issue/1/a/down/plan"),)
    walk.go_to("train/2")
    assert walk.waiting == set(ALL)  # Also a, whose result of before is sealed with a secret that is gone.
    order = order_for(walk.state, "a")
    assert isinstance(order, TaskOrder)
    assert order.inputs == (Input("weights", "issue/1", 1, "weights", "issue/1/a/down/weights"),)
    walk.go_to("baseline")
    assert walk.steps == [
        "start/2", "[open/2]", "[issue/1]", "prepare/2", "train/2", "[aggregate/2]", "validate", "[collect/validate]",
        "[issue/2]",
    ]  # fmt: skip
    order = order_for(walk.state, "b")
    assert isinstance(order, TaskOrder)
    assert order.inputs == (Input("weights", "issue/2", 0, "weights", "issue/2/b/down/weights"),)


def test_a_resumed_run_that_too_few_answer_loses_nothing_and_is_resumed_once_more() -> None:
    walk = started().go_to("train/2")
    walk.tell(AbortRequested(walk.tick(), "ada"))
    walk.tell(Resumed(walk.tick(), "ada", "token-2", "proof-2"))
    walk.answer("a")
    walk.tell(DeadlinePassed(walk.tick(), "offer"))
    assert walk.state.phase is Phase.FAILED
    assert walk.state.reason == "quorum_not_reached (b: answered_too_late; c: answered_too_late)"
    walk.resume()
    assert walk.to_the_end().phase is Phase.FINISHED


def test_every_site_decides_anew_and_who_refused_is_asked_again() -> None:
    walk = Walk(job(min_sites=1))
    walk.answer("a", "refuse", "no_policy")
    walk.allow("b", "c")
    walk.go_to("train/1")
    walk.tell(SiteFailed(walk.tick(), "c", "train/1", "worker_lost"))
    walk.tell(AbortRequested(walk.tick(), "ada"))
    walk.tell(Resumed(walk.tick(), "ada"))
    assert {m.standing for m in walk.state.members.values()} == {Standing.ASKED}
    assert isinstance(order_for(walk.state, "a"), Offer)
    assert (walk.state.token, walk.state.proof) == ("token", "proof")


@pytest.mark.parametrize("phase", [Phase.FINISHED, Phase.REFUSED, Phase.EXPLAINED])
def test_what_is_over_is_over(phase: Phase) -> None:
    walk = Walk(dry_run=phase is Phase.EXPLAINED)
    for site in ALL:
        walk.answer(site, "refuse" if phase is Phase.REFUSED else "allow", "no_policy" * (phase is Phase.REFUSED))
        if walk.state.ended:
            break
    state = walk.to_the_end()
    assert state.phase is phase
    assert not is_news(state, Resumed(99.0, "ada"))


def test_messages_of_an_earlier_generation_change_nothing() -> None:
    walk = started().go_to("train/1")
    walk.tell(CentreFailed(walk.tick(), "broken"))
    walk.resume()
    for task in ("start", "open", "prepare", "train/1", "aggregate/1"):
        assert not is_news(walk.state, TaskDone(9.0, "a", task, result_key(task, "a", 1), 1.0, 1, 1)), task
        assert not is_news(walk.state, CentralDone(9.0, task, {}, ())), task


def test_a_run_can_be_resumed_again_and_again() -> None:
    walk = started().go_to("train/1")
    for generation in (2, 3, 4):
        walk.tell(CentreFailed(walk.tick(), "broken"))
        walk.resume()
        assert walk.state.generation == generation
        walk.go_to("prepare/" + str(generation))
    assert walk.to_the_end().phase is Phase.FINISHED


# -------------------------------------------------------------------------------------------------------- late join


def test_who_accepts_after_the_start_catches_up_and_joins_the_next_round() -> None:
    walk = Walk(job(start="quorum", rounds=3))
    walk.allow("a", "b")
    walk.go_to("train/1")
    walk.answer("c")
    assert walk.catch_up("c") == ["start"]
    assert walk.waiting == {"a", "b"}
    assert order_for(walk.state, "c") is None  # It has no plan yet.
    walk.do_step()
    assert walk.state.step is not None
    assert walk.state.step.document["recipients"] == ["a", "b", "c"]
    walk.do_step()
    assert walk.task == "issue/1"
    assert walk.state.step.document == {"recipients": ["c"], "round": 1}
    walk.do_step()
    assert walk.waiting == {"a", "b"}
    order = order_for(walk.state, "c")
    assert isinstance(order, TaskOrder)
    assert (order.task_id, order.inputs) == (
        "prepare",
        (Input("plan", "issue/1", 1, "plan", "issue/1/c/down/plan"),),
    )
    assert walk.catch_up("c") == ["prepare"]
    assert walk.waiting == {"a", "b"}
    walk.go_to("train/3")
    assert walk.waiting == set(ALL)
    order = order_for(walk.state, "c")
    assert isinstance(order, TaskOrder)
    assert order.inputs[0].key == "aggregate/2/c/down/weights"
    assert [r.late for r in walk.state.rounds] == [(), ()]
    assert walk.to_the_end().phase is Phase.FINISHED
    assert set(walk.state.rounds[2].sites) == set(ALL)
    # Its baseline starts from where those of the others do.
    assert "[issue/2]" in walk.steps
    assert set(walk.state.results["baseline"]) == set(ALL)


def test_a_newcomer_whose_secret_does_not_open_stops_nobody() -> None:
    walk = Walk(job(start="quorum"))
    walk.allow("a", "b")
    walk.go_to("aggregate/1")
    walk.answer("c")
    walk.go_to("issue/1")
    walk.tell(SiteFailed(walk.tick(), "c", "open", "bad_run_secret"))
    assert walk.state.step is not None
    assert walk.state.step.document["recipients"] == []
    assert walk.to_the_end().phase is Phase.FINISHED


def test_a_round_that_is_short_of_its_quorum_takes_in_who_is_ready() -> None:
    walk = Walk(job(start="quorum", rounds=3))
    walk.allow("a", "b")
    walk.go_to("train/1")
    walk.answer("c")
    walk.go_to("train/2")
    walk.catch_up("c")
    assert walk.waiting == {"a", "b"}
    walk.tell(SiteFailed(walk.tick(), "b", "train/2", "worker_lost"))
    assert walk.waiting == {"a", "c"}
    assert walk.to_the_end().phase is Phase.FINISHED


def test_a_site_without_a_local_model_is_not_tested_with_one() -> None:
    walk = started().go_to("baseline")
    walk.everybody(but="c")
    walk.tell(SiteSilent(walk.tick(), "c", "baseline"))
    walk.tell(SiteReturned(walk.tick(), "c"))
    walk.go_to("evaluate/test")
    order = order_for(walk.state, "c")
    assert isinstance(order, TaskOrder)
    assert order.document["candidates"] == ["federated", "local:a", "local:b"]


# ---------------------------------------------------------------------------------------------------- early stopping


@pytest.mark.parametrize(
    ("dice", "rule", "rounds"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], {"patience": 2}, 6),
        ([0.5, 0.4, 0.4, 0.9, 0.9, 0.9], {"patience": 2}, 4),
        ([0.5, 0.51, 0.52, 0.53, 0.54, 0.55], {"patience": 2, "min_delta": 0.1}, 4),
        ([None, None, None, None, None, None], {"patience": 1}, 6),
        ([0.5, None, 0.4, 0.4, 0.9, 0.9], {"patience": 2}, 4),
    ],
)
def test_training_stops_when_the_best_is_old(dice: list[float | None], rule: dict[str, Any], rounds: int) -> None:
    """A round's Dice is known one round later."""
    walk = started(job(rounds=6, early_stopping=rule, baseline="local"))
    state = walk.to_the_end(lambda r, s: dice[r - 1] if r else None)
    assert state.phase is Phase.FINISHED
    assert len(state.rounds) == rounds
    assert walk.steps.count("validate") == 1


def test_what_follows_an_early_stop_starts_from_the_last_model_and_trains_alone_as_long() -> None:
    walk = started(job(rounds=9, early_stopping={"patience": 1})).go_to("validate", lambda r, s: 1.0 / (r + 1))
    assert len(walk.state.rounds) == 3
    order = order_for(walk.state, "a")
    assert isinstance(order, TaskOrder)
    assert order.inputs[0].key == "aggregate/3/a/down/weights"
    walk.go_to("baseline", lambda r, s: 0.9)  # The last round is the best after all; it is over all the same.
    assert walk.state.step is not None
    assert walk.state.step.document["rounds"] == 3
    walk.go_to("candidates")
    assert walk.state.best_round() == 3


# ------------------------------------------------------------------------------------------------------------ flags


def test_a_loss_that_rises_round_by_round_is_flagged_and_the_run_goes_on() -> None:
    walk = started(job(rounds=5))
    walk.loss = lambda r, s: float(r) if s == "b" and r < 5 else 1.0 / r
    state = walk.to_the_end()
    assert [r.flags for r in state.rounds] == [{}, {}, {}, {"b": ("loss_rising",)}, {}]
    assert public_state(state)["rounds"][3]["flags"] == {"b": ["loss_rising"]}
    assert state.phase is Phase.FINISHED


def test_a_loss_that_is_withheld_is_not_flagged() -> None:
    walk = started(job(rounds=5))
    walk.loss = lambda r, s: None
    assert all(r.flags == {} for r in walk.to_the_end().rounds)


def test_with_action_pause_a_rising_loss_pauses_the_run() -> None:
    walk = started(job(rounds=5, on_divergence={"rounds": 2, "action": "pause"}))
    walk.loss = lambda r, s: float(r) if s == "b" else 1.0
    while not walk.state.paused:
        walk.do_step()
    assert walk.task == "train/4"
    assert walk.state.pause_reason == "the training loss of b has risen in each of 2 rounds"
    walk.tell(Resumed(walk.tick(), "ada"))
    walk.loss = lambda r, s: 1.0
    assert walk.to_the_end().phase is Phase.FINISHED


def test_an_update_that_is_ten_times_the_usual_is_flagged() -> None:
    walk = started()
    walk.norm = lambda r, s: 10.1 if (r, s) == (1, "c") else 1.0
    assert [r.flags for r in walk.to_the_end().rounds] == [{"c": ("update_outlier",)}, {}]


def test_of_two_nobody_says_which_is_the_odd_one() -> None:
    walk = started(job(datasets=("a/x", "b/x")))
    walk.norm = lambda r, s: 1000.0 if s == "b" else 1.0
    assert all(r.flags == {} for r in walk.to_the_end().rounds)


# -------------------------------------------------------------------------------------------------------- retention


def kept_models(walk: Walk) -> set[int]:
    disposable = disposable_keys(walk.state)
    made = [r for r in range(len(walk.state.rounds) + 1) if "plan" in walk.state.documents]
    return {r for r in made if model(r) not in disposable}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, {2, 5, 6}),
        ({"retain": {"last": 1}}, {2, 6}),
        ({"retain": {"last": 1, "every": 3}}, {2, 3, 6}),
        ({"retain": {"last": 1}, "keep": "last"}, {2, 6}),
        ({"retain": {"last": 1, "best": 0}, "keep": "last"}, {6}),
        ({"keep": "all"}, {0, 1, 2, 3, 4, 5, 6}),
    ],
)
def test_which_models_stay(changes: dict[str, Any], kept: set[int]) -> None:
    walk = started(job(rounds=6, baseline=None, **changes))
    walk.to_the_end(lambda r, s: 0.9 if r == 2 else 0.1)
    assert kept_models(walk) == kept


def test_a_model_stays_until_its_validation_is_known() -> None:
    """Round 1 is the best until the validation of round 2 comes, with round 3."""
    walk = started(job(rounds=4, retain={"last": 1}, baseline=None))
    dice = {0: None, 1: 0.3, 2: 0.8, 3: 0.1, 4: 0.2}
    seen = []
    for task in ("train/2", "train/3", "train/4", "validate"):
        walk.go_to(task, lambda r, s: dice[r])
        seen.append(kept_models(walk))
    assert seen == [{1}, {1, 2}, {2, 3}, {2, 4}]


def test_what_rounding_took_from_the_best_model_stays_until_it_is_measured() -> None:
    walk = started(job(rounds=6, baseline=None))
    walk.by_difference = True
    walk.go_to("candidates", lambda r, s: 0.9 if r == 3 else 0.1)
    left_over = output_key("aggregate/3", EVERYBODY, LEFT_OVER)
    assert central_broadcasts(walk.state)[f"{EVERYBODY}/{LEFT_OVER}"] == left_over
    assert left_over not in disposable_keys(walk.state)
    assert output_key("aggregate/2", EVERYBODY, LEFT_OVER) in disposable_keys(walk.state)


def test_the_initial_model_stays_for_the_baseline() -> None:
    walk = started(job(rounds=3, baseline="local")).go_to("evaluate/test")
    assert 0 in kept_models(walk)
    walk.to_the_end()
    assert 0 not in kept_models(walk)


def test_of_notes_and_results_only_what_is_still_to_be_read_stays() -> None:
    walk = started(job(rounds=3)).go_to("train/3")
    gone = disposable_keys(walk.state)
    assert result_key("fingerprint", "a", 1) in gone
    assert {result_key(f"train/{r}", "a", 1) for r in (1, 2)} <= gone
    assert "aggregate/1/a/down/weights" in gone
    assert "aggregate/2/a/down/weights" not in gone
    assert "plan/a/down/weights" not in gone  # for the baseline
    assert "plan/a/down/plan" not in gone
    walk.to_the_end()
    made = {key for files in walk.state.outputs.values() for key in files}
    assert made - disposable_keys(walk.state) == {"plan/ALL/down/plan", model(1), model(2), model(3), "export/model"}


def test_what_a_resumed_run_needs_is_there() -> None:
    walk = started(job(rounds=3)).go_to("candidates")
    walk.tell(CentreFailed(walk.tick(), "broken"))
    walk.resume()
    gone = disposable_keys(walk.state)
    assert {result_key("baseline", s, 1) for s in ALL} <= gone
    assert "plan/a/down/plan" in gone
    walk.go_to("evaluate/test")
    gone = disposable_keys(walk.state)
    assert not gone & {"candidates/a/down/federated", "candidates/ALL/down/local:b"}
    assert result_key("baseline", "a", 1) in gone
    assert walk.to_the_end().phase is Phase.FINISHED


# -------------------------------------------------------------------------------------------------------- replaying


def test_events_of_before_are_read_as_they_were_meant() -> None:
    """Stored by a version without generations: fields that are not there have the value they stood for."""
    old = from_json(
        '{"kind": "Answered", "at": 1.0, "site": "a", "verdict": "allow", "decision": {}, "wrapped_secret": "eA=="}'
    )
    walk = Walk()
    assert advance(walk.state, old).members["a"].accepted


# ------------------------------------------------------------------------------- one site's fault is that site's alone


def test_an_allowance_without_a_secret_is_none() -> None:
    walk = Walk()
    walk.tell(Answered(walk.tick(), "a", "allow"))
    assert (walk.state.members["a"].standing, walk.state.members["a"].code) == (Standing.REFUSED, "no_run_secret")
    walk.allow("b", "c")
    assert walk.to_the_end().phase is Phase.FINISHED


@pytest.mark.parametrize("task", ["plan", "aggregate/1", "candidates"])
def test_a_site_that_leaves_while_the_centre_works_gets_nothing_sealed(task: str) -> None:
    """The keyring found that its secret does not open: the aggregator has no key for it, and would refuse the step."""
    walk = started().go_to(task)
    walk.tell(SiteFailed(walk.tick(), "c", "open", "bad_run_secret"))
    assert walk.state.step is not None
    assert walk.state.step.document["recipients"] == ["a", "b"]
    assert walk.to_the_end().phase is Phase.FINISHED
