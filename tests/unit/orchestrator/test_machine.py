"""The run machine: stories of whole runs, and what no sequence of messages can do to one."""

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
    SiteFailed,
    SiteReturned,
    SiteSilent,
    Submitted,
    TaskDone,
    from_json,
    to_json,
)
from msfl.orchestrator.runs.machine import (
    Phase,
    Standing,
    advance,
    central_inputs,
    is_news,
    order_for,
    submitted,
    waiting_for,
)
from msfl.orchestrator.runs.view import public_event, public_state
from msfl.policies.documents import JobSpec
from msfl.policies.encoding import encode, load_json
from msfl.protos.messages import Input, Offer, StopOrder, TaskOrder, result_key

# ------------------------------------------------------------------------------------------- a run that goes well


def test_a_run_visits_every_step_once_in_order() -> None:
    walk = started()
    state = walk.to_the_end()
    assert state.phase is Phase.FINISHED
    assert walk.steps == [
        "start", "[open]", "fingerprint", "[plan]", "prepare",
        "train/1", "[aggregate/1]", "train/2", "[aggregate/2]",
        "validate", "[collect/validate]", "baseline", "[candidates]", "evaluate/test", "[collect/test]", "[export]",
    ]  # fmt: skip
    assert [r.round for r in state.rounds] == [1, 2]
    assert state.ended_at == walk.now
    assert state.peak_rss_mib == {"worker:a": 50.0, "worker:b": 50.0, "worker:c": 50.0, "aggregator": 82.0}


def test_without_a_baseline_nobody_trains_alone() -> None:
    walk = started(job(baseline=None))
    walk.to_the_end()
    assert "baseline" not in walk.steps
    assert walk.state.phase is Phase.FINISHED


def test_what_a_site_measures_on_a_model_belongs_to_the_round_that_made_it() -> None:
    state = started().to_the_end(lambda r, s: {0: 0.0, 1: 0.25, 2: 0.75}[r])
    assert [r.validation_dice() for r in state.rounds] == [0.25, 0.75]
    assert state.rounds[0].sites["a"] == {
        "n_train": 4, "train_loss": 1.0, "seconds": None, "n_val": 2, "val_loss": 0.7, "val_dice": 0.25,
    }  # fmt: skip


def test_bytes_and_seconds_of_a_round_are_those_of_its_own_step() -> None:
    first = started().to_the_end().rounds[0]
    assert (first.bytes_up, first.bytes_down) == (30, 300)
    assert first.seconds == 4.0  # Three sites report, one a second; the sum takes one more.


# ---------------------------------------------------------------------------------------------------- best round


def test_the_best_round_is_weighted_by_validation_cases() -> None:
    """Round 1 is better at two sites of three, but the third has most of the cases."""
    walk = started().go_to("aggregate/2")
    cases = {"a": 1, "b": 1, "c": 8}
    after_1 = {"a": 0.9, "b": 0.9, "c": 0.1}
    sites = {
        s: {"n_train": 4, "train_loss": 1.0, "incoming": {"n_val": cases[s], "val_loss": 1, "val_dice": after_1[s]}}
        for s in ALL
    }
    walk.centre({"sites": sites, "weights_blake3": "blake3:2"})
    walk.do_step()
    walk.centre({"sites": {s: {"summaries": {"federated": {"n": cases[s], "dice": {"mean": 0.3}}}} for s in ALL}})
    assert walk.state.rounds[0].validation_dice() == pytest.approx(0.26)
    assert walk.state.rounds[1].validation_dice() == pytest.approx(0.3)
    assert walk.state.best_round() == 2


@pytest.mark.parametrize(
    ("keep", "dice", "best"),
    [
        ("best", {1: 0.4, 2: 0.6, 3: 0.5}, 2),
        ("best", {1: 0.6, 2: 0.6, 3: 0.1}, 1),
        ("best", {1: None, 2: None, 3: None}, 3),
        ("best", {1: None, 2: 0.1, 3: None}, 2),
        ("last", {1: 0.9, 2: 0.6, 3: 0.1}, 3),
    ],
)
def test_which_round_is_evaluated(keep: str, dice: dict[int, float | None], best: int) -> None:
    walk = started(job(rounds=3, keep=keep)).go_to("candidates", lambda r, s: dice.get(r))
    assert walk.state.step is not None
    assert walk.state.step.document["federated_round"] == walk.state.step.round == best
    walk.go_to("export")
    assert walk.state.step.round == best


def test_a_site_that_withholds_its_validation_does_not_count() -> None:
    state = started().to_the_end(lambda r, s: None if s == "c" else 0.4)
    assert [r.validation_dice() for r in state.rounds] == [0.4, 0.4]


# -------------------------------------------------------------------------------------------------------- answers


def test_one_refusal_of_three_and_the_run_goes_on_without_it() -> None:
    walk = Walk()
    walk.answer("a")
    assert walk.answer("b", "refuse", "policy_expired").phase is Phase.OFFERED
    assert walk.answer("c").phase is Phase.RUNNING
    assert walk.waiting == {"a", "c"}
    assert walk.state.members["b"].code == "policy_expired"
    assert walk.to_the_end().phase is Phase.FINISHED
    assert set(walk.state.rounds[0].sites) == {"a", "c"}


def test_too_few_accept_and_the_reason_names_every_code() -> None:
    walk = Walk()
    walk.answer("a", "refuse", "no_policy")
    walk.answer("b")
    walk.answer("c", "refuse", "policy_expired")
    assert walk.state.phase is Phase.REFUSED
    assert walk.state.reason == "fewer than 2 sites accept (a: no_policy; c: policy_expired)"
    assert order_for(walk.state, "b") == StopOrder("run-1", "refused", 1)


def test_the_run_is_refused_as_soon_as_it_cannot_begin_any_more() -> None:
    walk = Walk(job(min_sites=3))
    assert walk.answer("b", "refuse", "wrong_signer").phase is Phase.REFUSED


def test_a_refusal_that_says_nothing_is_a_refusal_all_the_same() -> None:
    walk = Walk(job(min_sites=3))
    assert walk.answer("b", "refuse").phase is Phase.REFUSED
    assert walk.state.reason == "fewer than 3 sites accept (b: refused)"


def test_a_word_nobody_knows_is_no_consent() -> None:
    walk = Walk(job(min_sites=3))
    assert walk.answer("a", "ALLOW").members["a"].standing is Standing.REFUSED


def test_a_site_that_needs_confirmation_holds_the_start_until_its_custodian_answers() -> None:
    walk = Walk()
    walk.allow("a", "b")
    walk.answer("c", "confirm")
    assert walk.state.phase is Phase.OFFERED
    assert walk.state.members["c"].standing is Standing.PARKED
    # Its gateway may be restarted while the custodian thinks: the offer stays on.
    assert isinstance(order_for(walk.state, "c"), Offer)
    assert not is_news(walk.state, Answered(9.0, "c", "confirm"))
    assert walk.answer("c").phase is Phase.RUNNING
    assert walk.waiting == {"a", "b", "c"}


def test_with_a_quorum_the_run_begins_and_the_others_may_still_answer() -> None:
    walk = Walk(job(start="quorum"))
    walk.answer("c", "confirm")
    walk.answer("a")
    walk.answer("b")
    assert walk.state.phase is Phase.RUNNING
    assert walk.waiting == {"a", "b"}
    assert isinstance(order_for(walk.state, "c"), Offer)
    assert walk.answer("c", "refuse", "no_policy").members["c"].standing is Standing.REFUSED
    assert order_for(walk.state, "c") is None


def test_at_the_deadline_of_offers_the_run_begins_with_those_who_answered() -> None:
    walk = Walk()
    walk.allow("a", "b")
    walk.tell(DeadlinePassed(60.0, "offer"))
    assert walk.state.phase is Phase.RUNNING
    assert walk.state.members["c"].code == "answered_too_late"


def test_at_the_deadline_of_offers_too_few_is_a_refusal_that_says_who_did_not_answer() -> None:
    walk = Walk()
    walk.answer("a")
    walk.answer("b", "refuse", "no_policy")
    walk.tell(DeadlinePassed(60.0, "offer"))
    assert walk.state.phase is Phase.REFUSED
    assert "b: no_policy" in walk.state.reason
    assert "c: answered_too_late" in walk.state.reason


def test_an_explanation_ends_when_all_have_answered_and_starts_nothing() -> None:
    walk = Walk(dry_run=True)
    walk.answer("a")
    assert walk.answer("b", "confirm").phase is Phase.OFFERED
    assert walk.answer("c", "refuse", "digest_not_named").phase is Phase.EXPLAINED
    assert walk.state.step is None
    standings = {s: m.standing for s, m in walk.state.members.items()}
    assert standings == {"a": Standing.ACCEPTED, "b": Standing.PARKED, "c": Standing.REFUSED}


def test_an_explanation_asks_on_even_when_the_run_could_not_begin() -> None:
    walk = Walk(job(min_sites=3), dry_run=True)
    walk.answer("a", "refuse", "no_policy")
    assert walk.state.phase is Phase.OFFERED


def test_an_evaluate_only_site_is_no_training_site_for_the_quorum() -> None:
    walk = Walk(job(evaluate_only=("c/lesions",)))
    walk.allow("c", "a")
    assert walk.answer("b", "refuse", "no_policy").phase is Phase.REFUSED


# -------------------------------------------------------------------------------------------- silence and failure


def test_a_site_that_is_silent_in_a_round_is_late_and_asked_again_in_the_next() -> None:
    walk = started().go_to("train/1")
    walk.everybody(but="b")
    walk.tell(SiteSilent(walk.tick(), "b", "train/1"))
    assert walk.task == "aggregate/1"
    assert set(central_inputs(walk.state)) == {"a", "c"}
    assert walk.state.step is not None
    assert walk.state.step.document["recipients"] == ["a", "b", "c"]
    walk.do_step()
    assert walk.state.rounds[0].late == ("b",)
    assert walk.task == "train/2"
    order = order_for(walk.state, "b")
    assert isinstance(order, TaskOrder)
    assert order.inputs[0].key == "aggregate/1/b/down/weights"
    # Nobody waits for it before it is heard of.
    assert walk.waiting == {"a", "c"}
    walk.tell(SiteReturned(walk.tick(), "b"))
    assert walk.waiting == {"a", "b", "c"}
    assert not walk.state.members["b"].code


def test_the_deadline_of_a_round_makes_the_slow_ones_late() -> None:
    walk = started().go_to("train/1")
    walk.everybody(but="c")
    walk.tell(DeadlinePassed(walk.tick(), "train/1"))
    assert walk.task == "aggregate/1"
    assert walk.state.members["c"].standing is Standing.ACCEPTED


def test_a_round_without_its_quorum_has_one_more_deadline_and_then_the_run_fails() -> None:
    walk = started().go_to("train/1")
    walk.done("a")
    walk.tell(DeadlinePassed(walk.tick(), "train/1"))
    assert not walk.state.ended
    assert waiting_for(walk.state) == ("b", "c")
    assert public_state(walk.state)["waiting_for_sites"] == ["b", "c"]
    walk.tell(DeadlinePassed(walk.tick(), "train/1"))
    assert walk.state.phase is Phase.FAILED
    assert walk.state.reason == "quorum_not_reached (b: too_late; c: too_late)"


def test_a_quorum_that_is_lost_to_silence_is_waited_for_until_one_more_deadline() -> None:
    walk = started().go_to("train/1")
    walk.done("a")
    for site in "bc":
        walk.tell(SiteSilent(walk.tick(), site, "train/1"))
    assert walk.state.step is not None
    assert walk.state.step.last_call
    walk.tell(SiteReturned(walk.tick(), "c"))
    assert waiting_for(walk.state) == ()
    walk.done("c")
    assert walk.task == "aggregate/1"
    assert set(central_inputs(walk.state)) == {"a", "c"}


@pytest.mark.parametrize("task", ["start", "fingerprint", "prepare", "validate", "baseline", "evaluate/test"])
def test_a_site_that_is_silent_anywhere_is_left_out_of_that_step_and_no_more(task: str) -> None:
    walk = started().go_to(task)
    walk.tell(SiteSilent(walk.tick(), "b", task))
    member = walk.state.members["b"]
    assert (member.standing, member.absent, member.code) == (Standing.ACCEPTED, True, "silent")
    assert walk.waiting == {"a", "c"}
    assert isinstance(order_for(walk.state, "b"), TaskOrder)  # If it hears of it, it may still do it.
    walk.do_step()
    assert "b" not in walk.state.results[task]
    assert walk.to_the_end().phase is Phase.FINISHED


def test_a_site_that_is_back_before_the_step_closes_may_finish_it() -> None:
    walk = started().go_to("train/1")
    walk.tell(SiteSilent(walk.tick(), "b", "train/1"))
    walk.done("b")
    assert not walk.state.members["b"].absent
    walk.do_step()
    assert set(central_inputs(walk.state)) == set(ALL)


@pytest.mark.parametrize(("missed", "catches_up"), [("start", ["start", "prepare"]), ("prepare", ["prepare"])])
def test_a_site_that_is_back_catches_up_and_joins_the_next_round(missed: str, catches_up: list[str]) -> None:
    walk = started(job(rounds=3)).go_to(missed)
    walk.tell(SiteSilent(walk.tick(), "b", missed))
    walk.go_to("train/1")
    assert walk.waiting == {"a", "c"}
    asked = []
    while isinstance(order := order_for(walk.state, "b"), TaskOrder):
        asked.append(order)
        walk.done("b", order.task_id)
    assert [order.task_id for order in asked] == catches_up
    assert asked[-1].inputs == (Input("plan", "plan", 0, "plan", "plan/b/down/plan"),)
    assert walk.waiting == {"a", "c"}
    walk.go_to("train/2")
    assert walk.waiting == {"a", "b", "c"}
    assert walk.state.rounds[0].late == ()
    assert walk.to_the_end().phase is Phase.FINISHED


def test_whatever_is_heard_of_an_absent_site_makes_it_present() -> None:
    walk = started().go_to("train/1")
    walk.tell(SiteSilent(walk.tick(), "b", "train/1"))
    gone = walk.state
    for heard in (
        SiteReturned(9.0, "b"),
        TaskDone(9.0, "b", "prepare", "old", 1.0, 1, 1),
        Answered(9.0, "b", "allow"),
    ):
        back = advance(gone, heard)
        assert not back.members["b"].absent
        assert back.step is not None
        assert back.step.waiting == {"a", "b", "c"}
        assert not is_news(back, heard)


@pytest.mark.parametrize("task", ["start", "fingerprint", "train/1", "train/2", "validate", "baseline"])
def test_a_site_that_fails_is_out_and_the_others_go_on(task: str) -> None:
    walk = started().go_to(task)
    walk.tell(SiteFailed(walk.tick(), "c", task, "output_blocked"))
    assert walk.state.members["c"].code == "output_blocked"
    assert walk.to_the_end().phase is Phase.FINISHED
    assert "c" not in walk.state.results["evaluate/test"]


def test_a_site_that_fails_while_the_centre_works_is_out_too() -> None:
    walk = started().go_to("aggregate/1")
    walk.tell(SiteFailed(walk.tick(), "c", "train/1", "worker_lost"))
    assert walk.task == "aggregate/1"
    walk.do_step()
    assert walk.waiting == {"a", "b"}


def test_when_too_few_are_left_the_run_fails_and_names_them() -> None:
    walk = started().go_to("train/1")
    walk.tell(SiteFailed(walk.tick(), "a", "train/1", "worker_error"))
    walk.tell(SiteFailed(walk.tick(), "b", "train/1", "policy_expired"))
    assert walk.state.phase is Phase.FAILED
    assert walk.state.reason == "quorum_not_reached (a: worker_error; b: policy_expired)"


def test_no_round_is_closed_with_fewer_updates_than_the_quorum() -> None:
    """One is late, then another fails: a sum over the last one alone would be that site's own model."""
    walk = started().go_to("train/1")
    walk.done("a")
    walk.tell(SiteSilent(walk.tick(), "b", "train/1"))
    assert walk.waiting == {"c"}
    walk.tell(SiteFailed(walk.tick(), "c", "train/1", "worker_error"))
    assert walk.task == "train/1"
    assert waiting_for(walk.state) == ("b",)
    walk.tell(DeadlinePassed(walk.tick(), "train/1"))
    assert walk.state.phase is Phase.FAILED
    assert walk.state.reason == "quorum_not_reached (b: silent; c: worker_error)"


def test_an_evaluate_only_site_may_fail_without_touching_the_quorum() -> None:
    walk = started(job(evaluate_only=("c/lesions",))).go_to("train/1")
    walk.tell(SiteFailed(walk.tick(), "c", "prepare", "worker_lost"))
    assert walk.to_the_end().phase is Phase.FINISHED


def test_the_centre_fails_and_the_run_with_it() -> None:
    walk = started().go_to("plan")
    walk.tell(CentreFailed(walk.tick(), "process_ended"))
    assert (walk.state.phase, walk.state.reason) == (Phase.FAILED, "process_ended")


@pytest.mark.parametrize("task", ["start", "train/1", "aggregate/1", "export"])
def test_an_abort_ends_the_run_wherever_it_is(task: str) -> None:
    walk = started().go_to(task)
    walk.tell(AbortRequested(walk.tick(), "ada@uni.example"))
    assert (walk.state.phase, walk.state.reason) == (Phase.ABORTED, "aborted by ada@uni.example")
    assert all(order_for(walk.state, s) == StopOrder("run-1", "aborted", 1) for s in ALL)


def test_an_offer_can_be_aborted() -> None:
    walk = Walk()
    assert walk.tell(AbortRequested(1.0, "ada")).phase is Phase.ABORTED


# ----------------------------------------------------------------------------- what late and wrong messages cannot do


def test_late_repeated_and_foreign_messages_change_nothing() -> None:
    walk = started().go_to("train/2")
    walk.done("a")
    before = walk.state
    for stray in (
        TaskDone(9.0, "a", "train/2", "again", 1.0, 1, 1),
        TaskDone(9.0, "b", "train/1", result_key("train/1", "b", 1), 1.0, 1, 1),
        TaskDone(9.0, "z", "train/2", result_key("train/2", "z", 1), 1.0, 1, 1),
        TaskDone(9.0, "b", "train/3", result_key("train/3", "b", 1), 1.0, 1, 1),
        SiteSilent(9.0, "a", "train/2"),
        SiteSilent(9.0, "b", "train/1"),
        SiteFailed(9.0, "z", "train/2", "worker_error"),
        CentralDone(9.0, "aggregate/1", {"sites": {}, "weights_blake3": ""}),
        CentralDone(9.0, "train/2", {}),
        DeadlinePassed(9.0, "train/1"),
        DeadlinePassed(9.0, "offer"),
        Answered(9.0, "a", "refuse"),
        Answered(9.0, "z", "allow"),
        walk.events[0],
    ):
        assert advance(before, stray) is before, stray
        assert not is_news(before, stray)


def test_a_late_site_cannot_bring_its_update_into_a_later_sum() -> None:
    walk = started().go_to("train/1")
    walk.everybody(but="b")
    walk.tell(SiteSilent(walk.tick(), "b", "train/1"))
    late = TaskDone(9.0, "b", "train/1", "k", 1.0, 1, 1)
    walk.tell(late)
    walk.do_step()
    assert walk.task == "train/2"
    assert not is_news(walk.state, late)
    assert set(walk.state.results["train/1"]) == {"a", "c"}


def test_a_task_of_the_sites_has_no_deadline_while_the_centre_works() -> None:
    walk = started().go_to("aggregate/1")
    assert not is_news(walk.state, DeadlinePassed(9.0, "aggregate/1"))


def test_an_ended_run_hears_nothing() -> None:
    state = started().to_the_end()
    for event in (AbortRequested(9.0, "ada"), CentreFailed(9.0, "x"), SiteFailed(9.0, "a", "train/1", "x")):
        assert advance(state, event) is state


def test_a_clock_that_steps_back_makes_no_negative_duration() -> None:
    walk = started().go_to("train/1")
    walk.now = -100.0
    walk.do_step()
    walk.do_step()
    assert walk.state.rounds[0].seconds >= 0


# ---------------------------------------------------------------------------------------------------------- orders


def test_the_offer_carries_the_bytes_that_were_signed_and_is_made_once() -> None:
    walk = Walk()
    assert order_for(walk.state, "a") == Offer("run-1", encode(job()), "proof", "token", False)
    walk.answer("a")
    assert order_for(walk.state, "a") is None
    assert order_for(walk.state, "z") is None


def test_what_each_stage_orders_and_which_sealed_streams_it_names() -> None:
    walk = started()
    seen: dict[str, tuple[str, tuple[Input, ...], dict[str, Any]]] = {}
    while not walk.state.ended:
        order = order_for(walk.state, "a")
        if walk.state.step is not None and walk.state.step.central:
            assert order is None
        else:
            assert isinstance(order, TaskOrder)
            seen[order.task_id] = (order.verb, order.inputs, dict(order.document))
        walk.do_step()
    weights_0 = Input("weights", "plan", 0, "weights", "plan/a/down/weights")
    assert seen == {
        "start": ("start", (), {}),
        "fingerprint": ("fingerprint", (), {}),
        "prepare": ("prepare", (Input("plan", "plan", 0, "plan", "plan/a/down/plan"),), {}),
        "train/1": ("train", (weights_0,), {"stream": "federated"}),
        "train/2": (
            "train",
            (Input("weights", "aggregate/1", 1, "weights", "aggregate/1/a/down/weights"),),
            {"stream": "federated"},
        ),
        "validate": (
            "evaluate",
            (Input("federated", "aggregate/2", 2, "weights", "aggregate/2/a/down/weights"),),
            {"split": "validation", "candidates": ["federated"]},
        ),
        "baseline": ("train", (weights_0,), {"stream": "local", "rounds": 2}),
        "evaluate/test": (
            "evaluate",
            tuple(Input(n, "candidates", 1, n, f"candidates/a/down/{n}") for n in ("federated", "local:b", "local:c")),
            {"split": "test", "candidates": ["federated", "local:b", "local:c", "local:a"]},
        ),
    }


def test_what_the_centre_reads_in_each_of_its_steps() -> None:
    walk = started()
    read: dict[str, set[str]] = {}
    while not walk.state.ended:
        if walk.state.step is not None and walk.state.step.central:
            read[walk.task] = set(central_inputs(walk.state).values())
        else:
            assert central_inputs(walk.state) == {}
        walk.do_step()

    def of(task: str) -> set[str]:
        return {result_key(task, s, 1) for s in ALL}

    assert read == {
        "open": set(),
        "plan": of("fingerprint"),
        "aggregate/1": of("train/1"),
        "aggregate/2": of("train/2"),
        "collect/validate": of("validate"),
        "candidates": of("baseline"),
        "collect/test": of("evaluate/test"),
        "export": set(),
    }


def test_an_evaluate_only_site_prepares_and_is_tested_and_never_trains() -> None:
    walk = started(job(evaluate_only=("c/lesions",)))
    asked: list[str] = []
    while not walk.state.ended:
        if isinstance(order := order_for(walk.state, "c"), TaskOrder):
            asked.append(order.task_id)
            if order.task_id == "evaluate/test":
                assert order.document["candidates"] == ["federated", "local:a", "local:b"]
        walk.do_step()
    assert asked == ["start", "prepare", "evaluate/test"]
    assert all("c" not in r.sites for r in walk.state.rounds)


def test_a_site_that_is_done_waits() -> None:
    walk = started().go_to("train/1")
    walk.done("a")
    assert order_for(walk.state, "a") is None
    assert isinstance(order_for(walk.state, "b"), TaskOrder)


def test_a_refused_site_is_only_told_the_end() -> None:
    walk = Walk()
    walk.answer("b", "refuse", "no_policy")
    walk.allow("a", "c")
    while not walk.state.ended:
        assert order_for(walk.state, "b") is None
        walk.do_step()
    assert order_for(walk.state, "b") == StopOrder("run-1", "finished", 1)


# ------------------------------------------------------------------------------------------------------- replaying


def stories() -> dict[str, Walk]:
    finished = started()
    finished.to_the_end()
    refused = Walk()
    for site in ALL:
        refused.answer(site, "refuse", "no_policy")
    rough = started().go_to("train/1")
    rough.everybody(but="b")
    rough.tell(SiteSilent(rough.tick(), "b", "train/1"))
    rough.do_step()
    rough.tell(SiteFailed(rough.tick(), "a", "train/2", "worker_error"))
    rough.tell(DeadlinePassed(rough.tick(), "train/2"))
    aborted = started().go_to("plan")
    aborted.tell(AbortRequested(aborted.tick(), "ada"))
    broken = started().go_to("plan")
    broken.tell(CentreFailed(broken.tick(), "process_ended"))
    return {"finished": finished, "refused": refused, "rough": rough, "aborted": aborted, "broken": broken}


@pytest.mark.parametrize("name", stories())
def test_replaying_the_stored_events_gives_the_state_back(name: str) -> None:
    walk = stories()[name]
    texts = [to_json(event) for event in walk.events]
    first, *rest = [from_json(text) for text in texts]
    assert [first, *rest] == walk.events
    assert isinstance(first, Submitted)
    state = submitted(first, load_json(first.spec.encode(), JobSpec, "the job"))
    for event in rest:
        state = advance(state, event)
    assert state == walk.state


@pytest.mark.parametrize("text", ['{"kind": "Nothing"}', '{"at": 1.0}', '{"kind": "AbortRequested", "who": "x"}'])
def test_an_event_of_another_version_stops_the_replay(text: str) -> None:
    with pytest.raises((KeyError, TypeError)):
        from_json(text)


def test_no_secret_is_in_what_people_see() -> None:
    walk = started()
    walk.to_the_end()
    shown = f"{public_state(walk.state)}{[public_event(e) for e in walk.events]}"
    for secret in ("c2VjcmV0", "'token'", "'proof'"):
        assert secret not in shown
