"""A made-up report of a run with three training sites and one that only evaluates: the shape of the real thing.

Every figure comes from made-up cases through the same `summarise_cases` the workers use, so that means, histograms and
n agree with each other.
"""

from __future__ import annotations

import random
from typing import Any

from msfl.evaluation.metrics import CaseMetrics, summarise_cases

SITES = ("site-a", "site-b", "site-c")
_CENTRE = {  # (model, site) -> about which Dice the cases scatter
    ("federated", "site-a"): 0.70, ("federated", "site-b"): 0.66, ("federated", "site-c"): 0.52,
    ("federated", "real-test"): 0.42,
    ("local:site-a", "site-a"): 0.72, ("local:site-a", "site-b"): 0.55, ("local:site-a", "site-c"): 0.38,
    ("local:site-a", "real-test"): 0.36,
    ("local:site-b", "site-a"): 0.60, ("local:site-b", "site-b"): 0.64, ("local:site-b", "site-c"): 0.41,
    ("local:site-b", "real-test"): 0.40,
    ("local:site-c", "site-a"): 0.48, ("local:site-c", "site-b"): 0.46, ("local:site-c", "site-c"): 0.55,
    ("local:site-c", "real-test"): 0.31,
}  # fmt: skip
_N_TEST = {"site-a": 10, "site-b": 6, "site-c": 4, "real-test": 4}


def sha256(letter: str) -> str:
    """A digest that is easy to recognise: sixty-four times one hexadecimal digit."""
    return "sha256:" + letter * 64


def made_up_entry(centre: float, n: int, draw: random.Random) -> dict[str, Any]:
    """One site's entry of `evaluation` for n cases that scatter about a mean Dice."""

    def near(value: float) -> float:
        return min(0.99, max(0.0, draw.gauss(value, 0.09)))

    return summarise_cases([CaseMetrics(near(centre), near(centre - 0.05), near(centre + 0.08)) for _ in range(n)])


def example_report(rounds: int = 12) -> dict[str, Any]:
    """A fresh, valid report; a test changes its copy as it likes."""
    draw = random.Random(3)
    evaluation: dict[str, dict[str, Any]] = {}
    for (model, site), centre in _CENTRE.items():
        evaluation.setdefault(model, {})[site] = made_up_entry(centre, _N_TEST[site], draw)
    n_train = {"site-a": 16, "site-b": 10, "site-c": 6}
    n_val = {"site-a": 4, "site-b": 2, "site-c": 1}
    return {
        "schema_version": 1,
        "run_id": "run-2026-11-24-7f3a",
        "name": "demo",
        "purpose": "Show a whole federation on one machine",
        "status": "finished",
        "requested_by": {"user": "ada@uni.example", "organisation": "uni.example"},
        "started": "2026-11-24T09:00:00Z",
        "finished": "2026-11-24T09:04:12Z",
        "release": {
            "name": "ms-lesion-nnunet", "version": "1.0.0", "digest": sha256("a"),
            "publisher": "ml@uni.example", "reviewers": ["grace@centre.example", "alan@centre.example"],
        },
        "policy_hashes": {site: sha256(str(i)) for i, site in enumerate((*SITES, "real-test"), start=1)},
        "data": {
            "kind": "generated",
            "description": "Lesions and site styles drawn into the MNI152 template by each site's own generator.",
            "licence": "MNI152 template 2009: see its copyright note; lesions are synthetic",
        },
        "plan_hash": sha256("b"),
        "plan": {
            "patch_size": [48, 48, 48], "batch_size": 2, "spacing": [2.0, 2.0, 2.0],
            "features_per_stage": [8, 16, 32, 64], "n_parameters": 354113, "architecture": "PlainConvUNet",
        },
        "profile": "demo",
        "deviations": [
            {"setting": "patch size", "stock": [128, 128, 128], "used": [48, 48, 48]},
            {"setting": "batches_per_epoch", "stock": 250, "used": 12},
            {"setting": "features of the first stage", "stock": 32, "used": 8},
        ],
        "config": {
            "rounds": rounds, "local_epochs": 1, "batches_per_epoch": 12, "initial_lr": 0.05, "weight_decay": 3e-05,
            "oversample_foreground": 0.33, "validation_fraction": 0.2, "weighting": "cases", "strategy": "fedavg",
        },
        "seed": 1234,
        "isolation": {
            "site-a": {"level": "sandbox", "detail": "bubblewrap: no network, read-only data, own pid space"},
            "site-b": {"level": "sandbox", "detail": ["bubblewrap: no network", "read-only data", "own pid space"]},
            "site-c": {
                "level": "none",
                "in_force": ["environment_verified", "wall_time"],
                "detail": "bubblewrap is not installed; the policy says isolation: none",
            },
            "real-test": {"level": "sandbox", "detail": "bubblewrap: no network, read-only data, own pid space"},
        },
        "sites": {
            site: {
                "dataset": f"{site}/ms-trial", "dataset_version": sha256("c"),
                "n_train": n_train.get(site, 0), "n_val": n_val.get(site, 0), "n_test": _N_TEST[site],
                "spacing": [2.0, 2.0, 2.0], "role": "train" if site in n_train else "evaluate-only",
                "channel_names": ["FLAIR", "T1w"],
            }
            for site in (*SITES, "real-test")
        },
        "rounds": [
            {
                "round": r, "seconds": 9.5 + draw.random(), "bytes_up": 4_400_000, "bytes_down": 4_300_000, "late": [],
                "sites": {
                    site: {
                        "train_loss": -0.75 + 1.2 * 0.8**r + 0.06 * i + draw.gauss(0, 0.01),
                        "val_loss": None if site == "site-c" and r == 2 else -0.68 + 1.2 * 0.8**r + 0.08 * i,
                        "val_dice": None if site == "site-c" and r == 2
                        else max(0.0, min(1.0, (0.72 - 0.1 * i) * (1 - 0.75**r) + draw.gauss(0, 0.015))),
                        "n_train": n_train[site], "n_val": n_val[site],
                    }
                    for i, site in enumerate(SITES)
                },
            }
            for r in range(1, rounds + 1)
        ],
        "best_round": max(1, rounds - 1),
        "final_weights_sha256": sha256("d"), "final_weights_blake3": "blake3:" + "d" * 64,
        "wire": {"format": "float32", "unrounded": {}},
        "evaluated_round": max(1, rounds - 1),
        "evaluation": evaluation,
        "refusals": [],
        "timings": {
            "start": 6.1, "fingerprint": 3.0, "plan": 0.4, "prepare": 5.2, "train": 118.0, "baseline": 96.0,
            "evaluate": 19.5, "export": 1.7,
        },
        "overhead_share": 0.11,
        "peak_rss_mib": {"orchestrator": 140.2, "aggregator": 310.0, "site-a worker": 910.4, "site-b worker": 902.8},
        "environment": {"python": "3.11.2", "torch": "2.13.0", "nnunetv2": "2.8.1", "cpu": "2 cores", "gpu": None},
        "citations": [
            "Isensee F et al. nnU-Net. Nature Methods 2021;18:203-211. doi:10.1038/s41592-020-01008-z",
            "Fonov V et al. Unbiased average age-appropriate atlases. NeuroImage 2011;54:313-327",
        ],
    }  # fmt: skip


def refused_report() -> dict[str, Any]:
    """A run that every site refused: no plan, no rounds, no evaluation."""
    report = example_report(rounds=1)
    report |= {
        "status": "refused", "plan_hash": None, "plan": None, "rounds": [], "best_round": None,
        "final_weights_sha256": None, "final_weights_blake3": None, "evaluated_round": None,
        "evaluation": {}, "isolation": {},
        "overhead_share": None, "timings": {}, "peak_rss_mib": {},
        "refusals": [
            {"site": "site-b", "code": "policy_expired",
             "message": "The policy ms-trial expired on 2026-05-01. Ask the custodian to sign a new one."}
        ],
    }  # fmt: skip
    return report


def remark(site: str, code: str, message: str) -> dict[str, Any]:
    return {"site": site, "code": code, "message": message}


def troubled_report(rounds: int = 12) -> dict[str, Any]:
    """A run that was asked for more rounds, lost a site for a while, refused an update, was paused and resumed."""
    report = example_report(rounds)
    report["survival"] = {
        "rounds": 40, "min_sites": 2, "start": "quorum", "round_deadline_s": 7200, "on_dropout": "continue",
        "keep": "best", "retain": {"last": 2, "best": 1, "every": 5},
        "early_stopping": {"patience": 5, "min_delta": 0.005},
        "on_divergence": {"rounds": 3, "action": "pause"},
    }  # fmt: skip
    report["generation"] = 2
    for record in report["rounds"]:
        record["kept"] = record["round"] in (5, 10, 11, 12)
    first, third, seventh = report["rounds"][0], report["rounds"][2], report["rounds"][6]
    first["late"] = ["site-c"]
    del first["sites"]["site-c"]
    third["refused"] = [remark("site-b", "update_not_finite", "the update holds NaN or infinity")]
    del third["sites"]["site-b"]
    seventh["flags"] = [
        remark("site-b", "loss_rising", "its training loss has risen for several rounds"),
        remark("site-c", "update_outlier", "its update is far larger than the others'"),
    ]
    seventh["late"] = ["site-a"]
    report["course"] = [
        {"at": "2026-11-24T09:01:00Z", "event": "PauseRequested", "message": "paused by ada@uni.example"},
        {"at": "2026-11-24T09:02:00Z", "event": "Resumed", "message": "resumed by ada@uni.example"},
    ]
    return report
