"""An order against the job: the centre orders task by task, and none may be wider than what the user signed. Pure.

    any verb    among those that this job needs of this dataset (`Asked.tasks`), or `start`; round ≤ the job's rounds
    train       round ≥ 1: stream federated, as the task train/ROUND: another name would be the same round once more.
                round 0: stream local, where the job has a baseline, ≤ the job's rounds. It says which: a worker that is
                not told might take it for the other
    evaluate    a dataset that is not trained on: on its test split

An order's parameters come in clear and, more of them, sealed: `unasked` looks at both, when the order comes and again
when everything is at hand. More rounds than the job has are another job: `run.extend` signs one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msfl.policies.decide import Asked
from msfl.policies.refusals import Code, Refusal, refuse


def stream_of(round: int) -> str:
    """What is trained in a round: the federation's model, or, in none of its rounds, the site's own."""
    return "federated" if round else "local"


def unasked(asked: Asked[Any], task: str, verb: str, round: int, document: Mapping[str, Any]) -> Refusal | None:
    """Why the order is none that the job asks for. `document` holds its parameters, as far as they are known."""
    job, ref = asked.job, asked.dataset.ref
    fields = {"dataset": ref, "verb": verb, "round": str(round)}
    if verb not in ("start", *asked.tasks):
        return refuse(Code.TASK_NOT_IN_JOB, f"The job {job.name} asks for no {verb[:40]!r} on {ref}.", **fields)
    if round > job.rounds:
        what = f"Round {round} is ordered; the job {job.name} has {job.rounds}."
        return refuse(Code.ROUND_NOT_IN_JOB, what, **fields)
    if verb == "train":
        if round and task != f"train/{round}":
            # What is done is not done again under its own name; budgets count a round once.
            what = f"Round {round} is trained once, as the task train/{round}, and ordered under another name."
            return refuse(Code.TASK_NOT_IN_JOB, what, **fields)
        stream = stream_of(round)
        if document.get("stream") != stream or (stream == "local" and job.baseline is None):
            what = f"The job {job.name} asks for no training of this kind in round {round}."
            return refuse(Code.TASK_NOT_IN_JOB, what, **fields)
        rounds = document.get("rounds", 0)
        if stream == "local" and (type(rounds) is not int or rounds > job.rounds):
            what = f"{rounds!r:.40} rounds of a local model are ordered; the job {job.name} has {job.rounds}."
            return refuse(Code.ROUND_NOT_IN_JOB, what, **fields)
    if verb == "evaluate" and not asked.trains and document.get("split", "test") != "test":
        what = f"The job {job.name} asks for an evaluation of {ref} on its test split alone."
        return refuse(Code.TASK_NOT_IN_JOB, what, **fields)
    return None
