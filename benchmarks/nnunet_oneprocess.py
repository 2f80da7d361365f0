"""All sites of a federation in one process, straight through the model contract: for tuning and orientation.

    python benchmarks/nnunet_oneprocess.py --data DIR [--rounds 25 --batches 30 --seeds 1,2,3 …]

DIR holds one folder per site in nnU-Net raw layout; a folder without imagesTr is evaluated only. No transport, no
sealing, no policies: what it prints are the model's own figures. Every key of the release's config can be set with
`--set key=value`. Output: one line per round, then the model × site matrix of mean test Dice and the seconds of each
verb, as text and with `--json FILE` as JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import safetensors.numpy
from ruamel.yaml import YAML

import msfl.learning.nnunet as release
from msfl.learning.contract import Candidate, Site, Weights
from msfl.learning.nnunet.model import NnUNet
from msfl.learning.splits import split_cases

RELEASE = Path(release.__file__).with_name("release.yaml")


def open_site(folder: Path, scratch: Path, config: dict) -> Site:
    description = json.loads((folder / "dataset.json").read_text())
    ending = description["file_ending"]

    def cases(part: str) -> list[str]:
        return sorted(p.name[: -len(ending)] for p in (folder / part).glob(f"*{ending}"))

    train, val = split_cases(cases("labelsTr"), config["seed"], config["validation_fraction"])
    return Site(
        site_id=folder.name,
        data=folder,
        scratch=scratch / folder.name,
        figures=scratch / folder.name / "figures",
        channel_names=tuple(description["channel_names"][str(c)] for c in range(len(description["channel_names"]))),
        labels=description["labels"],
        file_ending=ending,
        train_cases=tuple(train),
        val_cases=tuple(val),
        test_cases=tuple(cases("labelsTs")),
    )


def average(updates: dict[str, tuple[Weights, int]], weighting: str) -> Weights:
    shares = {site: float(n) if weighting == "cases" else 1.0 for site, (_, n) in updates.items()}
    total = sum(shares.values())
    names = next(iter(updates.values()))[0]
    return {
        name: sum(updates[s][0][name].astype(np.float64) * (shares[s] / total) for s in sorted(updates)).astype(
            np.float32
        )
        for name in names
    }


def nothing(done: int, total: int, metrics: object = None) -> None:
    pass


def run(data: Path, config: dict, local: bool, validate_every: int, scratch: Path, quiet: bool) -> dict:
    seconds: dict[str, float] = defaultdict(float)

    def timed(verb: str, began: float) -> None:
        seconds[verb] += time.monotonic() - began

    folders = sorted(p.parent for p in data.glob("*/dataset.json"))
    sites = {folder.name: open_site(folder, scratch, config) for folder in folders}
    models = {name: NnUNet() for name in sites}
    trainers = [name for name, site in sites.items() if site.train_cases]
    centre = NnUNet()
    t = time.monotonic()
    fingerprints = {name: models[name].fingerprint(sites[name], config) for name in trainers}
    timed("fingerprint", t)
    t = time.monotonic()
    plan = centre.plan(fingerprints, config)
    weights = centre.initial(plan, config)
    timed("plan", t)
    if not quiet:
        c = plan["nnunet"]["configurations"]["3d_fullres"]
        a = c["architecture"]["arch_kwargs"]
        n = sum(v.size for v in weights.values())
        print(f"plan: patch {c['patch_size']} batch {c['batch_size']} spacing {c['spacing']} "
              f"features {a['features_per_stage']} convs {a['n_conv_per_stage']} parameters {n}")  # fmt: skip
    t = time.monotonic()
    for name, site in sites.items():
        models[name].prepare(site, plan, config, nothing)
    timed("prepare", t)
    initial = weights
    best, best_weights, curve = -1.0, weights, []
    for number in range(1, config["rounds"] + 1):
        t = time.monotonic()
        updates = {}
        losses = []
        for name in trainers:
            trained = models[name].train(sites[name], weights, "federated", number, config, nothing)
            updates[name] = (trained.weights, trained.n_train)
            losses.append(trained.metrics["train_loss"])
        weights = average(updates, config["weighting"])
        timed("train", t)
        if validate_every and (number % validate_every == 0 or number == config["rounds"]):
            t = time.monotonic()
            dice, n_val, loss = [], [], []
            for name in trainers:
                (summary,) = models[name].evaluate(
                    sites[name], (Candidate("federated", weights),), "validation", config, nothing
                ).summaries.values()  # fmt: skip
                if summary["n"]:
                    dice.append(summary["dice"]["mean"])
                    loss.append(summary["loss"])
                    n_val.append(summary["n"])
            timed("validate", t)
            score = float(np.average(dice, weights=n_val)) if dice else 0.0
            curve.append((number, float(np.mean(losses)), score))
            if score > best:
                best, best_weights = score, weights
            if not quiet:
                each = " ".join(f"{d:.3f}" for d in dice)
                print(f"round {number:3d}  train {np.mean(losses):+.3f}  val {np.mean(loss):+.3f}  "
                      f"dice {score:.3f} ({each})", flush=True)  # fmt: skip
    if not validate_every:
        best_weights = weights
    local_weights: dict[str, Weights] = {}
    if local:
        t = time.monotonic()
        for name in trainers:
            local_weights[name] = initial
            for number in range(1, config["rounds"] + 1):
                local_weights[name] = (
                    models[name].train(sites[name], local_weights[name], "local", number, config, nothing).weights
                )
        timed("local", t)
    t = time.monotonic()
    matrix: dict[str, dict[str, dict]] = defaultdict(dict)
    for name, site in sites.items():
        candidates = [Candidate("federated", best_weights)]
        if best_weights is not weights:
            candidates.append(Candidate("last", weights))
        candidates += [Candidate(f"local:{o}", None if o == name else w) for o, w in local_weights.items()]
        for model, summary in (
            models[name].evaluate(site, tuple(candidates), "test", config, nothing).summaries.items()
        ):  # fmt: skip
            matrix[model][name] = summary
    timed("evaluate", t)
    safetensors.numpy.save_file(weights, scratch / "federated.safetensors")
    return {
        "matrix": matrix,
        "seconds": dict(seconds),
        "curve": curve,
        "n_test": {name: len(site.test_cases) for name, site in sites.items()},
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--batches", type=int)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--local", action="store_true", help="train the local baselines, too")
    parser.add_argument("--validate-every", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="scratch folder to keep (figures are inside)")
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args()
    config = dict(YAML(typ="safe").load(RELEASE.read_text())["profiles"][arguments.profile])
    if arguments.rounds:
        config["rounds"] = arguments.rounds
    if arguments.batches:
        config["batches_per_epoch"] = arguments.batches
    for item in arguments.set:
        key, _, value = item.partition("=")
        assert key in config, f"unknown key {key}"
        config[key] = json.loads(value) if not isinstance(config[key], str) else value
    results = []
    for seed in map(int, arguments.seeds.split(",")):
        config["seed"] = seed
        with tempfile.TemporaryDirectory() as folder:
            scratch = arguments.keep or Path(folder)
            result = run(arguments.data, config, arguments.local, arguments.validate_every, scratch, arguments.quiet)
        results.append(result)
        for model, row in sorted(result["matrix"].items()):
            print(f"seed {seed}  {model:16s}", "  ".join(f"{s} {v['dice']['mean']:.3f}" for s, v in row.items()))
        verbs = " ".join(f"{verb} {value:.1f}" for verb, value in result["seconds"].items())
        total = sum(result["seconds"].values())
        print(f"seconds {total:.1f}: {verbs}; peak {result['peak_rss_mib']:.0f} MiB", flush=True)
    if len(results) > 1:
        for model in sorted(results[0]["matrix"]):
            row = {
                s: [r["matrix"][model][s]["dice"]["mean"] for r in results] for s in results[0]["matrix"][model]
            }  # fmt: skip
            cells = "  ".join(f"{s} {np.mean(v):.3f}±{np.std(v):.3f}" for s, v in row.items())
            print(f"mean    {model:16s}", cells)
    if arguments.json:
        arguments.json.write_text(json.dumps({"config": config, "results": results}, indent=1))


if __name__ == "__main__":
    main()
