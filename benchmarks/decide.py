"""How much processor time one decision takes among 100 policies of a site: python benchmarks/decide.py

One policy names the dataset, 99 name others; then, as the worst case, all 100 name it and none allows the job.
"""

from __future__ import annotations

import sys
import time
import timeit
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fakes.governance import NOW, POLICY_YAML, World, edit
from msfl.policies.decide import decide
from msfl.policies.trust import TrustedPolicy


def policies(dataset: str, count: int, rounds: int) -> list[TrustedPolicy]:
    text = edit(POLICY_YAML, "datasets: [ms-trial]", f"datasets: [{dataset}]")
    text = edit(text, "rounds: {max: 60}", f"rounds: {{max: {rounds}}}")
    return [
        World(policy_yaml=edit(text, "id: ms-trial-lesion-segmentation", f"id: policy-{dataset}-{n}")).policy
        for n in range(count)
    ]


def main() -> None:
    request = World().request()
    usual = (*policies("other", 99, 60), World().policy)
    worst = tuple(policies("ms-trial", 100, 2))
    for name, given in (("1 of 100 names the dataset", usual), ("100 of 100 name it, none allows", worst)):
        decide(request, given, NOW)
        repeat = 2000 if given is usual else 50
        best = (
            min(
                timeit.repeat(
                    lambda given=given: decide(request, given, NOW), number=repeat, repeat=7, timer=time.process_time
                )
            )
            / repeat
        )
        print(f"{name}: {best * 1e6:.0f} us")


main()
