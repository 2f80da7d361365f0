"""What the whole road costs per case: DICOM of two real 1 mm pairs with their lesions, to a published dataset.

    python benchmarks/scan.py [--data DIR]

The pairs (openms patients 07 and 26) are written as DICOM, 182 or more files for each image, the masks as DICOM
segmentation objects; that is not counted. One process, so that its CPU is what it costs: user and system time, the
converter's included, which other work on the machine distorts little. Peak is the process's largest resident memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


from fakes.segmentations import openms_as_dicom
from msfl.imaging.custodian import import_source, publish
from msfl.imaging.quality.control import check_quality


def cpu() -> float:
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def measured(what: str, cases: int, do: Callable[[], Any]) -> Any:
    before, begin = cpu(), time.monotonic()
    answer = do()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    spent, wall = (cpu() - before) / cases, (time.monotonic() - begin) / cases
    print(
        f"{what:10} {spent:6.1f} s of CPU per case ({wall:.0f} s by the clock), peak so far {peak:.2f} GiB", flush=True
    )
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MSFL_TEST_DATA"))
    data = Path(parser.parse_args().data)
    names = ("patient07", "patient26")
    with tempfile.TemporaryDirectory() as folder:
        source, home = Path(folder, "source"), Path(folder, "home")
        for name in names:
            openms_as_dicom(data, name, source)
        brought = measured("import", 2, lambda: import_source(home, "benchmark", source, hands=0))
        assert brought.ok, brought
        measured("quality", 2, lambda: check_quality(home, "benchmark", hands=0))
        done = measured("publish", 2, lambda: publish(home, "benchmark", site="site-a", hands=0))
        print(f"{done.record.n_train} training and {done.record.n_test} test cases, {len(done.left_out)} left out")


if __name__ == "__main__":
    main()
