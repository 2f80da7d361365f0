"""Policies and requests that Hypothesis makes up around the world of `governance`: bounds just met and just missed.

Most draws are the usual value, so that some requests pass every rule of some policy and the others fail a few.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

from hypothesis import strategies as st

from fakes.governance import DIGEST, ISSUER, NOW, World
from msfl.policies import trust
from msfl.policies.decide import Request
from msfl.policies.documents import (
    AllowedRelease,
    Approval,
    AssetPolicy,
    Beneficiaries,
    Isolation,
    MinCases,
    PolicyLimits,
    Privacy,
    RefusedByName,
    Resources,
    ReviewersNeeded,
    Splits,
    WeightsOut,
)
from msfl.policies.trust import TrustedPolicy, TrustedRelease

OTHER = "sha256:" + "0" * 64


@cache
def world_policy() -> TrustedPolicy:
    return World().policy


@cache
def world_request() -> Request:
    return World().request()


def with_document(document: AssetPolicy, sha256: str) -> TrustedPolicy:
    return replace(world_policy(), document=document, sha256=sha256, seal=trust._SEAL)


def with_reviewers(number: int) -> TrustedRelease:
    names = tuple(f"reviewer-{n}" for n in range(number))
    return replace(world_request().release, reviewers=names, seal=trust._SEAL)


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """The usual value often enough that some requests pass every rule."""
    return st.sampled_from([usual] * (3 * len(others)) + list(others))


@st.composite
def documents(draw: st.DrawFn) -> AssetPolicy:
    usual = world_policy().document
    entry = usual.releases[0]
    releases = [
        AllowedRelease(
            name=draw(mostly(entry.name, "ms-other")),
            versions=draw(mostly(("1.0.0",), ("1.0.1",), ("1.0.0", "2.0.0"))),
            digests=draw(mostly((DIGEST,), (OTHER,), (OTHER, DIGEST))),
            tasks=draw(mostly(entry.tasks, ("prepare", "evaluate"), ("fingerprint", "train"))),
            reviewers=ReviewersNeeded(minimum=draw(mostly(2, 1, 3))),
        )
        for _ in range(draw(mostly(1, 2)))
    ]
    config = dict(usual.config)
    for key, limits in draw(
        st.lists(
            st.sampled_from(
                [
                    ("rounds", PolicyLimits(max=50)),
                    ("rounds", PolicyLimits(max=49)),
                    ("rounds", PolicyLimits(min=51)),
                    ("initial_lr", PolicyLimits(min=0.02)),
                    ("initial_lr", PolicyLimits(const=0.02)),
                    ("initial_lr", PolicyLimits(enum=(0.01, 0.03))),
                    ("profile", PolicyLimits(min=0)),
                    ("deep_supervision", PolicyLimits(enum=(1, 0))),
                    ("deep_supervision", PolicyLimits(const=True)),
                    ("seed", None),
                    ("unused", PolicyLimits(max=1)),
                ]
            ),
            max_size=1,
        )
    ):
        if limits is None:
            del config[key]
        else:
            config[key] = limits
    return usual.model_copy(
        update={
            "id": draw(st.sampled_from(["a", "b", "c"])),
            "version": draw(st.integers(1, 2)),
            "not_before": NOW - timedelta(seconds=draw(mostly(100, 0, -1))),
            "expires": NOW + timedelta(seconds=draw(mostly(100, 0, 1))),
            "datasets": draw(mostly(("ms-trial",), ("ms-other",), ("ms-other", "ms-trial"))),
            "beneficiaries": Beneficiaries(
                users=draw(
                    mostly(
                        ("ada@uni.example",),
                        ("ADA@uni.example",),
                        ("user-1",),
                        (f"{ISSUER}#user-1",),
                        ("bob@uni.example",),
                        (),
                    )
                ),
                organisations=draw(mostly(("uni.example",), ("x.example",))),
            ),
            "refuse": draw(
                mostly(
                    RefusedByName(),
                    RefusedByName(users=("eve@uni.example",), organisations=("x.example",), digests=(OTHER,)),
                    RefusedByName(users=("Ada@uni.example",)),
                    RefusedByName(organisations=("uni.example",)),
                    RefusedByName(digests=(DIGEST,)),
                )
            ),
            "releases": tuple(releases),
            "config": config,
            "splits": draw(
                mostly(
                    usual.splits,
                    Splits(train=("train",), test=("evaluate",)),
                    Splits(train=("evaluate",), test=("evaluate",)),
                    Splits(train=("train", "evaluate")),
                )
            ),
            "outputs": usual.outputs.model_copy(update={"weights": draw(mostly(WeightsOut(max_mib=1), None))}),
            "privacy": Privacy(
                min_cases=MinCases(train=draw(mostly(12, 13)), metrics=draw(mostly(4, 5))),
                min_sites=draw(mostly(2, 1, 3)),
                secure_aggregation=draw(mostly("optional", "forbidden", "required")),
                epsilon_total=draw(mostly(None, 8)),
            ),
            "resources": Resources(gpus=draw(mostly(0, 1)), memory_gib=draw(mostly(4, 3)), wall_time="1h"),
            "isolation": draw(mostly(Isolation.SANDBOX, Isolation.NONE, Isolation.CONTAINER)),
            "proof": draw(mostly("required", "optional")),
            "approval": Approval(
                mode=draw(st.sampled_from(["auto", "confirm"])),
                auto_for=draw(mostly((), ("ada@uni.example",), ("bob@uni.example",))),
                max_runs=draw(mostly(3, 2)),
                max_rounds=draw(mostly(100, 99)),
            ),
        }
    )


@st.composite
def requests(draw: st.DrawFn) -> Request:
    usual = world_request()
    evaluate_only = draw(mostly((), ("site-a/ms-trial",), ("site-b/ms-cohort",)))
    spent = st.dictionaries(st.sampled_from("abc"), mostly(0, 2, 3))
    return replace(
        usual,
        job=usual.job.model_copy(update={"evaluate_only": evaluate_only, "min_sites": draw(mostly(2, 1))}),
        user=replace(
            usual.user,
            subject=draw(mostly("user-1", "ada@uni.example", "eve@uni.example")),
            only_issuer=draw(mostly(True, False)),
            email=draw(mostly("ada@uni.example", "Ada@uni.example", "")),
            organisation=draw(mostly("uni.example", "x.example", "X.Example", "")),
        ),
        release=with_reviewers(draw(mostly(2, 1, 3))),
        isolation=draw(mostly(Isolation.SANDBOX, *Isolation)),
        proof_given=draw(mostly(True, False)),
        participants=draw(mostly(3, 1)),
        runs_so_far=draw(spent),
        rounds_so_far={k: 20 * v for k, v in draw(spent).items()},
        confirmed=draw(mostly(False, True)),
    )
